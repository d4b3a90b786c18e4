#include <algorithm>
#include <cmath>

#include "support.h"

namespace weft {
namespace {

class Vision : public testing::TestWithParam<CpuIsa> {
 protected:
  const VisionOps& ops_ = *cpu_ops(GetParam()).vision;
  const VisionOps& ref_ = *ref_ops().vision;
  TestStream stream_, one_{1};
};
WEFT_FOR_EACH_ISA(Vision);

constexpr double kTolerance = 1e-6;

TEST_P(Vision, LayerNorm) {
  for (const int64_t rows : {0, 1, 33}) {
    for (const int64_t width : {1, 15, 64, 193}) {
      const Floats x = random_floats({rows, width}, 1, 3), start = random_floats({rows, width}, 2);
      const Floats weight = random_floats({width}, 3), bias = random_floats({width}, 4);
      for (const bool with_residual : {false, true}) {
        Floats residual = start, expected = start;
        Floats out({rows, width}), want({rows, width}), alone({rows, width});
        LayerNormArgs args{x.view, {}, weight.view, bias.view, out.view, 1e-6f};
        if (with_residual) args.residual = residual.view;
        ops_.layer_norm(stream_, args);
        args.out = want.view;
        if (with_residual) args.residual = expected.view;
        ref_.layer_norm(stream_, args);
        EXPECT_LT(relative_l2(out.data, want.data), kTolerance) << width;
        EXPECT_TRUE(residual.same_bits(expected));
        Floats again = start;
        args.out = alone.view;
        if (with_residual) args.residual = again.view;
        ops_.layer_norm(one_, args);
        EXPECT_TRUE(alone.same_bits(out));
      }
    }
  }
}

TEST_P(Vision, GeluOfAnyValue) {
  for (const Gelu form : {Gelu::kErf, Gelu::kTanh}) {
    Floats x({1, 4001}), want({1, 4001});
    for (int i = 0; i < 4001; ++i) {
      x.data[static_cast<size_t>(i)] = static_cast<float>(i - 2000) / 100;
    }
    x.data[0] = -1e30f;
    x.data[1] = 1e4f;
    x.data[2] = -0.0f;
    want = x;
    ops_.gelu(stream_, {x.view, form});
    ref_.gelu(stream_, {want.view, form});
    for (size_t i = 0; i < 4001; ++i) {
      EXPECT_NEAR(x.data[i], want.data[i], 2e-6 * std::max(1.0f, std::abs(want.data[i]))) << i;
    }
  }
}

TEST_P(Vision, Interpolate) {
  const Floats table = random_floats({9, 37}, 1), weights = random_floats({11, 4}, 2);
  std::vector<bf16> narrow;
  Floats rounded({9, 37});
  for (const float value : table.data) narrow.push_back(float_to_bf16(value));
  for (size_t i = 0; i < narrow.size(); ++i) rounded.data[i] = bf16_to_float(narrow[i]);
  std::vector<int32_t> ids;
  for (int i = 0; i < 44; ++i) ids.push_back(i * 5 % 9);
  const TensorView id_view(ids.data(), DType::kI32, {11, 4});
  Floats out = random_floats({11, 37}, 3), want = out, from_narrow = out;
  ops_.interpolate(stream_, {rounded.view, id_view, weights.view, out.view});
  ref_.interpolate(stream_, {rounded.view, id_view, weights.view, want.view});
  EXPECT_LT(relative_l2(out.data, want.data), kTolerance);
  const TensorView narrow_view(narrow.data(), DType::kBF16, {9, 37});
  ops_.interpolate(stream_, {narrow_view, id_view, weights.view, from_narrow.view});
  EXPECT_LT(relative_l2(from_narrow.data, out.data), kTolerance);
}

TEST_P(Vision, AxialRope) {
  for (const int64_t dim : {16, 72, 80}) {
    const int64_t rows = 13, heads = 3;
    const Floats table = random_floats({10, dim / 4, 2}, 1);
    std::vector<int32_t> positions;
    for (int i = 0; i < 26; ++i) positions.push_back(i * 7 % 10);
    // q and k as they lie in one matrix of q, k and v.
    Floats qkv = random_floats({rows, 3 * heads * dim}, 2), want = qkv;
    const auto call = [&](const VisionOps& ops, Floats& all) {
      TensorView view(all.data.data(), DType::kF32, {rows, 3 * heads * dim});
      ops.axial_rope(stream_, {view.columns(0, heads * dim).split_last(heads, dim),
                               view.columns(heads * dim, 2 * heads * dim).split_last(heads, dim),
                               table.view, TensorView(positions.data(), DType::kI32, {rows, 2})});
    };
    call(ops_, qkv);
    call(ref_, want);
    EXPECT_LT(relative_l2(qkv.data, want.data), kTolerance);
  }
}

struct Attention {
  Floats qkv, out;
};

/// Segments of these lengths; the values are those of rows `first` .. of one long random matrix.
Attention attend(const VisionOps& ops, Stream& stream, const std::vector<int>& lengths, int64_t dim,
                 float spread) {
  const int64_t heads = 2;
  std::vector<int32_t> bounds = {0};
  for (const int length : lengths) bounds.push_back(bounds.back() + length);
  const int64_t rows = bounds.back();
  Attention a{random_floats({rows, 3 * heads * dim}, 5, spread), Floats({rows, heads * dim})};
  const auto part = [&](int64_t i) {
    return a.qkv.view.columns(i * heads * dim, (i + 1) * heads * dim).split_last(heads, dim);
  };
  ops.segment_attention(stream,
                        {.q = part(0),
                         .k = part(1),
                         .v = part(2),
                         .out = a.out.view.split_last(heads, dim),
                         .bounds = TensorView(bounds.data(), DType::kI32, {std::ssize(bounds)}),
                         .host_bounds = bounds.data(),
                         .num_segments = static_cast<int>(lengths.size()),
                         .scale = 1 / std::sqrt(static_cast<float>(dim))});
  return a;
}

TEST_P(Vision, SegmentAttention) {
  for (const int64_t dim : {16, 32, 72, 80, 128}) {
    for (const std::vector<int>& lengths : std::vector<std::vector<int>>{
             {}, {1}, {31}, {64, 64}, {1, 2, 3, 130}, {257, 16, 128}, {300}}) {
      const Attention got = attend(ops_, stream_, lengths, dim, 3);
      const Attention want = attend(ref_, stream_, lengths, dim, 3);
      EXPECT_LT(relative_l2(got.out.data, want.out.data), 2e-6) << dim;
      EXPECT_TRUE(attend(ops_, one_, lengths, dim, 3).out.same_bits(got.out));
    }
  }
  // Scores of hundreds: nothing overflows, and a row is one of the values.
  const Attention got = attend(ops_, stream_, {200}, 64, 40);
  EXPECT_LT(relative_l2(got.out.data, attend(ref_, stream_, {200}, 64, 40).out.data), 1e-4);
}

TEST_P(Vision, ASegmentDoesNotDependOnTheOthers) {
  // The first segment's rows are the same in both: the matrix begins with them.
  const Attention together = attend(ops_, stream_, {150, 90, 7}, 72, 3);
  const Attention alone = attend(ops_, stream_, {150}, 72, 3);
  EXPECT_TRUE(
      std::equal(alone.out.data.begin(), alone.out.data.end() - 1, together.out.data.begin()));
}

}  // namespace
}  // namespace weft
