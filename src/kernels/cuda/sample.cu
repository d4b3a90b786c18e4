// sample: rows of f32 logits to tokens and log-probabilities (semantics: runtime/sampler.h). A
// cluster of eight blocks has one row, read once from memory and kept in their shared memory; what
// the filters need are passes over that. Weights are integers, w = rint(2^44 exp((x - max) / T)):
// their sums are exact, so nothing depends on an order. Bytes: 4 V a row; bound by memory for
// greedy rows, by the exponentials for others. docs/kernels/sampler_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/sample_device.h"

namespace weft::cuda {
namespace {

/// One row, as one of its eight blocks sees it. All functions are called by all threads of all
/// eight, unless they say otherwise.
class Row {
 public:
  __device__ Row(const SampleParams& params, Shared& shared, float* logits)
      : p_(params),
        spec_(shared.spec),
        s_(shared),
        x_(logits),
        row_(blockIdx.x / kBlocks),
        rank_(static_cast<int>(cluster_rank())),
        begin_(rank_ * params.block_ids),
        thread_(static_cast<int>(threadIdx.x)),
        warp_(thread_ / 32),
        lane_(thread_ % 32),
        rows_(params.block_ids / kThreads) {}

  __device__ void run() {
    if (spec_.slot < 0) {
      cluster_wait();
      return;
    }
    const bool wants_logprob = spec_.num_top >= 0 || spec_.target >= 0;
    const bool changed = is_adjusted();
    uint64_t best = load(wants_logprob || changed || spec_.temperature != 0);
    if (best == 0 || best == kInvalid) return fail();
    double log_z = 0;
    if (wants_logprob) {
      const float max = logit_of_best(best);
      const Sum sum = add_up(Weights(max, 1.0f));
      log_z = max + log(static_cast<double>(sum.total) * kInverseOne);
    }
    if (spec_.num_top > 0) {
      list_top(best, log_z);
    } else if (rank_ == 0 && thread_ == 0) {
      p_.results[row_].num_top = 0;
    }
    if (spec_.target >= 0) {
      if (rank_ == 0 && thread_ == 0) finish(-1, spec_.target, log_z);
      return;
    }
    if (changed) {
      best = adjust();
      if (best == 0 || best == kInvalid) return fail();
    }
    if (spec_.temperature == 0) {
      if (rank_ == 0 && thread_ == 0) finish(id_of(best), id_of(best), log_z);
      return;
    }
    draw(best, log_z);
  }

 private:
  // ---- Reading and changing the logits

  __device__ uint64_t best_of_all(const Best& best) {
    const uint64_t mine = warp_max(best.key());
    if (lane_ == 0) s_.warp_sums[warp_] = mine;
    __syncthreads();
    uint64_t all = warp_max(s_.warp_sums[lane_ % kWarps]);
    const uint64_t* blocks = exchange(all);
    all = 0;
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) all = blocks[i] > all ? blocks[i] : all;
    return all;
  }

  /// Fills the shared memory (if `keep`) and returns the first of the ranking.
  __device__ uint64_t load(bool keep) {
    const float* row = p_.logits + row_ * p_.logits_stride + begin_;
    const int count = min(p_.block_ids, p_.vocabulary - begin_);  // may be negative
    Best best;
    constexpr int kTurns = 5;  // loads in flight
    for (int base = thread_ * 4; base < p_.block_ids; base += kThreads * 4 * kTurns) {
      float4 v[kTurns];
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int at = base + i * kThreads * 4;
        v[i] = load_logits(row, at, count, p_.aligned);
      }
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int at = base + i * kThreads * 4;
        if (at >= p_.block_ids) break;
        best.take(v[i].x, begin_ + at);
        best.take(v[i].y, begin_ + at + 1);
        best.take(v[i].z, begin_ + at + 2);
        best.take(v[i].w, begin_ + at + 3);
        if (keep) *reinterpret_cast<float4*>(x_ + at) = v[i];
      }
    }
    cluster_wait();  // all eight have begun, and their shared memory may be written
    return best_of_all(best);
  }

  __device__ bool is_adjusted() const {
    return spec_.counts_slot >= 0 || spec_.mask_row >= 0 || spec_.biases.count > 0 ||
           spec_.banned_ids.count > 0 || spec_.allowed_ids.count > 0 ||
           (spec_.stop_rule == StopRule::kMasked && spec_.stop_ids.count > 0);
  }

  /// body(id - begin_) for the ids of a list that this block has.
  template <class Body>
  __device__ void for_listed(const ListRange& list, Body&& body) {
    for (int i = thread_; i < list.count; i += kThreads) {
      const int at = p_.ids[list.begin + i] - begin_;
      if (at >= 0 && at < p_.block_ids) body(at);
    }
  }

  /// Adds the biases, those of one id in the order of the list.
  __device__ void add_biases() {
    const TokenBias* list = p_.biases + spec_.biases.begin;
    for (int i = thread_; i < spec_.biases.count; i += kThreads) {
      const int id = list[i].id, at = id - begin_;
      if (at < 0 || at >= p_.block_ids) continue;
      bool first = true;
      for (int j = 0; j < i && first; ++j) first = list[j].id != id;
      if (!first) continue;
      float x = x_[at];
      for (int j = i; j < spec_.biases.count; ++j) {
        if (list[j].id == id) x = __fadd_rn(x, list[j].bias);
      }
      x_[at] = x;
    }
  }

  __device__ float penalised(float x, uint32_t count) const {
    if (count == 0) return x;
    if (spec_.repetition_penalty != 1.0f) {
      x = x > 0 ? __fdiv_rn(x, spec_.repetition_penalty) : __fmul_rn(x, spec_.repetition_penalty);
    }
    const uint32_t generated = count & ~kCountedInPrompt;
    if (generated > 0) {
      x = __fsub_rn(x, __fmul_rn(spec_.frequency_penalty, static_cast<float>(generated)));
      x = __fsub_rn(x, spec_.presence_penalty);
    }
    return x;
  }

  /// Masks, biases and penalties in shared memory; the first of the ranking then.
  __device__ uint64_t adjust() {
    uint32_t* may = s_.digits[0];
    uint32_t* allowed = s_.digits[1];
    const int words = p_.block_ids / 32;
    for (int i = thread_; i < words; i += kThreads) {
      const int word = begin_ / 32 + i;
      may[i] = kAll;
      if (spec_.mask_row >= 0) {
        may[i] = word < p_.mask_words ? p_.masks[spec_.mask_row * p_.masks_stride + word] : 0;
      }
      allowed[i] = spec_.allowed_ids.count > 0 ? 0 : kAll;
    }
    __syncthreads();
    const auto set = [](uint32_t* mask, int at) { atomicOr(mask + at / 32, 1u << (at % 32)); };
    const auto clear = [](uint32_t* mask, int at) {
      atomicAnd(mask + at / 32, ~(1u << (at % 32)));
    };
    for_listed(spec_.allowed_ids, [&](int at) { set(allowed, at); });
    if (spec_.stop_rule == StopRule::kFreed) {
      for_listed(spec_.stop_ids, [&](int at) { set(may, at); });
    } else if (spec_.stop_rule == StopRule::kMasked) {
      for_listed(spec_.stop_ids, [&](int at) { clear(may, at); });
    }
    add_biases();
    __syncthreads();
    if (spec_.banned_ids.count > 0) {
      for_listed(spec_.banned_ids, [&](int at) { clear(may, at); });
      __syncthreads();
    }
    const uint32_t* counts = p_.counts + spec_.counts_slot * p_.counts_stride;
    const bool counted = spec_.counts_slot >= 0;
    const int drafts = counted ? spec_.drafts.count : 0;
    Best best;
    constexpr int kTurns = 8;  // loads in flight
    for (int base = 0; base < rows_; base += kTurns) {
      uint32_t count[kTurns];
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        const int id = begin_ + (warp_ * rows_ + base + i) * 32 + lane_;
        count[i] = counted && base + i < rows_ && id < p_.vocabulary ? counts[id] : 0;
      }
      for (int d = 0; d < drafts; ++d) {
        const int at =
            p_.ids[spec_.drafts.begin + d] - begin_ - (warp_ * rows_ + base) * 32 - lane_;
#pragma unroll
        for (int i = 0; i < kTurns; ++i) count[i] += at == i * 32;
      }
#pragma unroll
      for (int i = 0; i < kTurns; ++i) {
        if (base + i >= rows_) break;
        const int word = warp_ * rows_ + base + i, at = word * 32 + lane_;
        float x = penalised(x_[at], count[i]);
        if ((may[word] >> lane_ & 1) == 0) x = kMinusInfinity;
        best.invalid |= !(x < __builtin_huge_valf());
        if ((allowed[word] >> lane_ & 1) == 0) x = kMinusInfinity;
        best.take(x, begin_ + at);
        x_[at] = x;
      }
    }
    return best_of_all(best);
  }

  // ---- Exact sums over the row

  /// `value` of each of the eight blocks (the same in all threads of a block), valid until the next
  /// but one exchange. Everything that the blocks wrote before is visible after it.
  __device__ const uint64_t* exchange(uint64_t value) {
    uint64_t* slots = s_.exchanged[parity_];
    parity_ ^= 1;
    if (thread_ < kBlocks) store_remote(in_block(slots + rank_, thread_), value);
    cluster_sync();
    return slots;
  }
  /// The others are the second eight.
  __device__ const uint64_t* exchange(uint64_t value, uint64_t other) {
    uint64_t* slots = s_.exchanged[parity_];
    if (thread_ < kBlocks) store_remote(in_block(slots + kBlocks + rank_, thread_), other);
    return exchange(value);
  }

  __device__ Sum exchange_sum(uint64_t here) {
    return sum_of(exchange(here), here);
  }
  __device__ Sum sum_of(const uint64_t* blocks, uint64_t here) const {
    Sum sum{0, here, 0};
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if (i < rank_) sum.before += blocks[i];
      sum.total += blocks[i];
    }
    return sum;
  }

  /// The sum of a measure (and `of_warps`); leaves those of the warps, each of which has
  /// consecutive ids.
  template <class Measure>
  __device__ Sum add_up(const Measure& measure, const uint64_t* of_warps = nullptr) {
    uint64_t sum = 0;
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      sum += measure(x_[at], begin_ + at);
    }
    sum = warp_sum(sum);
    if (of_warps != nullptr) sum += of_warps[warp_];
    if (lane_ == 0) s_.warp_sums[warp_] = sum;
    __syncthreads();
    uint64_t here = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) here += s_.warp_sums[i];
    return exchange_sum(here);
  }

  /// After add_up(measure): the first id in ascending order up to which the measure adds up to more
  /// than `target` < sum.total. In warp 0 of the block that has it; -1 in all other threads.
  template <class Measure>
  __device__ int locate(const Measure& measure, const Sum& sum, uint64_t target) {
    if (target < sum.before || target >= sum.before + sum.here) return -1;
    uint64_t rest = target - sum.before;
    int chunk = 0;
    while (rest >= s_.warp_sums[chunk]) rest -= s_.warp_sums[chunk++];
    for (int r = warp_; r < rows_; r += kWarps) {
      const int at = (chunk * rows_ + r) * 32 + lane_;
      const uint64_t of_row = warp_sum(measure(x_[at], begin_ + at));
      if (lane_ == 0) s_.row_sums[r] = of_row;
    }
    __syncthreads();
    if (warp_ != 0) return -1;
    for (int base = 0; base < rows_; base += 32) {
      const int r = base + lane_;
      const uint64_t of_row = r < rows_ ? s_.row_sums[r] : 0;
      const uint64_t upto = warp_scan(of_row, lane_);
      const uint32_t beyond = __ballot_sync(kAll, upto > rest);
      if (beyond == 0) {
        rest -= __shfl_sync(kAll, upto, 31);
        continue;
      }
      const int lane = __ffs(static_cast<int>(beyond)) - 1;
      rest -= __shfl_sync(kAll, upto - of_row, lane);
      const int at = (chunk * rows_ + base + lane) * 32;
      const uint64_t within = warp_scan(measure(x_[at + lane_], begin_ + at + lane_), lane_);
      return begin_ + at + __ffs(static_cast<int>(__ballot_sync(kAll, within > rest))) - 1;
    }
    return -1;
  }

  // ---- Few ids: the beginning of the ranking, in one block

  /// Counts the logits of every bucket. The least beginning that has `count` ids, or a little more
  /// than about `share` of the weight, or reaches to `last`; else all buckets but the one of what
  /// is far below.
  __device__ Beginning find_beginning(const Buckets& buckets, uint32_t count, float share,
                                      int last) {
    uint32_t* histogram = s_.digits[0];
    for (int i = thread_; i < kBuckets; i += kThreads) histogram[i] = 0;
    __syncthreads();
    if (thread_ < 4) s_.found[thread_] = kNone;
    if (thread_ == 0) s_.num_listed = 0;
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int bucket = buckets.of(x_[(warp_ * rows_ + r) * 32 + lane_]);
      if (buckets.counts(bucket)) atomicAdd(histogram + bucket, 1);
    }
    cluster_sync();
    // Block i adds up the i-th eighth of the buckets: the first threads counts, the others weights.
    constexpr int kHalfWarps = kBucketsOfBlock / 32;
    static_assert(2 * kBucketsOfBlock <= kThreads);
    const int kind = thread_ / kBucketsOfBlock, of_kind = thread_ % kBucketsOfBlock;
    const int bucket = rank_ * kBucketsOfBlock + of_kind;
    uint64_t value = 0;
    if (kind < 2) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) value += load_remote(in_block(histogram + bucket, i));
      if (kind == 1) value *= bucket_weight(bucket);
    }
    uint64_t upto = warp_scan(value, lane_);
    if (lane_ == 31) s_.warp_sums[warp_] = upto;
    __syncthreads();
    uint64_t here[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 2 * kHalfWarps; ++i) {
      const uint64_t sum = s_.warp_sums[i];
      here[i / kHalfWarps] += sum;
      if (i / kHalfWarps == kind && i < warp_) upto += sum;
    }
    const uint64_t* blocks = exchange(here[0], here[1]);
    const Sum counts = sum_of(blocks, here[0]), weights = sum_of(blocks + kBlocks, here[1]);
    if (kind == 0) {
      upto += counts.before;
      s_.counts_before[of_kind + 1] = static_cast<uint32_t>(upto);
      if (of_kind == 0) s_.counts_before[0] = static_cast<uint32_t>(counts.before);
    } else {
      upto += weights.before;
    }
    __syncthreads();
    const auto tell = [&](int index) {
      const uint64_t found = static_cast<uint64_t>(bucket) << 32 | s_.counts_before[of_kind + 1];
      for (int i = 0; i < kBlocks; ++i) store_remote(in_block(&s_.found[index], i), found);
    };
    const auto reaches = [&](uint64_t limit) { return upto - value < limit && limit <= upto; };
    if (kind == 0) {
      if (reaches(count)) tell(0);
      if (bucket == last) tell(2);
    } else if (kind == 1 && share < 1) {
      const auto of_total = [&](float part) {
        return static_cast<uint64_t>(fmax(1.0, part * static_cast<double>(weights.total)));
      };
      if (reaches(of_total(fminf(share * 1.016f, 0.5f + 0.5f * share)))) tell(1);
      if (reaches(of_total(share))) tell(3);
    }
    cluster_sync();
    const uint64_t first = min(s_.found[0], min(s_.found[1], s_.found[2]));
    const auto all = static_cast<uint32_t>(counts.total);
    const uint32_t center = s_.found[3] == kNone ? all : static_cast<uint32_t>(s_.found[3]);
    if (first == kNone) return {kBuckets - 2, all, center};
    return {static_cast<int>(first >> 32), static_cast<uint32_t>(first), center};
  }

  /// After find_beginning(): the first buckets that hold more than `from` and `to` ids.
  __device__ void find_counts(uint32_t from, uint32_t to, int* first, int* last) {
    __syncthreads();
    if (thread_ < 2) s_.found[thread_] = kNone;
    if (thread_ == 0) s_.num_listed = 0;
    cluster_sync();
    if (thread_ < kBucketsOfBlock) {
      const uint32_t before = s_.counts_before[thread_], upto = s_.counts_before[thread_ + 1];
      const auto bucket = static_cast<uint64_t>(rank_ * kBucketsOfBlock + thread_);
      for (int i = 0; i < kBlocks; ++i) {
        if (before <= from && from < upto) store_remote(in_block(&s_.found[0], i), bucket);
        if (before <= to && to < upto) store_remote(in_block(&s_.found[1], i), bucket);
      }
    }
    cluster_sync();
    *first = s_.found[0] == kNone ? kBuckets - 2 : static_cast<int>(s_.found[0]);
    *last = s_.found[1] == kNone ? kBuckets - 2 : static_cast<int>(s_.found[1]);
  }

  /// Brings a beginning (of at most kFew ids) to block 0. With kSums: what it weighs, and the row.
  template <bool kSums>
  __device__ void gather(const Buckets& buckets, const Beginning& beginning, const Weights& weights,
                         uint64_t* inside, uint64_t* total) {
    uint64_t sum = 0, sum_inside = 0;
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      const float x = x_[at];
      const uint64_t w = kSums ? weights.whole(weights.weight(x)) : 0;
      sum += w;
      if (buckets.of(x) > beginning.last) continue;
      sum_inside += w;
      const uint32_t index = count_remote(in_block(&s_.num_listed, 0));
      store_remote(in_block(&s_.listed[index], 0),
                   uint64_t{key_of(x)} << 32 | ~static_cast<uint32_t>(begin_ + at));
    }
    if constexpr (!kSums) {
      cluster_sync();
    } else {
      exchange_sums(sum, sum_inside, total, inside);
    }
  }

  /// What the buckets before within.first weigh (for each warp in other_warp_sums), and the row.
  /// The ids of the buckets within are listed, each block's in its own memory.
  __device__ void weigh(const Within& within, uint64_t* before, uint64_t* total) {
    const Weights& weights = within.weights;
    uint64_t sum = 0, sum_before = 0;
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      const float x = x_[at];
      const uint64_t w = weights.whole(weights.weight(x));
      sum += w;
      const int bucket = within.buckets.of(x);
      sum_before += bucket < within.first ? w : 0;
      if (bucket < within.first || bucket > within.last) continue;
      const uint32_t index = atomicAdd(&s_.num_listed, 1);
      if (index >= kListed) continue;
      s_.listed[index] = uint64_t{key_of(x)} << 32 | ~static_cast<uint32_t>(begin_ + at);
    }
    exchange_sums(sum, sum_before, total, before);
    listed_ = s_.num_listed <= kListed ? static_cast<int>(s_.num_listed) : -1;
  }

  __device__ void exchange_sums(uint64_t sum, uint64_t other, uint64_t* total,
                                uint64_t* other_total) {
    sum = warp_sum(sum);
    other = warp_sum(other);
    if (lane_ == 0) {
      s_.warp_sums[warp_] = sum;
      s_.other_warp_sums[warp_] = other;
    }
    __syncthreads();
    uint64_t here = 0, other_here = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) {
      here += s_.warp_sums[i];
      other_here += s_.other_warp_sums[i];
    }
    const uint64_t* blocks = exchange(here, other_here);
    *total = sum_of(blocks, here).total;
    *other_total = sum_of(blocks + kBlocks, other_here).total;
  }

  /// In block 0 after gather(): the sum over its threads.
  __device__ uint64_t block_sum(uint64_t value) {
    value = warp_sum(value);
    __syncthreads();
    if (lane_ == 0) s_.warp_sums[warp_] = value;
    __syncthreads();
    uint64_t sum = 0;
#pragma unroll
    for (int i = 0; i < kWarps; ++i) sum += s_.warp_sums[i];
    return sum;
  }

  /// The draw where top-k, top-p and min-p leave few ids. False (and nothing done) where they may
  /// leave more.
  __device__ bool draw_of_few(const Weights& weights, const Buckets& buckets, double log_z,
                              Beginning* beginning) {
    const bool cuts_k = cuts_top_k(), cuts_p = spec_.top_p < 1;
    // Of top-k's ids top-p needs all, to know what they weigh; else of the row.
    int last = kBuckets;
    if (spec_.min_p > 0 && !(cuts_k && cuts_p)) {
      last = static_cast<int>(-logf(spec_.min_p) * kBucketsPerUnit + 1.5f);
    }
    const bool by_weight = cuts_p && !cuts_k;
    const float share = by_weight ? spec_.top_p : 1.0f;
    const uint32_t count = cuts_k ? static_cast<uint32_t>(spec_.top_k) : kAll;
    *beginning = find_beginning(buckets, count, share, last);
    if (beginning->count > kFew) return false;
    uint64_t inside = 0, total = 0;
    if (by_weight) {
      gather<true>(buckets, *beginning, weights, &inside, &total);
      if (inside < limit_of(total) && beginning->last < last) return false;
    } else {
      gather<false>(buckets, *beginning, weights, &inside, &total);
    }
    if (rank_ == 0) draw_in_block(weights, total, log_z);
    return true;
  }

  __device__ bool cuts_top_k() const {
    return spec_.top_k > 0 && spec_.top_k < p_.vocabulary;
  }
  /// What top-p keeps weighs less without its last id.
  __device__ uint64_t limit_of(uint64_t total) const {
    const double enough = static_cast<double>(spec_.top_p) * static_cast<double>(total);
    return static_cast<uint64_t>(fmax(1.0, ceil(enough)));
  }

  /// `total` is known where there is no top-k.
  __device__ void draw_in_block(const Weights& weights, uint64_t total, double log_z) {
    const int count = static_cast<int>(s_.num_listed);
    const bool has_id = thread_ < count;
    const uint64_t mine = has_id ? s_.listed[thread_] : 0;
    const float weight = has_id ? weights.weight(logit_of_best(mine)) : 0;
    uint64_t whole = has_id ? weights.whole(weight) : 0;
    if (has_id) s_.listed[kFew + thread_] = whole;
    __syncthreads();
    int before = 0;
    uint64_t weight_before = 0;
    if (warp_ * 32 < count) {
#pragma unroll 4
      for (int i = 0; i < count; ++i) {
        const bool is_before = s_.listed[i] > mine;
        before += is_before ? 1 : 0;
        weight_before += is_before ? s_.listed[kFew + i] : 0;
      }
    }
    bool kept = has_id;
    if (cuts_top_k()) {
      kept = has_id && before < spec_.top_k;
      if (spec_.top_p < 1) total = block_sum(kept ? whole : 0);
    }
    if (spec_.top_p < 1) kept &= weight_before < limit_of(total);
    kept &= weight >= spec_.min_p;
    if (!kept) whole = 0;
    total = block_sum(whole);
    if (has_id) s_.listed[kFew + thread_] = whole;
    __syncthreads();
    const uint64_t target = target_of(total);
    if (warp_ * 32 >= count) return;
    const int id = id_of(mine);
    uint64_t upto = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) upto += id_of(s_.listed[i]) <= id ? s_.listed[kFew + i] : 0;
    if (whole > 0 && upto > target && upto - whole <= target) finish(id, id, log_z);
  }

  __device__ uint64_t target_of(uint64_t total) const {
    return __umul64hi(random53(spec_.seed, spec_.position) << 11, total);
  }

  /// The alternatives: the num_top first of the ranking of the logits as they came.
  __device__ void list_top(uint64_t best, double log_z) {
    constexpr float kPerUnit = 8;  // far down, for flat rows
    const float max = logit_of_best(best);
    const Buckets buckets{max, kPerUnit};
    const auto num_top = static_cast<uint32_t>(min(spec_.num_top, kMaxTopLogprobs));
    const Beginning beginning = find_beginning(buckets, num_top, 1.0f, kBuckets);
    if (beginning.count > kFew || beginning.count < num_top) return list_top_anywhere(best, log_z);
    gather<false>(buckets, beginning, Weights(max, 1.0f), nullptr, nullptr);
    if (rank_ != 0) return;
    const int count = static_cast<int>(s_.num_listed);
    if (warp_ * 32 >= count) return;
    const uint64_t mine = thread_ < count ? s_.listed[thread_] : 0;
    uint32_t place = 0;
#pragma unroll 4
    for (int i = 0; i < count; ++i) place += s_.listed[i] > mine ? 1 : 0;
    if (thread_ < count && place < num_top) put_top(static_cast<int>(place), mine, log_z);
    if (thread_ == 0) p_.results[row_].num_top = static_cast<int32_t>(num_top);
  }

  __device__ void put_top(int place, uint64_t key, double log_z) {
    p_.top_ids[row_ * p_.top_stride + place] = id_of(key);
    p_.top_logprobs[row_ * p_.top_stride + place] = static_cast<float>(logit_of_best(key) - log_z);
  }

  // ---- The ranking

  /// One histogram of a measure over the keys [low, high], buckets of 2^shift keys, the greatest
  /// first; then bucket, measure before it and in it of the bucket where the ranking (`base` lies
  /// before `high`) comes to `limit`. False where it does not.
  template <class Measure>
  __device__ bool find_bucket(const Measure& measure, uint32_t low, uint32_t high, int shift,
                              uint64_t base, uint64_t limit) {
    constexpr int kDigits = Measure::kIsUnit ? 1 : 3;
    for (int i = thread_; i < kDigits * kBuckets; i += kThreads) s_.digits[0][i] = 0;
    __syncthreads();
    const auto tally = [&](float x, int id) {
      const uint32_t key = key_of(x);
      if (key < low || key > high) return;
      const uint32_t bucket = (high - key) >> shift;
      const uint64_t value = measure(x, id);
      if constexpr (Measure::kIsUnit) {
        atomicAdd(&s_.digits[0][bucket], 1);
      } else {
        atomicAdd(&s_.digits[0][bucket], static_cast<uint32_t>(value) & 0xffff);
        atomicAdd(&s_.digits[1][bucket], static_cast<uint32_t>(value >> 16) & 0xffff);
        atomicAdd(&s_.digits[2][bucket], static_cast<uint32_t>(value >> 32));
      }
    };
    for (int i = thread_; i < listed_; i += kThreads) {
      tally(logit_of_best(s_.listed[i]), id_of(s_.listed[i]));
    }
#pragma unroll 4
    for (int r = listed_ < 0 ? 0 : rows_; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      tally(x_[at], begin_ + at);
    }
    cluster_sync();
    // Block i adds up the i-th eighth of the buckets.
    uint64_t value = 0, upto = 0;
    const int bucket = rank_ * kBucketsOfBlock + thread_;
    if (thread_ < kBucketsOfBlock) {
#pragma unroll
      for (int digit = 0; digit < kDigits; ++digit) {
        uint64_t sum = 0;
#pragma unroll
        for (int i = 0; i < kBlocks; ++i) {
          sum += load_remote(in_block(&s_.digits[digit][bucket], i));
        }
        value += sum << (16 * digit);
      }
      upto = warp_scan(value, lane_);
      if (lane_ == 31) s_.warp_sums[warp_] = upto;
    }
    __syncthreads();
    uint64_t here = 0;
#pragma unroll
    for (int i = 0; i < kBucketsOfBlock / 32; ++i) {
      if (i < warp_) upto += s_.warp_sums[i];
      here += s_.warp_sums[i];
    }
    const Sum sum = exchange_sum(here);
    if (base + sum.total < limit) return false;
    upto += base + sum.before;
    if (thread_ < kBucketsOfBlock && upto - value < limit && limit <= upto) {
      for (int i = 0; i < kBlocks; ++i) {
        store_remote(in_block(&s_.found[0], i), static_cast<uint64_t>(bucket));
        store_remote(in_block(&s_.found[1], i), upto - value);
        store_remote(in_block(&s_.found[2], i), value);
      }
    }
    cluster_sync();
    return true;
  }

  /// What a beginning of the ranking keeps: the ids before which a measure adds up to less than
  /// `limit`. False where it lies behind the range.
  template <class Measure>
  __device__ bool find_cut(const Measure& measure, const KeyRange& range, uint64_t limit,
                           Cut* cut) {
    uint32_t low = range.low, high = range.high;
    uint64_t base = range.base, inside = ~uint64_t{0};
    while (low < high) {
      const int shift = max(0, 32 - __clz(static_cast<int>(high - low)) - 11);
      if (!find_bucket(measure, low, high, shift, base, limit)) return false;
      high -= static_cast<uint32_t>(s_.found[0]) << shift;
      const uint32_t width = (1u << shift) - 1;
      if (high - low > width) low = high - width;
      base = s_.found[1];
      inside = s_.found[2];
      if (base + inside == limit) {
        *cut = {logit_of(low), p_.vocabulary};
        return true;
      }
    }
    *cut = cut_ties(measure, logit_of(low), limit - base, inside);
    return true;
  }

  /// Of equal logits the lower ids, as many as come to `rest`.
  template <class Measure>
  __device__ Cut cut_ties(const Measure& measure, float logit, uint64_t rest, uint64_t inside) {
    const uint64_t each = measure(logit, 0);
    const uint64_t kept = (rest + each - 1) / each;
    if (kept * each >= inside) return {logit, p_.vocabulary};
    const Ties ties{logit};
    const Sum sum = add_up(ties);
    if (kept >= sum.total) return {logit, p_.vocabulary};
    const int id = locate(ties, sum, kept - 1);
    // Only one block has it, in warp 0, whose first threads speak for the block.
    return {logit, static_cast<int>(exchange_sum(static_cast<uint64_t>(id + 1)).total) - 1};
  }

  /// As find_cut() over the ids down to `floor`, behind which nothing is measured or matters.
  template <class Measure>
  __device__ Cut cut_all(const Measure& measure, float best, float floor, uint64_t limit) {
    Cut cut;
    if (find_cut(measure, {key_of(floor), key_of(best)}, limit, &cut)) return cut;
    return {floor, p_.vocabulary};
  }

  /// As list_top(), for any row.
  __device__ void list_top_anywhere(uint64_t best, double log_z) {
    if (thread_ == 0) s_.num_top = 0;
    const Cut cut = cut_all(Unit(), logit_of_best(best), kLowest,
                            static_cast<uint64_t>(min(spec_.num_top, kMaxTopLogprobs)));
    cluster_sync();  // num_top of block 0 is 0
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      const float x = x_[at];
      if (!cut.keeps(x, begin_ + at)) continue;
      const uint32_t index = count_remote(in_block(&s_.num_top, 0));
      store_remote(in_block(&s_.top[index], 0),
                   uint64_t{key_of(x)} << 32 | ~static_cast<uint32_t>(begin_ + at));
    }
    cluster_sync();
    if (rank_ != 0 || warp_ != 0) return;
    const int count = static_cast<int>(s_.num_top);
    if (lane_ == 0) p_.results[row_].num_top = count;
    if (lane_ >= count) return;
    const uint64_t mine = s_.top[lane_];
    int place = 0;
    for (int i = 0; i < count; ++i) place += s_.top[i] > mine ? 1 : 0;
    put_top(place, mine, log_z);
  }

  // ---- The token

  __device__ void draw(uint64_t best, double log_z) {
    const float max = logit_of_best(best);
    Weights weights(max, spec_.temperature);
    const Buckets buckets{max, kBucketsPerUnit / weights.temperature};
    Beginning beginning{};
    const bool filters = cuts_top_k() || spec_.top_p < 1 || spec_.min_p > 0;
    if (filters && draw_of_few(weights, buckets, log_z, &beginning)) return;
    if (cuts_top_k()) {
      weights.cut = cut_all(Unit(), max, weights.floor(), static_cast<uint64_t>(spec_.top_k));
    }
    int first = 0;
    const bool is_bracketed = spec_.top_p < 1 && !cuts_top_k() &&
                              cut_bracketed(buckets, beginning.count_center, &weights, &first);
    if (spec_.top_p < 1 && !is_bracketed) {
      const uint64_t total = add_up(weights).total;
      const float floor = fmaxf(weights.floor(), weights.cut.logit);
      weights.cut = cut_all(Weights(max, spec_.temperature), max, floor, limit_of(total));
    }
    weights.min_p = spec_.min_p;
    const bool is_weighed = is_bracketed && spec_.min_p == 0;
    const Sum sum = is_weighed
                        ? add_up(Within{weights, buckets, first, kBuckets}, s_.other_warp_sums)
                        : add_up(weights);
    const int id = locate(weights, sum, target_of(sum.total));
    if (id >= 0 && lane_ == 0) finish(id, id, log_z);
  }

  /// Top-p where it leaves many: its cut lies most likely among the ids around the center_count-th.
  /// False where it does not; else the buckets before *first are kept, and weighed for each warp in
  /// other_warp_sums.
  __device__ bool cut_bracketed(const Buckets& buckets, uint32_t center_count, Weights* weights,
                                int* first) {
    constexpr uint32_t kMargin = 256;
    int last = 0;
    find_counts(center_count - min(center_count, kMargin), center_count + kMargin, first, &last);
    uint64_t before = 0, total = 0;
    const Within within{*weights, buckets, *first, last};
    weigh(within, &before, &total);
    const uint64_t limit = limit_of(total);
    // Nothing of the buckets from *first to `last` lies outside of the range.
    const float low = buckets.max - (static_cast<float>(last) + 1.1f) / buckets.per_unit;
    const float high = buckets.max - (static_cast<float>(*first) - 0.1f) / buckets.per_unit;
    const bool is_sure = buckets.of(low) > last && (*first == 0 || buckets.of(high) < *first);
    const KeyRange range{key_of(fmaxf(low, weights->floor())),
                         key_of(*first == 0 ? buckets.max : high), before};
    const bool is_found =
        before < limit && is_sure && find_cut(within, range, limit, &weights->cut);
    listed_ = -1;
    return is_found;
  }

  /// One thread: the result, with the log-probability of `scored`.
  __device__ void finish(int token, int scored, double log_z) {
    SampleResult& result = p_.results[row_];
    result.token = token;
    result.numeric_error = 0;
    const bool wants_logprob = spec_.num_top >= 0 || spec_.target >= 0;
    const float raw = p_.logits[row_ * p_.logits_stride + scored];
    result.logprob = wants_logprob ? static_cast<float>(raw - log_z) : 0.0f;
    if (token < 0) return;
    put_token(p_, row_, spec_.slot, token);
    if (spec_.counts_slot >= 0 && spec_.counts_later == 0)
      ++p_.counts[spec_.counts_slot * p_.counts_stride + token];
  }

  __device__ void fail() {
    if (rank_ != 0 || thread_ != 0) return;
    p_.results[row_] = {.token = -1, .numeric_error = 1, .logprob = 0, .num_top = 0};
    if (spec_.target < 0) put_token(p_, row_, spec_.slot, 0);
  }

  const SampleParams& p_;
  const SampleSpec& spec_;
  Shared& s_;
  float* x_;  // [block_ids], warp w has [w, w + 1) * rows_ * 32
  int64_t row_;
  int rank_, begin_, thread_, warp_, lane_;
  int rows_;  // of 32 ids, a warp
  int parity_ = 0;
  int listed_ = -1;  // so many ids find_bucket() looks at, instead of all
};

__global__ __launch_bounds__(kThreads,
                             2) void sample_kernel(const __grid_constant__ SampleParams params) {
  extern __shared__ float4 memory[];
  let_successor_begin();
  cluster_arrive();
  wait_for_predecessor();
  auto* shared = reinterpret_cast<Shared*>(memory);
  static_assert(sizeof(SampleSpec) % sizeof(uint32_t) == 0);
  constexpr int kWords = sizeof(SampleSpec) / sizeof(uint32_t);
  if (threadIdx.x < kWords) {
    reinterpret_cast<uint32_t*>(&shared->spec)[threadIdx.x] =
        reinterpret_cast<const uint32_t*>(params.specs + blockIdx.x / kBlocks)[threadIdx.x];
  }
  __syncthreads();
  Row row(params, *shared, reinterpret_cast<float*>(memory + sizeof(Shared) / sizeof(float4)));
  row.run();
}

}  // namespace

void sample(Stream& stream, const SampleArgs& args) {
  const int64_t rows = args.logits.dim(0), vocabulary = args.logits.dim(1);
  if (rows == 0) return;
  CHECK(vocabulary > 0 && vocabulary <= kMaxSampledVocabulary, "sample: the vocabulary's size");
  CHECK(!args.top_ids.defined() || args.top_ids.stride[0] == args.top_logprobs.stride[0],
        "sample: alternatives have one layout");
  constexpr int64_t kUnit = kBlocks * kThreads;
  const int64_t block_ids = (vocabulary + kUnit - 1) / kUnit * kThreads;
  const auto address = reinterpret_cast<uintptr_t>(args.logits.data);
  const SampleParams params{
      .logits = args.logits.ptr<float>(),
      .specs = args.specs,
      .biases = args.biases,
      .ids = args.ids,
      .masks = static_cast<const uint32_t*>(args.masks.data),
      .counts = static_cast<uint32_t*>(args.counts.data),
      .last_token = args.last_token.ptr<int32_t>(),
      .tokens = args.tokens,
      .results = args.results,
      .top_ids = static_cast<int32_t*>(args.top_ids.data),
      .top_logprobs = static_cast<float*>(args.top_logprobs.data),
      .logits_stride = args.logits.stride[0],
      .masks_stride = args.masks.stride[0],
      .counts_stride = args.counts.stride[0],
      .top_stride = args.top_ids.stride[0],
      .vocabulary = static_cast<int>(vocabulary),
      .mask_words = static_cast<int>(args.masks.defined() ? args.masks.dim(1) : 0),
      .block_ids = static_cast<int>(block_ids),
      .aligned = address % 16 == 0 && args.logits.stride[0] % 4 == 0};
  if (args.only_greedy) return sample_greedy(stream, params, rows);
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(rows * kBlocks)),
          .block = dim3(kThreads),
          .shared_bytes = sizeof(Shared) + static_cast<size_t>(block_ids) * sizeof(float),
          .cluster = kBlocks,
          .overlap = true},
         sample_kernel, params);
}

}  // namespace weft::cuda
