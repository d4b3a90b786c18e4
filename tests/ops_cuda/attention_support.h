#pragma once

// A step of attention over prompts on the GPU and on the oracle, over the paged cache.

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/ref/ref.h"
#include "tests/ops_cuda/code_rows.h"

namespace weft {

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
  uint64_t seed = 1;       ///< of the order of the blocks
  int64_t q_gap = 0;       ///< unused elements after each row of q
  int64_t out_gap = 0;     ///< and of out
  int table_gap = 3;       ///< unused entries after each row of the block table
  int64_t pad_rows = 0;    ///< rows of no segment after the last
  int64_t page_gap = 128;  ///< elements of others between the blocks
  int rotate = 0;  ///< kv head g, and its query heads, have the numbers of kv head g + rotate
};

/// What heads see: head h of sequence s is of kind kinds[(h + s) % size].
struct Plan {
  std::vector<HeadKind> kinds;  ///< none: no plan
  int sink_blocks = 1, window_blocks = 2;
  uint64_t seed = 1;
  uint64_t density = 40;      ///< percent of the blocks of a list
  bool with_diagonal = true;  ///< false: the bit of the own block is left out
  bool long_lists = false;    ///< HeadPlan's hint

  HeadKind kind(uint64_t sequence, int head) const {
    return kinds[(static_cast<size_t>(head) + sequence) % kinds.size()];
  }
  bool bit(uint64_t sequence, int head, int b, int c) const {
    if (c >= b) return c == b && with_diagonal;
    const uint64_t at =
        (sequence * 64 + static_cast<uint64_t>(head)) * 65536 + static_cast<uint64_t>(b);
    return philox4x32(seed, at, static_cast<uint64_t>(c))[0] % 100 < density;
  }
  bool sees(uint64_t sequence, int head, int b, int c) const {
    if (kinds.empty()) return true;
    const HeadKind k = kind(sequence, head);
    if (k == HeadKind::kFull || b == c) return true;
    return k == HeadKind::kStreaming ? c < sink_blocks || c > b - window_blocks
                                     : bit(sequence, head, b, c);
  }
};

/// Heads in the order that `shift` says: the first is number `shift`.
inline std::vector<float> rotated(const std::vector<float>& row, int heads, int shift) {
  std::vector<float> out(row);
  const auto width = static_cast<std::ptrdiff_t>(row.size()) / heads;
  std::rotate(out.begin(), out.begin() + shift % heads * width, out.end());
  return out;
}

constexpr float kQScale = 12;  // peaked enough that references of the softmax move

/// `plane` 0: q, 1: K, 2: V of one token, [heads, D].
inline std::vector<float> token(uint64_t sequence, int position, int plane, int heads, int dim) {
  const uint64_t seed =
      (sequence * 1000003 + static_cast<uint64_t>(position)) * 3 + static_cast<uint64_t>(plane);
  return random_bf16(int64_t{heads} * dim, seed, plane == 0 ? kQScale : 1);
}

inline int round_up(int x, int to) {
  return (x + to - 1) / to * to;
}

/// One step on the GPU, and the same on the oracle.
class Step {
 public:
  Step(const Heads& heads, const Layout& layout, std::vector<Piece> pieces, Plan plan = {})
      : heads_(heads), layout_(layout), pieces_(std::move(pieces)), plan_(std::move(plan)) {
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
    const int64_t block_elements = cuda::kv_block_bytes(shape) / 2;
    const int64_t block_bytes = (block_elements + layout_.page_gap) * 2;
    DeviceTensor cache =
        spread_rows(cache_values(block_elements), num_blocks_, block_elements + layout_.page_gap);
    DeviceTensor q = spread_rows(q_values(), rows(), width + layout_.q_gap);
    DeviceTensor out(DType::kBF16, {rows(), width + layout_.out_gap});
    out.poison();
    DeviceTensor cu_q(cu_q_), starts(starts_), table(table_);
    AttnArgs args = common_args();
    HeadPlan plan = host_plan();
    DeviceTensor kinds(kinds_), blocks(blocks_), counts(counts_);
    plan.kinds.data = kinds.view.data;
    plan.blocks.data = blocks.view.data;
    plan.counts.data = counts.view.data;
    if (!plan_.kinds.empty()) args.heads = &plan;
    DeviceTensor lse_out(DType::kF32, {rows(), heads_.q});
    args.lse = lse_out.view;
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
    expect_same_in_any_tiles(stream, args, cu_q_.back(), cuda::attention_prompt);
    expect_codes_of_attention(stream, args, cu_q_.back());
    lse = lse_out.floats();
    lse.resize(static_cast<size_t>(cu_q_.back() * heads_.q));
    // Of rows far apart what lies between them is not looked at.
    const bool far = out.view.bytes() > int64_t{1} << 30;
    const std::vector<std::byte> all = far ? row_bytes(out, width) : out.bytes();
    const auto row_size = static_cast<size_t>(far ? width * 2 : out.view.dim(1) * 2);
    const auto used = static_cast<size_t>(width * 2);
    for (size_t row = 0; row < static_cast<size_t>(rows()); ++row) {
      const bool ours = row < static_cast<size_t>(cu_q_.back());
      for (size_t i = ours ? used : 0; i < row_size; ++i) {
        if (all[row * row_size + i] != std::byte{0xFF}) {
          ADD_FAILURE() << "wrote to row " << row << " byte " << i;
          return {};
        }
      }
    }
    std::vector<std::vector<std::byte>> result(pieces_.size());
    for (size_t s = 0; s < pieces_.size(); ++s) {
      for (auto row = static_cast<size_t>(cu_q_[s]); row < static_cast<size_t>(cu_q_[s + 1]);
           ++row) {
        const auto* from = all.data() + row * row_size;
        result[s].insert(result[s].end(), from, from + used);
      }
    }
    return result;
  }

  /// The same on the oracle, all pieces after each other.
  std::vector<float> oracle() {
    KvShape shape{KvFormat::kF32, heads_.kv, heads_.dim, layout_.block_size};
    const int64_t block_bytes = ref::kv_block_bytes(shape);
    std::vector<std::byte> cache(static_cast<size_t>(num_blocks_ * block_bytes));
    AttnArgs args = common_args();
    args.kv = {shape, cache.data(), block_bytes, num_blocks_};
    for_each_key([&](size_t s, int position, int32_t block) {
      const std::vector<float> k = numbers(pieces_[s], position, 1);
      const std::vector<float> v = numbers(pieces_[s], position, 2);
      const int64_t slot = int64_t{block} * layout_.block_size + position % layout_.block_size;
      for (int g = 0; g < heads_.kv; ++g) {
        ref::kv_store(args.kv, 0, slot, g, k.data() + g * heads_.dim);
        ref::kv_store(args.kv, 1, slot, g, v.data() + g * heads_.dim);
      }
    });
    std::vector<float> q;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i) {
        const auto row = numbers(piece, piece.start + i, 0);
        q.insert(q.end(), row.begin(), row.end());
      }
    }
    std::vector<float> out(q.size());
    args.q = TensorView(q.data(), DType::kF32, {cu_q_.back(), heads_.q, heads_.dim});
    args.out = TensorView(out.data(), DType::kF32, {cu_q_.back(), heads_.q, heads_.dim});
    const HeadPlan plan = host_plan();
    if (!plan_.kinds.empty()) args.heads = &plan;
    oracle_lse.resize(static_cast<size_t>(cu_q_.back() * heads_.q));
    args.lse = TensorView(oracle_lse.data(), DType::kF32, {cu_q_.back(), heads_.q});
    args.seqs.cu_q = TensorView(cu_q_.data(), DType::kI32, {static_cast<int64_t>(cu_q_.size())});
    args.seqs.kv_start =
        TensorView(starts_.data(), DType::kI32, {static_cast<int64_t>(starts_.size())});
    args.seqs.block_table =
        TensorView(table_.data(), DType::kI32, {static_cast<int64_t>(pieces_.size()), max_blocks_});
    ThreadPool pool(8);
    Arena scratch;
    Stream stream(pool, scratch);
    ref::attention(stream, args);
    return out;
  }

  std::vector<float> lse, oracle_lse;  ///< of the last run() and oracle()

 private:
  /// Whose plan head `h` has.
  int source(int h) const { return (h + layout_.rotate * (heads_.q / heads_.kv)) % heads_.q; }
  /// As token().
  std::vector<float> numbers(const Piece& piece, int position, int plane) const {
    const int heads = plane == 0 ? heads_.q : heads_.kv;
    return rotated(token(piece.sequence, position, plane, heads, heads_.dim), heads,
                   layout_.rotate * (heads / heads_.kv));
  }
  /// On the host; the arrays are this object's.
  HeadPlan host_plan() {
    HeadPlan plan;
    const auto num = static_cast<int64_t>(pieces_.size());
    int row_blocks = 1, words = 1;
    for (const Piece& piece : pieces_) {
      const int last = (piece.start + piece.rows) / HeadPlan::kBlock;
      row_blocks = std::max(row_blocks, last - piece.start / HeadPlan::kBlock + 1);
      words = std::max(words, last / 32 + 1);
    }
    const auto of = [](std::vector<int32_t>& v, std::initializer_list<int64_t> dims) {
      TensorView view(nullptr, DType::kI32, dims);
      v.assign(static_cast<size_t>(view.size()), 0);
      view.data = v.data();
      return view;
    };
    plan.kinds = of(kinds_, {num, heads_.q});
    plan.blocks = of(blocks_, {num, heads_.q, row_blocks, words});
    plan.counts = of(counts_, {num, heads_.q, row_blocks});
    plan.sink_blocks = plan_.sink_blocks;
    plan.window_blocks = plan_.window_blocks;
    plan.long_lists = plan_.long_lists;
    if (plan_.kinds.empty()) return plan;
    for (int64_t s = 0; s < num; ++s) {
      const Piece& piece = pieces_[static_cast<size_t>(s)];
      const int first = piece.start / HeadPlan::kBlock;
      for (int h = 0; h < heads_.q; ++h) {
        const int64_t head = s * heads_.q + h;
        kinds_[static_cast<size_t>(head)] =
            static_cast<int32_t>(plan_.kind(piece.sequence, source(h)));
        for (int r = 0; r < row_blocks; ++r) {
          for (int c = 0; c <= first + r && c / 32 < words; ++c) {
            if (!plan_.bit(piece.sequence, source(h), first + r, c)) continue;
            blocks_[static_cast<size_t>((head * row_blocks + r) * words + c / 32)] |=
                static_cast<int32_t>(1u << (c % 32));
            ++counts_[static_cast<size_t>(head * row_blocks + r)];
          }
        }
      }
    }
    return plan;
  }
  /// Does any row see this key of kv head `g`?
  bool seen(const Piece& piece, int g, int position) const {
    const int c = position / HeadPlan::kBlock, group = heads_.q / heads_.kv;
    const int last = (piece.start + piece.rows - 1) / HeadPlan::kBlock;
    for (int h = g * group; h < (g + 1) * group; ++h) {
      for (int b = std::max(c, piece.start / HeadPlan::kBlock); b <= last; ++b) {
        if (plan_.sees(piece.sequence, source(h), b, c)) return true;
      }
    }
    return false;
  }
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
  /// Device layout; whatever is no key that a row sees is NaN.
  std::vector<float> cache_values(int64_t block_elements) const {
    std::vector<float> values(static_cast<size_t>(num_blocks_ * block_elements), NAN);
    for_each_key([&](size_t s, int position, int32_t block) {
      for (int plane = 0; plane < 2; ++plane) {
        const std::vector<float> row = numbers(pieces_[s], position, 1 + plane);
        for (int g = 0; g < heads_.kv; ++g) {
          if (!seen(pieces_[s], g, position)) continue;
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
    const auto width = static_cast<size_t>(heads_.q * heads_.dim);
    std::vector<float> values(static_cast<size_t>(rows()) * width, NAN);
    size_t row = 0;
    for (const Piece& piece : pieces_) {
      for (int i = 0; i < piece.rows; ++i, ++row) {
        const auto q = numbers(piece, piece.start + i, 0);
        std::copy(q.begin(), q.end(), values.begin() + static_cast<int64_t>(row * width));
      }
    }
    return values;
  }

  Heads heads_;
  Layout layout_;
  std::vector<Piece> pieces_;
  Plan plan_;
  std::vector<int32_t> kinds_, blocks_, counts_;
  std::vector<int32_t> cu_q_, starts_, table_;
  int64_t num_blocks_ = 0;
  int max_blocks_ = 0;
};

inline std::vector<float> to_floats(const std::vector<std::vector<std::byte>>& pieces) {
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

inline void expect_oracle(const Heads& heads, const Layout& layout,
                          const std::vector<Piece>& pieces, const Plan& plan = {}) {
  Step step(heads, layout, pieces, plan);
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
  ASSERT_EQ(step.lse.size(), step.oracle_lse.size());
  for (size_t i = 0; i < step.lse.size(); ++i) {
    ASSERT_NEAR(step.lse[i], step.oracle_lse[i], 2e-3 + 1e-5 * std::abs(step.oracle_lse[i])) << i;
  }
}

inline std::vector<std::byte> concatenated(const std::vector<std::vector<std::byte>>& pieces) {
  std::vector<std::byte> out;
  for (const auto& piece : pieces) out.insert(out.end(), piece.begin(), piece.end());
  return out;
}

}  // namespace weft
