// s[b, c] = sum over the groups i of block b and j of block c of softmax_j(a)[i, j], with
// a[i, j] = sum_t q[i Z + Z - 1 - t] . k[j Z + t] * scale / (Z norm): XAttention's scores (arXiv
// 2503.16428), and the blocks that each head of kind kBlocks sees by them.
//
// Three kernels a pass (some heads of a segment): the keys of the pages in order, as bf16 whatever
// the cache's format is (gather_keys); the products in tiles of 128 groups of rows x 256 of keys,
// steps of 64 of Z D, two warpgroups of 64 x 256, two blocks below each other sharing the keys, of
// which only log2 of the sum over each block of keys is kept, a float a (group, block)
// (estimate_kernel); then a block of threads a row of blocks: the softmax over those sums and the
// smallest set (select_kernel). Bound: the tensor
// cores, L^2 D / Z FLOPs a head, 1 / (2 Z) of attention. Kinds are device data: items of other
// heads are passed over. docs/kernels/attention_prefill.md
//
// A list depends on the rows of its own block and the keys up to it: no sum here is cut by the
// chunk, the pass or the company.

#include <cuda_bf16.h>

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/head_kinds.h"
#include "kernels/cuda/kv_widen.h"

namespace weft::cuda {
namespace {

constexpr int kTileRows = 128, kTileColumns = 256;  // groups
constexpr int kPairRows = 2 * kTileRows;            // of the two blocks of a cluster
constexpr int kRowsTogether = 4;                    // pairs that sweep the columns together
constexpr int kStages = 4;
constexpr int kABytes = kTileRows * 128, kBBytes = kTileColumns * 128;
constexpr int kStageBytes = kABytes + kBBytes;
constexpr int kShared = 1024 + kStages * kStageBytes + 2 * kStages * 8;
constexpr int kThreads = 384;
/// Of the sums of a pass; a single head may take more.
constexpr int64_t kSumBytes = int64_t{128} << 20;

struct EstimateParams {
  float* sums = nullptr;  ///< [heads of the pass][rows][blocks], log2
  HeadKinds kinds;
  int32_t segment = 0;
  float scale_log2 = 0;
  int32_t first_head = 0, num_heads = 0, group = 1, first_kv_head = 0;
  int32_t rows = 0;         ///< groups of the segment's rows
  int32_t first_group = 0;  ///< the first of them, counted from position 0
  int32_t blocks = 0;       ///< of keys
  int32_t stride = 0, dim_steps = 0;
  int32_t in_last = 0;  ///< rows of an incomplete last group
  int32_t complete = 0;

  __device__ __forceinline__ int row_pairs() const { return (rows + kPairRows - 1) / kPairRows; }
  /// Tiles of columns that some row of pair `m` sees.
  __device__ __forceinline__ int column_tiles(int m) const {
    return (first_group + min((m + 1) * kPairRows, rows) - 1) / kTileColumns + 1;
  }
};

struct EstimateItem {
  int head = -1, m = 0, n = 0;  ///< head of the pass
};

/// The items of this cluster: head by head, in bands of kRowsTogether pairs of tiles of rows, there
/// column by column (L2). Each of its two blocks has a tile of the pair.
class EstimateWalk {
 public:
  __device__ __forceinline__ explicit EstimateWalk(const EstimateParams& p) : p_(p) {
    for (int band = 0; band * kRowsTogether < p.row_pairs(); ++band) of_head_ += of_band(band);
    next_ = static_cast<int>(blockIdx.x / 2);
  }
  /// False at the end.
  __device__ __forceinline__ bool next(EstimateItem& item) {
    for (; !is_listed() || next_ >= first_ + of_head_; ++head_) {
      if (head_ >= p_.num_heads) return false;
      if (is_listed()) first_ += of_head_;
    }
    int at = next_ - first_, band = 0;
    for (; at >= of_band(band); ++band) at -= of_band(band);
    int pair = band * kRowsTogether, high = min(kRowsTogether, p_.row_pairs() - pair);
    // Columns that all pairs of the band see, then those that fewer and fewer do.
    item.n = min(at / high, p_.column_tiles(pair));
    at -= item.n * high;
    while (true) {
      for (; p_.column_tiles(pair) <= item.n; ++pair) --high;
      if (at < high) break;
      at -= high;
      ++item.n;
    }
    item.head = head_;
    item.m = 2 * (pair + at) + static_cast<int>(blockIdx.x % 2);
    next_ += static_cast<int>(gridDim.x / 2);
    return true;
  }

 private:
  __device__ __forceinline__ bool is_listed() const {
    if (head_ >= p_.num_heads) return false;
    const int kind = p_.kinds.at(p_.segment, p_.first_head + head_);
    return kind == static_cast<int32_t>(HeadKind::kBlocks);
  }
  __device__ __forceinline__ int of_band(int band) const {
    const int end = min((band + 1) * kRowsTogether, p_.row_pairs());
    int count = 0;
    for (int pair = band * kRowsTogether; pair < end; ++pair) count += p_.column_tiles(pair);
    return count;
  }
  const EstimateParams& p_;
  int of_head_ = 0, next_;
  int head_ = 0, first_ = 0;  ///< and its first item: of listed heads alone
};

/// q: (D, Z, groups, H) of the complete groups, and (D, rows of the incomplete one, groups + 1, H);
/// k: (D, Z, groups, kv heads of the pass).
struct EstimateMaps {
  CUtensorMap q, q_last, k;
};

/// tma_load_multicast() of a box of four dimensions, for both blocks of the cluster.
__device__ __forceinline__ void load_for_both(void* shared, const CUtensorMap* map,
                                              Barrier* barrier, const Coords<4>& c) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4, %5}], [%6], %7;" ::"r"(shared_address(shared)),
      "l"(map), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(c.at[3]),
      "r"(shared_address(barrier)), "h"(static_cast<uint16_t>(3))
      : "memory");
}

__device__ __forceinline__ void produce(const EstimateMaps& maps, const EstimateParams& p,
                                        unsigned char* shared, Barrier* full, Barrier* empty) {
  const auto rank = static_cast<int>(cluster_rank());
  EstimateWalk walk(p);
  EstimateItem item;
  int stage = 0;
  uint32_t phase = 0;
  while (walk.next(item)) {
    const int head = p.first_head + item.head;
    const int kv_head = head / p.group - p.first_kv_head;
    for (int t = 0; t < p.stride; ++t) {
      const int row = p.stride - 1 - t;
      const bool last = row < p.in_last || p.complete == 0;
      for (int d = 0; d < p.dim_steps; ++d) {
        wait(empty + stage, phase ^ 1);
        arrive_expect(full + stage, kStageBytes);
        unsigned char* to = shared + stage * kStageBytes;
        tma_load(to, last ? &maps.q_last : &maps.q, full + stage,
                 Coords{d * 64, row, item.m * kTileRows, head});
        // Both blocks need the keys: each loads half of them for the two.
        load_for_both(
            to + kABytes + rank * (kBBytes / 2), &maps.k, full + stage,
            Coords{d * 64, t, item.n * kTileColumns + rank * (kTileColumns / 2), kv_head});
        if (++stage == kStages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
  }
}

/// Lane c gets the quad's sum of x[c], with the bits of sum_of_quad().
__device__ __forceinline__ float scattered_sum_of_quad(const float (&x)[4], int c) {
  const bool odd = c % 2 != 0;
  float pair[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const float other = __shfl_xor_sync(0xffffffffu, odd ? x[2 * i] : x[2 * i + 1], 1);
    pair[i] = (odd ? x[2 * i + 1] : x[2 * i]) + other;
  }
  const float other = __shfl_xor_sync(0xffffffffu, c < 2 ? pair[1] : pair[0], 2);
  return (c < 2 ? pair[0] : pair[1]) + other;
}

/// log2 of the sums of a warpgroup's 64 x 256 products over the blocks of 8 * Chunks columns.
template <int Chunks>
__device__ __forceinline__ void store_sums(float (&d)[128], const EstimateParams& p,
                                           const EstimateItem& item, int first_row) {
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % 4;
  const int row = first_row + static_cast<int>(threadIdx.x) % 128 / 32 * 16 + lane / 4;
  const int column = item.n * kTileColumns + 2 * c;
  if (p.first_group + first_row < item.n * kTileColumns + kTileColumns - 1) {
#pragma unroll
    for (int i = 0; i < 128; ++i) {
      const int j = column + i / 4 * 8 + i % 2;
      if (j > p.first_group + row + i / 2 % 2 * 8) d[i] = -INFINITY;
    }
  }
  constexpr int kBlocks = 32 / Chunks;
  float* to = p.sums + int64_t{item.head} * p.rows * p.blocks + item.n * kBlocks + c;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int first = 0; first < kBlocks; first += 4) {  // lane c ends with block first + c
      float sums[4], my_shift = 0;
#pragma unroll
      for (int b = 0; b < 4; ++b) {
        const auto value = [&](int i) {
          return d[((first + b) * Chunks + i / 2) * 4 + half * 2 + i % 2];
        };
        float top = -INFINITY;
#pragma unroll
        for (int i = 0; i < 2 * Chunks; ++i) top = fmaxf(top, value(i));
        top = max_of_quad(top);
        const float shift = top > -INFINITY ? top * p.scale_log2 : 0.0f;
        if (b == c) my_shift = shift;
        sums[b] = 0;
#pragma unroll
        for (int i = 0; i < 2 * Chunks; ++i) {
          sums[b] += exp2_approx(fmaf(value(i), p.scale_log2, -shift));
        }
      }
      const float value = my_shift + __log2f(scattered_sum_of_quad(sums, c));  // -inf: nothing seen
      const bool inside = row + 8 * half < p.rows && item.n * kBlocks + first + c < p.blocks;
      if (inside) to[int64_t{row + 8 * half} * p.blocks + first] = value;
    }
  }
}

template <int Chunks>
__device__ __forceinline__ void consume(const EstimateParams& p, unsigned char* shared,
                                        Barrier* full, Barrier* empty) {
  const int warpgroup = warp_index() / 4 - 1;
  const int steps = p.stride * p.dim_steps;
  const uint32_t lane = threadIdx.x % 32;
  const auto release = [&](int stage) {
    if (lane < 2) arrive_remote(empty + stage, lane);
  };
  EstimateWalk walk(p);
  EstimateItem item;
  int stage = 0;
  uint32_t phase = 0;
  while (walk.next(item)) {
    float d[128];
    int last = 0;
    for (int step = 0; step < steps; ++step) {
      wait(full + stage, phase);
      const unsigned char* at = shared + stage * kStageBytes;
      const uint64_t a = k_major_128(at + warpgroup * (64 * 128));
      const uint64_t b = k_major_128(at + kABytes);
      hold(d);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Wgmma<kTileColumns>::bf16(d, advance(a, 32 * k), advance(b, 32 * k), (step | k) != 0);
      }
      wgmma_commit();
      hold(d);
      if (step > 0) {
        wgmma_wait<1>();
        release(last);
      }
      last = stage;
      if (++stage == kStages) {
        stage = 0;
        phase ^= 1;
      }
    }
    wgmma_wait<0>();
    hold(d);
    release(last);
    store_sums<Chunks>(d, p, item, item.m * kTileRows + warpgroup * 64);
  }
}

template <int Chunks>
__global__ void __launch_bounds__(kThreads, 1)
    estimate_kernel(const __grid_constant__ EstimateMaps maps,
                    const __grid_constant__ EstimateParams p) {
  extern __shared__ unsigned char raw[];
  unsigned char* shared = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
  Barrier* full = reinterpret_cast<Barrier*>(shared + kStages * kStageBytes);
  Barrier* empty = full + kStages;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(empty + i, 2 * 8);
    }
    fence_barrier_init();
  }
  cluster_sync();
  wait_for_predecessor();
  let_successor_begin();
  if (threadIdx.x < 128) {
    drop_registers_to<40>();
    if (threadIdx.x == 0) produce(maps, p, shared, full, empty);
  } else {
    raise_registers_to<232>();
    consume<Chunks>(p, shared, full, empty);
  }
  // Neither may end while the other loads into it or arrives at its barriers.
  __syncwarp();
  cluster_sync();
}

// ---- Keys in the order of their positions

struct GatherParams {
  const unsigned char* kv = nullptr;
  int64_t block_bytes = 0;
  KvBlockLayout from;
  const float* channels = nullptr;  ///< [G][D] scales of a static format; null: a scale a row
  const int32_t* table = nullptr;   ///< of the segment
  uint4* out = nullptr;             ///< [kv heads of the pass][padded][D], zeros from `keys` on
  int32_t first_kv_head = 0;
  int32_t keys = 0, padded = 0;
  int32_t head_dim = 0;
  HeadKinds kinds;
  int32_t segment = 0, group = 1;

  /// Whether any of its query heads needs the estimate.
  __device__ __forceinline__ bool is_listed(int kv_head) const {
    bool listed = false;
    for (int i = 0; i < group; ++i) {
      const int kind = kinds.at(segment, kv_head * group + i);
      listed = listed || kind == static_cast<int>(HeadKind::kBlocks);
    }
    return listed;
  }
};

/// Codes become bf16(code * scale), whatever attention makes of them: scores choose alone.
template <class Format>
__global__ void __launch_bounds__(256) gather_keys(const __grid_constant__ GatherParams p) {
  constexpr int kUnitDims = kKvUnitDims<Format>;
  wait_for_predecessor();
  let_successor_begin();
  const int row_units = (p.head_dim + kUnitDims - 1) / kUnitDims;
  const int64_t count = int64_t{p.padded} * row_units;
  const int head = p.first_kv_head + static_cast<int>(blockIdx.y);
  if (!p.is_listed(head)) return;
  const float* channels = p.channels != nullptr ? p.channels + int64_t{head} * p.head_dim : nullptr;
  const int tokens = static_cast<int>(p.from.block_size);
  for (int64_t i = blockIdx.x * 256 + threadIdx.x; i < count; i += int64_t{gridDim.x} * 256) {
    const int key = static_cast<int>(i / row_units);
    const int unit = static_cast<int>(i - int64_t{key} * row_units), dim = unit * kUnitDims;
    uint4 codes = make_uint4(0, 0, 0, 0);
    float scale = 0;
    if (key < p.keys) {
      const int in_block = key % tokens;
      const unsigned char* block = p.kv + p.table[key / tokens] * p.block_bytes;
      codes = *reinterpret_cast<const uint4*>(block + p.from.code_offset(0, head, in_block) +
                                              unit * 16);
      if constexpr (Format::kScaled) {
        const int group = Format::kZeros ? dim / kKvInt4Group : 0;
        if (channels == nullptr) {
          scale = *reinterpret_cast<const float*>(block +
                                                  p.from.scale_offset(0, head, group, in_block));
        }
      }
    }
    uint4* out = p.out + ((int64_t{blockIdx.y} * p.padded + key) * p.head_dim + dim) / 8;
#pragma unroll
    for (int at = 0; at < kUnitDims / 8; ++at) {
      if (dim + 8 * at >= p.head_dim) break;
      out[at] = key < p.keys ? widen_unit<Format>(codes, at, scale,
                                                  channels != nullptr ? channels + dim : nullptr)
                             : make_uint4(0, 0, 0, 0);
    }
  }
}

// ---- Selection

struct ChooseParams {
  const float* sums = nullptr;
  HeadKinds kinds;
  int32_t segment = 0;
  const float* thresholds = nullptr;
  int32_t* blocks = nullptr;  ///< of the segment: [H, row blocks, words]
  int32_t* counts = nullptr;
  int32_t first_head = 0;
  int32_t rows = 0, row_blocks = 0, words = 0;  ///< groups; of the plan
  int32_t num_blocks = 0;                       ///< of keys
  int32_t first_block = 0;                      ///< of the first row
  int32_t groups = 0;                           ///< of a block
  int32_t quirk_blocks = 0;
  float* mass = nullptr;  ///< of the segment: [H, row blocks], or null
  int64_t mass_head = 0;
};

constexpr int kChoosers = 256;

/// The sum over the threads, the same in all of them.
__device__ __forceinline__ float sum_of_all(float x, float* partial) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < kChoosers / 32; ++w) sum += partial[w];
  return sum;
}

__device__ __forceinline__ uint32_t max_of_all(uint32_t x, uint32_t* partial) {
  x = __reduce_max_sync(0xffffffffu, x);
  __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = x;
  __syncthreads();
  uint32_t top = 0;
#pragma unroll
  for (int w = 0; w < kChoosers / 32; ++w) top = max(top, partial[w]);
  return top;
}

/// s[b, c] for all c into `scores`; returns this thread's part of their sum.
__device__ __forceinline__ float score_blocks(const ChooseParams& p, int row, int b, float* scores,
                                              float* whole) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / 32, lane = thread % 32;
  const float* sums = p.sums + (int64_t{blockIdx.y} * p.rows + row * p.groups) * p.num_blocks;
  const int groups = min(p.groups, p.rows - row * p.groups);
  for (int i = warp; i < groups; i += kChoosers / 32) {
    const float* x = sums + int64_t{i} * p.num_blocks;
    float top = -INFINITY, sum = 0;
    for (int c = lane; c <= b; c += 32) top = fmaxf(top, x[c]);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, step));
    }
    for (int c = lane; c <= b; c += 32) sum += exp2_approx(x[c] - top);
#pragma unroll
    for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
    if (lane == 0) whole[i] = top + __log2f(sum);
  }
  __syncthreads();
  float mine = 0;
  for (int c = thread; c <= b; c += kChoosers) {
    float score = 0;
    for (int i = 0; i < groups; ++i) {
      score += exp2_approx(sums[int64_t{i} * p.num_blocks + c] - whole[i]);
    }
    scores[c] = score;
    mine += score;
  }
  return mine;
}

/// Chosen are the blocks that always are, those of the others with a score above `least`, and the
/// first `ties` that have it. Scores are not negative: their bits are in their order.
struct Choice {
  uint32_t least = 0;
  int ties = 0;
};

/// Blocks `first` .. `b` - 1, beside those that are always chosen and hold `forced`.
struct Others {
  const float* scores;
  int first, b;
  float forced;
};

/// The most bits such that the others from there on hold `wanted` with the forced: those of one of
/// them, or 0 if even all are too few. Bit by bit from the first in which they differ, until one is
/// left. All threads call.
__device__ __forceinline__ uint32_t least_that_holds(const Others& others, float wanted,
                                                     float* partial) {
  constexpr int kWarps = kChoosers / 32;
  __shared__ float masses[2][kWarps];
  __shared__ uint32_t counts[2][kWarps];  // of the upper half << 16 | of the lower
  const int thread = static_cast<int>(threadIdx.x);
  uint32_t* words = reinterpret_cast<uint32_t*>(partial);
  uint32_t top = 0, bottom = 0xffffffffu;
  float all = 0;
  for (int c = others.first + thread; c < others.b; c += kChoosers) {
    const uint32_t bits = __float_as_uint(others.scores[c]);
    top = max(top, bits);
    bottom = min(bottom, bits);
    all += others.scores[c];
  }
  top = max_of_all(top, words);
  bottom = ~max_of_all(~bottom, words);
  const bool enough = others.forced + sum_of_all(all, partial) >= wanted;
  if (!enough || top <= bottom) return enough ? top : 0;
  int bit = 31 - __clz(static_cast<int>(top ^ bottom));
  uint32_t least = top >> bit >> 1 << bit << 1;
  while (true) {
    // What is sought lies in the 2^(bit + 1) from `least` on.
    const uint32_t middle = least | 1u << bit;
    float mass = 0;
    uint32_t count = 0;
    for (int c = others.first + thread; c < others.b; c += kChoosers) {
      const uint32_t bits = __float_as_uint(others.scores[c]);
      if (bits >= middle) mass += others.scores[c];
      if (bits >> bit == middle >> bit) count += 1u << 16;
      if (bits >> bit == least >> bit) ++count;
    }
#pragma unroll
    for (int lane = 16; lane > 0; lane /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, lane);
    count = __reduce_add_sync(0xffffffffu, count);
    if (thread % 32 == 0) {
      masses[bit % 2][thread / 32] = mass;
      counts[bit % 2][thread / 32] = count;
    }
    __syncthreads();
    mass = 0;
    count = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) {
      mass += masses[bit % 2][w];
      count += counts[bit % 2][w];
    }
    const bool upper = others.forced + mass >= wanted;
    if (upper) least = middle;
    if (bit == 0) return least;
    if ((upper ? count >> 16 : count & 0xffff) == 1) break;
    --bit;
  }
  uint32_t found = 0;
  for (int c = others.first + thread; c < others.b; c += kChoosers) {
    const uint32_t bits = __float_as_uint(others.scores[c]);
    if (bits >> bit == least >> bit) found = bits;
  }
  return max_of_all(found, words);
}

/// The least of the others that hold `wanted` with the forced; one more if `late`
/// (SelectArgs::quirk_blocks). All threads call.
__device__ __forceinline__ Choice choose(const Others& others, float wanted, bool late,
                                         float* partial) {
  const float* scores = others.scores;
  const int first = others.first, b = others.b;
  const float forced = others.forced;
  const int thread = static_cast<int>(threadIdx.x);
  const auto mass_from = [&](uint32_t bits) {
    float mass = 0;
    for (int c = first + thread; c < b; c += kChoosers) {
      if (__float_as_uint(scores[c]) >= bits) mass += scores[c];
    }
    return forced + sum_of_all(mass, partial);
  };
  Choice choice{0, b + 1};
  if (forced >= wanted) {
    choice = {0xffffffffu, 0};
  } else {
    choice.least = least_that_holds(others, wanted, partial);
    if (choice.least > 0) {
      const float above = mass_from(choice.least + 1), each = __uint_as_float(choice.least);
      choice.ties = max(1, static_cast<int>(ceilf(fminf((wanted - above) / each, 1e9f))));
    }
  }
  if (!late) return choice;
  float tied = 0;
  uint32_t below = 0;
  for (int c = first + thread; c < b; c += kChoosers) {
    const uint32_t bits = __float_as_uint(scores[c]);
    tied += bits == choice.least ? 1.0f : 0.0f;
    if (bits < choice.least) below = max(below, bits);
  }
  tied = sum_of_all(tied, partial);
  below = max_of_all(below, reinterpret_cast<uint32_t*>(partial));
  if (choice.least == 0 || static_cast<float>(choice.ties) < tied) {
    ++choice.ties;
  } else {
    choice = {below, 1};
  }
  return choice;
}

__global__ void __launch_bounds__(kChoosers) select_kernel(const __grid_constant__ ChooseParams p) {
  extern __shared__ float scores[];  // [b + 1]
  __shared__ float partial[kChoosers / 32], whole[32];
  wait_for_predecessor();
  const int head = p.first_head + static_cast<int>(blockIdx.y);
  if (p.kinds.at(p.segment, head) != static_cast<int32_t>(HeadKind::kBlocks)) return;
  const int row = static_cast<int>(blockIdx.x), b = p.first_block + row;
  const float total = sum_of_all(score_blocks(p, row, b, scores, whole), partial);
  const float threshold = p.thresholds[head];
  const bool quirk = b < p.quirk_blocks;
  const int first = quirk ? 0 : 1;  // of the others
  Choice choice{0, b + 1};
  if (threshold < 1) {
    const float forced = scores[b] + (!quirk && b > 0 ? scores[0] : 0.0f);
    choice = choose({scores, first, b, forced}, threshold * total, quirk, partial);
  }
  if (threadIdx.x >= 32) return;
  const int lane = static_cast<int>(threadIdx.x);
  const int64_t list = int64_t{head} * p.row_blocks + row;
  int count = 0;
  float mass = 0;
  for (int word = 0; word < p.words; ++word) {
    const int c = word * 32 + lane;
    const float score = c <= b ? scores[c] : 0.0f;
    const uint32_t bits = __float_as_uint(score);
    const bool other = c >= first && c < b;
    const uint32_t tied = __ballot_sync(0xffffffffu, other && bits == choice.least);
    const bool taken = (tied >> lane & 1) != 0 && __popc(tied & ((1u << lane) - 1)) < choice.ties;
    const bool chosen = c == 0 || c == b || taken || (other && bits > choice.least);
    const uint32_t mask = __ballot_sync(0xffffffffu, chosen);
    choice.ties = max(0, choice.ties - __popc(tied));
    count += __popc(mask);
    if (chosen) mass += score;
    if (lane == 0) p.blocks[list * p.words + word] = static_cast<int32_t>(mask);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) mass += __shfl_xor_sync(0xffffffffu, mass, step);
  if (lane != 0) return;
  p.counts[list] = count;
  if (p.mass != nullptr) p.mass[head * p.mass_head + row] = mass / total;
}

// ---- Host

int round_up(int x, int to) {
  return (x + to - 1) / to * to;
}

/// Heads of a pass: whole kv heads if one fits, else a part of one.
int heads_of_pass(int heads, int group, int64_t bytes_of_head) {
  const auto fit = static_cast<int>(std::clamp<int64_t>(kSumBytes / bytes_of_head, 1, heads));
  if (fit >= group) return fit / group * group;
  int part = fit;
  while (group % part != 0) --part;
  return part;
}

class Selector {
 public:
  Selector(Stream& stream, const SelectArgs& args)
      : stream_(stream), args_(args), attn_(*args.attention) {}

  void segment(int s) {
    const AttnShape& shape = attn_.shape;
    const HeadPlan& plan = *attn_.heads;
    const int first_row = attn_.seqs.host_cu_q[s];
    const int rows = attn_.seqs.host_cu_q[s + 1] - first_row, start = attn_.seqs.host_kv_start[s];
    if (rows == 0) return;
    CHECK(start % HeadPlan::kBlock == 0, "selection: segments begin at multiples of 128");
    const int keys = start + rows, stride = args_.stride;

    EstimateParams p;
    p.kinds = HeadKinds(plan.kinds, plan.rows);
    p.segment = s;
    p.scale_log2 = shape.scale * 1.44269504088896f / (static_cast<float>(stride) * args_.norm);
    p.group = shape.q_heads / shape.kv_heads;
    p.rows = (rows + stride - 1) / stride;
    p.first_group = start / stride;
    p.blocks = (keys + HeadPlan::kBlock - 1) / HeadPlan::kBlock;
    p.stride = stride;
    p.dim_steps = (shape.head_dim + 63) / 64;
    p.in_last = rows % stride;
    p.complete = rows / stride;

    GatherParams gather;
    gather.kv = reinterpret_cast<const unsigned char*>(attn_.kv.data);
    gather.block_bytes = attn_.kv.block_bytes;
    gather.table = attn_.seqs.block_table.row<int32_t>(s);
    gather.from = kv_layout(attn_.kv.shape);
    if (kv_has_static_scales(attn_.kv.shape.format)) gather.channels = attn_.kv.k_scale;
    gather.keys = keys;
    gather.padded = round_up(keys, stride);
    gather.head_dim = shape.head_dim;
    gather.kinds = p.kinds;
    gather.segment = s;
    gather.group = p.group;

    const int64_t of_head = int64_t{p.rows} * p.blocks * 4;
    const int heads = heads_of_pass(shape.q_heads, p.group, of_head);
    const int kv_heads = (heads + p.group - 1) / p.group;
    ArenaScope scope(stream_.scratch());
    p.sums = static_cast<float*>(stream_.scratch().take(of_head * heads));
    gather.out = static_cast<uint4*>(
        stream_.scratch().take(int64_t{kv_heads} * gather.padded * shape.head_dim * 2));
    const EstimateMaps maps = encode(first_row, rows, gather, kv_heads);
    int gathered = -1;
    for (int first = 0; first < shape.q_heads; first += heads) {
      p.first_head = first;
      p.num_heads = std::min(heads, shape.q_heads - first);
      p.first_kv_head = gather.first_kv_head = first / p.group;
      if (gathered != p.first_kv_head) {
        gathered = p.first_kv_head;
        const int there = std::min(kv_heads, shape.kv_heads - gathered);
        const LaunchShape grid{
            .grid = dim3(static_cast<unsigned>(4 * num_processors()), static_cast<unsigned>(there)),
            .block = 256,
            .overlap = true};
        with_kv_format(attn_.kv.shape.format, [&](auto format) {
          launch(stream_, grid, gather_keys<decltype(format)>, gather);
        });
      }
      estimate(maps, p);
      select(s, p);
    }
  }

 private:
  EstimateMaps encode(int first_row, int num_rows, const GatherParams& gather, int kv_heads) const {
    const AttnShape& shape = attn_.shape;
    const auto stride = static_cast<uint64_t>(args_.stride);
    const auto row_bytes = static_cast<uint64_t>(attn_.q.stride[0]) * 2;
    const auto rows = static_cast<uint64_t>(num_rows);
    MapShape m;
    m.rank = 4;
    m.dims[0] = static_cast<uint64_t>(shape.head_dim);
    m.dims[3] = static_cast<uint64_t>(shape.q_heads);
    m.stride_bytes[0] = row_bytes;
    m.stride_bytes[1] = row_bytes * stride;
    m.stride_bytes[2] = static_cast<uint64_t>(attn_.q.stride[1]) * 2;
    m.box[0] = 64;
    m.box[1] = m.box[3] = 1;
    m.box[2] = kTileRows;
    EstimateMaps maps;
    const void* q = attn_.q.row<__nv_bfloat16>(first_row);
    m.dims[1] = stride;
    m.dims[2] = std::max<uint64_t>(rows / stride, 1);
    maps.q = encode_map(q, m);
    m.dims[1] = std::max<uint64_t>(rows % stride, 1);
    m.dims[2] = rows / stride + (rows % stride > 0 ? 1 : 0);
    maps.q_last = encode_map(q, m);
    m.dims[1] = stride;
    m.dims[2] = static_cast<uint64_t>(gather.padded) / stride;
    m.dims[3] = static_cast<uint64_t>(kv_heads);
    m.stride_bytes[0] = m.dims[0] * 2;
    m.stride_bytes[1] = m.stride_bytes[0] * stride;
    m.stride_bytes[2] = m.stride_bytes[1] * m.dims[2];
    m.box[2] = kTileColumns / 2;
    maps.k = encode_map(gather.out, m);
    return maps;
  }
  void estimate(const EstimateMaps& maps, const EstimateParams& p) {
    const LaunchShape shape{.grid = static_cast<unsigned>(num_processors() / 2 * 2),
                            .block = kThreads,
                            .shared_bytes = kShared,
                            .cluster = 2,
                            .overlap = true};
    if (args_.stride == 16) return launch(stream_, shape, estimate_kernel<1>, maps, p);
    if (args_.stride == 8) return launch(stream_, shape, estimate_kernel<2>, maps, p);
    launch(stream_, shape, estimate_kernel<4>, maps, p);
  }
  void select(int s, const EstimateParams& e) {
    const HeadPlan& plan = *attn_.heads;
    ChooseParams p;
    p.sums = e.sums;
    p.kinds = e.kinds;
    p.segment = s;
    p.quirk_blocks = args_.quirk_blocks;
    if (args_.mass.defined()) {
      p.mass = args_.mass.row<float>(s);
      p.mass_head = args_.mass.stride[1];
    }
    p.thresholds = args_.thresholds.ptr<float>();
    p.blocks = plan.blocks.row<int32_t>(s);
    p.counts = plan.counts.row<int32_t>(s);
    p.first_head = e.first_head;
    p.rows = e.rows;
    p.row_blocks = static_cast<int32_t>(plan.blocks.dim(2));
    p.words = static_cast<int32_t>(plan.blocks.dim(3));
    p.num_blocks = e.blocks;
    p.groups = HeadPlan::kBlock / e.stride;
    p.first_block = e.first_group / p.groups;
    launch(stream_,
           {.grid = dim3(static_cast<unsigned>((e.rows + p.groups - 1) / p.groups),
                         static_cast<unsigned>(e.num_heads)),
            .block = kChoosers,
            .shared_bytes = static_cast<size_t>(e.blocks) * 4,
            .overlap = true},
           select_kernel, p);
  }

  Stream& stream_;
  const SelectArgs& args_;
  const AttnArgs& attn_;
};

}  // namespace

int64_t select_blocks_scratch(const AttnShape& shape, int64_t rows, int64_t keys, int stride) {
  const int64_t groups = (rows + stride - 1) / stride;
  const int64_t of_head = groups * ((keys + HeadPlan::kBlock - 1) / HeadPlan::kBlock) * 4;
  const int64_t sums = std::max(of_head, std::min(kSumBytes, of_head * shape.q_heads));
  return sums + (keys + stride) * shape.kv_heads * shape.head_dim * 2 + 1024;
}

void select_blocks(Stream& stream, const SelectArgs& args) {
  const AttnArgs& attn = *args.attention;
  if (attn.prompt_rows == 0 || attn.num_prompt_segments == 0) return;
  CHECK(attn.seqs.host_cu_q && attn.seqs.host_kv_start && attn.heads != nullptr);
  CHECK(attn.q.dtype == DType::kBF16);
  CHECK(!kv_has_static_scales(attn.kv.shape.format) || attn.kv.k_scale != nullptr,
        "selection: a static format without scales");
  CHECK(args.stride == 4 || args.stride == 8 || args.stride == 16, "selection: stride 4, 8 or 16");
  const int dim = attn.shape.head_dim;
  CHECK(dim > 0 && dim <= 256 && dim % 8 == 0, "selection: head_dim is 8, 16, .. 256");
  const HeadPlan& plan = *attn.heads;
  CHECK(plan.blocks.contiguous() && plan.counts.contiguous() && plan.blocks.rank == 4);
  Selector selector(stream, args);
  for (int s = 0; s < attn.num_prompt_segments; ++s) {
    if (args.none.empty() || args.none[static_cast<size_t>(s)] == 0) selector.segment(s);
  }
}

}  // namespace weft::cuda
