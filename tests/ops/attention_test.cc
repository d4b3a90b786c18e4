#include <algorithm>
#include <numeric>

#include "support.h"

namespace weft {
namespace {

/// Rows of a call: `rows` tokens of a sequence from position `start` on.
struct Slice {
  int sequence, start, rows;
};

struct World {
  AttnShape shape;
  KvFormat format = KvFormat::kF32;
  int block_size = 64;
  std::vector<int> lengths;  // tokens of each sequence
};

/// A cache of one backend holding every sequence of a world; what no token was written to is NaN.
class Cache {
 public:
  Cache(const OpTable& ops, Stream& stream, const World& world, uint64_t seed)
      : ops_(ops), world_(world) {
    const KvShape shape{world.format, world.shape.kv_heads, world.shape.head_dim, world.block_size};
    kv_.shape = shape;
    kv_.block_bytes = ops.kv_block_bytes(shape);
    int longest = 0;
    for (int length : world.lengths) {
      longest = std::max(longest, length);
      kv_.num_blocks += blocks(length) + 1;
    }
    memory_ = Buffer::allocate(DeviceKind::kCpu, kv_.block_bytes * kv_.num_blocks).value();
    kv_.data = memory_.data();
    std::memset(kv_.data, 0xFF, static_cast<size_t>(memory_.bytes()));
    std::vector<int32_t> order(static_cast<size_t>(kv_.num_blocks));
    std::iota(order.begin(), order.end(), 0);
    for (size_t i = order.size() - 1; i > 0; --i) {
      std::swap(order[i], order[philox4x32(seed, i, 1)[0] % (i + 1)]);
    }
    width_ = blocks(longest) + 1;
    std::vector<int32_t> table;
    size_t next = 0;
    for (int length : world.lengths) {
      for (int b = 0; b < width_; ++b) table.push_back(b < blocks(length) ? order[next++] : -1);
    }
    table_ = Ints(table);
    fill(stream, seed);
  }

  Floats attend(Stream& stream, const Floats& q_all, const std::vector<Slice>& slices) {
    std::vector<int32_t> cu = {0}, start, table;
    for (const Slice& s : slices) {
      cu.push_back(cu.back() + s.rows);
      start.push_back(s.start);
      const auto row = table_.data.begin() + s.sequence * width_;
      table.insert(table.end(), row, row + width_);
    }
    const int64_t heads = world_.shape.q_heads, d = world_.shape.head_dim;
    Floats q({cu.back(), heads, d}), out({cu.back(), heads, d}, kNaN);
    for (size_t i = 0; i < slices.size(); ++i) {
      const float* from =
          q_all.data.data() + row_of(slices[i].sequence, std::max(slices[i].start, 0)) * heads * d;
      std::copy_n(from, slices[i].rows * heads * d, q.data.data() + cu[i] * heads * d);
    }
    const int num = static_cast<int>(slices.size());
    Ints cu_q(cu), kv_start(start), blocks_of(table);
    SeqMap seqs{cu_q.view, kv_start.view, blocks_of.view, num};
    seqs.block_table = TensorView(blocks_of.data.data(), DType::kI32, {num, width_});
    ops_.attention(stream, {world_.shape, q.view, out.view, kv_, seqs});
    out.data.pop_back();
    return out;
  }

  int64_t total() const { return std::accumulate(world_.lengths.begin(), world_.lengths.end(), 0); }
  int64_t row_of(int sequence, int position) const {
    return std::accumulate(world_.lengths.begin(), world_.lengths.begin() + sequence, position);
  }

 private:
  int blocks(int length) const { return (length + world_.block_size - 1) / world_.block_size; }

  void fill(Stream& stream, uint64_t seed) {
    const int64_t heads = world_.shape.kv_heads, d = world_.shape.head_dim;
    Floats k = random_floats({total(), heads, d}, seed + 1), q({total(), 1, d}), norm;
    Floats v = random_floats({total(), heads, d}, seed + 2);
    Ints positions(std::vector<int32_t>(static_cast<size_t>(total()), 0));
    std::vector<int64_t> slots;
    for (size_t s = 0; s < world_.lengths.size(); ++s) {
      for (int p = 0; p < world_.lengths[s]; ++p) {
        const int64_t block =
            table_
                .data[s * static_cast<size_t>(width_) + static_cast<size_t>(p / world_.block_size)];
        slots.push_back(block * world_.block_size + p % world_.block_size);
      }
    }
    slots.push_back(0);
    QkvPrepareArgs args{.q = q.view, .k = k.view, .v = v.view, .kv = kv_};
    args.positions.index = TensorView(positions.data.data(), DType::kI32, {total()});
    uint8_t axis = 0;
    args.rope.axis = TensorView(&axis, DType::kU8, {0});
    args.kv_slot = TensorView(slots.data(), DType::kI64, {total()});
    ops_.qkv_prepare(stream, args);
  }

  const OpTable& ops_;
  World world_;
  PagedKv kv_;
  Buffer memory_;
  Ints table_;
  int width_ = 0;
};

Floats queries(const World& world, uint64_t seed, float scale = 1) {
  const int64_t total = std::accumulate(world.lengths.begin(), world.lengths.end(), 0);
  return random_floats({total, world.shape.q_heads, world.shape.head_dim}, seed, scale);
}

std::vector<Slice> whole(const World& world) {
  std::vector<Slice> slices;
  for (size_t s = 0; s < world.lengths.size(); ++s) {
    slices.push_back({static_cast<int>(s), 0, world.lengths[s]});
  }
  return slices;
}

/// Relative L2 of a call. bf16 compares with an oracle whose q and p stay fp32.
double tolerance(KvFormat format) {
  return format == KvFormat::kF32 ? 2e-6 : 6e-3;
}

class Attention : public testing::TestWithParam<CpuIsa> {
 protected:
  const OpTable& ops_ = cpu_ops(GetParam());
  TestStream stream_;
};
WEFT_FOR_EACH_ISA(Attention);

TEST_P(Attention, MatchesTheOracle) {
  struct Case {
    int heads, kv_heads, dim, block;
    std::vector<int> lengths;
  };
  const std::vector<Case> cases = {
      {2, 1, 64, 64, {0, 1, 63, 64, 65, 127}},
      {4, 2, 128, 64, {140, 0, 17}},
      {6, 2, 256, 32, {97, 33}},
      {5, 5, 16, 16, {50}},
      {3, 1, 48, 48, {131}},
      {14, 2, 64, 128, {90}},
      {1, 1, 80, 16, {1, 15, 16, 17}},
      {40, 1, 32, 64, {40}},
      {1, 1, 32, 64, {600}},
  };
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16}) {
    for (const Case& c : cases) {
      World world{{c.heads, c.kv_heads, c.dim, 1.0f / std::sqrt(static_cast<float>(c.dim))},
                  format,
                  c.block,
                  c.lengths};
      Cache ours(ops_, stream_, world, 7), oracle(ref_ops(), stream_, world, 7);
      const Floats q = queries(world, 3, 3.0f);
      const Floats got = ours.attend(stream_, q, whole(world));
      const Floats want = oracle.attend(stream_, q, whole(world));
      EXPECT_LT(relative_l2(got.data, want.data), tolerance(format))
          << "H " << c.heads << " G " << c.kv_heads << " D " << c.dim << " B " << c.block;
    }
  }
}

TEST_P(Attention, BitsDependOnPositionAndKeysAlone) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16}) {
    const World world{{6, 2, 64, 0.125f}, format, 64, {700, 130, 1, 1100}};
    Cache cache(ops_, stream_, world, 11);
    const Floats q = queries(world, 5);
    const Floats all = cache.attend(stream_, q, whole(world));
    const auto expect_same = [&](Stream& stream, const std::vector<Slice>& slices) {
      const Floats part = cache.attend(stream, q, slices);
      const int64_t width = 6 * 64;
      int64_t row = 0;
      for (const Slice& s : slices) {
        const float* want = all.data.data() + cache.row_of(s.sequence, s.start) * width;
        EXPECT_EQ(std::memcmp(part.data.data() + row * width, want,
                              static_cast<size_t>(s.rows * width) * sizeof(float)),
                  0)
            << "sequence " << s.sequence << " start " << s.start << " rows " << s.rows;
        row += s.rows;
      }
    };
    TestStream one(1), three(3), starved(2, 4096);
    // Decode rows: alone, in a batch, without scratch for partial results.
    const std::vector<Slice> decode = {{0, 699, 1}, {3, 1099, 1}, {2, 0, 1}, {3, 511, 1},
                                       {3, 512, 1}, {1, 64, 1},   {0, 0, 0}};
    for (Stream* stream : {&static_cast<Stream&>(stream_), &static_cast<Stream&>(one),
                           &static_cast<Stream&>(three), &static_cast<Stream&>(starved)}) {
      expect_same(*stream, decode);
    }
    for (const Slice& s : decode) expect_same(stream_, {s});
    // Chunks of a prompt, beside decode rows and verification rows.
    for (const int chunk : {1, 3, 7, 64, 640}) {
      if (chunk < 8) {
        expect_same(stream_, {{3, 1080, chunk}, {3, 509, chunk}, {0, 62, chunk}});
        continue;
      }
      for (int start = 0; start < 1100; start += chunk) {
        expect_same(three, {{3, start, std::min(chunk, 1100 - start)}, {0, 650, 1}});
      }
    }
    expect_same(one, whole(world));
  }
}

TEST_P(Attention, LargeScoresDontOverflow) {
  for (const KvFormat format : {KvFormat::kF32, KvFormat::kBf16}) {
    const World world{{2, 1, 64, 1.0f}, format, 64, {90}};
    Cache ours(ops_, stream_, world, 1), oracle(ref_ops(), stream_, world, 1);
    const Floats q = queries(world, 2, 2e3f);
    const Floats got = ours.attend(stream_, q, whole(world));
    const Floats want = oracle.attend(stream_, q, whole(world));
    EXPECT_LT(relative_l2(got.data, want.data), format == KvFormat::kF32 ? 1e-2 : 0.5);
  }
}

TEST_P(Attention, RowWithoutKeysIsZero) {
  const World world{{2, 1, 64, 1.0f}, KvFormat::kBf16, 64, {70}};
  Cache cache(ops_, stream_, world, 1);
  const Floats out = cache.attend(stream_, queries(world, 2), {{0, -2, 2}});
  for (float x : out.data) EXPECT_EQ(x, 0.0f);
}

}  // namespace
}  // namespace weft
