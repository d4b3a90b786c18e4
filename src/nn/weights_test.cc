#include "nn/weights.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/temp_dir.h"
#include "checkpoint/safetensors_writer.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

class Weights : public ::testing::Test {
 protected:
  /// Adds an F32 tensor of values first, first + 1, ...
  void add(const std::string& name, std::vector<int64_t> shape, float first) {
    const int64_t n = std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
    auto& values = values_.emplace_back(static_cast<size_t>(n));
    std::iota(values.begin(), values.end(), first);
    shapes_.push_back(shape);
    names_.push_back(name);
  }
  Checkpoint write() {
    std::vector<TensorToWrite> tensors;
    for (size_t i = 0; i < names_.size(); ++i) {
      tensors.push_back({names_[i], DType::kF32, shapes_[i], std::as_bytes(std::span(values_[i]))});
    }
    EXPECT_TRUE(write_safetensors(dir_.file("model.safetensors"), tensors).ok());
    return Checkpoint::open(dir_.path()).value();
  }

  ThreadPool pool_{2};
  Arena scratch_;
  Stream stream_{pool_, scratch_};
  TempDir dir_;
  std::vector<std::string> names_;
  std::vector<std::vector<int64_t>> shapes_;
  std::vector<std::vector<float>> values_;
};

TEST_F(Weights, PacksRowsOfSeveralTensors) {
  add("a", {2, 3}, 0);
  add("b", {4, 3}, 100);
  add("norm", {3}, 0);
  const Checkpoint checkpoint = write();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight weight;
  TensorView norm, table;
  plan.matrix(weight, WeightFormat::kF32, {{"b", {4, 3}, 2, 1}, {"a", {2, 3}}});
  plan.vector(norm, VectorRole::kNormMinusOne, {{"norm", {3}}}, {3});
  plan.table(table, {"b", {4, 3}});
  EXPECT_EQ(plan.parameters(), 6 + 12 + 3);  // b counts once
  int64_t last = 0, total = 0;
  const Buffer memory = plan.load(stream_, false,
                                  [&](int64_t done, int64_t of) {
                                    EXPECT_GT(done, last);
                                    last = done;
                                    total = of;
                                  })
                            .value();
  EXPECT_EQ(last, total);
  std::vector<float> rows(9);
  ref_ops().unpack_weight(weight, 0, {rows.data(), DType::kF32, {3, 3}});
  EXPECT_THAT(rows, ElementsAre(106, 107, 108, 0, 1, 2, 3, 4, 5));
  EXPECT_EQ(norm.ptr<float>()[2], 3.0f);
  EXPECT_EQ(table.row<float>(3)[0], 109.0f);
}

TEST_F(Weights, LargeMatricesAreCutIntoRowsWhereTheBackendTakesThem) {
  constexpr int64_t kK = 4096;
  add("a", {2176, kK}, 0);  // 35.7 MB: more than half a batch
  add("b", {300, kK}, 1e6);
  const Checkpoint checkpoint = write();
  static std::vector<int64_t> first_rows;
  first_rows.clear();
  OpTable ops = ref_ops();
  ops.pack_rows = [](Stream&, const Weight& weight, int64_t, int64_t first_row,
                     std::span<const TensorView> pieces) {
    first_rows.push_back(first_row);
    std::byte* to = weight.data + first_row * kK * 4;
    for (const TensorView& piece : pieces) {
      std::memcpy(to, piece.data, static_cast<size_t>(piece.bytes()));
      to += piece.bytes();
    }
  };
  WeightPlan plan(&ops, &checkpoint);
  Weight weight;
  plan.matrix(weight, WeightFormat::kF32, {{"a", {2176, kK}}, {"b", {300, kK}}});
  int64_t last = 0;
  const Buffer memory =
      plan.load(stream_, false, [&](int64_t done, int64_t) { last = done; }).value();
  EXPECT_THAT(first_rows, ElementsAre(0, 2048, 2176));
  EXPECT_EQ(last, 2476 * kK * 4);
  const auto* rows = reinterpret_cast<const float*>(weight.data);
  EXPECT_TRUE(std::equal(values_[0].begin(), values_[0].end(), rows));
  EXPECT_TRUE(std::equal(values_[1].begin(), values_[1].end(), rows + 2176 * kK));
}

TEST_F(Weights, Fp8CodesAreMultipliedByTheScaleOfTheirBlock) {
  // Two matrices of 130 x 129 one above the other: 2 x 2 blocks each, the last ones of 2 rows and 1
  // column.
  constexpr int64_t kN = 130, kK = 129;
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < 2 * kN * kK; ++i) codes.push_back(static_cast<uint8_t>(i * 7 % 0x7F));
  const std::vector<float> scales = {1, 2, 4, 8, 0.5f, 16, 32, 64};
  const std::vector<TensorToWrite> tensors = {
      {"w", DType::kFP8E4M3, {2, kN, kK}, std::as_bytes(std::span(codes))},
      {"w_scale_inv", DType::kF32, {2, 2, 2}, std::as_bytes(std::span(scales))}};
  ASSERT_TRUE(write_safetensors(dir_.file("model.safetensors"), tensors).ok());
  const Checkpoint checkpoint = Checkpoint::open(dir_.path()).value();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight weight;
  plan.experts(weight, WeightFormat::kF32, 2, [](int64_t e) -> std::vector<TensorPart> {
    return {{"w", {2, kN, kK}, e * kN, kN}};
  });
  const auto memory = plan.load(stream_, false, {});
  ASSERT_TRUE(memory.ok()) << memory.error().message;
  std::vector<float> rows(kN * kK);
  for (int64_t e = 0; e < 2; ++e) {
    ref_ops().unpack_weight(weight, e, {rows.data(), DType::kF32, {kN, kK}});
    for (int64_t n = 0; n < kN; ++n) {
      for (int64_t k = 0; k < kK; ++k) {
        const auto i = static_cast<size_t>((e * kN + n) * kK + k);
        const float scale = scales[static_cast<size_t>(e * 4 + n / 128 * 2 + k / 128)];
        ASSERT_EQ(rows[static_cast<size_t>(n * kK + k)], e4m3_to_float(codes[i]) * scale);
      }
    }
  }
}

TEST_F(Weights, Fp8CodesAreKeptWhereThePartsAreCutAtBlocks) {
  constexpr int64_t kN = 272, kK = 130;  // 3 x 2 blocks
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < kN * kK; ++i) codes.push_back(static_cast<uint8_t>(i * 7 % 0x7F));
  const std::vector<float> scales = {0.3f, 2, 4, 8, 0.7f, 16};
  const std::vector<TensorToWrite> tensors = {
      {"w", DType::kFP8E4M3, {kN, kK}, std::as_bytes(std::span(codes))},
      {"w_scale_inv", DType::kF32, {3, 2}, std::as_bytes(std::span(scales))}};
  ASSERT_TRUE(write_safetensors(dir_.file("model.safetensors"), tensors).ok());
  const Checkpoint checkpoint = Checkpoint::open(dir_.path()).value();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight kept, beside_block, beside_piece, other;
  plan.matrix(kept, WeightFormat::kBf16, {{"w", {kN, kK}, 128, 144}, {"w", {kN, kK}, 0, 128}});
  plan.matrix(beside_block, WeightFormat::kBf16, {{"w", {kN, kK}, 64, 64}});
  plan.matrix(beside_piece, WeightFormat::kFp8Block,
              {{"w", {kN, kK}, 0, 8}, {"w", {kN, kK}, 0, 8}});
  plan.matrix(other, WeightFormat::kInt8, {{"w", {kN, kK}}});
  EXPECT_EQ(kept.shape.format, WeightFormat::kFp8Block);
  EXPECT_EQ(beside_block.shape.format, WeightFormat::kBf16);
  EXPECT_EQ(beside_piece.shape.format, WeightFormat::kBf16);
  EXPECT_EQ(other.shape.format, WeightFormat::kInt8);
  const auto memory = plan.load(stream_, false, {});
  ASSERT_TRUE(memory.ok()) << memory.error().message;
  std::vector<float> rows(kN * kK);
  ref_ops().unpack_weight(kept, 0, {rows.data(), DType::kF32, {kN, kK}});
  for (int64_t n = 0; n < kN; ++n) {
    const int64_t from = n < 144 ? n + 128 : n - 144;
    for (int64_t k = 0; k < kK; ++k) {
      const float scale = scales[static_cast<size_t>(from / 128 * 2 + k / 128)];
      ASSERT_EQ(rows[static_cast<size_t>(n * kK + k)],
                e4m3_to_float(codes[static_cast<size_t>(from * kK + k)]) * scale);
    }
  }
  ref_ops().unpack_weight(beside_block, 0, {rows.data(), DType::kF32, {64, kK}});
  EXPECT_EQ(rows[1], bf16_to_float(float_to_bf16(e4m3_to_float(codes[64 * kK + 1]) * 0.3f)));
}

TEST_F(Weights, Fp8BlocksOfOtherWeights) {
  add("w", {130, 129}, -5000);
  const Checkpoint checkpoint = write();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight weight;
  plan.matrix(weight, WeightFormat::kFp8Block, {{"w", {130, 129}}});
  const Buffer memory = plan.load(stream_, false, {}).value();
  std::vector<float> rows(130 * 129);
  ref_ops().unpack_weight(weight, 0, {rows.data(), DType::kF32, {130, 129}});
  for (int64_t i = 0; i < 130 * 129; ++i) {
    const double x = static_cast<double>(i) - 5000;
    // Half a step of 3 mantissa bits, or of the smallest step: amax / 448 / 2^9.
    EXPECT_NEAR(rows[static_cast<size_t>(i)], x, std::fabs(x) / 16 + 12000.0 / 448 / 1024) << i;
  }
  EXPECT_EQ(rows[129 * 129 + 128], 129.0f * 129 + 128 - 5000);  // alone in its block: exact
}

TEST_F(Weights, Fp8CodesWithoutScalesAreRefused) {
  const std::vector<uint8_t> codes(6);
  const std::vector<TensorToWrite> tensors = {
      {"w", DType::kFP8E4M3, {2, 3}, std::as_bytes(std::span(codes))}};
  ASSERT_TRUE(write_safetensors(dir_.file("model.safetensors"), tensors).ok());
  const Checkpoint checkpoint = Checkpoint::open(dir_.path()).value();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight weight;
  plan.matrix(weight, WeightFormat::kF32, {{"w", {2, 3}}});
  EXPECT_THAT(plan.check().error().message, HasSubstr("w_scale_inv"));
}

TEST_F(Weights, FusedAndSeparateExpertsAreTheSame) {
  add("fused", {2, 2, 3}, 0);  // two experts of 2 x 3
  add("0.x", {2, 3}, 0);
  add("1.x", {2, 3}, 6);
  const Checkpoint checkpoint = write();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight fused, separate;
  plan.experts(fused, WeightFormat::kF32, 2, [](int64_t e) -> std::vector<TensorPart> {
    return {{"fused", {2, 2, 3}, e * 2, 2}};
  });
  plan.experts(separate, WeightFormat::kF32, 2, [](int64_t e) -> std::vector<TensorPart> {
    return {{std::to_string(e) + ".x", {2, 3}}};
  });
  const Buffer memory = plan.load(stream_, false, {}).value();
  std::vector<float> a(6), b(6);
  for (int64_t e = 0; e < 2; ++e) {
    ref_ops().unpack_weight(fused, e, {a.data(), DType::kF32, {2, 3}});
    ref_ops().unpack_weight(separate, e, {b.data(), DType::kF32, {2, 3}});
    EXPECT_EQ(a, b);
    EXPECT_EQ(a[0], static_cast<float>(6 * e));
  }
}

TEST_F(Weights, NamesWhatIsMissingMisshapenAndExtra) {
  add("a", {2, 3}, 0);
  for (int i = 0; i < 8; ++i) add("extra." + std::to_string(i), {1}, 0);
  add("unused.inv_freq", {1}, 0);
  const Checkpoint checkpoint = write();
  WeightPlan plan(&ref_ops(), &checkpoint);
  Weight weight;
  TensorView norm;
  plan.matrix(weight, WeightFormat::kF32, {{"a", {3, 2}}});
  plan.vector(norm, VectorRole::kNorm, {{"gone", {3}}}, {3});
  plan.ignore_containing(".inv_freq");
  const auto result = plan.load(stream_, false, {});
  ASSERT_FALSE(result.ok());
  const std::string& text = result.error().message;
  EXPECT_THAT(text, HasSubstr("1 tensor missing: gone"));
  EXPECT_THAT(text, HasSubstr("a [2, 3] instead of [3, 2]"));
  EXPECT_THAT(text, HasSubstr("8 tensors that the architecture does not have: extra.0, extra.1"));
  EXPECT_THAT(text, HasSubstr("and 3 more"));
  EXPECT_THAT(text, Not(HasSubstr("inv_freq")));
}

TEST_F(Weights, DummyWeightsDependOnTheNameAlone) {
  const auto load = [&](std::vector<std::string> names) {
    WeightPlan plan(&ref_ops(), nullptr);
    std::vector<Weight> weights(names.size());
    for (size_t i = 0; i < names.size(); ++i) {
      plan.matrix(weights[i], WeightFormat::kBf16, {{names[i], {40, 30}}});
    }
    const Buffer memory = plan.load(stream_, true, {}).value();
    std::vector<float> out(1200);
    ref_ops().unpack_weight(weights.back(), 0, {out.data(), DType::kF32, {40, 30}});
    return out;
  };
  const std::vector<float> a = load({"a"}), again = load({"b", "a"}), b = load({"b"});
  EXPECT_EQ(a, again);
  EXPECT_NE(a, b);
  double square = 0;
  for (const float x : a) square += static_cast<double>(x) * x;
  EXPECT_NEAR(std::sqrt(square / 1200), 0.02, 0.001);
}

}  // namespace
}  // namespace weft
