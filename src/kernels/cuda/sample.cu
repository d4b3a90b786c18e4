// sample: rows of f32 logits to tokens and log-probabilities (semantics: runtime/sampler.h). A
// cluster of eight blocks has one row, read once from memory and kept in their shared memory; what
// the filters need are passes over that. Weights are integers, w = rint(2^44 exp((x - max) / T)):
// their sums are exact, so nothing depends on an order. Bytes: 4 V a row; bound by memory for
// greedy rows, by the exponentials for others. docs/kernels/sample_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kBlocks = 8;  // of a row
constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kBuckets = 2048;
constexpr int kBucketsOfBlock = kBuckets / kBlocks;
constexpr int kMaxRows32 = static_cast<int>(kMaxSampledVocabulary) / kBlocks / kThreads;
constexpr uint32_t kAll = 0xffffffffu;
constexpr float kMinusInfinity = -__builtin_huge_valf();
constexpr float kLowest = -3.402823466e38f;
constexpr uint64_t kInvalid = ~uint64_t{0};
// 2^44: weights below 2^-45 of the greatest are 0, and 2^18 weights of 1 fit into 63 bits.
constexpr float kOne = 0x1p44f;
constexpr double kInverseOne = 0x1p-44;
constexpr float kNoWeight = 32.0f;  // exp(-32) < 2^-45

struct SampleParams {
  const float* logits;
  const SampleSpec* specs;
  const TokenBias* biases;
  const int32_t* ids;
  const uint32_t* masks;
  uint32_t* counts;
  int32_t* last_token;
  SampleResult* results;
  int32_t* top_ids;
  float* top_logprobs;
  int64_t logits_stride, masks_stride, counts_stride, top_stride;
  int vocabulary;
  int mask_words;
  int block_ids;  // of a block: the first block has ids [0, block_ids); a multiple of kThreads
  int aligned;    // rows can be read 16 bytes at a time
};

struct alignas(16) Shared {
  uint32_t digits[3][kBuckets];  // a histogram, by 16 bits of the sums; before that: masks
  uint64_t exchanged[2][kBlocks];
  uint64_t warp_sums[kWarps];
  uint64_t row_sums[kMaxRows32];
  uint64_t found[3];
  uint64_t top[kMaxTopLogprobs];
  SampleSpec spec;
  uint32_t num_top;
};

// ---- Order of logits: greater keys are greater logits; -0 is +0.

__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

/// The first of the ranking so far: descending logit, then ascending id. 0 is none.
struct Best {
  float logit = kMinusInfinity;
  int id = 0;
  bool invalid = false;

  /// In the order of ascending ids.
  __device__ __forceinline__ void take(float x, int at) {
    invalid |= !(x < __builtin_huge_valf());
    if (x > logit) {
      logit = x;
      id = at;
    }
  }
  __device__ __forceinline__ uint64_t key() const {
    if (invalid) return kInvalid;
    if (logit == kMinusInfinity) return 0;
    return uint64_t{key_of(logit)} << 32 | ~static_cast<uint32_t>(id);
  }
};
__device__ __forceinline__ int id_of(uint64_t key) {
  return static_cast<int>(~static_cast<uint32_t>(key));
}
__device__ __forceinline__ float logit_of_best(uint64_t key) {
  return logit_of(static_cast<uint32_t>(key >> 32));
}

// ---- Warps and clusters

__device__ __forceinline__ uint64_t warp_max(uint64_t x) {
  const auto high = static_cast<uint32_t>(x >> 32), low = static_cast<uint32_t>(x);
  const uint32_t best = __reduce_max_sync(kAll, high);
  return uint64_t{best} << 32 | __reduce_max_sync(kAll, high == best ? low : 0);
}
__device__ __forceinline__ uint64_t warp_sum(uint64_t x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(kAll, x, step);
  return x;
}
/// Inclusive, in the order of the lanes.
__device__ __forceinline__ uint64_t warp_scan(uint64_t x, int lane) {
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const uint64_t other = __shfl_up_sync(kAll, x, step);
    if (lane >= step) x += other;
  }
  return x;
}
template <class T>
__device__ __forceinline__ uint32_t in_block(T* shared, int block) {
  return map_to_block(shared_address(shared), static_cast<uint32_t>(block));
}
__device__ __forceinline__ void store_remote(uint32_t address, uint64_t value) {
  asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(address), "l"(value) : "memory");
}
__device__ __forceinline__ uint32_t load_remote(uint32_t address) {
  uint32_t value;
  asm volatile("ld.shared::cluster.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ uint32_t count_remote(uint32_t address) {
  uint32_t before;
  asm volatile("atom.shared::cluster.add.u32 %0, [%1], 1;"
               : "=r"(before)
               : "r"(address)
               : "memory");
  return before;
}

// ---- Measures: what the passes add up, of a logit and its id

/// The kept ids: logits above `logit`, and those equal to it up to `last_id`.
struct Cut {
  float logit = kMinusInfinity;
  int last_id = -1;
  __device__ __forceinline__ bool keeps(float x, int id) const {
    return x > logit || (x == logit && id <= last_id);
  }
};

struct Unit {
  static constexpr bool kIsUnit = true;
  __device__ __forceinline__ uint64_t operator()(float, int) const { return 1; }
};

struct Ties {
  float logit;
  __device__ __forceinline__ uint64_t operator()(float x, int) const { return x == logit ? 1 : 0; }
};

struct Weights {
  static constexpr bool kIsUnit = false;
  float max, temperature, inverse;
  float min_p = 0;
  Cut cut;

  __device__ Weights(float greatest, float t) {
    max = greatest;
    temperature = fminf(fmaxf(t, 1e-30f), 1e30f);
    inverse = __frcp_rn(temperature);
  }

  /// exp((x - max) / T) to the bits of logits_math.cc (where a weight is not 0 here): n ln 2 + r.
  __device__ __forceinline__ float weight(float x) const {
    const float d = fmaxf(__fsub_rn(x, max), __fmul_rn(-64.0f, temperature));
    const float guess = __fmul_rn(d, inverse);
    const float q = fmaf(fmaf(-guess, temperature, d), inverse, guess);  // d / T, rounded correctly
    const float n = rintf(__fmul_rn(q, 1.44269504088896341f));
    float r = fmaf(-n, 0.693359375f, q);
    r = fmaf(-n, -2.12194440e-4f, r);
    float p = 1.0f / 720;
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return __fmul_rn(p, __int_as_float((__float2int_rn(n) + 127) << 23));
  }
  __device__ __forceinline__ uint64_t operator()(float x, int id) const {
    const float w = weight(x);
    const bool kept = cut.keeps(x, id) && w >= min_p;
    return kept ? __float2ull_rn(__fmul_rn(w, kOne)) : 0;
  }
  /// Below this all weights are 0.
  __device__ __forceinline__ float floor() const {
    return fmaxf(max - kNoWeight * temperature, kLowest);
  }
};

/// 53 random bits of Philox4x32-10 (base/philox.h), stream 0.
__device__ uint64_t random53(uint64_t seed, int64_t position) {
  auto k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  auto c0 = static_cast<uint32_t>(position);
  auto c1 = static_cast<uint32_t>(static_cast<uint64_t>(position) >> 32);
  uint32_t c2 = 0, c3 = 0;
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c0, p1 = uint64_t{0xCD9E8D57} * c2;
    c0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    c1 = static_cast<uint32_t>(p1);
    c2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c3 = static_cast<uint32_t>(p0);
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return (uint64_t{c0} << 32 | c1) >> 11;
}

struct Sum {
  uint64_t before;  // in the blocks before this one
  uint64_t here;
  uint64_t total;
};

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
        if (p_.aligned && at + 4 <= count) {
          v[i] = __ldcg(reinterpret_cast<const float4*>(row + at));
        } else {
          v[i].x = at < count ? row[at] : kMinusInfinity;
          v[i].y = at + 1 < count ? row[at + 1] : kMinusInfinity;
          v[i].z = at + 2 < count ? row[at + 2] : kMinusInfinity;
          v[i].w = at + 3 < count ? row[at + 3] : kMinusInfinity;
        }
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

  __device__ float penalised(float x, int id) const {
    const uint32_t count = p_.counts[spec_.counts_slot * p_.counts_stride + id];
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
    Best best;
    for (int r = 0; r < rows_; ++r) {
      const int word = warp_ * rows_ + r, at = word * 32 + lane_, id = begin_ + at;
      float x = x_[at];
      if (spec_.counts_slot >= 0 && id < p_.vocabulary) x = penalised(x, id);
      if ((may[word] >> lane_ & 1) == 0) x = kMinusInfinity;
      best.invalid |= !(x < __builtin_huge_valf());
      if ((allowed[word] >> lane_ & 1) == 0) x = kMinusInfinity;
      best.take(x, id);
      x_[at] = x;
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

  __device__ Sum exchange_sum(uint64_t here) {
    const uint64_t* blocks = exchange(here);
    Sum sum{0, here, 0};
#pragma unroll
    for (int i = 0; i < kBlocks; ++i) {
      if (i < rank_) sum.before += blocks[i];
      sum.total += blocks[i];
    }
    return sum;
  }

  /// The sum of a measure; leaves those of the warps, each of which has consecutive ids.
  template <class Measure>
  __device__ Sum add_up(const Measure& measure) {
    uint64_t sum = 0;
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      sum += measure(x_[at], begin_ + at);
    }
    sum = warp_sum(sum);
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
#pragma unroll 4
    for (int r = 0; r < rows_; ++r) {
      const int at = (warp_ * rows_ + r) * 32 + lane_;
      const float x = x_[at];
      const uint32_t key = key_of(x);
      if (key < low || key > high) continue;
      const uint32_t bucket = (high - key) >> shift;
      const uint64_t value = measure(x, begin_ + at);
      if constexpr (Measure::kIsUnit) {
        atomicAdd(&s_.digits[0][bucket], 1);
      } else {
        atomicAdd(&s_.digits[0][bucket], static_cast<uint32_t>(value) & 0xffff);
        atomicAdd(&s_.digits[1][bucket], static_cast<uint32_t>(value >> 16) & 0xffff);
        atomicAdd(&s_.digits[2][bucket], static_cast<uint32_t>(value >> 32));
      }
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
    if (base + sum.total <= limit) return false;
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
  /// `limit`. Ids below `floor` measure nothing or don't matter; `best` is the greatest logit.
  template <class Measure>
  __device__ Cut find_cut(const Measure& measure, float best, float floor, uint64_t limit) {
    uint32_t low = key_of(floor), high = key_of(best);
    uint64_t base = 0, inside = ~uint64_t{0};
    while (low < high) {
      const int shift = max(0, 32 - __clz(static_cast<int>(high - low)) - 11);
      if (!find_bucket(measure, low, high, shift, base, limit)) return {floor, p_.vocabulary};
      high -= static_cast<uint32_t>(s_.found[0]) << shift;
      const uint32_t width = (1u << shift) - 1;
      if (high - low > width) low = high - width;
      base = s_.found[1];
      inside = s_.found[2];
      if (base + inside == limit) return {logit_of(low), p_.vocabulary};
    }
    // Equal logits: the lower ids.
    const float logit = logit_of(low);
    const uint64_t each = measure(logit, 0);
    const uint64_t kept = (limit - base + each - 1) / each;
    if (kept * each >= inside) return {logit, p_.vocabulary};
    const Ties ties{logit};
    const Sum sum = add_up(ties);
    if (kept >= sum.total) return {logit, p_.vocabulary};
    const int id = locate(ties, sum, kept - 1);
    // Only one block has it, in warp 0, whose first threads speak for the block.
    return {logit, static_cast<int>(exchange_sum(static_cast<uint64_t>(id + 1)).total) - 1};
  }

  /// The alternatives: the num_top first of the ranking of the logits as they came.
  __device__ void list_top(uint64_t best, double log_z) {
    if (thread_ == 0) s_.num_top = 0;
    if (spec_.num_top > 0) {
      const Cut cut = find_cut(Unit(), logit_of_best(best), kLowest,
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
    }
    if (rank_ != 0 || warp_ != 0) return;
    __syncwarp();
    const int count = static_cast<int>(s_.num_top);
    if (lane_ == 0) p_.results[row_].num_top = count;
    if (lane_ >= count) return;
    const uint64_t mine = s_.top[lane_];
    int place = 0;
    for (int i = 0; i < count; ++i) place += s_.top[i] > mine ? 1 : 0;
    p_.top_ids[row_ * p_.top_stride + place] = id_of(mine);
    p_.top_logprobs[row_ * p_.top_stride + place] = static_cast<float>(logit_of_best(mine) - log_z);
  }

  // ---- The token

  __device__ void draw(uint64_t best, double log_z) {
    const float max = logit_of_best(best);
    Weights weights(max, spec_.temperature);
    if (spec_.top_k > 0 && spec_.top_k < p_.vocabulary) {
      weights.cut = find_cut(Unit(), max, weights.floor(), static_cast<uint64_t>(spec_.top_k));
    }
    if (spec_.top_p < 1) {
      const uint64_t total = add_up(weights).total;
      const double enough = static_cast<double>(spec_.top_p) * static_cast<double>(total);
      const float floor = fmaxf(weights.floor(), weights.cut.logit);
      weights.cut = find_cut(Weights(max, spec_.temperature), max, floor,
                             static_cast<uint64_t>(fmax(1.0, ceil(enough))));
    }
    weights.min_p = spec_.min_p;
    const Sum sum = add_up(weights);
    const uint64_t target = __umul64hi(random53(spec_.seed, spec_.position) << 11, sum.total);
    const int id = locate(weights, sum, target);
    if (id >= 0 && lane_ == 0) finish(id, id, log_z);
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
    p_.last_token[spec_.slot] = token;
    if (spec_.counts_slot >= 0) ++p_.counts[spec_.counts_slot * p_.counts_stride + token];
  }

  __device__ void fail() {
    if (rank_ != 0 || thread_ != 0) return;
    p_.results[row_] = {.token = -1, .numeric_error = 1, .logprob = 0, .num_top = 0};
    if (spec_.target < 0) p_.last_token[spec_.slot] = 0;
  }

  const SampleParams& p_;
  const SampleSpec& spec_;
  Shared& s_;
  float* x_;  // [block_ids], warp w has [w, w + 1) * rows_ * 32
  int64_t row_;
  int rank_, begin_, thread_, warp_, lane_;
  int rows_;  // of 32 ids, a warp
  int parity_ = 0;
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

__global__ void count_kernel(uint32_t* counts, const int32_t* prompt, int64_t num_prompt,
                             const int32_t* generated, int64_t num_generated) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < num_prompt) {
    atomicOr(counts + prompt[i], kCountedInPrompt);
  } else if (i < num_prompt + num_generated) {
    atomicAdd(counts + generated[i - num_prompt], 1);
  }
}

__global__ void feed_kernel(const int32_t* feed, const int32_t* last_token, int32_t* ids,
                            int rows) {
  let_successor_begin();
  wait_for_predecessor();
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t >= rows || feed[t] < 0) return;
  ids[t] = last_token[feed[t]];
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
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(rows * kBlocks)),
          .block = dim3(kThreads),
          .shared_bytes = sizeof(Shared) + static_cast<size_t>(block_ids) * sizeof(float),
          .cluster = kBlocks,
          .overlap = true},
         sample_kernel, params);
}

void reset_counts(Stream& stream, const ResetCountsArgs& args) {
  uint32_t* counts = static_cast<uint32_t*>(args.counts.data) + args.slot * args.counts.stride[0];
  const auto bytes = static_cast<size_t>(args.counts.dim(1)) * sizeof(uint32_t);
  check(cudaMemsetAsync(counts, 0, bytes, native(stream)), "counts");
  const int64_t prompt = args.prompt.defined() ? args.prompt.dim(0) : 0;
  const int64_t generated = args.generated.defined() ? args.generated.dim(0) : 0;
  if (prompt + generated == 0) return;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>((prompt + generated + 255) / 256)), .block = 256},
         count_kernel, counts, static_cast<const int32_t*>(args.prompt.data), prompt,
         static_cast<const int32_t*>(args.generated.data), generated);
}

void feed_tokens(Stream& stream, const FeedTokensArgs& args) {
  const int64_t rows = args.ids.dim(0);
  if (rows == 0) return;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>((rows + 255) / 256)), .block = 256, .overlap = true};
  launch(stream, shape, feed_kernel, static_cast<const int32_t*>(args.feed.data),
         static_cast<const int32_t*>(args.last_token.data), args.ids.ptr<int32_t>(),
         static_cast<int>(rows));
}

}  // namespace weft::cuda
