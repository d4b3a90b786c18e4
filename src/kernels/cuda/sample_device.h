#pragma once

// Parts of sample*.cu: the order of logits, sums over warps and clusters, weights, random numbers,
// arguments. docs/kernels/sampler_cuda.md

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {

inline constexpr int kBlocks = 8;  // of a row
inline constexpr int kThreads = 512;
inline constexpr int kWarps = kThreads / 32;
inline constexpr int kBuckets = 2048;
inline constexpr int kBucketsOfBlock = kBuckets / kBlocks;
inline constexpr int kMaxRows32 = static_cast<int>(kMaxSampledVocabulary) / kBlocks / kThreads;
// Up to so many ids, what the filters leave is handled by one block, each id by one thread.
inline constexpr int kFew = 256;
inline constexpr int kListed = 1024;
inline constexpr uint64_t kNone = ~uint64_t{0};

inline constexpr uint32_t kAll = 0xffffffffu;
inline constexpr float kMinusInfinity = -__builtin_huge_valf();
inline constexpr float kLowest = -3.402823466e38f;
inline constexpr uint64_t kInvalid = ~uint64_t{0};
// 2^44: weights below 2^-45 of the greatest are 0, and 2^18 weights of 1 fit into 63 bits.
inline constexpr float kOne = 0x1p44f;
inline constexpr double kInverseOne = 0x1p-44;
inline constexpr float kNoWeight = 32.0f;  // exp(-32) < 2^-45
// Added and taken away again it rounds to an integer, which stands in the low bits in between.
inline constexpr float kRounder = 12582912.0f;  // 3 * 2^22

// ---- Order of logits: greater keys are greater logits; -0 is +0.

__device__ __forceinline__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(__fadd_rn(x, 0.0f));
  return bits ^ ((bits >> 31) != 0 ? 0xffffffffu : 0x80000000u);
}
__device__ __forceinline__ float logit_of(uint32_t key) {
  return __uint_as_float(key ^ ((key >> 31) != 0 ? 0x80000000u : 0xffffffffu));
}

/// Logits [at, at + 4) of `count`; those behind are minus infinity. `aligned`: row is, to 16 bytes.
__device__ __forceinline__ float4 load_logits(const float* row, int at, int count, bool aligned) {
  if (aligned && at + 4 <= count) return __ldcg(reinterpret_cast<const float4*>(row + at));
  return {at < count ? row[at] : kMinusInfinity, at + 1 < count ? row[at + 1] : kMinusInfinity,
          at + 2 < count ? row[at + 2] : kMinusInfinity,
          at + 3 < count ? row[at + 3] : kMinusInfinity};
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
    const float shifted = __fadd_rn(__fmul_rn(q, 1.44269504088896341f), kRounder);
    const float n = __fsub_rn(shifted, kRounder);
    float r = fmaf(-n, 0.693359375f, q);
    r = fmaf(-n, -2.12194440e-4f, r);
    float p = 1.0f / 720;
    p = fmaf(p, r, 1.0f / 120);
    p = fmaf(p, r, 1.0f / 24);
    p = fmaf(p, r, 1.0f / 6);
    p = fmaf(p, r, 0.5f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return __int_as_float(__float_as_int(p) + (__float_as_int(shifted) << 23));
  }
  __device__ __forceinline__ uint64_t whole(float w) const {
    return __float2ull_rn(__fmul_rn(w, kOne));
  }
  __device__ __forceinline__ uint64_t operator()(float x, int id) const {
    const float w = weight(x);
    const bool kept = cut.keeps(x, id) && w >= min_p;
    return kept ? whole(w) : 0;
  }
  /// Below this all weights are 0.
  __device__ __forceinline__ float floor() const {
    return fmaxf(max - kNoWeight * temperature, kLowest);
  }
};

/// Buckets of equal width below the greatest logit, in the order of the ranking. The last one takes
/// all that is further below.
struct Buckets {
  float max, per_unit;
  __device__ __forceinline__ int of(float x) const {
    return static_cast<int>(fminf(__fmul_rn(max - x, per_unit), kBuckets - 1));
  }
  __device__ __forceinline__ bool counts(int bucket) const { return bucket < kBuckets - 1; }
};
/// With so many a unit of (max - x) / T, everything in the last bucket has weight 0.
inline constexpr float kBucketsPerUnit = 64;
static_assert(kBucketsPerUnit * kNoWeight == kBuckets);

/// About what an id of a bucket weighs; the greatest logit of all is in the first.
__device__ __forceinline__ uint64_t bucket_weight(int bucket) {
  const float middle = bucket == 0 ? 0.0f : static_cast<float>(bucket) + 0.5f;
  return __float2ull_rn(expf(-middle / kBucketsPerUnit) * 0x1p40f);
}

/// Weights of the buckets from `first` to `last`.
struct Within {
  static constexpr bool kIsUnit = false;
  Weights weights;
  Buckets buckets;
  int first, last;
  __device__ __forceinline__ uint64_t operator()(float x, int id) const {
    const int bucket = buckets.of(x);
    return bucket < first || bucket > last ? 0 : weights(x, id);
  }
};

/// 53 random bits of Philox4x32-10 (base/philox.h), stream 0.
__device__ inline uint64_t random53(uint64_t seed, int64_t position) {
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

// ---- Arguments and shared memory

struct SampleParams {
  const float* logits;
  const SampleSpec* specs;
  const TokenBias* biases;
  const int32_t* ids;
  const uint32_t* masks;
  uint32_t* counts;
  int32_t* last_token;
  int32_t* tokens;  // or null
  SampleResult* results;
  int32_t* top_ids;
  float* top_logprobs;
  int64_t logits_stride, masks_stride, counts_stride, top_stride;
  int vocabulary;
  int mask_words;
  int block_ids;  // of a block: the first block has ids [0, block_ids); a multiple of kThreads
  int aligned;    // rows can be read 16 bytes at a time
};

/// Where the next steps find a row's token.
__device__ __forceinline__ void put_token(const SampleParams& params, int64_t row, int slot,
                                          int token) {
  params.last_token[slot] = token;
  if (params.tokens != nullptr) params.tokens[row] = token;
}

/// What a plainly greedy row becomes.
__device__ __forceinline__ void put_best(const SampleParams& params, int64_t row, int slot,
                                         uint64_t best) {
  const bool error = best == 0 || best == kInvalid;
  params.results[row] = {.token = error ? -1 : id_of(best), .numeric_error = error ? 1 : 0};
  put_token(params, row, slot, error ? 0 : id_of(best));
}

struct alignas(16) Shared {
  uint32_t digits[3][kBuckets];  // a histogram, by 16 bits of the sums; before that: masks
  uint64_t exchanged[2][2 * kBlocks];
  uint64_t warp_sums[kWarps];
  uint64_t other_warp_sums[kWarps];
  uint64_t row_sums[kMaxRows32];
  uint64_t found[4];
  uint64_t top[kMaxTopLogprobs];
  uint64_t listed[kListed];                     // keys of ids, in any order
  uint32_t counts_before[kBucketsOfBlock + 1];  // of this block's buckets
  SampleSpec spec;
  uint32_t num_top;
  uint32_t num_listed;
};

/// The buckets up to `last` hold `count` ids.
struct Beginning {
  int last;
  uint32_t count;
  uint32_t count_center;  // of a beginning of about the share asked, without a margin
};

/// Where a cut may lie: keys [low, high], and what the measure adds up to before.
struct KeyRange {
  uint32_t low, high;
  uint64_t base = 0;
};

/// Rows of plain greedy sampling alone (sample_greedy.cu).
void sample_greedy(Stream& stream, const SampleParams& params, int64_t rows);

}  // namespace weft::cuda
