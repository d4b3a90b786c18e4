#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <numeric>
#include <vector>

#include "kernels/kv_codes.h"
#include "kernels/ref/ref.h"
#include "kernels/sparse_args.h"
#include "support.h"

namespace weft {

/// Memory that is there only where it is touched.
class Expanse {
 public:
  explicit Expanse(int64_t bytes) : bytes_(static_cast<size_t>(bytes)) {
    void* at = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at != MAP_FAILED) data_ = static_cast<std::byte*>(at);
  }
  ~Expanse() {
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  Expanse(const Expanse&) = delete;
  Expanse& operator=(const Expanse&) = delete;
  std::byte* data() const { return data_; }
  /// The rows of `x`, `apart` elements from each other.
  TensorView spread(const Floats& x, int64_t apart) const {
    TensorView out = x.view;
    out.data = data_;
    out.stride[0] = apart;
    for (int64_t r = 0; r < x.view.dim(0); ++r) {
      std::memcpy(out.row<float>(r), x.view.row<float>(r),
                  static_cast<size_t>(x.view.stride[0]) * sizeof(float));
    }
    return out;
  }

 private:
  size_t bytes_;
  std::byte* data_ = nullptr;
};

/// One sequence in the paged cache of a backend, in blocks of scattered order; what no token was
/// written to is NaN.
struct SparseShape {
  AttnShape attn;
  KvFormat format = KvFormat::kF32;
  int block_size = 64;
  int length = 0;
  int rotate = 0;  ///< kv head g, and its query heads, have the numbers of kv head g + rotate
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
    const int64_t n = shape.length, d = shape.attn.head_dim, heads = shape.attn.kv_heads;
    const int64_t group = shape.attn.q_heads / heads;
    q_ = rotated(random_floats({n, shape.attn.q_heads, d}, seed, 2), group);
    k_ = rotated(random_floats({n, heads, d}, seed + 1), 1);
    v_ = rotated(random_floats({n, heads, d}, seed + 2), 1);
    for (int64_t c = 0; c < 2 * heads * d; ++c) {  // of static formats; few values are clipped
      scales_.push_back((0.5f + static_cast<float>(c % d % 7) / 8) / kv_largest_code(shape.format));
    }
    kv_.k_scale = scales_.data();
    kv_.v_scale = scales_.data() + heads * d;
    fill();
  }

  const SparseShape& shape() const { return shape_; }
  int64_t row_blocks() const { return (shape_.length + kRowBlock - 1) / kRowBlock; }
  int64_t num_words() const { return (row_blocks() + 31) / 32; }
  Floats& q() { return q_; }
  /// What was written to the cache, [length, G, D]; refill() writes what was changed.
  Floats& k() { return k_; }
  Floats& v() { return v_; }
  void refill() { fill(); }

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
    if (!decode) return attend_cut(plan, {start, end}, 1);
    return attend_cut(plan, {start, end}, 0);
  }
  /// Segments between `cuts`, of which the first `prompts` are prompts and the others decode.
  Output attend_cut(const Plan* plan, const std::vector<int>& cuts, int prompts) {
    const int64_t rows = cuts.back() - cuts.front(), heads = shape_.attn.q_heads;
    Output result{Floats({rows, heads, shape_.attn.head_dim}, kNaN), Floats({rows, heads}, kNaN)};
    const Step step(*this, plan, cuts);
    AttnArgs args = step.args();
    args.out = result.out.view;
    args.lse = result.lse.view;
    args.num_prompt_segments = prompts;
    args.prompt_rows = cuts[static_cast<size_t>(prompts)] - cuts.front();
    for (size_t s = static_cast<size_t>(prompts); s + 1 < cuts.size(); ++s) {
      args.max_decode_len = std::max(args.max_decode_len, cuts[s + 1] - cuts[s]);
    }
    ops_.attention(stream_, args);
    result.out.data.pop_back();
    result.lse.data.pop_back();
    return result;
  }

  /// The prompt as one segment, into `out`.
  void attend_into(const Plan& plan, TensorView out) {
    const Step step(*this, &plan, {0, shape_.length});
    AttnArgs args = step.args();
    args.out = out;
    ops_.attention(stream_, args);
  }
  /// Moves the pages of the cache `apart` bytes from each other. False: there is no room for that.
  bool spread_pages(int64_t apart) {
    far_ = std::make_unique<Expanse>(apart * kv_.num_blocks);
    if (far_->data() == nullptr) return false;
    for (int64_t b = 0; b < kv_.num_blocks; ++b) {
      std::memcpy(far_->data() + b * apart, kv_.data + b * kv_.block_bytes,
                  static_cast<size_t>(kv_.block_bytes));
    }
    kv_.data = far_->data();
    kv_.block_bytes = apart;
    return true;
  }

  struct Choice {
    int stride = 16;
    float norm = 1, threshold = 0.9f;
    int quirk_blocks = 0;
  };
  /// Chooses the blocks of rows [start, end) into `plan`; the mass kept of each row block.
  std::vector<float> select(Plan& plan, int start, int end, const Choice& choice) {
    return select_cut(plan, {start, end}, choice);
  }
  /// The same of the segments between `cuts`; the mass [segment, head, row block].
  std::vector<float> select_cut(Plan& plan, const std::vector<int>& cuts, const Choice& choice) {
    Step step(*this, &plan, cuts);
    const AttnArgs args = step.args();
    const int64_t heads = shape_.attn.q_heads;
    Floats thresholds({heads}, choice.threshold);
    Floats mass({std::ssize(cuts) - 1, heads, step.row_blocks()}, kNaN);
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
  /// s[b, .] of a head as the oracle computes it; of a world of ref_ops() alone.
  std::vector<double> scores(int64_t head, int64_t b, const Choice& choice) {
    const Step step(*this, nullptr, {0, shape_.length});
    const AttnArgs args = step.args();
    return ref::block_scores({.attention = &args, .stride = choice.stride, .norm = choice.norm}, 0,
                             head, b);
  }

 private:
  /// The arguments of a call on the segments between `cuts`.
  class Step {
   public:
    Step(SparseWorld& world, const Plan* plan, const std::vector<int>& cuts)
        : world_(world), segments_(std::ssize(cuts) - 1) {
      std::vector<int32_t> cu = {0}, start;
      for (size_t s = 0; s + 1 < cuts.size(); ++s) {
        start.push_back(cuts[s]);
        cu.push_back(cuts[s + 1] - cuts[0]);
        rows_ = std::max(rows_, (cuts[s + 1] - cuts[s] + kRowBlock - 1) / kRowBlock);
      }
      cu_ = Ints(cu);
      start_ = Ints(start);
      row_ = Ints(std::vector<int32_t>(start.size(), 1));
      const int64_t heads = world.shape_.attn.q_heads;
      TensorView table(world.table_.data.data(), DType::kI32, {segments_, world.kv_.num_blocks});
      table.stride[0] = 0;  // all are of one sequence
      args_ = {.shape = world.shape_.attn,
               .q = world.q_.view.rows(cuts.front(), cuts.back()),
               .kv = world.kv_,
               .seqs = {.cu_q = cu_.view,
                        .kv_start = start_.view,
                        .block_table = table,
                        .num_segments = static_cast<int>(segments_),
                        .host_cu_q = cu_.data.data(),
                        .host_kv_start = start_.data.data()},
               .prompt_rows = cuts.back() - cuts.front(),
               .num_prompt_segments = static_cast<int>(segments_)};
      if (plan == nullptr) return;
      // Row 0 is somebody else's: the segments' plan is found through `rows`.
      kinds_.assign(static_cast<size_t>(2 * heads), 7);
      for (size_t h = 0; h < plan->kinds.size(); ++h) {
        kinds_[static_cast<size_t>(heads) + h] = static_cast<int32_t>(plan->kinds[h]);
      }
      const int64_t num_words = world.num_words();
      words_.assign(static_cast<size_t>(segments_ * heads * rows_ * num_words), 0);
      counts_.assign(static_cast<size_t>(segments_ * heads * rows_), 0);
      for_rows([&](int64_t ours, int64_t theirs) {
        std::copy_n(plan->words.begin() + theirs * num_words, num_words,
                    words_.begin() + ours * num_words);
        counts_[static_cast<size_t>(ours)] = plan->counts[static_cast<size_t>(theirs)];
      });
      plan_ = {.kinds = TensorView(kinds_.data(), DType::kI32, {2, heads}),
               .rows = row_.view,
               .sink_blocks = plan->sink,
               .window_blocks = plan->window,
               .blocks = TensorView(words_.data(), DType::kI32,
                                    {segments_, heads, rows_, world.num_words()}),
               .counts = TensorView(counts_.data(), DType::kI32, {segments_, heads, rows_})};
    }
    AttnArgs args() const {
      AttnArgs args = args_;
      if (!kinds_.empty()) args.heads = &plan_;
      return args;
    }
    int64_t row_blocks() const { return rows_; }
    void copy_back(Plan& plan) const {
      const int64_t num_words = world_.num_words();
      for_rows([&](int64_t ours, int64_t theirs) {
        std::copy_n(words_.begin() + ours * num_words, num_words,
                    plan.words.begin() + theirs * num_words);
        plan.counts[static_cast<size_t>(theirs)] = counts_[static_cast<size_t>(ours)];
      });
    }

   private:
    /// `body(row of this call's lists, row of the plan)` for each row block of each head.
    template <class Body>
    void for_rows(Body&& body) const {
      const int64_t heads = world_.shape_.attn.q_heads;
      for (int64_t s = 0; s < segments_; ++s) {
        const int64_t begin = start_.data[static_cast<size_t>(s)];
        const int64_t len = cu_.data[static_cast<size_t>(s + 1)] - cu_.data[static_cast<size_t>(s)];
        for (int64_t h = 0; h < heads; ++h) {
          for (int64_t b = 0; b * kRowBlock < len; ++b) {
            body((s * heads + h) * rows_ + b, h * world_.row_blocks() + begin / kRowBlock + b);
          }
        }
      }
    }

    SparseWorld& world_;
    int64_t segments_, rows_ = 0;
    Ints cu_, start_, row_;
    std::vector<int32_t> kinds_, words_, counts_;
    HeadPlan plan_;
    AttnArgs args_;
  };

  /// Heads in the order that `rotate` says, `group` of them at a time.
  Floats rotated(Floats x, int64_t group) const {
    Floats out = x;
    const int64_t d = shape_.attn.head_dim, groups = shape_.attn.kv_heads;
    for (int64_t p = 0; p < shape_.length; ++p) {
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t from = (p * groups + (g + shape_.rotate) % groups) * group * d;
        std::copy_n(x.data.begin() + from, group * d,
                    out.data.begin() + (p * groups + g) * group * d);
      }
    }
    return out;
  }

  void fill() {
    const int64_t n = shape_.length;
    Floats k = k_, v = v_, q({n, 1, shape_.attn.head_dim});
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
  std::vector<float> scales_;  // [K, V][G, D]
  std::unique_ptr<Expanse> far_;
  Ints table_;
  Floats q_, k_, v_;
};

}  // namespace weft
