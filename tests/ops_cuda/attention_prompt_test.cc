// Attention of prompts: against the oracle, and bit for bit against itself in other company.

#include <algorithm>
#include <numeric>
#include <tuple>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

struct Heads {
  int q = 4, kv = 2, dim = 128;
};
/// Rows [start, start + rows) of a sequence; the sequence's id is the seed of its numbers.
struct Piece {
  uint64_t sequence = 0;
  int start = 0, rows = 0;
};
struct Layout {
  int block_size = 64;
  uint64_t seed = 1;     ///< of the order of the blocks
  int q_gap = 0;         ///< unused elements after each row of q
  int out_gap = 0;       ///< and of out
  int table_gap = 3;     ///< unused entries after each row of the block table
  int64_t pad_rows = 0;  ///< rows of no segment after the last
};

constexpr float kQScale = 12;  // peaked enough that references of the softmax move

/// `plane` 0: q, 1: K, 2: V of one token, [heads, D].
std::vector<float> token(uint64_t sequence, int position, int plane, int heads, int dim) {
  const uint64_t seed =
      (sequence * 1000003 + static_cast<uint64_t>(position)) * 3 + static_cast<uint64_t>(plane);
  return random_bf16(int64_t{heads} * dim, seed, plane == 0 ? kQScale : 1);
}

int round_up(int x, int to) {
  return (x + to - 1) / to * to;
}

/// One step on the GPU, and the same on the oracle.
class Step {
 public:
  Step(const Heads& heads, const Layout& layout, std::vector<Piece> pieces)
      : heads_(heads), layout_(layout), pieces_(std::move(pieces)) {
    cu_q_ = {0};
    for (const Piece& piece : pieces_) {
      cu_q_.push_back(cu_q_.back() + piece.rows);
      starts_.push_back(piece.start);
      const int blocks =
          round_up(piece.start + piece.rows, layout_.block_size) / layout_.block_size;
      num_blocks_ += blocks;
      max_blocks_ = std::max(max_blocks_, blocks);
    }
    max_blocks_ += layout_.table_gap;
    num_blocks_ += 2;  // nobody's
    std::vector<int32_t> free_blocks(static_cast<size_t>(num_blocks_));
    std::iota(free_blocks.begin(), free_blocks.end(), 0);
    for (size_t i = free_blocks.size(); i > 1; --i) {
      std::swap(free_blocks[i - 1], free_blocks[philox4x32(layout_.seed, i, 0)[0] % i]);
    }
    table_.assign(pieces_.size() * static_cast<size_t>(max_blocks_), -1);
    for (size_t s = 0; s < pieces_.size(); ++s) {
      const int keys = pieces_[s].start + pieces_[s].rows;
      for (int b = 0; b * layout_.block_size < keys; ++b) {
        table_[s * static_cast<size_t>(max_blocks_) + static_cast<size_t>(b)] = free_blocks.back();
        free_blocks.pop_back();
      }
    }
  }

  int64_t rows() const { return cu_q_.back() + layout_.pad_rows; }

  /// Output bytes of each piece. Everything that the op must not touch is checked to be so.
  std::vector<std::vector<std::byte>> run() {
    const int64_t width = int64_t{heads_.q} * heads_.dim;
    KvShape shape{KvFormat::kBf16, heads_.kv, heads_.dim, layout_.block_size};
    const int64_t block_bytes =
        cuda::kv_block_bytes(shape) + 256;  // others live between the blocks
    DeviceTensor cache(DType::kBF16, {num_blocks_, block_bytes / 2}, cache_values(block_bytes / 2));
    DeviceTensor q(DType::kBF16, {rows(), width + layout_.q_gap}, q_values());
    DeviceTensor out(DType::kBF16, {rows(), width + layout_.out_gap});
    out.poison();
    DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    AttnArgs args = common_args();
    args.q = q.view.columns(0, width).split_last(heads_.q, heads_.dim);
    args.out = out.view.columns(0, width).split_last(heads_.q, heads_.dim);
    args.kv = {shape, static_cast<std::byte*>(cache.view.data), block_bytes, num_blocks_};
    args.seqs.cu_q = cu_q.view;
    args.seqs.kv_start = starts.view;
    args.seqs.block_table = TensorView(table.view.data, DType::kI32,
                                       {static_cast<int64_t>(pieces_.size()), max_blocks_});
    CudaTestStream stream;
    cuda::attention_prompt(stream, args);
    stream.sync();
    const std::vector<std::byte> all = out.bytes();
    const auto row_bytes = static_cast<size_t>(out.view.dim(1) * 2);
    const auto used = static_cast<size_t>(width * 2);
    for (size_t row = 0; row < static_cast<size_t>(rows()); ++row) {
      const bool ours = row < static_cast<size_t>(cu_q_.back());
      for (size_t i = ours ? used : 0; i < row_bytes; ++i) {
        if (all[row * row_bytes + i] != std::byte{0xFF}) {
          ADD_FAILURE() << "wrote to row " << row << " byte " << i;
          return {};
        }
      }
    }
    std::vector<std::vector<std::byte>> result(pieces_.size());
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (auto row = static_cast<size_t>(cu_q_[s]); row < static_cast<size_t>(cu_q_[s + 1]);
           ++row) {
        const auto* from = all.data() + row * row_bytes;
        result[s].insert(result[s].end(), from, from + used);
      }
    }
    return result;
  }

  /// The same on the oracle, all pieces after each other.
  std::vector<float> oracle() {
    const int64_t width = int64_t{heads_.q} * heads_.dim;
    KvShape shape{KvFormat::kF32, heads_.kv, heads_.dim, layout_.block_size};
    const int64_t block_bytes = ref::kv_block_bytes(shape);
    std::vector<std::byte> cache(static_cast<size_t>(num_blocks_ * block_bytes));
    AttnArgs args = common_args();
    args.kv = {shape, cache.data(), block_bytes, num_blocks_};
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = token(pieces_[s].sequence, position, 1, heads_.kv, heads_.dim);
      const std::vector<float> v = token(pieces_[s].sequence, position, 2, heads_.kv, heads_.dim);
      const int64_t slot = int64_t{block} * layout_.block_size + position % layout_.block_size;
      for (int g = 0; g < heads_.kv; ++g) {
        ref::kv_store(args.kv, 0, slot, g, k.data() + g * heads_.dim);
        ref::kv_store(args.kv, 1, slot, g, v.data() + g * heads_.dim);
      }
    });
    std::vector<float> q;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        const auto row = token(piece.sequence, piece.start + i, 0, heads_.q, heads_.dim);
        q.insert(q.end(), row.begin(), row.end());
      }
    }
    std::vector<float> out(q.size());
    args.q = TensorView(q.data(), DType::kF32, {cu_q_.back(), heads_.q, heads_.dim});
    args.out = TensorView(out.data(), DType::kF32, {cu_q_.back(), heads_.q, heads_.dim});
    (void)width;
    args.seqs.cu_q = TensorView(cu_q_.data(), DType::kI32, {static_cast<int64_t>(cu_q_.size())});
    args.seqs.kv_start =
        TensorView(starts_.data(), DType::kI32, {static_cast<int64_t>(starts_.size())});
    args.seqs.block_table =
        TensorView(table_.data(), DType::kI32, {static_cast<int64_t>(pieces_.size()), max_blocks_});
    ThreadPool pool(4);
    Arena scratch;
    Stream stream(pool, scratch);
    ref::attention(stream, args);
    return out;
  }

 private:
  AttnArgs common_args() const {
    AttnArgs args;
    args.shape = {heads_.q, heads_.kv, heads_.dim,
                  1.0f / std::sqrt(static_cast<float>(heads_.dim))};
    args.seqs.num_segments = args.num_prompt_segments = static_cast<int>(pieces_.size());
    args.seqs.host_cu_q = cu_q_.data();
    args.seqs.host_kv_start = starts_.data();
    args.prompt_rows = cu_q_.back();
    return args;
  }
  template <class F>
  void for_each_key(const F& f) const {
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (int p = 0; p < pieces_[s].start + pieces_[s].rows; ++p) {
        f(s, p,
          table_[s * static_cast<size_t>(max_blocks_) +
                 static_cast<size_t>(p / layout_.block_size)]);
      }
    }
  }
  /// Device layout; whatever is no key of these pieces is NaN.
  std::vector<float> cache_values(int64_t block_elements) const {
    std::vector<float> values(static_cast<size_t>(num_blocks_ * block_elements), NAN);
    for_each_key([&](size_t s, int position, int32_t block) {
      for (int plane = 0; plane < 2; ++plane) {
        const std::vector<float> row =
            token(pieces_[s].sequence, position, 1 + plane, heads_.kv, heads_.dim);
        for (int g = 0; g < heads_.kv; ++g) {
          const int64_t at =
              block * block_elements + ((int64_t{plane} * heads_.kv + g) * layout_.block_size +
                                        position % layout_.block_size) *
                                           heads_.dim;
          std::copy_n(row.begin() + g * heads_.dim, heads_.dim, values.begin() + at);
        }
      }
    });
    return values;
  }
  std::vector<float> q_values() const {
    const auto width = static_cast<size_t>(heads_.q * heads_.dim + layout_.q_gap);
    std::vector<float> values(static_cast<size_t>(rows()) * width, NAN);
    size_t row = 0;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i, ++row) {
        const auto q = token(piece.sequence, piece.start + i, 0, heads_.q, heads_.dim);
        std::copy(q.begin(), q.end(), values.begin() + static_cast<int64_t>(row * width));
      }
    }
    return values;
  }

  Heads heads_;
  Layout layout_;
  std::vector<Piece> pieces_;
  std::vector<int32_t> cu_q_, starts_, table_;
  int64_t num_blocks_ = 0;
  int max_blocks_ = 0;
};

std::vector<float> to_floats(const std::vector<std::vector<std::byte>>& pieces) {
  std::vector<float> out;
  for (const auto& piece : pieces) {
    for (size_t i = 0; i < piece.size(); i += 2) {
      bf16 value;
      std::memcpy(&value, piece.data() + i, 2);
      out.push_back(bf16_to_float(value));
    }
  }
  return out;
}

void expect_oracle(const Heads& heads, const Layout& layout, const std::vector<Piece>& pieces) {
  Step step(heads, layout, pieces);
  const std::vector<float> got = to_floats(step.run()), want = step.oracle();
  ASSERT_EQ(got.size(), want.size());
  EXPECT_LE(relative_l2(got, want), 6e-3);  // P and the output are rounded to bf16
  // No single row may hide in the norm of all.
  const auto width = static_cast<size_t>(heads.q * heads.dim);
  for (size_t row = 0; row * width < got.size(); ++row) {
    const auto part = [&](const std::vector<float>& x) {
      return std::vector<float>(x.begin() + static_cast<int64_t>(row * width),
                                x.begin() + static_cast<int64_t>((row + 1) * width));
    };
    ASSERT_LE(relative_l2(part(got), part(want)), 1.5e-2) << "row " << row;
  }
}

std::vector<std::byte> concatenated(const std::vector<std::vector<std::byte>>& pieces) {
  std::vector<std::byte> out;
  for (const auto& piece : pieces) out.insert(out.end(), piece.begin(), piece.end());
  return out;
}

class AttentionPrompt : public testing::TestWithParam<Heads> {};

INSTANTIATE_TEST_SUITE_P(Heads, AttentionPrompt,
                         testing::Values(Heads{4, 2, 64}, Heads{3, 3, 64}, Heads{8, 2, 128},
                                         Heads{7, 1, 128}, Heads{4, 2, 128}, Heads{2, 2, 128},
                                         Heads{8, 1, 256}, Heads{6, 2, 256}, Heads{2, 2, 256},
                                         Heads{4, 2, 32}, Heads{2, 1, 8}, Heads{3, 1, 72},
                                         Heads{4, 4, 96}, Heads{2, 1, 136}),
                         [](const auto& info) {
                           return "H" + std::to_string(info.param.q) + "G" +
                                  std::to_string(info.param.kv) + "D" +
                                  std::to_string(info.param.dim);
                         });

TEST_P(AttentionPrompt, SmallAgainstOracle) {
  expect_oracle(GetParam(), {}, {{1, 0, 1}});
  expect_oracle(GetParam(), {.q_gap = 64, .out_gap = 8, .pad_rows = 3},
                {{1, 0, 70}, {2, 0, 0}, {3, 64, 3}});
}

TEST_P(AttentionPrompt, BordersAgainstOracle) {
  for (const int rows : {2, 63, 64, 65, 127, 128, 129, 191, 193, 257}) {
    expect_oracle(GetParam(), {}, {{static_cast<uint64_t>(rows), 0, rows}});
  }
}

TEST_P(AttentionPrompt, PrefixesAgainstOracle) {
  for (const int start : {64, 128, 192, 320}) {
    for (const int rows : {1, 17, 64, 67, 200}) {
      expect_oracle(GetParam(), {}, {{5, start, rows}});
    }
  }
}

TEST_P(AttentionPrompt, ManySegmentsAgainstOracle) {
  expect_oracle(GetParam(), {.q_gap = 128, .pad_rows = 2},
                {{1, 0, 131},
                 {2, 0, 0},
                 {3, 256, 33},
                 {4, 64, 5},
                 {5, 0, 1},
                 {6, 448, 260},
                 {7, 0, 0},
                 {8, 0, 64}});
}

TEST_P(AttentionPrompt, BlockSizesAgainstOracle) {
  for (const int block_size : {16, 32, 48, 128, 256}) {
    expect_oracle(GetParam(), {.block_size = block_size}, {{1, 0, 200}, {2, 192, 77}});
  }
}

TEST_P(AttentionPrompt, SameBitsInAnyChunks) {
  constexpr int kRows = 707;
  const auto whole = Step(GetParam(), {}, {{9, 0, kRows}}).run();
  for (const std::vector<int>& chunks :
       std::vector<std::vector<int>>{{64, 64, 128, 64, 192, 64, 131},
                                     {192, 192, 192, 131},
                                     {640, 67},
                                     {704, 3},
                                     {320, 387}}) {
    std::vector<std::byte> joined;
    int start = 0;
    for (const int rows : chunks) {
      const auto chunk = Step(GetParam(), {.seed = 7}, {{9, start, rows}}).run();
      joined.insert(joined.end(), chunk[0].begin(), chunk[0].end());
      start += rows;
    }
    ASSERT_EQ(start, kRows);
    EXPECT_TRUE(joined == whole[0]) << "first chunk " << chunks[0];
  }
}

TEST_P(AttentionPrompt, SameBitsOfEveryLength) {
  const auto whole = Step(GetParam(), {}, {{9, 0, 260}}).run();
  for (int rows = 1; rows < 260; rows += 7) {
    const auto part = Step(GetParam(), {.seed = 3}, {{9, 0, rows}}).run();
    ASSERT_TRUE(std::equal(part[0].begin(), part[0].end(), whole[0].begin())) << rows;
  }
}

TEST_P(AttentionPrompt, SameBitsInAnyCompany) {
  const std::vector<Piece> pieces = {{1, 0, 300}, {2, 128, 65}, {3, 512, 20}, {4, 0, 129}};
  std::vector<std::vector<std::byte>> alone;
  for (const Piece& piece : pieces) alone.push_back(Step(GetParam(), {}, {piece}).run()[0]);
  std::vector<size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), size_t{0});
  do {
    std::vector<Piece> mixed;
    for (const size_t i : order) mixed.push_back(pieces[i]);
    mixed.push_back({77, 64, 31});
    const auto got = Step(GetParam(), {.seed = 5 + order[0], .q_gap = 64}, mixed).run();
    for (size_t i = 0; i < order.size(); ++i) {
      ASSERT_TRUE(got[i] == alone[order[i]]) << "piece " << order[i] << " in place " << i;
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_P(AttentionPrompt, SameBitsInAnyBlocks) {
  const std::vector<Piece> pieces = {{1, 192, 300}, {2, 64, 65}};
  const auto want = concatenated(Step(GetParam(), {.seed = 1}, pieces).run());
  for (const int block_size : {16, 32, 64, 128}) {
    for (const uint64_t seed : {2, 3}) {
      const Layout layout{.block_size = block_size, .seed = seed, .table_gap = 0};
      EXPECT_TRUE(concatenated(Step(GetParam(), layout, pieces).run()) == want) << block_size;
    }
  }
}

TEST_P(AttentionPrompt, SameBitsAgain) {
  const std::vector<Piece> pieces = {{1, 0, 1500}, {2, 1024, 700}};
  const auto want = concatenated(Step(GetParam(), {}, pieces).run());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(concatenated(Step(GetParam(), {}, pieces).run()) == want);
  }
}

TEST(AttentionPromptPlan, MoreTilesThanALaunchHolds) {
  // 1,100 segments of 1 to 3 rows: two launches.
  std::vector<Piece> pieces;
  for (uint64_t s = 0; s < 1100; ++s) pieces.push_back({s, 0, static_cast<int>(s % 4)});
  expect_oracle({2, 1, 64}, {.block_size = 16}, pieces);
}

}  // namespace
}  // namespace weft
