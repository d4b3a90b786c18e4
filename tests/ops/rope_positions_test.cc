#include <array>
#include <cmath>
#include <map>
#include <tuple>

#include "support.h"

// Multimodal rope: one shared 1-D table, `index + delta` where t = h = w, axes only inside images.
// Held against a table of each sequence's own, which holds the cos and sin of row i at row i.

namespace weft {
namespace {

using Triple = std::array<int32_t, 3>;

constexpr int64_t kPositions = 2048;
constexpr int kBlock = 64;
constexpr int kHeads = 3, kKvHeads = 2, kDim = 64;

/// Which of (t, h, w) turns a frequency.
enum class Axes { kPlain, kBlocks, kInterleaved, kAlternating };

uint8_t axis_of(Axes axes, int i, int half) {
  const int h = half / 3, w = half / 3, t = half - h - w;
  switch (axes) {
    case Axes::kPlain: return 0;
    case Axes::kBlocks: return static_cast<uint8_t>(i < t ? 0 : (i < t + h ? 1 : 2));
    case Axes::kInterleaved: return static_cast<uint8_t>(i < 3 * h ? i % 3 : 0);
    case Axes::kAlternating: return static_cast<uint8_t>(i < h + w ? 1 + i % 2 : 0);
  }
  return 0;
}

struct Style {
  RopeStyle style;
  int rotary;
  Axes axes;
  bool yarn;  ///< stretched frequencies and a factor on cos and sin
  bool norm;
  KvFormat format;
};

std::pair<float, float> turn_of(const Style& s, int64_t position, int i) {
  double frequency = std::pow(1e6, -2.0 * i / s.rotary);
  if (s.yarn && i > s.rotary / 8) frequency /= 4;
  const float angle = static_cast<float>(position) * static_cast<float>(frequency);
  const double factor = s.yarn ? 1.1386 : 1.0;
  return {static_cast<float>(std::cos(double{angle}) * factor),
          static_cast<float>(std::sin(double{angle}) * factor)};
}

/// The one table of a style, whatever its cache.
Floats& shared_table(const Style& s) {
  static std::map<std::pair<int, bool>, Floats> tables;
  const auto [known, is_new] =
      tables.try_emplace({s.rotary, s.yarn}, Floats({kPositions, s.rotary / 2, 2}));
  if (!is_new) return known->second;
  const int half = s.rotary / 2;
  Floats& table = known->second;
  float* to = table.data.data();
  for (int64_t p = 0; p < kPositions; ++p) {
    for (int i = 0; i < half; ++i, to += 2) std::tie(to[0], to[1]) = turn_of(s, p, i);
  }
  return table;
}

struct Prepared {
  Floats q;
  std::vector<std::byte> cache;
  bool operator==(const Prepared& other) const {
    return q.same_bits(other.q) && cache == other.cache;
  }
};

struct Where {
  std::vector<int32_t> index, delta;
  std::vector<Triple> triples;  ///< empty: none are given
};

Prepared prepare(const OpTable& ops, Stream& stream, const Style& s, Floats& table, Where where,
                 bool axes) {
  const auto rows = static_cast<int64_t>(where.index.size());
  Floats k = random_floats({rows, kKvHeads, kDim}, 2), v = random_floats({rows, kKvHeads, kDim}, 3);
  Floats q_norm = random_floats({kDim}, 4), k_norm = random_floats({kDim}, 5);
  Prepared out{random_floats({rows, kHeads, kDim}, 1), {}};
  QkvPrepareArgs args{.q = out.q.view, .k = k.view, .v = v.view, .eps = 1e-6f};
  if (s.norm) {
    args.q_norm = q_norm.view;
    args.k_norm = k_norm.view;
  }
  const int half = s.rotary / 2;
  std::vector<uint8_t> axis;
  for (int i = 0; i < half; ++i) axis.push_back(axes ? axis_of(s.axes, i, half) : uint8_t{0});
  args.rope = {table.view, TensorView(axis.data(), DType::kU8, {half}), s.rotary, s.style};
  args.positions.index = TensorView(where.index.data(), DType::kI32, {rows});
  if (!where.delta.empty()) {
    args.positions.delta = TensorView(where.delta.data(), DType::kI32, {rows});
  }
  if (!where.triples.empty()) {
    args.positions.triples = TensorView(where.triples.data(), DType::kI32, {rows, 3});
  }
  std::vector<int64_t> slots;
  for (int64_t t = 0; t < rows; ++t) slots.push_back((t * 37) % (3 * kBlock));
  args.kv_slot = TensorView(slots.data(), DType::kI64, {rows});
  args.kv.shape = {s.format, kKvHeads, kDim, kBlock};
  args.kv.block_bytes = ops.kv_block_bytes(args.kv.shape);
  args.kv.num_blocks = 3;
  std::vector<float> scales(static_cast<size_t>(kKvHeads * kDim), 0.03f);
  args.kv.k_scale = args.kv.v_scale = scales.data();  // of formats with static ones
  out.cache.assign(static_cast<size_t>(3 * args.kv.block_bytes), std::byte{0});
  args.kv.data = out.cache.data();
  ops.qkv_prepare(stream, args);
  return out;
}

/// The same with a private table: row t of it belongs to row t of the step.
Prepared with_private_table(const OpTable& ops, Stream& stream, const Style& s,
                            const std::vector<Triple>& rows) {
  const int half = s.rotary / 2;
  const auto count = static_cast<int64_t>(rows.size());
  Floats table({count, half, 2});
  float* to = table.data.data();
  Where where;
  for (const Triple& row : rows) {
    where.index.push_back(static_cast<int32_t>(where.index.size()));
    for (int i = 0; i < half; ++i, to += 2) {
      std::tie(to[0], to[1]) = turn_of(s, row[axis_of(s.axes, i, half)], i);
    }
  }
  return prepare(ops, stream, s, table, where, /*axes=*/false);
}

std::vector<Style> styles() {
  const RopeStyle neox = RopeStyle::kNeox, pairs = RopeStyle::kInterleaved;
  std::vector<Style> out;
  for (const KvFormat format :
       {KvFormat::kF32, KvFormat::kBf16, KvFormat::kInt8Dynamic, KvFormat::kFp8Block,
        KvFormat::kInt8, KvFormat::kFp8, KvFormat::kInt4}) {
    for (const bool norm : {false, true}) {
      out.push_back({neox, 64, Axes::kBlocks, false, norm, format});        // Qwen2.5-VL
      out.push_back({neox, 64, Axes::kInterleaved, false, norm, format});   // Qwen3-VL
      out.push_back({neox, 32, Axes::kInterleaved, true, norm, format});    // Qwen3.5, partial
      out.push_back({pairs, 64, Axes::kAlternating, false, norm, format});  // ERNIE-4.5-VL
      out.push_back({pairs, 32, Axes::kInterleaved, true, norm, format});
      out.push_back({neox, 64, Axes::kPlain, true, norm, format});
    }
  }
  return out;
}

class RopePositionsTest : public testing::TestWithParam<const OpTable*> {
 protected:
  const OpTable& ops_ = *GetParam();
  TestStream stream_;
};

std::vector<const OpTable*> backends() {
  std::vector<const OpTable*> out = {&ref_ops()};
  for (const CpuIsa isa : cpu_isas()) out.push_back(&cpu_ops(isa));
  return out;
}

std::string backend_name(const testing::TestParamInfo<const OpTable*>& info) {
  return info.index == 0 ? "ref" : isa_test_name({cpu_isas()[info.index - 1], 0});
}

INSTANTIATE_TEST_SUITE_P(Backends, RopePositionsTest, testing::ValuesIn(backends()), backend_name);

/// Decode rows of several sequences and verification rows of one (drafts follow each other).
TEST_P(RopePositionsTest, GeneratedTokensAndDraftsStandAtIndexPlusDelta) {
  for (const Style& s : styles()) {
    Floats& table = shared_table(s);
    for (const int32_t delta : {-900, -1, 0, 1, 700}) {
      Where one_d, per_axis;
      std::vector<Triple> rows;
      for (const int32_t index : {900, 1000, 1001, 1002, 1003, 1347}) {
        const int32_t p = index + delta;
        one_d.index.push_back(index);
        one_d.delta.push_back(delta);
        rows.push_back({p, p, p});
      }
      per_axis = one_d;
      per_axis.triples = rows;
      const Prepared got = prepare(ops_, stream_, s, table, one_d, true);
      EXPECT_EQ(got, with_private_table(ops_, stream_, s, rows)) << delta;
      EXPECT_EQ(got, prepare(ops_, stream_, s, table, per_axis, true)) << delta;
      if (delta == 0) {
        one_d.delta.clear();
        EXPECT_EQ(got, prepare(ops_, stream_, s, table, one_d, true)) << "no delta is delta 0";
      }
    }
  }
}

/// A prompt of text, an image of 3 x 5 tokens and text again, beside another sequence's decode row.
TEST_P(RopePositionsTest, PromptRowsTakeTheirAxes) {
  for (const Style& s : styles()) {
    Floats& table = shared_table(s);
    Where where;
    const auto add = [&](Triple at) {
      where.index.push_back(static_cast<int32_t>(where.index.size()));
      where.delta.push_back(at[0] - where.index.back());
      where.triples.push_back(at);
    };
    for (int32_t i = 0; i < 4; ++i) add({i, i, i});
    for (int32_t h = 0; h < 3; ++h) {
      for (int32_t w = 0; w < 5; ++w) add({4, 4 + h, 4 + w});
    }
    for (int32_t i = 9; i < 12; ++i) add({i, i, i});
    add({1777, 1777, 1777});
    EXPECT_EQ(prepare(ops_, stream_, s, table, where, true),
              with_private_table(ops_, stream_, s, where.triples));
    if (s.axes == Axes::kPlain) continue;
    // The axes matter: a row turned by t alone is another row.
    std::vector<Triple> flat = where.triples;
    flat[10][1] = flat[10][2] = flat[10][0];
    EXPECT_FALSE(prepare(ops_, stream_, s, table, where, true) ==
                 with_private_table(ops_, stream_, s, flat));
  }
}

/// Every triple with t = h = w gives the bits of the 1-D path, for every position of the table.
TEST_P(RopePositionsTest, EqualAxesCollapseToOneDimension) {
  const Style s{RopeStyle::kNeox, 64, Axes::kInterleaved, false, true, KvFormat::kBf16};
  Floats& table = shared_table(s);
  for (int32_t first = 0; first < kPositions; first += 128) {
    Where one_d, near;
    for (int32_t p = first; p < first + 128; ++p) {
      one_d.index.push_back(p);
      near.index.push_back(p);
      near.delta.push_back(0);
      near.triples.push_back({p, p, p});
    }
    EXPECT_EQ(prepare(ops_, stream_, s, table, one_d, true),
              prepare(ops_, stream_, s, table, near, true));
  }
}

}  // namespace
}  // namespace weft
