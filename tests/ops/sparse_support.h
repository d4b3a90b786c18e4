#pragma once

#include <algorithm>
#include <numeric>
#include <vector>

#include "kernels/sparse_args.h"
#include "support.h"

namespace weft {

/// One sequence in the paged cache of a backend, in blocks of scattered order; what no token was
/// written to is NaN.
struct SparseShape {
  AttnShape attn;
  KvFormat format = KvFormat::kF32;
  int block_size = 64;
  int length = 0;
};

class SparseWorld {
 public:
  static constexpr int64_t kRowBlock = HeadPlan::kBlock;

  /// Keys and queries are functions of the seed; `order` is that of the pages.
  SparseWorld(const OpTable& ops, Stream& stream, const SparseShape& shape, uint64_t seed,
              uint64_t order = 1)
      : ops_(ops), stream_(stream), shape_(shape) {
    kv_.shape = {shape.format, shape.attn.kv_heads, shape.attn.head_dim, shape.block_size};
    kv_.block_bytes = ops.kv_block_bytes(kv_.shape);
    kv_.num_blocks = (shape.length + shape.block_size - 1) / shape.block_size + 2;
    memory_ = Buffer::allocate(DeviceKind::kCpu, kv_.block_bytes * kv_.num_blocks).value();
    kv_.data = memory_.data();
    std::memset(kv_.data, 0xFF, static_cast<size_t>(memory_.bytes()));
    std::vector<int32_t> table(static_cast<size_t>(kv_.num_blocks));
    std::iota(table.begin(), table.end(), 0);
    for (size_t i = table.size() - 1; i > 0; --i) {
      std::swap(table[i], table[philox4x32(order, i, 1)[0] % (i + 1)]);
    }
    table_ = Ints(table);
    q_ = random_floats({shape.length, shape.attn.q_heads, shape.attn.head_dim}, seed, 2);
    fill(seed);
  }

  const SparseShape& shape() const { return shape_; }
  int64_t row_blocks() const { return (shape_.length + kRowBlock - 1) / kRowBlock; }
  int64_t num_words() const { return (row_blocks() + 31) / 32; }
  Floats& q() { return q_; }

  /// Makes the keys and values of block `c` of rows NaN.
  void poison(int64_t c) {
    for (int64_t p = c * kRowBlock; p < (c + 1) * kRowBlock; p += shape_.block_size) {
      const int64_t page = table_.data[static_cast<size_t>(p / shape_.block_size)];
      std::memset(kv_.data + page * kv_.block_bytes, 0xFF, static_cast<size_t>(kv_.block_bytes));
    }
  }

  struct Plan {
    std::vector<HeadKind> kinds;  ///< [H]
    int sink = 1, window = 2;
    std::vector<int32_t> words,
        counts;  ///< [H, row blocks of the sequence, words], [H, row blocks]
  };
  Plan plan_of(std::vector<HeadKind> kinds) const {
    Plan plan{.kinds = std::move(kinds)};
    const auto rows = static_cast<size_t>(shape_.attn.q_heads * row_blocks());
    plan.words.assign(rows * static_cast<size_t>(num_words()), 0);
    plan.counts.assign(rows, 0);
    return plan;
  }
  Plan plan_of(HeadKind kind) const {
    return plan_of(std::vector<HeadKind>(static_cast<size_t>(shape_.attn.q_heads), kind));
  }
  int32_t* words(Plan& plan, int64_t head, int64_t b) const {
    return plan.words.data() + (head * row_blocks() + b) * num_words();
  }
  bool kept(const Plan& plan, int64_t head, int64_t b, int64_t c) const {
    const int32_t* words = plan.words.data() + (head * row_blocks() + b) * num_words();
    return (words[c / 32] >> (c % 32) & 1) != 0;
  }

  struct Output {
    Floats out, lse;
  };
  /// Rows [start, end) of the sequence: as one prompt segment, or with `decode` row by row as
  /// segments of decode. `plan` may be null.
  Output attend(const Plan* plan, int start, int end, bool decode = false) {
    const int64_t rows = end - start, heads = shape_.attn.q_heads, d = shape_.attn.head_dim;
    Output result{Floats({rows, heads, d}, kNaN), Floats({rows, heads}, kNaN)};
    const Step step(*this, plan, start, end);
    AttnArgs args = step.args();
    args.out = result.out.view;
    args.lse = result.lse.view;
    if (decode) {
      args.num_prompt_segments = 0;
      args.prompt_rows = 0;
      args.max_decode_len = static_cast<int>(rows);
    }
    ops_.attention(stream_, args);
    result.out.data.pop_back();
    result.lse.data.pop_back();
    return result;
  }

  struct Choice {
    int stride = 16;
    float norm = 1, threshold = 0.9f;
    int quirk_blocks = 0;
  };
  /// Chooses the blocks of rows [start, end) into `plan`; the mass kept of each row block.
  std::vector<float> select(Plan& plan, int start, int end, const Choice& choice) {
    Step step(*this, &plan, start, end);
    const AttnArgs args = step.args();
    const int64_t heads = shape_.attn.q_heads, rows = step.row_blocks();
    Floats thresholds({heads}, choice.threshold), mass({1, heads, rows}, kNaN);
    ops_.sparse->select(stream_, {.attention = &args,
                                  .stride = choice.stride,
                                  .norm = choice.norm,
                                  .thresholds = thresholds.view,
                                  .quirk_blocks = choice.quirk_blocks,
                                  .mass = mass.view});
    step.copy_back(plan);
    mass.data.pop_back();
    return mass.data;
  }

 private:
  /// The arguments of a call on rows [start, end).
  class Step {
   public:
    Step(SparseWorld& world, const Plan* plan, int start, int end)
        : world_(world),
          first_(start / kRowBlock),
          rows_((end - start + kRowBlock - 1) / kRowBlock),
          cu_({0, end - start}),
          start_({start}),
          row_({1}) {
      const int64_t heads = world.shape_.attn.q_heads;
      args_ = {.shape = world.shape_.attn,
               .q = world.q_.view.rows(start, end),
               .kv = world.kv_,
               .seqs = {.cu_q = cu_.view,
                        .kv_start = start_.view,
                        .block_table = TensorView(world.table_.data.data(), DType::kI32,
                                                  {1, world.kv_.num_blocks}),
                        .num_segments = 1,
                        .host_cu_q = cu_.data.data(),
                        .host_kv_start = start_.data.data()},
               .prompt_rows = end - start,
               .num_prompt_segments = 1};
      if (plan == nullptr) return;
      // Row 0 is somebody else's: the segment's plan is found through `rows`.
      kinds_.assign(static_cast<size_t>(2 * heads), 7);
      for (size_t h = 0; h < plan->kinds.size(); ++h) {
        kinds_[static_cast<size_t>(heads) + h] = static_cast<int32_t>(plan->kinds[h]);
      }
      const auto num_words = static_cast<size_t>(world.num_words());
      for (int64_t h = 0; h < heads; ++h) {
        for (int64_t b = 0; b < rows_; ++b) {
          const auto at = static_cast<size_t>(h * world.row_blocks() + first_ + b);
          const auto from = plan->words.begin() + static_cast<ptrdiff_t>(at * num_words);
          words_.insert(words_.end(), from, from + static_cast<ptrdiff_t>(num_words));
          counts_.push_back(plan->counts[at]);
        }
      }
      plan_ = {
          .kinds = TensorView(kinds_.data(), DType::kI32, {2, heads}),
          .rows = row_.view,
          .sink_blocks = plan->sink,
          .window_blocks = plan->window,
          .blocks = TensorView(words_.data(), DType::kI32, {1, heads, rows_, world.num_words()}),
          .counts = TensorView(counts_.data(), DType::kI32, {1, heads, rows_})};
    }
    AttnArgs args() const {
      AttnArgs args = args_;
      if (!kinds_.empty()) args.heads = &plan_;
      return args;
    }
    int64_t row_blocks() const { return rows_; }
    void copy_back(Plan& plan) const {
      const auto num_words = static_cast<size_t>(world_.num_words());
      for (int64_t h = 0; h < world_.shape_.attn.q_heads; ++h) {
        for (int64_t b = 0; b < rows_; ++b) {
          const auto to = static_cast<size_t>(h * world_.row_blocks() + first_ + b);
          const auto from = static_cast<size_t>(h * rows_ + b);
          std::copy_n(words_.begin() + static_cast<ptrdiff_t>(from * num_words), num_words,
                      plan.words.begin() + static_cast<ptrdiff_t>(to * num_words));
          plan.counts[to] = counts_[from];
        }
      }
    }

   private:
    SparseWorld& world_;
    int64_t first_, rows_;
    Ints cu_, start_, row_;
    std::vector<int32_t> kinds_, words_, counts_;
    HeadPlan plan_;
    AttnArgs args_;
  };

  void fill(uint64_t seed) {
    const int64_t heads = shape_.attn.kv_heads, d = shape_.attn.head_dim, n = shape_.length;
    Floats k = random_floats({n, heads, d}, seed + 1), q({n, 1, d});
    Floats v = random_floats({n, heads, d}, seed + 2);
    Ints positions(std::vector<int32_t>(static_cast<size_t>(n), 0));
    std::vector<int64_t> slots;
    for (int64_t p = 0; p < n; ++p) {
      const int64_t page = table_.data[static_cast<size_t>(p / shape_.block_size)];
      slots.push_back(page * shape_.block_size + p % shape_.block_size);
    }
    QkvPrepareArgs args{.q = q.view, .k = k.view, .v = v.view, .kv = kv_};
    args.positions.index = TensorView(positions.data.data(), DType::kI32, {n});
    uint8_t axis = 0;
    args.rope.axis = TensorView(&axis, DType::kU8, {0});
    args.kv_slot = TensorView(slots.data(), DType::kI64, {n});
    ops_.qkv_prepare(stream_, args);
  }

  const OpTable& ops_;
  Stream& stream_;
  SparseShape shape_;
  PagedKv kv_;
  Buffer memory_;
  Ints table_;
  Floats q_;
};

}  // namespace weft
