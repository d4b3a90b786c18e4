// Attention of prompts over quantised caches: bit for bit that over a bf16 cache which holds the
// same values rounded to bf16, whatever lies beside a segment and wherever its blocks are.

#include <algorithm>
#include <numeric>

#include "tests/ops_cuda/attention_support.h"

namespace weft {
namespace {

struct Case {
  KvFormat format;
  Heads heads;
  int block_size = 64;
};

class World {
 public:
  World(const Case& of, std::vector<Piece> pieces, uint64_t seed)
      : case_(of), pieces_(std::move(pieces)) {
    int64_t blocks = 3;
    cu_q_ = {0};
    for (const Piece& piece : pieces_) {
      cu_q_.push_back(cu_q_.back() + piece.rows);
      starts_.push_back(piece.start);
      width_ = std::max(width_, blocks_of(piece));
      blocks += blocks_of(piece);
    }
    std::vector<int32_t> ids(static_cast<size_t>(blocks));
    std::iota(ids.begin(), ids.end(), 0);
    for (size_t i = ids.size(); i > 1; --i) {
      std::swap(ids[i - 1], ids[philox4x32(seed, i, 0)[0] % i]);
    }
    table_.assign(pieces_.size() * static_cast<size_t>(width_), -1);
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int64_t b = 0; b < blocks_of(pieces_[s]); ++b) {
        table_[s * static_cast<size_t>(width_) + static_cast<size_t>(b)] = ids.back();
        ids.pop_back();
      }
    }
    quantised_ = make(of.format, blocks);
    fill(quantised_, [&](const Piece& piece, int position, int plane) {
      return token(piece.sequence, position, plane, of.heads.kv, of.heads.dim);
    });
    // What is stored, rounded to bf16.
    const int64_t b = of.block_size, width = int64_t{of.heads.kv} * of.heads.dim;
    std::vector<float> read[2];
    for (auto& plane : read) plane.resize(static_cast<size_t>(blocks * b * width));
    for (int64_t i = 0; i < blocks; ++i) {
      const auto view = [&](int plane) {
        return TensorView(read[plane].data() + i * b * width, DType::kF32,
                          {b, of.heads.kv, of.heads.dim});
      };
      cuda::kv_read_block(quantised_.kv, i, view(0), view(1));
    }
    plain_ = make(KvFormat::kBf16, blocks);
    size_t at = 0;
    fill(plain_, [&](const Piece&, int, int plane) {
      const float* row = read[plane - 1].data() + slots_[at / 2] * width;
      at += 1;
      std::vector<float> out(row, row + width);
      for (float& x : out) x = bf16_to_float(float_to_bf16(x));
      return out;
    });
  }

  /// Bytes of out and lse.
  std::vector<std::byte> run(bool quantised, const HeadPlan* plan = nullptr) {
    return with_args(quantised, plan, [&](Stream& stream, const AttnArgs& args) {
      (quantised ? cuda::attention_prompt_gathered : cuda::attention_prompt)(stream, args);
      const int64_t keys = width_ * case_.block_size;
      return cuda::attention_prompt_scratch(args.shape, args.num_prompt_segments, keys) +
             cuda::kv_gather_scratch(args.shape, keys);
    });
  }

  /// The lists of XAttention, of all heads, and what a prompt that goes by them gives.
  struct Listed {
    std::vector<std::byte> words, counts, mass, out;
    bool operator==(const Listed&) const = default;
  };
  Listed listed(bool quantised, int stride) {
    const auto segments = static_cast<int64_t>(pieces_.size());
    const int64_t heads = case_.heads.q, keys = width_ * case_.block_size;
    const int64_t row_blocks = keys / HeadPlan::kBlock + 1, words = row_blocks / 32 + 1;
    const auto count = static_cast<size_t>(segments * heads * row_blocks);
    const DeviceTensor kinds(std::vector<int32_t>(static_cast<size_t>(segments * heads),
                                                  static_cast<int32_t>(HeadKind::kBlocks)));
    const DeviceTensor lists(std::vector<int32_t>(count * static_cast<size_t>(words)));
    const DeviceTensor counts((std::vector<int32_t>(count)));
    const DeviceTensor mass(DType::kF32, {segments, heads, row_blocks});
    const DeviceTensor thresholds(DType::kF32, {heads},
                                  std::vector<float>(static_cast<size_t>(heads), 0.7f));
    HeadPlan plan;
    plan.kinds = {kinds.view.data, DType::kI32, {segments, heads}};
    plan.blocks = {lists.view.data, DType::kI32, {segments, heads, row_blocks, words}};
    plan.counts = {counts.view.data, DType::kI32, {segments, heads, row_blocks}};
    with_args(quantised, &plan, [&](Stream& stream, const AttnArgs& args) {
      cuda::select_blocks(stream, {.attention = &args,
                                   .stride = stride,
                                   .norm = 0.2f,
                                   .thresholds = thresholds.view,
                                   .mass = mass.view});
      return cuda::select_blocks_scratch(args.shape, args.prompt_rows, keys, stride);
    });
    return {lists.bytes(), counts.bytes(), mass.bytes(), run(quantised, &plan)};
  }

 private:
  /// Calls run(stream, args), which gives the bound of its scratch memory; bytes of out and lse.
  template <class Run>
  std::vector<std::byte> with_args(bool quantised, const HeadPlan* plan, const Run& run) {
    const Heads& h = case_.heads;
    std::vector<float> q_values;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        const auto row = token(piece.sequence, piece.start + i, 0, h.q, h.dim);
        q_values.insert(q_values.end(), row.begin(), row.end());
      }
    }
    const int64_t rows = cu_q_.back();
    const DeviceTensor q(DType::kBF16, {rows, h.q, h.dim}, q_values);
    DeviceTensor out(DType::kBF16, {rows, h.q, h.dim}), lse(DType::kF32, {rows, h.q});
    out.poison();
    lse.poison();
    const DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    AttnArgs args;
    args.shape = {h.q, h.kv, h.dim, 1.0f / std::sqrt(static_cast<float>(h.dim)), case_.format};
    args.q = q.view;
    args.out = out.view;
    args.lse = lse.view;
    args.kv = quantised ? quantised_.kv : plain_.kv;
    args.seqs.cu_q = cu_q.view;
    args.seqs.kv_start = starts.view;
    const auto segments = static_cast<int64_t>(pieces_.size());
    args.seqs.block_table = {table.view.data, DType::kI32, {segments, width_}};
    args.seqs.num_segments = args.num_prompt_segments = static_cast<int>(segments);
    args.seqs.host_cu_q = cu_q_.data();
    args.seqs.host_kv_start = starts_.data();
    args.prompt_rows = rows;
    args.heads = plan;
    CudaTestStream stream;
    const int64_t most = run(stream, args);
    stream.sync();
    EXPECT_LE(static_cast<Stream&>(stream).scratch().peak(), most);
    std::vector<std::byte> all = out.bytes(), more = lse.bytes();
    all.insert(all.end(), more.begin(), more.end());
    return all;
  }

  struct Cache {
    PagedKv kv;
    DeviceTensor pool, scales;
  };
  int64_t blocks_of(const Piece& piece) const {
    return piece.rows == 0 ? 0
                           : (piece.start + piece.rows + case_.block_size - 1) / case_.block_size;
  }
  Cache make(KvFormat format, int64_t blocks) const {
    Cache cache;
    const KvShape shape{format, case_.heads.kv, case_.heads.dim, case_.block_size};
    const int64_t bytes = cuda::kv_block_bytes(shape);
    cache.pool = DeviceTensor(DType::kU8, {blocks, bytes});
    cache.pool.poison();
    cache.kv = {shape, static_cast<std::byte*>(cache.pool.view.data), bytes, blocks};
    if (kv_has_static_scales(format)) {
      std::vector<float> scales;
      const int same = format == KvFormat::kInt8 ? 1 : case_.heads.dim;
      for (int i = 0; i < 2 * case_.heads.kv * case_.heads.dim; ++i) {
        scales.push_back(0.004f * (1 + 0.3f * static_cast<float>(i / same % 5)));
      }
      cache.scales = DeviceTensor(DType::kF32, {static_cast<int64_t>(scales.size())}, scales);
      cache.kv.k_scale = cache.scales.view.ptr<float>();
      cache.kv.v_scale = cache.kv.k_scale + case_.heads.kv * case_.heads.dim;
    }
    return cache;
  }
  /// value(piece, position, plane 1: K, 2: V), asked for K and V of each key in turn.
  template <class F>
  void fill(const Cache& cache, const F& value) {
    slots_.clear();
    for (size_t s = 0; s < pieces_.size(); ++s) {
      if (pieces_[s].rows == 0) continue;
      for (int at = 0; at < pieces_[s].start + pieces_[s].rows; ++at) {
        const int32_t block =
            table_[s * static_cast<size_t>(width_) + static_cast<size_t>(at / case_.block_size)];
        slots_.push_back(int64_t{block} * case_.block_size + at % case_.block_size);
      }
    }
    std::vector<float> rows[2];
    for (const Piece& piece : pieces_) {
      if (piece.rows == 0) continue;
      for (int at = 0; at < piece.start + piece.rows; ++at) {
        for (const int plane : {1, 2}) {
          const std::vector<float> row = value(piece, at, plane);
          rows[plane - 1].insert(rows[plane - 1].end(), row.begin(), row.end());
        }
      }
    }
    const Heads& h = case_.heads;
    const auto count = static_cast<int64_t>(slots_.size());
    const DeviceTensor k(DType::kBF16, {count, h.kv, h.dim}, rows[0]);
    const DeviceTensor v(DType::kBF16, {count, h.kv, h.dim}, rows[1]);
    const DeviceTensor q(DType::kBF16, {count, 1, h.dim});
    const DeviceTensor slot(slots_), index(std::vector<int32_t>(slots_.size()));
    const DeviceTensor angle(DType::kF32, {1}, {0.0f});
    CudaTestStream stream;
    QkvPrepareArgs args;
    args.q = q.view;
    args.k = k.view;
    args.v = v.view;
    args.rope.cos_sin = angle.view;
    args.rope.axis = {angle.view.data, DType::kU8, {1}};
    args.positions.index = index.view;
    args.kv_slot = slot.view;
    args.kv = cache.kv;
    cuda::qkv_prepare(stream, args);
    stream.sync();
  }

  Case case_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> cu_q_, starts_, table_;
  std::vector<int64_t> slots_;
  int64_t width_ = 0;
  Cache quantised_, plain_;
};

const Case kCases[] = {
    {KvFormat::kInt8Dynamic, {8, 2, 128}}, {KvFormat::kFp8Block, {4, 4, 64}, 16},
    {KvFormat::kInt4, {8, 2, 128}},        {KvFormat::kInt4, {4, 1, 256}, 48},
    {KvFormat::kInt4, {4, 2, 96}},         {KvFormat::kInt8, {8, 2, 128}, 128},
    {KvFormat::kFp8, {8, 1, 256}},         {KvFormat::kInt8Dynamic, {8, 2, 80}, 32},
    {KvFormat::kInt4, {4, 2, 72}, 32},
};

TEST(KvGatherTest, SmallPiecesAreTheBf16Ones) {
  for (const Case& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    World world(of, {{1, 0, 1}, {2, 0, 0}, {3, 64, 5}, {4, 0, 65}}, 3);
    EXPECT_EQ(world.run(true), world.run(false));
  }
}

TEST(KvGatherTest, PiecesAreTheBf16Ones) {
  for (const Case& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    // The first alone fills the scratch memory: several launches.
    World world(
        of, {{1, 1920, 300}, {2, 0, 200}, {3, 0, 0}, {4, 576, 127}, {5, 1024, 1}, {6, 64, 700}}, 4);
    EXPECT_EQ(world.run(true), world.run(false));
  }
}

TEST(KvGatherTest, ManyPiecesAndOtherBlocks) {
  const Case of{KvFormat::kInt8Dynamic, {8, 2, 128}};
  std::vector<Piece> pieces;
  for (int i = 0; i < 150; ++i)
    pieces.push_back({static_cast<uint64_t>(i + 1), 64 * (i % 3), i % 7});
  pieces.push_back({900, 6400, 100});
  World world(of, pieces, 5), other(of, pieces, 6);
  const std::vector<std::byte> out = world.run(true);
  EXPECT_EQ(out, world.run(false));
  EXPECT_EQ(out, other.run(true));
}

TEST(KvGatherTest, SmallListsAreTheBf16Ones) {
  for (const Case& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    World world(of, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}, {4, 0, 300}}, 3);
    EXPECT_EQ(world.listed(true, 8), world.listed(false, 8));
  }
}

TEST(KvGatherTest, ListsAreTheBf16Ones) {
  for (const Case& of : kCases) {
    for (const int stride : {4, 8, 16}) {
      SCOPED_TRACE(testing::Message()
                   << kv_format_name(of.format) << " D " << of.heads.dim << " stride " << stride);
      World world(of, {{1, 1920, 300}, {2, 0, 900}, {3, 0, 0}, {4, 640, 127}, {5, 1024, 1}}, 8);
      const World::Listed got = world.listed(true, stride);
      EXPECT_EQ(got, world.listed(false, stride));
      EXPECT_NE(got.out, world.run(true)) << "no list leaves anything out";
    }
  }
}

TEST(KvGatherTest, PlansOfHeads) {
  const Case of{KvFormat::kInt4, {4, 2, 128}};
  World world(of, {{1, 1024, 300}, {2, 0, 700}, {3, 512, 77}}, 7);
  std::vector<int32_t> kinds;
  for (int i = 0; i < 12; ++i) kinds.push_back(i % 3 == 0 ? 0 : -1);
  const DeviceTensor on_device(kinds);
  HeadPlan plan;
  plan.kinds = {on_device.view.data, DType::kI32, {3, 4}};
  plan.window_blocks = 2;
  EXPECT_EQ(world.run(true, &plan), world.run(false, &plan));
  EXPECT_NE(world.run(true, &plan), world.run(true));
}

}  // namespace
}  // namespace weft
