#include <algorithm>
#include <cmath>

#include "support.h"

namespace weft {
namespace {

constexpr int kPositions = 64;

struct Case {
  int heads, kv_heads, dim, rotary, block;
  RopeStyle style;
  bool norm;
  KvFormat format;
};

struct Prepared {
  Floats q;
  std::vector<std::byte> cache;
  PagedKv kv;
};

/// Prepares `rows` tokens; row i goes to a slot of its own, every fifth row to none.
Prepared prepare(const OpTable& ops, Stream& stream, const Case& c, int64_t rows) {
  Floats k = random_floats({rows, c.kv_heads, c.dim}, 2), v({rows, c.kv_heads, c.dim});
  v = random_floats({rows, c.kv_heads, c.dim}, 3);
  Floats q_norm = random_floats({c.dim}, 4), k_norm = random_floats({c.dim}, 5);
  Floats table({kPositions, std::max(c.rotary / 2, 1), 2});
  for (int p = 0; p < kPositions; ++p) {
    for (int i = 0; i < c.rotary / 2; ++i) {
      const double angle = p * std::pow(10000.0, -2.0 * i / c.rotary);
      table.data[static_cast<size_t>((p * (c.rotary / 2) + i) * 2)] =
          static_cast<float>(cos(angle));
      table.data[static_cast<size_t>((p * (c.rotary / 2) + i) * 2 + 1)] =
          static_cast<float>(sin(angle));
    }
  }
  std::vector<uint8_t> axis(static_cast<size_t>(c.rotary / 2 + 1));
  for (size_t i = 0; i < axis.size(); ++i) axis[i] = static_cast<uint8_t>(i % 3);
  std::vector<int32_t> positions(static_cast<size_t>(3 * rows + 1));
  std::vector<int64_t> slots(static_cast<size_t>(rows + 1));
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < 3; ++j) {
      positions[static_cast<size_t>(3 * i + j)] =
          static_cast<int32_t>((i * 7 + j * 11) % kPositions);
    }
    slots[static_cast<size_t>(i)] = i % 5 == 4 ? -1 : (i * 37) % (3 * c.block);
  }
  Prepared out{random_floats({rows, c.heads, c.dim}, 1), {}, {}};
  out.kv.shape = {c.format, c.kv_heads, c.dim, c.block};
  out.kv.block_bytes = ops.kv_block_bytes(out.kv.shape);
  out.kv.num_blocks = 3;
  out.cache.assign(static_cast<size_t>(3 * out.kv.block_bytes), std::byte{0xFF});
  out.kv.data = out.cache.data();
  QkvPrepareArgs args{.q = out.q.view, .k = k.view, .v = v.view, .eps = 1e-5f, .kv = out.kv};
  if (c.norm) {
    args.q_norm = q_norm.view;
    args.k_norm = k_norm.view;
  }
  args.rope.cos_sin = table.view;
  args.rope.axis = TensorView(axis.data(), DType::kU8, {c.rotary / 2});
  args.rope.rotary_dim = c.rotary;
  args.rope.style = c.style;
  std::vector<int32_t> index(static_cast<size_t>(rows + 1));
  for (size_t i = 0; i < index.size(); ++i) index[i] = static_cast<int32_t>(i % kPositions);
  args.positions.index = TensorView(index.data(), DType::kI32, {rows});
  args.positions.triples = TensorView(positions.data(), DType::kI32, {rows, 3});
  args.kv_slot = TensorView(slots.data(), DType::kI64, {rows});
  ops.qkv_prepare(stream, args);
  return out;
}

/// K and V of all blocks; what was never written is NaN and becomes 0 here.
std::vector<float> contents(const OpTable& ops, const Prepared& r, int64_t* written) {
  std::vector<float> out;
  const KvShape& s = r.kv.shape;
  for (int64_t b = 0; b < 3; ++b) {
    Floats k({s.block_size, s.heads, s.head_dim}), v({s.block_size, s.heads, s.head_dim});
    ops.kv_read_block(r.kv, b, k.view, v.view);
    for (const Floats* x : {&k, &v}) {
      for (size_t i = 0; i + 1 < x->data.size(); ++i) {
        *written += !std::isnan(x->data[i]);
        out.push_back(std::isnan(x->data[i]) ? 0 : x->data[i]);
      }
    }
  }
  return out;
}

class QkvPrepare : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(QkvPrepare);

TEST_P(QkvPrepare, MatchesTheOracle) {
  const RopeStyle neox = RopeStyle::kNeox, interleaved = RopeStyle::kInterleaved;
  const Case cases[] = {{4, 2, 64, 64, 64, neox, true, KvFormat::kBf16},
                        {4, 2, 64, 64, 64, neox, true, KvFormat::kF32},
                        {3, 1, 128, 32, 16, neox, false, KvFormat::kBf16},
                        {3, 3, 128, 128, 48, interleaved, false, KvFormat::kBf16},
                        {2, 1, 256, 64, 64, neox, true, KvFormat::kF32},
                        {1, 1, 16, 6, 16, interleaved, true, KvFormat::kF32},
                        {1, 1, 48, 22, 16, neox, false, KvFormat::kF32},
                        {1, 1, 32, 0, 32, neox, true, KvFormat::kBf16}};
  for (const Case& c : cases) {
    for (const int64_t rows : {0, 1, 33}) {
      const Prepared got = prepare(ops_, stream_, c, rows);
      const Prepared want = prepare(ref_ops(), stream_, c, rows);
      EXPECT_LT(relative_l2(got.q.data, want.q.data), 1e-6) << c.dim << " " << rows;
      int64_t written = 0, expected = 0;
      const std::vector<float> ours = contents(ops_, got, &written);
      const std::vector<float> oracle = contents(ref_ops(), want, &expected);
      EXPECT_EQ(written, expected);
      // One unit in the last place may round to the other bf16.
      EXPECT_LT(relative_l2(ours, oracle), c.format == KvFormat::kF32 ? 1e-6 : 1e-3);
      TestStream one(1);
      const Prepared alone = prepare(ops_, one, c, rows);
      EXPECT_TRUE(alone.q.same_bits(got.q));
      EXPECT_EQ(alone.cache, got.cache);
    }
  }
}

}  // namespace
}  // namespace weft
