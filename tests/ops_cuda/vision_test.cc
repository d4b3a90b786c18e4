#include <algorithm>
#include <cmath>

#include "support.h"

// The ops of vision towers against the oracle.

namespace weft {
namespace {

constexpr double kBf16 = 5e-3;  // relative L2: roundings of inputs and outputs

struct Rows {
  std::vector<float> data;
  TensorView view;
  Rows(std::initializer_list<int64_t> dims, std::vector<float> values) : data(std::move(values)) {
    view = TensorView(data.data(), DType::kF32, dims);
  }
};

Stream& host_stream() {
  static ThreadPool pool(1);
  static Arena scratch;
  static Stream stream(pool, scratch);
  return stream;
}

class VisionOpsTest : public testing::Test {
 protected:
  const VisionOps& ops_ = *cuda_ops()->vision;
  const VisionOps& ref_ = *ref_ops().vision;
  CudaTestStream stream_;
};

TEST_F(VisionOpsTest, LayerNorm) {
  for (const int64_t width : {8, 64, 1152, 4608}) {
    const int64_t rows = 9;
    const auto x = random_bf16(rows * width, 1, 3), r = random_bf16(rows * width, 2);
    const auto w = random_bf16(width, 3), b = random_bf16(width, 4);
    Rows xh({rows, width}, x), rh({rows, width}, r), wh({width}, w), bh({width}, b);
    Rows out({rows, width}, std::vector<float>(x.size()));
    ref_.layer_norm(host_stream(), {xh.view, rh.view, wh.view, bh.view, out.view, 1e-6f});
    const DeviceTensor xd(DType::kBF16, {rows, width}, x), rd(DType::kF32, {rows, width}, r);
    const DeviceTensor wd(DType::kF32, {width}, w), bd(DType::kF32, {width}, b);
    DeviceTensor od(DType::kBF16, {rows, width});
    od.poison();
    ops_.layer_norm(stream_, {xd.view, rd.view, wd.view, bd.view, od.view, 1e-6f});
    stream_.sync();
    EXPECT_LE(relative_l2(od.floats(), out.data), kBf16) << width;
    EXPECT_EQ(rd.floats(), rh.data);
    // f32 input, no residual.
    DeviceTensor again(DType::kBF16, {rows, width});
    again.poison();
    ops_.layer_norm(stream_, {rd.view, {}, wd.view, bd.view, again.view, 1e-6f});
    stream_.sync();
    EXPECT_EQ(again.bytes(), od.bytes());
  }
}

TEST_F(VisionOpsTest, Gelu) {
  for (const Gelu form : {Gelu::kErf, Gelu::kTanh}) {
    const auto x = random_bf16(7 * 264, 1, 6);
    Rows xh({7, 264}, x);
    ref_.gelu(host_stream(), {xh.view, form});
    const DeviceTensor xd(DType::kBF16, {7, 264}, x);
    ops_.gelu(stream_, {xd.view, form});
    stream_.sync();
    EXPECT_LE(relative_l2(xd.floats(), xh.data), kBf16);
  }
}

TEST_F(VisionOpsTest, Interpolate) {
  const auto table = random_bf16(9 * 72, 1), weights = random_bf16(11 * 4, 2);
  const auto start = random_bf16(11 * 72, 3);
  std::vector<int32_t> ids;
  for (int i = 0; i < 44; ++i) ids.push_back(i * 5 % 9);
  Rows th({9, 72}, table), wh({11, 4}, weights), oh({11, 72}, start);
  auto host_ids = ids;
  ref_.interpolate(host_stream(),
                   {th.view, {host_ids.data(), DType::kI32, {11, 4}}, wh.view, oh.view});
  const DeviceTensor td(DType::kBF16, {9, 72}, table), wd(DType::kF32, {11, 4}, weights);
  const DeviceTensor od(DType::kF32, {11, 72}, start), id(ids);
  ops_.interpolate(stream_, {td.view, {id.view.data, DType::kI32, {11, 4}}, wd.view, od.view});
  stream_.sync();
  EXPECT_LE(relative_l2(od.floats(), oh.data), 1e-6);
}

TEST_F(VisionOpsTest, AxialRope) {
  for (const int64_t dim : {16, 64, 72, 80}) {
    const int64_t rows = 13, heads = 3, width = 3 * heads * dim;
    const auto all = random_bf16(rows * width, 1), table = random_bf16(10 * dim / 2, 2);
    std::vector<int32_t> positions;
    for (int i = 0; i < 26; ++i) positions.push_back(i * 7 % 10);
    const auto args = [&](const TensorView& qkv, const TensorView& cos, const TensorView& at) {
      return AxialRopeArgs{qkv.columns(0, heads * dim).split_last(heads, dim),
                           qkv.columns(heads * dim, 2 * heads * dim).split_last(heads, dim), cos,
                           at};
    };
    Rows qh({rows, width}, all), ch({10, dim / 4, 2}, table);
    auto host = positions;
    ref_.axial_rope(host_stream(), args(qh.view, ch.view, {host.data(), DType::kI32, {rows, 2}}));
    const DeviceTensor qd(DType::kBF16, {rows, width}, all);
    const DeviceTensor cd(DType::kF32, {10, dim / 4, 2}, table), pd(positions);
    ops_.axial_rope(stream_, args(qd.view, cd.view, {pd.view.data, DType::kI32, {rows, 2}}));
    stream_.sync();
    EXPECT_LE(relative_l2(qd.floats(), qh.data), kBf16) << dim;
  }
}

TEST_F(VisionOpsTest, SegmentAttention) {
  for (const int64_t dim : {16, 32, 64, 72, 80, 128}) {
    std::vector<std::byte> alone;
    for (const std::vector<int>& lengths :
         std::vector<std::vector<int>>{{150}, {150, 1, 64, 63, 65}, {150, 300}, {1}, {257, 16}}) {
      std::vector<int32_t> bounds = {0};
      for (const int length : lengths) bounds.push_back(bounds.back() + length);
      const int64_t rows = bounds.back(), heads = 2, width = 3 * heads * dim;
      const auto all = random_bf16(rows * width, 5, 2);
      const auto args = [&](const TensorView& qkv, const TensorView& out, const TensorView& at) {
        const auto part = [&](int64_t i) {
          return qkv.columns(i * heads * dim, (i + 1) * heads * dim).split_last(heads, dim);
        };
        return SegmentAttnArgs{.q = part(0),
                               .k = part(1),
                               .v = part(2),
                               .out = out.split_last(heads, dim),
                               .bounds = at,
                               .host_bounds = bounds.data(),
                               .num_segments = static_cast<int>(lengths.size()),
                               .scale = 1 / std::sqrt(static_cast<float>(dim))};
      };
      const auto n = static_cast<int64_t>(bounds.size());
      Rows qh({rows, width}, all);
      Rows oh({rows, heads * dim}, std::vector<float>(static_cast<size_t>(rows * heads * dim)));
      auto host = bounds;
      ref_.segment_attention(host_stream(),
                             args(qh.view, oh.view, {host.data(), DType::kI32, {n}}));
      const DeviceTensor qd(DType::kBF16, {rows, width}, all), bd(bounds);
      DeviceTensor od(DType::kBF16, {rows, heads * dim});
      od.poison();
      ops_.segment_attention(stream_, args(qd.view, od.view, bd.view));
      stream_.sync();
      EXPECT_LE(relative_l2(od.floats(), oh.data), kBf16) << dim << " " << lengths.size();
      // The first segment's rows are the same in the first three.
      const std::vector<std::byte> bytes = od.bytes();
      if (alone.empty()) alone = bytes;
      if (lengths[0] == 150) {
        EXPECT_TRUE(std::equal(alone.begin(), alone.end(), bytes.begin())) << dim;
      }
    }
  }
}

/// Long segments, whose tiles are copied without regard to where they end: neighbours of NaN, other
/// places and other lengths beside them change no bit.
TEST_F(VisionOpsTest, LongSegmentsAreEachAsAlone) {
  constexpr int64_t kHeads = 3, kDim = 72, kWidth = 3 * kHeads * kDim;
  for (const int64_t length : {256, 300, 513}) {
    const auto own = random_bf16(length * kWidth, 7, 2);
    std::vector<std::byte> alone;
    for (const auto& [before, behind] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 0}, {0, 1}, {63, 0}, {200, 64}, {390, 256}, {1, 700}}) {
      const int64_t rows = before + length + behind;
      std::vector<float> all(static_cast<size_t>(rows * kWidth), std::nanf(""));
      std::copy(own.begin(), own.end(), all.begin() + before * kWidth);
      std::vector<int32_t> bounds = {0};
      if (before > 0) bounds.push_back(static_cast<int32_t>(before));
      bounds.push_back(static_cast<int32_t>(before + length));
      if (behind > 0) bounds.push_back(static_cast<int32_t>(rows));
      const DeviceTensor qkv(DType::kBF16, {rows, kWidth}, all), at(bounds);
      DeviceTensor out(DType::kBF16, {rows, kHeads * kDim});
      out.poison();
      const auto part = [&](int64_t i) {
        return qkv.view.columns(i * kHeads * kDim, (i + 1) * kHeads * kDim)
            .split_last(kHeads, kDim);
      };
      ops_.segment_attention(stream_, {.q = part(0),
                                       .k = part(1),
                                       .v = part(2),
                                       .out = out.view.split_last(kHeads, kDim),
                                       .bounds = at.view,
                                       .host_bounds = bounds.data(),
                                       .num_segments = static_cast<int>(bounds.size()) - 1,
                                       .scale = 0.118f});
      stream_.sync();
      const std::vector<std::byte> bytes = out.bytes();
      const auto row = static_cast<size_t>(kHeads * kDim * 2);
      const auto begin = bytes.begin() + static_cast<ptrdiff_t>(row * static_cast<size_t>(before));
      const std::vector<std::byte> mine(
          begin, begin + static_cast<ptrdiff_t>(row * static_cast<size_t>(length)));
      if (alone.empty()) {
        alone = mine;
        for (const float x : out.floats()) EXPECT_TRUE(std::isfinite(x));
      }
      EXPECT_EQ(mine, alone) << length << " behind " << before << " before " << behind;
    }
  }
}

}  // namespace
}  // namespace weft
