// attention_decode against the oracle; a row's bits are its own; what a row doesn't see never
// reaches it, not even as NaN.

#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

struct Heads {
  int q, kv, dim;
  int block_size = 64;
  KvFormat format = KvFormat::kBf16;
};
constexpr KvFormat kInt8 = KvFormat::kInt8Dynamic, kFp8 = KvFormat::kFp8Block;
constexpr KvFormat kInt4 = KvFormat::kInt4, kStaticInt8 = KvFormat::kInt8,
                   kStaticFp8 = KvFormat::kFp8;

/// Keys and values of one sequence, functions of a seed: position p's are the same whatever the
/// length.
struct Sequence {
  uint64_t seed;
  int64_t keys;
};

/// `rows` rows of a sequence, the last at position `end` - 1.
struct Segment {
  int sequence;
  int64_t end;
  int rows = 1;
};

/// How the same segments can be laid out otherwise.
struct Layout {
  uint64_t block_seed = 1;
  int spare_blocks = 3, table_slack = 0;
  int extra_rows = 0;                  ///< behind the segments, of none
  int empty_segments = 0;              ///< behind the others
  int max_len = 0;                     ///< 0: of the longest
  int prompt_rows = 0;                 ///< one prompt segment of so many rows before them
  bool wide = false;                   ///< q and out are parts of longer rows
  int64_t poisoned_from = -1;          ///< positions of all sequences from here on are NaN
  float q_by = 1, k_by = 1, v_by = 1;  ///< rows of each are multiplied by
  float first_q_by = 1;                ///< the first dims of queries also by
};

std::vector<float> row_values(const Heads& h, uint64_t seed, int plane, int64_t position) {
  return random_bf16(int64_t{h.kv} * h.dim,
                     seed * 1000003 + static_cast<uint64_t>(2 * position + plane),
                     plane == 0 ? 2.0f : 1.0f);
}
std::vector<float> query_values(const Heads& h, uint64_t seed, int64_t position) {
  return random_bf16(int64_t{h.q} * h.dim, seed * 7919 + 17 + static_cast<uint64_t>(position),
                     2.0f);
}

void scale(float& x, float by) {
  x = bf16_to_float(float_to_bf16(x * by));
}
void scale(std::vector<float>& values, float by) {
  for (float& x : values) scale(x, by);
}

class World {
 public:
  World(const Heads& heads, std::vector<Sequence> sequences, const Layout& layout = {})
      : heads_(heads), sequences_(std::move(sequences)), layout_(layout) {
    const int64_t b = heads.block_size;
    int64_t blocks = layout.spare_blocks;
    for (const Sequence& s : sequences_) {
      blocks += (s.keys + b - 1) / b;
      width_ = std::max(width_, (s.keys + b - 1) / b);
    }
    width_ += layout.table_slack;
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = 0; i + 1 < ids.size(); ++i) {
      std::swap(ids[i], ids[i + philox4x32(layout.block_seed, i, 3)[0] % (ids.size() - i)]);
    }
    for (const Sequence& s : sequences_) {
      tables_.emplace_back();
      const size_t first = tables_.size() == 1 ? 0 : next_;
      next_ = first + static_cast<size_t>((s.keys + b - 1) / b);
      tables_.back().assign(ids.begin() + static_cast<std::ptrdiff_t>(first),
                            ids.begin() + static_cast<std::ptrdiff_t>(next_));
    }
    write_cache(blocks);
    read_cache(blocks);
  }

  /// The rows' outputs [T * H * D], where T counts prompt and extra rows too.
  std::vector<float> run(const std::vector<Segment>& segments) const {
    Call call(*this, segments);
    DeviceTensor out(DType::kBF16, {call.rows, call.row_heads, heads_.dim});
    out.poison();
    const DeviceTensor q(DType::kBF16, {call.rows, call.row_heads, heads_.dim}, call.q);
    const DeviceTensor cu_q(call.cu_q), kv_start(call.kv_start);
    DeviceTensor table(call.table);
    table.view = {table.view.data, DType::kI32, {call.num_segments(), width_}};
    CudaTestStream stream;
    AttnArgs args = call.args;
    args.q = heads_of(q.view);
    args.out = heads_of(out.view);
    args.kv = cache();
    args.seqs.cu_q = cu_q.view;
    args.seqs.kv_start = kv_start.view;
    args.seqs.block_table = table.view;
    const int64_t scratch =
        cuda::attention_decode_scratch(args.shape, call.num_segments(), width_ * heads_.block_size);
    Arena& arena = static_cast<Stream&>(stream).scratch();
    cuda::attention_decode(stream, args);
    EXPECT_LE(arena.peak(), scratch);
    EXPECT_EQ(arena.mark(), 0);
    stream.sync();
    return part(out.floats(), call.rows);
  }

  std::vector<float> oracle(const std::vector<Segment>& segments) {
    Call call(*this, segments);
    std::vector<float> out(static_cast<size_t>(call.rows * call.row_heads * heads_.dim));
    CudaTestStream stream;
    AttnArgs args = call.args;
    args.q = heads_of({call.q.data(), DType::kF32, {call.rows, call.row_heads, heads_.dim}});
    args.out = heads_of({out.data(), DType::kF32, {call.rows, call.row_heads, heads_.dim}});
    args.kv.shape.format = KvFormat::kF32;
    args.kv.data = reinterpret_cast<std::byte*>(host_pool_.data());
    args.kv.block_bytes = int64_t{2} * heads_.kv * heads_.block_size * heads_.dim * 4;
    args.seqs.cu_q = {call.cu_q.data(), DType::kI32, {call.num_segments() + 1}};
    args.seqs.kv_start = {call.kv_start.data(), DType::kI32, {call.num_segments()}};
    args.seqs.block_table = {call.table.data(), DType::kI32, {call.num_segments(), width_}};
    ref::attention(stream, args);
    return part(out, call.rows);
  }

  int64_t row_size() const { return int64_t{heads_.q} * heads_.dim; }

 private:
  KvShape kv_shape() const { return {heads_.format, heads_.kv, heads_.dim, heads_.block_size}; }
  PagedKv cache() const {
    PagedKv kv{kv_shape(), static_cast<std::byte*>(pool_.view.data),
               cuda::kv_block_bytes(kv_shape()), pool_.view.dim(0)};
    if (kv_has_static_scales(heads_.format)) {
      kv.k_scale = scales_.view.ptr<float>();
      kv.v_scale = kv.k_scale + heads_.kv * heads_.dim;
    }
    return kv;
  }
  /// Through qkv_prepare without norm and rope. Whatever no sequence wrote is NaN: blocks of
  /// nobody, and the rest of last blocks.
  void write_cache(int64_t blocks) {
    pool_ = DeviceTensor(DType::kU8, {blocks, cuda::kv_block_bytes(kv_shape())});
    pool_.poison();
    if (kv_has_static_scales(heads_.format)) {
      // Of channels, or of heads; some clamp.
      std::vector<float> scales;
      const int same = heads_.format == kStaticInt8 ? 1 : heads_.dim;
      for (int i = 0; i < 2 * heads_.kv * heads_.dim; ++i) {
        scales.push_back((heads_.format == kStaticInt8 ? 0.012f : 0.004f) *
                         (1 + 0.3f * static_cast<float>(i / same % 5)));
      }
      scales_ = DeviceTensor(DType::kF32, {static_cast<int64_t>(scales.size())}, scales);
    }
    std::vector<float> rows[2];
    std::vector<int64_t> slots;
    for (size_t i = 0; i < sequences_.size(); ++i) {
      for (int64_t at = 0; at < sequences_[i].keys; ++at) {
        if (layout_.poisoned_from >= 0 && at >= layout_.poisoned_from) break;
        slots.push_back(int64_t{tables_[i][static_cast<size_t>(at / heads_.block_size)]} *
                            heads_.block_size +
                        at % heads_.block_size);
        for (int plane = 0; plane < 2; ++plane) {
          std::vector<float> row = row_values(heads_, sequences_[i].seed, plane, at);
          scale(row, plane == 0 ? layout_.k_by : layout_.v_by);
          rows[plane].insert(rows[plane].end(), row.begin(), row.end());
        }
      }
    }
    write_rows(cache(), heads_.kv, heads_.dim, rows[0], rows[1], slots);
  }
  /// What is stored, in the oracle's layout.
  void read_cache(int64_t blocks) {
    const int64_t b = heads_.block_size, plane = int64_t{heads_.kv} * b * heads_.dim;
    host_pool_.resize(static_cast<size_t>(blocks * 2 * plane));
    for (int64_t block = 0; block < blocks; ++block) {
      float* at = host_pool_.data() + block * 2 * plane;
      cuda::kv_read_block(cache(), block, {at, DType::kF32, {b, heads_.kv, heads_.dim}},
                          {at + plane, DType::kF32, {b, heads_.kv, heads_.dim}});
    }
  }

  struct Call {
    Call(const World& w, const std::vector<Segment>& segments) {
      const Layout& l = w.layout_;
      const auto add = [&](int begin, int32_t start, int count) {
        cu_q.push_back(begin + count);
        kv_start.push_back(start);
        table.resize(table.size() + static_cast<size_t>(w.width_), -1);
      };
      cu_q.push_back(0);
      if (l.prompt_rows > 0) add(0, 0, l.prompt_rows);
      for (const Segment& s : segments) {
        add(cu_q.back(), static_cast<int32_t>(s.end - s.rows), s.rows);
        const auto& blocks = w.tables_[static_cast<size_t>(s.sequence)];
        std::copy(blocks.begin(), blocks.end(), table.end() - w.width_);
        args.max_decode_len = std::max(args.max_decode_len, s.rows);
      }
      for (int i = 0; i < l.empty_segments; ++i) add(cu_q.back(), 1 << 30, 0);
      if (l.max_len > 0) args.max_decode_len = l.max_len;
      rows = cu_q.back() + l.extra_rows;
      row_heads = w.heads_.q + (l.wide ? 3 : 0);
      q.assign(static_cast<size_t>(rows * row_heads * w.heads_.dim), kNan);
      int64_t row = l.prompt_rows;
      for (const Segment& s : segments) {
        for (int i = 0; i < s.rows; ++i, ++row) {
          auto values = query_values(w.heads_, w.sequences_[static_cast<size_t>(s.sequence)].seed,
                                     s.end - s.rows + i);
          scale(values, l.q_by);
          for (int head = 0; head < w.heads_.q; ++head) {
            scale(values[static_cast<size_t>(head * w.heads_.dim)], l.first_q_by);
          }
          std::copy(values.begin(), values.end(), q.begin() + row * row_heads * w.heads_.dim);
        }
      }
      args.shape = {w.heads_.q, w.heads_.kv, w.heads_.dim, 0.125f, w.heads_.format};
      args.kv.shape = w.kv_shape();
      args.seqs.num_segments = num_segments();
      args.prompt_rows = l.prompt_rows;
      args.num_prompt_segments = l.prompt_rows > 0 ? 1 : 0;
    }
    int num_segments() const { return static_cast<int>(kv_start.size()); }
    AttnArgs args;
    std::vector<float> q;
    std::vector<int32_t> cu_q, kv_start, table;
    int64_t rows = 0, row_heads = 0;
  };

  TensorView heads_of(TensorView rows) const {
    rows.shape[1] = heads_.q;
    return rows;
  }
  /// The q heads of rows that may be wider.
  std::vector<float> part(const std::vector<float>& rows, int64_t count) const {
    std::vector<float> out;
    const auto width = static_cast<int64_t>(rows.size()) / std::max<int64_t>(count, 1);
    for (int64_t i = 0; i < count; ++i) {
      out.insert(out.end(), rows.begin() + i * width, rows.begin() + i * width + row_size());
    }
    return out;
  }

  Heads heads_;
  std::vector<Sequence> sequences_;
  Layout layout_;
  int64_t width_ = 0;
  size_t next_ = 0;  // block
  std::vector<std::vector<int32_t>> tables_;
  DeviceTensor pool_, scales_;
  std::vector<float> host_pool_;
};

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * 4) == 0;
}
std::vector<float> slice(const std::vector<float>& v, int64_t begin, int64_t count) {
  return {v.begin() + begin, v.begin() + begin + count};
}

/// Segments over one sequence each.
struct Batch {
  std::vector<Sequence> sequences;
  std::vector<Segment> segments;
  void add(int64_t end, int rows = 1) {
    segments.push_back({static_cast<int>(sequences.size()), end, rows});
    sequences.push_back({100 + sequences.size(), end});
  }
};

void expect_oracle(const Heads& heads, const Batch& batch, const Layout& layout = {}) {
  SCOPED_TRACE(testing::Message() << heads.q << "/" << heads.kv << " heads of " << heads.dim);
  World world(heads, batch.sequences, layout);
  const std::vector<float> out = world.run(batch.segments), expected = world.oracle(batch.segments);
  // A row at a time: one wrong row among many would drown.
  const int64_t size = world.row_size();
  int64_t row = 0;
  for (const Segment& s : batch.segments) {
    for (int i = 0; i < s.rows; ++i, ++row) {
      EXPECT_LT(relative_l2(slice(out, row * size, size), slice(expected, row * size, size)), 0.01)
          << "row " << i << " of " << s.rows << ", " << s.end << " keys";
    }
  }
}

// ---- Against the oracle

TEST(AttentionDecodeTest, SmallLengthsAtBorders) {
  for (const Heads& heads :
       {Heads{2, 2, 64}, Heads{8, 2, 128}, Heads{8, 1, 128, 16}, Heads{4, 1, 256},
        Heads{2, 2, 64, 64, kInt8}, Heads{8, 2, 128, 16, kFp8}, Heads{4, 1, 256, 64, kInt8},
        Heads{4, 2, 64, 64, kInt4}, Heads{8, 2, 128, 16, kInt4}, Heads{4, 1, 256, 64, kInt4},
        Heads{8, 2, 128, 64, kStaticInt8}, Heads{4, 1, 64, 16, kStaticFp8}}) {
    Batch batch;
    for (const int64_t keys : {1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300}) {
      batch.add(keys);
    }
    expect_oracle(heads, batch);
  }
}

TEST(AttentionDecodeTest, ManyLengths) {
  for (const Heads& heads :
       {Heads{4, 4, 64, 32}, Heads{16, 2, 128}, Heads{16, 1, 64, 128}, Heads{8, 8, 128, 48},
        Heads{32, 2, 256, 16}, Heads{8, 2, 80, 16}, Heads{16, 2, 128, 64, kFp8},
        Heads{8, 2, 80, 16, kInt8}, Heads{16, 2, 128, 64, kInt4}, Heads{8, 2, 96, 48, kInt4},
        Heads{4, 2, 32, 16, kInt4}, Heads{8, 1, 168, 64, kInt4}, Heads{4, 2, 64, 16, kInt4},
        Heads{8, 2, 40, 16, kInt8}, Heads{8, 2, 72, 32, kInt4}, Heads{8, 2, 128, 64, kStaticFp8},
        Heads{8, 1, 256, 64, kStaticInt8}}) {
    Batch batch;
    for (const int64_t keys : {1, 511, 512, 513, 1023, 1024, 1025, 2047, 2053, 4096, 4099}) {
      batch.add(keys);
    }
    expect_oracle(heads, batch);
  }
}

TEST(AttentionDecodeTest, LongContexts) {
  for (const Heads& heads : {Heads{1, 1, 256}, Heads{4, 1, 128}}) {
    Batch batch;
    batch.add(40000);
    batch.add(33000, 3);
    expect_oracle(heads, batch);
  }
}

TEST(AttentionDecodeTest, VerificationRows) {
  for (const Heads& heads :
       {Heads{2, 2, 64}, Heads{8, 2, 128}, Heads{16, 2, 128}, Heads{16, 1, 256},
        Heads{16, 2, 128, 64, kInt8}, Heads{16, 1, 256, 64, kFp8}, Heads{2, 2, 64, 64, kInt4},
        Heads{16, 2, 128, 64, kInt4}, Heads{16, 1, 256, 64, kInt4},
        Heads{8, 2, 128, 64, kStaticInt8}}) {
    Batch batch;
    for (int rows = 1; rows <= 16; ++rows) batch.add(rows % 3 == 0 ? 120 + rows : 500 + rows, rows);
    batch.add(16, 16);
    batch.add(5, 5);
    expect_oracle(heads, batch);
  }
}

// Whatever a format makes of q and the weights on the way to the tensor cores holds their range.
TEST(AttentionDecodeTest, AnyMagnitude) {
  for (const Heads& heads :
       {Heads{8, 2, 128}, Heads{8, 2, 128, 64, kInt8}, Heads{8, 2, 128, 64, kInt4},
        Heads{8, 2, 64, 16, kInt4}, Heads{8, 2, 256, 64, kInt4}}) {
    Batch batch;
    for (const int64_t keys : {1, 100, 700}) batch.add(keys, keys > 2 ? 3 : 1);
    for (const auto& [q_by, k_by] : {std::pair(1e-30f, 1.0f),
                                     {3.0f, 1.0f},
                                     {1e-15f, 1e15f},
                                     {1e15f, 1e-15f},
                                     {1e30f, 1e-30f}}) {
      for (const float first : {1.0f, 8.0f}) {
        SCOPED_TRACE(testing::Message() << "q times " << q_by << ", the first " << first);
        expect_oracle(heads, batch, {.q_by = q_by, .k_by = k_by, .first_q_by = first});
      }
    }
    for (const float v_by : {1e-20f, 1e-8f, 1e10f, 1e30f}) {
      SCOPED_TRACE(testing::Message() << "v times " << v_by);
      expect_oracle(heads, batch, {.v_by = v_by});
    }
  }
}

TEST(AttentionDecodeTest, LongDecodeSegments) {
  Batch batch;
  batch.add(300, 77);
  batch.add(64, 33);
  expect_oracle({4, 2, 128}, batch);
}

TEST(AttentionDecodeTest, RowsInLongerRows) {
  Batch batch;
  for (const int64_t keys : {1, 100, 700}) batch.add(keys, keys > 2 ? 2 : 1);
  Layout layout;
  layout.wide = true;
  expect_oracle({8, 2, 128}, batch, layout);
}

// ---- Rows of nobody

TEST(AttentionDecodeTest, SmallPaddedStep) {
  const Heads heads{8, 2, 128};
  Batch batch;
  for (const int64_t keys : {70, 1, 190}) batch.add(keys);
  Layout layout;
  layout.extra_rows = 5;
  layout.empty_segments = 5;
  const std::vector<float> plain = World(heads, batch.sequences).run(batch.segments);
  const std::vector<float> padded = World(heads, batch.sequences, layout).run(batch.segments);
  const auto size = static_cast<int64_t>(plain.size());
  ASSERT_EQ(static_cast<int64_t>(padded.size()), size / 3 * 8);
  EXPECT_TRUE(same_bits(plain, slice(padded, 0, size)));
  for (size_t i = plain.size(); i < padded.size(); ++i) ASSERT_EQ(padded[i], 0) << i;
  // All of the step is padding.
  const std::vector<float> none = World(heads, batch.sequences, layout).run({});
  ASSERT_EQ(static_cast<int64_t>(none.size()), size / 3 * 5);
  for (const float x : none) ASSERT_EQ(x, 0);
}

TEST(AttentionDecodeTest, NoRows) {
  const Heads heads{8, 2, 128};
  Layout layout;
  layout.empty_segments = 2;
  EXPECT_TRUE(World(heads, {{1, 64}}, layout).run({}).empty());
}

TEST(AttentionDecodeTest, PromptRowsAreLeftAlone) {
  const Heads heads{8, 2, 128};
  Batch batch;
  for (const int64_t keys : {70, 190}) batch.add(keys);
  Layout layout;
  layout.prompt_rows = 9;
  layout.extra_rows = 1;
  const std::vector<float> plain = World(heads, batch.sequences).run(batch.segments);
  const std::vector<float> mixed = World(heads, batch.sequences, layout).run(batch.segments);
  const int64_t size = int64_t{heads.q} * heads.dim;
  for (int64_t i = 0; i < 9 * size; ++i)
    ASSERT_TRUE(std::isnan(mixed[static_cast<size_t>(i)])) << i;
  EXPECT_TRUE(same_bits(plain, slice(mixed, 9 * size, 2 * size)));
  for (int64_t i = 11 * size; i < 12 * size; ++i) ASSERT_EQ(mixed[static_cast<size_t>(i)], 0) << i;
}

// ---- Bits

TEST(AttentionDecodeTest, ARowsBitsAreItsOwn) {
  for (const Heads& heads :
       {Heads{4, 4, 64}, Heads{16, 2, 128, 16}, Heads{8, 1, 256}, Heads{16, 2, 128, 16, kInt8},
        Heads{8, 1, 64, 64, kFp8}, Heads{8, 2, 128, 64, kInt4}, Heads{16, 1, 64, 16, kInt4},
        Heads{8, 1, 256, 64, kInt4}, Heads{8, 2, 128, 64, kStaticInt8}}) {
    SCOPED_TRACE(testing::Message() << heads.q << "/" << heads.kv << " heads of " << heads.dim);
    Batch batch;
    for (const int64_t keys :
         {1, 4097, 129, 64, 2000, 77, 6001, 512, 1500, 3, 8000, 1056, 1153, 2200}) {
      batch.add(keys, keys % 5 == 0 ? 3 : 1);
    }
    World world(heads, batch.sequences);
    const int64_t size = world.row_size();
    const std::vector<float> together = world.run(batch.segments);

    // Backwards, in other blocks, in a wider table, among padding, as part of longer rows.
    Layout other;
    other.block_seed = 9;
    other.spare_blocks = 50;
    other.table_slack = 3000;
    other.extra_rows = 2;
    other.empty_segments = 7;
    other.max_len = 16;
    other.wide = true;
    std::vector<Segment> reversed(batch.segments.rbegin(), batch.segments.rend());
    const std::vector<float> backwards = World(heads, batch.sequences, other).run(reversed);

    int64_t row = 0, total = 0;
    for (const Segment& s : batch.segments) total += s.rows;
    for (const Segment& s : batch.segments) {
      const std::vector<float> mine = slice(together, row * size, s.rows * size);
      EXPECT_TRUE(same_bits(mine, world.run({s}))) << s.end << " keys, alone";
      EXPECT_TRUE(same_bits(mine, slice(backwards, (total - row - s.rows) * size, s.rows * size)))
          << s.end << " keys, backwards";
      row += s.rows;
    }
    // The same sequence often: other borders between blocks of the grid, and units of one to nine
    // chunks (1056 keys: the ninth has few keys).
    for (const size_t which : {6, 11, 12, 13}) {
      const Segment& segment = batch.segments[which];
      const std::vector<float> one = world.run({segment});
      for (const int copies : {2, 7, 33, 300}) {
        if (copies > 33 && segment.end > 3000) continue;
        const std::vector<float> out =
            world.run(std::vector<Segment>(static_cast<size_t>(copies), segment));
        int wrong = 0;
        for (int i = 0; i < copies; ++i) {
          const int64_t floats = segment.rows * size;
          wrong += same_bits(one, slice(out, i * floats, floats)) ? 0 : 1;
        }
        EXPECT_EQ(wrong, 0) << "of " << copies << " of " << segment.end << " keys";
      }
    }
  }
}

TEST(AttentionDecodeTest, AVerificationRowIsTheDecodeRow) {
  for (const Heads& heads :
       {Heads{2, 2, 64}, Heads{8, 2, 128}, Heads{16, 1, 128}, Heads{8, 2, 256},
        Heads{8, 2, 128, 64, kFp8}, Heads{8, 2, 128, 64, kInt4}, Heads{16, 2, 64, 16, kInt4},
        Heads{16, 1, 256, 64, kInt4}, Heads{4, 1, 64, 64, kStaticInt8}}) {
    SCOPED_TRACE(testing::Message() << heads.q << "/" << heads.kv << " heads of " << heads.dim);
    for (const int64_t end : {16, 70, 128, 135, 1030, 4100}) {
      for (const int rows : {2, 3, 7, 16}) {
        World world(heads, {{5, end}});
        const std::vector<float> verified = world.run({{0, end, rows}});
        for (int i = 0; i < rows; ++i) {
          // The decode row finds NaN behind itself.
          const int64_t keys = end - rows + i + 1;
          Layout rest;
          rest.poisoned_from = keys;
          const std::vector<float> decoded = World(heads, {{5, end}}, rest).run({{0, keys, 1}});
          EXPECT_TRUE(same_bits(decoded, slice(verified, i * world.row_size(), world.row_size())))
              << "row " << i << " of " << rows << " at " << end;
        }
      }
    }
  }
}

TEST(AttentionDecodeTest, ALaterDraftsNanStaysWithIt) {
  for (const KvFormat format : {KvFormat::kBf16, kInt8, kFp8, kInt4})
    for (const int64_t end : {20, 130, 1000}) {
      const Heads heads{8, 2, 128, 64, format};
      Layout bad;
      bad.poisoned_from = end - 3;
      const std::vector<float> clean = World(heads, {{5, end}}).run({{0, end, 8}});
      const std::vector<float> out = World(heads, {{5, end}}, bad).run({{0, end, 8}});
      const int64_t size = int64_t{heads.q} * heads.dim;
      EXPECT_TRUE(same_bits(slice(clean, 0, 5 * size), slice(out, 0, 5 * size))) << end;
      for (int64_t i = 5 * size; i < 8 * size; ++i) {
        ASSERT_TRUE(std::isnan(out[static_cast<size_t>(i)])) << i;
      }
    }
}

}  // namespace
}  // namespace weft
