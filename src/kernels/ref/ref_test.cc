#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "base/philox.h"
#include "kernels/op_table.h"

namespace weft {
namespace {

/// Facts of the oracle itself, worked out by hand; other backends are compared with it.
class RefOps : public testing::Test {
 protected:
  ThreadPool pool_{1};
  Arena scratch_;
  Stream stream_{pool_, scratch_};
  const OpTable& ops_ = ref_ops();

  static std::vector<float> random(size_t n, uint64_t seed, float scale = 1.0f) {
    std::vector<float> out(n);
    for (size_t i = 0; i < n; ++i) {
      out[i] = (2 * uniform01(philox4x32(seed, i, 0)[0]) - 1) * scale;
    }
    return out;
  }
};

TensorView f32(std::vector<float>& data, std::initializer_list<int64_t> dims) {
  return {data.data(), DType::kF32, dims};
}
TensorView i32(std::vector<int32_t>& data, std::initializer_list<int64_t> dims) {
  return {data.data(), DType::kI32, dims};
}

TEST_F(RefOps, EveryWeightFormatKeepsItsPrecision) {
  const int64_t n = 5, k = 70;  // a ragged last group
  std::vector<float> w = random(static_cast<size_t>(n * k), 1), back(w.size());
  const TensorView source = f32(w, {n, k});
  const std::pair<WeightFormat, float> cases[] = {{WeightFormat::kF32, 0.0f},
                                                  {WeightFormat::kBf16, 0x1p-8f},
                                                  {WeightFormat::kInt8, 1.02f / 254},
                                                  {WeightFormat::kInt4, 1.02f / 8}};
  for (const auto& [format, tolerance] : cases) {
    const WeightShape shape{.format = format, .n = n, .k = k};
    std::vector<std::byte> memory(static_cast<size_t>(ops_.weight_bytes(shape)));
    const Weight weight{shape, memory.data(), 0};
    const TensorView pieces[] = {source.rows(0, 2), source.rows(2, 5)};
    ops_.pack_weight(stream_, weight, 0, pieces);
    ops_.unpack_weight(weight, 0, f32(back, {n, k}));
    for (size_t i = 0; i < w.size(); ++i) EXPECT_NEAR(back[i], w[i], tolerance);
  }
}

TEST_F(RefOps, LinearEpilogues) {
  std::vector<float> w = {1, 2, 3, 4, 5, 6, 7, 8}, x = {1, -1}, bias = {0, 1, 0, 0};
  const WeightShape shape{.format = WeightFormat::kF32, .n = 4, .k = 2};
  std::vector<std::byte> memory(static_cast<size_t>(ops_.weight_bytes(shape)));
  const Weight weight{shape, memory.data(), 0};
  const TensorView pieces[] = {f32(w, {4, 2})};
  ops_.pack_weight(stream_, weight, 0, pieces);
  std::vector<float> out(4, 10.0f);
  LinearArgs args{.x = f32(x, {1, 2}), .weight = &weight, .out = f32(out, {1, 4})};
  args.bias = f32(bias, {4});
  args.epilogue = Epilogue::kAdd;
  ops_.linear(stream_, args);
  EXPECT_EQ(out, (std::vector<float>{9, 10, 9, 9}));
  args.bias = {};
  args.out = f32(out, {1, 2});
  args.epilogue = Epilogue::kSiluMul;
  ops_.linear(stream_, args);
  EXPECT_FLOAT_EQ(out[0], 1 / (1 + std::exp(1.0f)));  // silu(-1) * -1
}

TEST_F(RefOps, RouterBreaksTiesByIdAndWeighsWithoutTheCorrection) {
  std::vector<float> logits = {0, 0, 0, 0}, correction = {0, 0, 0.5f, 0}, weights(2);
  std::vector<int32_t> ids(2);
  ops_.moe_route(stream_, {.logits = f32(logits, {1, 4}),
                           .correction = f32(correction, {4}),
                           .rule = {.top_k = 2, .renormalize = false, .scale = 2.0f},
                           .ids = i32(ids, {1, 2}),
                           .weights = f32(weights, {1, 2})});
  EXPECT_EQ(ids, (std::vector<int32_t>{2, 0}));
  EXPECT_EQ(weights, (std::vector<float>{0.5f, 0.5f}));
}

TEST_F(RefOps, RotaryTurnsThePairsOfItsStyleByTheAxisOfTheFrequency) {
  // Frequency 0 turns by t, frequency 1 by h; angle = 90 degrees at position 1.
  std::vector<float> table = {1, 0, 1, 0, 0, 1, 0, 1};
  std::vector<uint8_t> axis = {0, 1};
  std::vector<int32_t> position = {1, 0, 0};
  std::vector<int64_t> slot = {-1};
  for (const RopeStyle style : {RopeStyle::kNeox, RopeStyle::kInterleaved}) {
    std::vector<float> q = {1, 2, 3, 4, 5}, k = q, v = q;
    QkvPrepareArgs args{.q = f32(q, {1, 1, 5}), .k = f32(k, {1, 1, 5}), .v = f32(v, {1, 1, 5})};
    args.rope = {.cos_sin = f32(table, {2, 2, 2}),
                 .axis = {axis.data(), DType::kU8, {2}},
                 .rotary_dim = 4,
                 .style = style};
    std::vector<int32_t> index = {0};
    args.positions = {.index = i32(index, {1}), .triples = i32(position, {1, 3})};
    args.kv_slot = {slot.data(), DType::kI64, {1}};
    ops_.qkv_prepare(stream_, args);
    EXPECT_EQ(q, style == RopeStyle::kNeox ? (std::vector<float>{-3, 2, 1, 4, 5})
                                           : (std::vector<float>{-2, 1, 3, 4, 5}));
  }
}

TEST_F(RefOps, AttentionSeesItsOwnPastThroughTheBlockTable) {
  const KvShape shape{.format = KvFormat::kF32, .heads = 1, .head_dim = 2, .block_size = 2};
  std::vector<std::byte> memory(static_cast<size_t>(ops_.kv_block_bytes(shape)) * 3);
  PagedKv kv{shape, memory.data(), ops_.kv_block_bytes(shape), 3};
  // Keys are all equal, so the output is the mean of the values seen.
  std::vector<float> q(6, 0.5f), k(6, 1.0f), v = {1, 0, 2, 0, 6, 3};
  std::vector<float> table = {1, 0, 1, 0, 1, 0};
  std::vector<uint8_t> axis = {0};
  std::vector<int32_t> positions(3, 0);
  std::vector<int64_t> slots = {4, 5, 0};  // blocks 2 and 0
  QkvPrepareArgs prepare{.q = f32(q, {3, 1, 2}), .k = f32(k, {3, 1, 2}), .v = f32(v, {3, 1, 2})};
  prepare.rope = {f32(table, {3, 1, 2}), {axis.data(), DType::kU8, {1}}, 2, RopeStyle::kNeox};
  prepare.positions.index = i32(positions, {3});
  prepare.kv_slot = {slots.data(), DType::kI64, {3}};
  prepare.kv = kv;
  ops_.qkv_prepare(stream_, prepare);
  std::vector<int32_t> cu = {0, 3}, start = {0}, blocks = {2, 0};
  std::vector<float> out(6);
  AttnArgs args{.shape = {1, 1, 2, 1.0f}, .q = f32(q, {3, 1, 2}), .out = f32(out, {3, 1, 2})};
  args.kv = kv;
  args.seqs = {i32(cu, {2}), i32(start, {1}), i32(blocks, {1, 2}), 1};
  ops_.attention(stream_, args);
  EXPECT_EQ(out, (std::vector<float>{1, 0, 1.5f, 0, 3, 1}));
}

struct GdnRun {
  std::vector<float> out, conv, recurrent;
};

TEST_F(RefOps, GatedDeltaRuleContinuesFromItsSlotAsIfNeverCut) {
  const GdnShape shape{.key_heads = 1, .value_heads = 2, .key_dim = 4, .value_dim = 3};
  const int64_t rows = 9, channels = 2 * 4 + 2 * 3;
  std::vector<float> qkv = random(static_cast<size_t>(rows * channels), 2);
  std::vector<float> a = random(18, 3), b = random(18, 4), w = random(56, 5), log = random(2, 6),
                     bias = random(2, 7);
  const auto run = [&](std::vector<int32_t> cu, std::vector<int32_t> read,
                       std::vector<int32_t> write) {
    GdnRun r{std::vector<float>(54, 9.0f), std::vector<float>(2 * 3 * 14, 7.0f),
             std::vector<float>(2 * 2 * 3 * 4, 7.0f)};
    GdnArgs args{.shape = shape, .qkv = f32(qkv, {rows, channels})};
    args.a = f32(a, {rows, 2});
    args.b = f32(b, {rows, 2});
    args.conv = f32(w, {channels, 4});
    args.a_log = f32(log, {2});
    args.dt_bias = f32(bias, {2});
    args.state = {f32(r.conv, {2, 3, channels}), f32(r.recurrent, {2, 2, 3, 4})};
    args.num_segments = static_cast<int>(read.size());
    args.cu_q = i32(cu, {static_cast<int64_t>(cu.size())});
    args.read_slot = i32(read, {static_cast<int64_t>(read.size())});
    args.write_slot = i32(write, {static_cast<int64_t>(write.size())});
    args.out = f32(r.out, {rows, 2, 3});
    ops_.gdn(stream_, args);
    return r;
  };
  const GdnRun whole = run({0, 9}, {-1}, {1});
  const GdnRun cut = run({0, 2, 5, 5, 9}, {-1, 0, 0, 1}, {0, 0, 1, 1});  // an empty segment copies
  EXPECT_EQ(whole.out, cut.out);
  EXPECT_TRUE(
      std::equal(whole.recurrent.begin() + 24, whole.recurrent.end(), cut.recurrent.begin() + 24));
  EXPECT_TRUE(std::equal(whole.conv.begin() + 42, whole.conv.end(), cut.conv.begin() + 42));
  EXPECT_EQ(whole.conv[0], 7.0f);  // the other slot is untouched
  // The window holds the last three rows before the convolution.
  EXPECT_TRUE(std::equal(qkv.end() - 3 * 14, qkv.end(), whole.conv.begin() + 42));
}

TEST_F(RefOps, FirstTokenOfTheDeltaRuleByHand) {
  // S = 0: o = beta * v * (k . q), k = q / sqrt(K) after l2norm, so k . q = 1 / sqrt(K).
  const GdnShape shape{.key_heads = 1, .value_heads = 1, .key_dim = 4, .value_dim = 1};
  std::vector<float> qkv = {1, 1, 1, 1, 1, 1, 1, 1, 2}, w(9 * 4, 0.0f), zero = {0}, out(1);
  for (size_t c = 0; c < 9; ++c) w[c * 4 + 3] = 1.0f;
  std::vector<float> conv(27), recurrent(4);
  std::vector<int32_t> cu = {0, 1}, none = {-1}, slot = {0};
  GdnArgs args{.shape = shape, .qkv = f32(qkv, {1, 9}), .a = f32(zero, {1, 1})};
  args.b = f32(zero, {1, 1});
  args.conv = f32(w, {9, 4});
  args.a_log = args.dt_bias = f32(zero, {1});
  args.state = {f32(conv, {1, 3, 9}), f32(recurrent, {1, 1, 1, 4})};
  args.cu_q = i32(cu, {2});
  args.read_slot = i32(none, {1});
  args.write_slot = i32(slot, {1});
  args.num_segments = 1;
  args.out = f32(out, {1, 1, 1});
  ops_.gdn(stream_, args);
  const float v = 2 / (1 + std::exp(-2.0f));  // silu
  EXPECT_NEAR(out[0], 0.5f * v * 0.5f, 1e-6f);
  EXPECT_NEAR(recurrent[0], 0.5f * v * 0.5f, 1e-6f);  // S = u k^T
}

}  // namespace
}  // namespace weft
