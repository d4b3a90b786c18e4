// out = softmax(scale q K^T) V over the paged cache, for decode and verification rows: split-KV.
// Keys are cut into chunks of 32 KiB of K (128 keys at D = 128) of one kv head; a chunk's partial
// (top, sum, o) is computed from nothing, and partials are folded in a fixed tree of 8 children a
// node over absolute chunk numbers, so that a row's bits know neither who computed which chunk nor
// what lies beside it. Persistent blocks take equal, contiguous shares of all chunks of all (kv
// head, segment) pairs, found on the device; pairs that a border cuts leave partials, which a
// second kernel folds. One producer warp (TMA, ring of 6 x 32 KiB), 4 warps per 16 rows (mma
// m16n8k16). Bytes: K and V once; bound by memory. docs/kernels/attention_decode.md

#include <cuda_bf16.h>

#include <algorithm>
#include <climits>
#include <cstdint>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kStageBytes = 32 * 1024;  // K or V of one chunk
constexpr int kStages = 6;
constexpr int kTileKeys = 64;  // a [64 keys][64 columns] box is 8 KiB in swizzled rows of 128 bytes
constexpr int kTileBytes = kTileKeys * 128;
constexpr int kFan = 8;        // children of a node
constexpr int kMaxLevels = 8;  // 8^8 chunks
constexpr int kMaxSegments = 1024;
constexpr int kMaxRowTiles = 2;  // of 16 rows each, in one block
constexpr int kMergeThreads = 128;
constexpr int64_t kSlackKeys = 1024;

struct DecodeParams {
  const __nv_bfloat16* q;
  __nv_bfloat16* out;
  const int32_t *cu_q, *kv_start, *table;  // of the first decode segment on
  float* partials;                         // [blocks][slots][rows (D + 2)]
  int64_t q_row, q_head, out_row, out_head, table_row;
  int64_t total_rows;
  int num_segments, kv_heads, group, head_dim, block_size, box_rows;
  int tile_rows;     // rows of q heads that a block takes at once: 16 or 32
  int partial_rows;  // rows of a slot; even, so that slots are aligned to 16 bytes
  int levels;        // 8^levels chunks are enough for the longest context
  int num_blocks;    // of the main kernel
  float scale;       // times log2(e)
};

__host__ __device__ constexpr int chunk_keys(int padded_dim) {
  return kStageBytes / 2 / padded_dim;
}

__device__ __forceinline__ float minus_infinity() {
  return __int_as_float(static_cast<int>(0xFF800000));
}
__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// ---- Who computes what

/// Chunks of all pairs in the order (segment, group of rows, kv head, chunk); the share of block c
/// is [N c / blocks, N (c + 1) / blocks).
struct Plan {
  int chunks[kMaxSegments];      // of a pair of the segment
  int starts[kMaxSegments + 1];  // first chunk of the segment's pairs
};

/// By all threads of the block; ends with a barrier.
__device__ void make_plan(const DecodeParams& p, int keys_per_chunk, Plan& plan) {
  for (int s = static_cast<int>(threadIdx.x); s < p.num_segments;
       s += static_cast<int>(blockDim.x)) {
    const int rows = p.cu_q[s + 1] - p.cu_q[s];
    const int keys = rows > 0 ? p.kv_start[s] + rows : 0;
    const int pairs = (rows * p.group + p.tile_rows - 1) / p.tile_rows * p.kv_heads;
    plan.chunks[s] = (keys + keys_per_chunk - 1) / keys_per_chunk;
    plan.starts[s] = plan.chunks[s] * pairs;
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x), each = (p.num_segments + 31) / 32;
    const int begin = min(lane * each, p.num_segments), end = min(begin + each, p.num_segments);
    int mine = 0;
    for (int s = begin; s < end; ++s) mine += plan.starts[s];
    int before = mine;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) plan.starts[p.num_segments] = before;
    before -= mine;
    for (int s = begin; s < end; ++s) {
      const int count = plan.starts[s];
      plan.starts[s] = before;
      before += count;
    }
  }
  __syncthreads();
}

__device__ __forceinline__ int share_begin(int total, int block, int num_blocks) {
  return static_cast<int>(int64_t{total} * block / num_blocks);
}

/// Chunks [begin, end) of one pair.
struct Run {
  int segment, kv_head, first_row;  // first_row: of the group of rows, counted in q heads
  int begin, end, chunks;
  int rows, keys;  // of the pair: q rows from first_row on (at most tile_rows); keys of the segment
  int next;        // where the next run begins
};

/// The run of the share [at, end) that begins at `at`; `segment` is one at or before its own.
__device__ __forceinline__ Run find_run(const DecodeParams& p, const Plan& plan, int segment,
                                        int at, int end) {
  Run run;
  while (at >= plan.starts[segment + 1]) ++segment;
  run.segment = segment;
  run.chunks = plan.chunks[segment];
  const int local = at - plan.starts[segment], pair = local / run.chunks;
  run.begin = local - pair * run.chunks;
  run.end = min(run.chunks, run.begin + end - at);
  run.next = at + run.end - run.begin;
  run.kv_head = pair % p.kv_heads;
  run.first_row = pair / p.kv_heads * p.tile_rows;
  const int tokens = p.cu_q[segment + 1] - p.cu_q[segment];
  run.rows = min(tokens * p.group - run.first_row, p.tile_rows);
  run.keys = p.kv_start[segment] + tokens;
  return run;
}

/// The segment of a chunk, by bisection.
__device__ __forceinline__ int find_segment(const DecodeParams& p, const Plan& plan, int at) {
  int low = 0, high = p.num_segments - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (plan.starts[middle] <= at) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// Floats before the partial of slot `slot` of a block. A run that begins a pair leaves at most
/// `levels` partials, any other 7 a level before those.
__device__ __forceinline__ int64_t partial_offset(const DecodeParams& p, int padded_dim, int block,
                                                  int slot) {
  return (int64_t{block} * p.levels * kFan + slot) * p.partial_rows * (padded_dim + 2);
}
__device__ __forceinline__ int first_slot(const DecodeParams& p, int run_begin) {
  return run_begin == 0 ? (kFan - 1) * p.levels : 0;
}

// ---- Partials

/// How two partials of a row become one: the same instructions wherever they meet. An empty second
/// partial (a chunk that the row doesn't see) changes no bit of the first.
struct Factors {
  float a, b;
  bool keep;
};
__device__ __forceinline__ Factors fold_factors(float& top, float& sum, float other_top,
                                                float other_sum) {
  const float larger = fmaxf(top, other_top);
  Factors f;
  f.keep = other_top == minus_infinity();
  f.a = exp2_approx(top - larger);
  f.b = exp2_approx(other_top - larger);
  sum = f.keep ? sum : fmaf(sum, f.a, __fmul_rn(other_sum, f.b));
  top = larger;
  return f;
}
__device__ __forceinline__ float fold_value(float a, float b, const Factors& f) {
  return f.keep ? a : fmaf(a, f.a, __fmul_rn(b, f.b));
}
__device__ __forceinline__ float inverse(float sum) {
  return sum > 0 ? __frcp_rn(sum) : 0.0f;
}

/// One thread's part: rows lane / 4 and + 8 of 16, columns 8 i + 2 (lane % 4) + {0, 1} of the
/// warp's quarter of the head.
template <int Tiles>
struct State {
  float o[Tiles][4];
  float top[2], sum[2];

  __device__ __forceinline__ void fold(const State& other) {
    Factors f[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) f[h] = fold_factors(top[h], sum[h], other.top[h], other.sum[h]);
#pragma unroll
    for (int i = 0; i < Tiles; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) o[i][j] = fold_value(o[i][j], other.o[i][j], f[j / 2]);
    }
  }
};

// ---- The main kernel

template <int D>
struct Shared {
  static constexpr int kKeys = chunk_keys(D);
  static constexpr int kWeightRow = kKeys + 8;  // padded: rows shift by 4 banks
  alignas(1024) unsigned char ring[kStages][kStageBytes];
  alignas(16) __nv_bfloat16 weights[kMaxRowTiles][16][kWeightRow];
  float tops[kMaxRowTiles][4][16], sums[kMaxRowTiles][4][16];
  Barrier full[kStages], empty[kStages];
  Plan plan;
};

/// The warp that fills the ring: K, V, K, V ... of the share [at, end). Lane i copies box i of a
/// chunk (box_rows keys each). Boxes beyond the context aren't copied.
template <int D>
__device__ void produce(const DecodeParams& p, const CUtensorMap* map, Shared<D>& shared, int at,
                        int end) {
  constexpr int kKeys = chunk_keys(D);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int stage = 0, segment = at < end ? find_segment(p, shared.plan, at) : 0;
  uint32_t parity = 1;
  while (at < end) {
    const Run run = find_run(p, shared.plan, segment, at, end);
    segment = run.segment;
    at = run.next;
    const int32_t* table = p.table + segment * p.table_row;
    const auto block_of = [&](int chunk) {
      const int key = chunk * kKeys + lane * p.box_rows;
      return lane * p.box_rows < kKeys && key < run.keys ? table[key / p.block_size] : -1;
    };
    int block = block_of(run.begin);
    for (int chunk = run.begin; chunk < run.end; ++chunk) {
      const int next_block = chunk + 1 < run.end ? block_of(chunk + 1) : -1;
      const int key = chunk * kKeys + lane * p.box_rows;
      const int boxes = (min(kKeys, run.keys - chunk * kKeys) + p.box_rows - 1) / p.box_rows;
      const auto bytes = static_cast<uint32_t>(boxes * p.box_rows * D * 2);
      for (int plane = 0; plane < 2; ++plane) {
        Barrier* full = &shared.full[stage];
        wait(&shared.empty[stage], parity);
        if (lane == 0) arrive_expect(full, bytes);
        __syncwarp();
        if (block >= 0) {
          const int in_chunk = lane * p.box_rows;
          unsigned char* to = shared.ring[stage] + in_chunk / kTileKeys * (D / 64) * kTileBytes +
                              in_chunk % kTileKeys * 128;
          const int row = (plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size;
#pragma unroll
          for (int c = 0; c < D / 64; ++c) {
            tma_load(to + c * kTileBytes, map, full, Coords<3>{{c * 64, row, block}},
                     L2Hint::kEvictFirst);
          }
        }
        if (++stage == kStages) {
          stage = 0;
          parity ^= 1;
        }
      }
      block = next_block;
    }
  }
}

/// One of the 4 warps of a tile of 16 rows. For the scores a warp has a quarter of the chunk's
/// keys, for the values a quarter of the columns; the weights between are exchanged in shared
/// memory.
template <int D>
class Consumer {
 public:
  __device__ Consumer(const DecodeParams& params, Shared<D>& memory, int at_warp)
      : p(params),
        shared(memory),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(at_warp % 4),
        tile(at_warp / 4),
        block(static_cast<int>(blockIdx.x)) {}

  __device__ void consume(int at, int end) {
    Partial upper[kMaxLevels];  // indexed at run time: in local memory, on the rare path
    int segment = at < end ? find_segment(p, shared.plan, at) : 0;
    while (at < end) {
      const Run run = find_run(p, shared.plan, segment, at, end);
      segment = run.segment;
      at = run.next;
      if (tile * 16 >= run.rows) {
        skip(2 * (run.end - run.begin));
        continue;
      }
      begin_run(run);
      for (int chunk = run.begin; chunk < run.end; ++chunk) {
        compute(run, chunk);
        add_chunk(run, chunk, upper);
      }
      if (run.end < run.chunks) flush(run, upper);
    }
  }

 private:
  static constexpr int kKeys = chunk_keys(D);
  static constexpr int kWarpKeys = kKeys / 4;
  static constexpr int kColumns = D / 4;
  static constexpr int kTiles = kColumns / 8;
  using Partial = State<kTiles>;

  const DecodeParams& p;
  Shared<D>& shared;
  const int lane, warp, tile, block;
  int stage = 0;
  uint32_t parity = 0;
  uint32_t q[D / 16][4];
  int visible[2];  // keys that the thread's two rows see
  int slot = 0;
  Partial chunk_state, node;  // of the chunk; of the chunks since the last multiple of 8

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane == 0) arrive(&shared.empty[stage]);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  /// Stages of which this warp has no rows.
  __device__ void skip(int stages) {
    for (int i = 0; i < stages; ++i) {
      wait(&shared.full[stage], parity);
      release();
    }
  }

  /// The q row (token, head) of row `row` of the pair.
  __device__ __forceinline__ void locate(const Run& run, int row, int64_t& token, int& head) const {
    const int at = run.first_row + row;
    token = p.cu_q[run.segment] + at / p.group;
    head = run.kv_head * p.group + at % p.group;
  }

  __device__ __forceinline__ void begin_run(const Run& run) {
    slot = first_slot(p, run.begin);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile * 16 + lane / 4 + 8 * h;
      const bool valid = row < run.rows;
      int64_t token = 0;
      int head = 0;
      if (valid) locate(run, row, token, head);
      visible[h] = valid ? p.kv_start[run.segment] + (run.first_row + row) / p.group + 1 : INT_MAX;
      const __nv_bfloat16* from = p.q + token * p.q_row + head * p.q_head;
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = k * 16 + half * 8 + lane % 4 * 2;
          q[k][2 * half + h] =
              valid && column < p.head_dim ? *reinterpret_cast<const uint32_t*>(from + column) : 0u;
        }
      }
    }
  }

  /// chunk_state of chunk `chunk`.
  __device__ __forceinline__ void compute(const Run& run, int chunk) {
    const int first_key = chunk * kKeys;
    // Scores: rows x the warp's keys.
    float s[kWarpKeys / 8][4];
#pragma unroll
    for (auto& row : s) row[0] = row[1] = row[2] = row[3] = 0;
    wait(&shared.full[stage], parity);
    {
      constexpr int kPart = kWarpKeys < kTileKeys ? kTileKeys / kWarpKeys : 1;  // warps a tile
      const uint32_t base =
          shared_address(shared.ring[stage]) +
          static_cast<uint32_t>(warp / kPart * (D / 64) * kTileBytes +
                                warp % kPart * kWarpKeys * 128 + (lane / 16 * 8 + lane % 8) * 128);
      const auto unit = static_cast<uint32_t>((lane / 8 % 2) ^ (lane % 8));
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int n = 0; n < kWarpKeys / 16; ++n) {
          uint32_t b[4];
          load_matrices(b, base + static_cast<uint32_t>(k / 4 * kTileBytes + n * 16 * 128) +
                               ((unit ^ static_cast<uint32_t>(k % 4 * 2)) << 4));
          mma_bf16(s[2 * n], q[k], b[0], b[1]);
          mma_bf16(s[2 * n + 1], q[k], b[2], b[3]);
        }
      }
    }
    release();

    const int last_key = first_key + kKeys;
    if (last_key > visible[0] || last_key > visible[1]) {
#pragma unroll
      for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int key = first_key + warp * kWarpKeys + n * 8 + lane % 4 * 2 + j % 2;
          if (key >= visible[j / 2]) s[n][j] = minus_infinity();
        }
      }
    }
    float top[2] = {minus_infinity(), minus_infinity()};
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) top[j / 2] = fmaxf(top[j / 2], s[n][j]);
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 1));
      top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], 2));
      if (lane % 4 == 0) shared.tops[tile][warp][lane / 4 + 8 * h] = top[h];
    }
    barrier_sync(1 + tile, 128);
    float shift[2], sum[2] = {0, 0};
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      const float all = fmaxf(fmaxf(shared.tops[tile][0][row], shared.tops[tile][1][row]),
                              fmaxf(shared.tops[tile][2][row], shared.tops[tile][3][row]));
      chunk_state.top[h] = __fmul_rn(all, p.scale);
      shift[h] = all == minus_infinity() ? 0.0f : -chunk_state.top[h];
    }
#pragma unroll
    for (int n = 0; n < kWarpKeys / 8; ++n) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        s[n][j] = exp2_approx(fmaf(s[n][j], p.scale, shift[j / 2]));
        sum[j / 2] += s[n][j];
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<uint32_t*>(
            &shared.weights[tile][lane / 4 + 8 * h][warp * kWarpKeys + n * 8 + lane % 4 * 2]) =
            pack_bf16(s[n][2 * h], s[n][2 * h + 1]);
      }
    }
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
      sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
      if (lane % 4 == 0) shared.sums[tile][warp][lane / 4 + 8 * h] = sum[h];
    }
    barrier_sync(1 + tile, 128);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = lane / 4 + 8 * h;
      chunk_state.sum[h] = (shared.sums[tile][0][row] + shared.sums[tile][1][row]) +
                           (shared.sums[tile][2][row] + shared.sums[tile][3][row]);
    }
    multiply_values(run, first_key);
  }

  /// chunk_state.o = weights x V. A row's product takes keys that it doesn't see as 0, whatever the
  /// memory holds there (0 * NaN is NaN). All keys of the pair are hidden from or seen by all rows
  /// in most steps of 16 keys; where the rows of several tokens see different keys, each token's
  /// rows get a product of their own.
  __device__ __forceinline__ void multiply_values(const Run& run, int first_key) {
    const int keys = run.keys - first_key;
    const int start = p.kv_start[run.segment] + 1 - first_key;
    const int first_limit = start + (run.first_row + tile * 16) / p.group;
    const int last_limit = start + (run.first_row + min(tile * 16 + 15, run.rows - 1)) / p.group;
#pragma unroll
    for (auto& row : chunk_state.o) row[0] = row[1] = row[2] = row[3] = 0;
    wait(&shared.full[stage], parity);
    const uint32_t weights = shared_address(&shared.weights[tile][lane % 16][lane / 16 * 8]);
    const uint32_t base =
        shared_address(shared.ring[stage]) +
        static_cast<uint32_t>(warp * kColumns / 64 * kTileBytes + lane % 16 * 128);
    const auto unit = static_cast<uint32_t>((warp * kColumns % 64 / 8 + lane / 16) ^ (lane % 8));
#pragma unroll
    for (int k = 0; k < kKeys / 16; ++k) {
      uint32_t a[4];
      load_matrices(a, weights + static_cast<uint32_t>(k * 32));
      const int key = k * 16 + lane % 4 * 2;
      uint32_t keep[2] = {~0u, ~0u};
      if (keys < kKeys) keep_keys(key, keys, keep);
      const bool uneven = k * 16 + 16 > first_limit && first_limit < last_limit;
#pragma unroll
      for (int n = 0; n < kColumns / 16; ++n) {
        uint32_t b[4];
        load_matrices<true>(b,
                            base +
                                static_cast<uint32_t>(k * 16 / kTileKeys * (D / 64) * kTileBytes +
                                                      k * 16 % kTileKeys * 128) +
                                ((unit ^ static_cast<uint32_t>(n * 2)) << 4));
        if (uneven) {
          for (int limit = first_limit; limit <= last_limit; ++limit) {
            keep_keys(key, limit, keep);
            multiply_token(limit + first_key, chunk_state.o[2 * n], a, b[0] & keep[0],
                           b[1] & keep[1]);
            multiply_token(limit + first_key, chunk_state.o[2 * n + 1], a, b[2] & keep[0],
                           b[3] & keep[1]);
          }
        } else {
          mma_bf16(chunk_state.o[2 * n], a, b[0] & keep[0], b[1] & keep[1]);
          mma_bf16(chunk_state.o[2 * n + 1], a, b[2] & keep[0], b[3] & keep[1]);
        }
      }
    }
    release();
  }
  /// Masks of the thread's pairs of keys (`key`, + 1) and (`key` + 8, + 9): those below `limit`.
  static __device__ __forceinline__ void keep_keys(int key, int limit, uint32_t (&keep)[2]) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keep[half] =
          (key + 8 * half < limit ? 0xFFFFu : 0u) | (key + 8 * half + 1 < limit ? 0xFFFF0000u : 0u);
    }
  }
  /// mma_bf16 for the rows that see `seen` keys.
  __device__ __forceinline__ void multiply_token(int seen, float (&o)[4], const uint32_t (&a)[4],
                                                 uint32_t b0, uint32_t b1) const {
    float product[4] = {o[0], o[1], o[2], o[3]};
    mma_bf16(product, a, b0, b1);
#pragma unroll
    for (int j = 0; j < 4; ++j) o[j] = visible[j / 2] == seen ? product[j] : o[j];
  }

  /// Climbs the tree from chunk `chunk`: a node joins its parent when the parent begins in this
  /// run, and is left for the second kernel otherwise.
  __device__ __forceinline__ void add_chunk(const Run& run, int chunk, Partial* upper) {
    if (chunk / kFan * kFan < run.begin) {
      store(run, chunk_state);
      return;
    }
    if (chunk % kFan == 0) {
      node = chunk_state;
    } else {
      node.fold(chunk_state);
    }
    if (chunk % kFan == kFan - 1 || chunk + 1 == run.chunks) {
      climb(run, chunk / kFan, chunk + 1, upper);
    }
  }
  /// From the complete node `index` of level 1, which ends at chunk `end`. upper[i] is the open
  /// node of level i + 1.
  __device__ __forceinline__ void climb(const Run& run, int index, int end, Partial* upper) {
    int64_t span = kFan;  // chunks of a node of this level
    for (int level = 1;; ++level, span *= kFan, index /= kFan) {
      if (run.begin == 0 && run.end == run.chunks && span >= run.chunks) {
        write(run, node);
        return;
      }
      if (index / kFan * kFan * span < run.begin) {
        store(run, node);
        return;
      }
      if (index % kFan == 0) {
        upper[level] = node;
      } else {
        upper[level].fold(node);
      }
      if (index % kFan != kFan - 1 && end < run.chunks) return;
      node = upper[level];
    }
  }
  /// The nodes that the end of the run leaves unfinished, from the largest to the smallest.
  __device__ __forceinline__ void flush(const Run& run, const Partial* upper) {
    int64_t span = kFan;
    int level = 1;
    for (; span <= run.end; ++level) span *= kFan;
    for (; level > 0; --level, span /= kFan) {
      // The open node of this level: it has a complete child, and began in this run.
      if (run.end / span * span < run.begin || run.end % span / (span / kFan) == 0) continue;
      store(run, level == 1 ? node : upper[level - 1]);
    }
  }

  __device__ __forceinline__ int column(int i) const {
    return warp * kColumns + i * 8 + lane % 4 * 2;
  }
  __device__ __forceinline__ void store(const Run& run, const Partial& x) {
    float* to = p.partials + partial_offset(p, D, block, slot++);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile * 16 + lane / 4 + 8 * h;
      if (row >= run.rows) continue;
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        *reinterpret_cast<float2*>(to + row * D + column(i)) = {x.o[i][2 * h], x.o[i][2 * h + 1]};
      }
      if (warp == 0 && lane % 4 == 0) {
        *reinterpret_cast<float2*>(to + p.partial_rows * D + 2 * row) = {x.top[h], x.sum[h]};
      }
    }
  }
  __device__ __forceinline__ void write(const Run& run, const Partial& x) const {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = tile * 16 + lane / 4 + 8 * h;
      if (row >= run.rows) continue;
      int64_t token;
      int head;
      locate(run, row, token, head);
      __nv_bfloat16* to = p.out + token * p.out_row + head * p.out_head;
      const float scale = inverse(x.sum[h]);
#pragma unroll
      for (int i = 0; i < kTiles; ++i) {
        if (column(i) >= p.head_dim) continue;
        *reinterpret_cast<uint32_t*>(to + column(i)) =
            pack_bf16(x.o[i][2 * h] * scale, x.o[i][2 * h + 1] * scale);
      }
    }
  }
};

/// Rows that belong to no segment.
__device__ void clear_rest(const DecodeParams& p) {
  const int width = p.head_dim / 8;
  for (int64_t row = p.cu_q[p.num_segments] + blockIdx.x; row < p.total_rows; row += gridDim.x) {
    for (int i = static_cast<int>(threadIdx.x); i < p.kv_heads * p.group * width;
         i += static_cast<int>(blockDim.x)) {
      *reinterpret_cast<uint4*>(p.out + row * p.out_row + i / width * p.out_head + i % width * 8) =
          uint4{};
    }
  }
}

template <int D>
__global__ __launch_bounds__(kMaxRowTiles * 128 + 32,
                             1) void decode_kernel(const __grid_constant__ CUtensorMap map,
                                                   const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared<D>& shared = *reinterpret_cast<Shared<D>*>(memory);
  const int warp = warp_index(), consumers = static_cast<int>(blockDim.x) / 32 - 1;
  let_successor_begin();
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    for (int i = 0; i < kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], static_cast<uint32_t>(consumers));
    }
    fence_barrier_init();
  }
  // The SeqMap comes from copies, which a programmatic launch never overtakes.
  make_plan(p, chunk_keys(D), shared.plan);
  wait_for_predecessor();
  const int total = shared.plan.starts[p.num_segments], block = static_cast<int>(blockIdx.x);
  const int begin = share_begin(total, block, p.num_blocks);
  const int end = share_begin(total, block + 1, p.num_blocks);
  if (warp == consumers) {
    produce<D>(p, &map, shared, begin, end);
  } else {
    Consumer<D>(p, shared, warp).consume(begin, end);
  }
  clear_rest(p);
}

// ---- The second kernel: folds what pairs cut by a border have left

struct MergeState {
  float4 o;
  float top, sum;
  __device__ __forceinline__ void fold(const MergeState& other) {
    const Factors f = fold_factors(top, sum, other.top, other.sum);
    o = {fold_value(o.x, other.o.x, f), fold_value(o.y, other.o.y, f),
         fold_value(o.z, other.o.z, f), fold_value(o.w, other.o.w, f)};
  }
};

/// Calls each(level, opens, length) for the partials that the run [begin, end) of a pair leaves, in
/// order: a node of `level` that joins an open parent, or (opens) the beginning of a node of
/// `level`.
template <class F>
__device__ __forceinline__ void for_each_partial(int begin, int end, int chunks, F each) {
  while (begin < end) {
    int level = 0;
    int64_t span = 1;
    while (begin % (span * kFan) == 0 &&
           min(begin + span * kFan, static_cast<int64_t>(chunks)) <= end) {
      span *= kFan;
      ++level;
    }
    if (begin % (span * kFan) == 0) {
      const int length = static_cast<int>((end - begin) / span * span);
      each(level + 1, true, length);
      begin += length;
    } else {
      const int length = static_cast<int>(min(span, static_cast<int64_t>(end - begin)));
      each(level, false, length);
      begin += length;
    }
  }
}

template <int D>
__global__ __launch_bounds__(kMergeThreads) void merge_kernel(
    const __grid_constant__ DecodeParams p) {
  __shared__ Plan plan;
  let_successor_begin();
  make_plan(p, chunk_keys(D), plan);
  wait_for_predecessor();
  // Block x is pair x % pairs of segment x / pairs; `pairs` is of the longest segment possible.
  const int row_groups = static_cast<int>(gridDim.x) / p.num_segments / p.kv_heads;
  const int item = static_cast<int>(blockIdx.x);
  const int segment = item / (row_groups * p.kv_heads), pair = item % (row_groups * p.kv_heads);
  const int chunks = plan.chunks[segment], total = plan.starts[p.num_segments];
  const int start = plan.starts[segment] + pair * chunks;
  if (chunks == 0 || start >= plan.starts[segment + 1]) return;
  const auto owner = [&](int chunk) {
    return static_cast<int>(((int64_t{chunk} + 1) * p.num_blocks - 1) / total);
  };
  const int first_block = owner(start), last_block = owner(start + chunks - 1);
  if (first_block == last_block) return;
  const int tokens = p.cu_q[segment + 1] - p.cu_q[segment];
  const int first_row = pair / p.kv_heads * p.tile_rows;
  const int rows = min(tokens * p.group - first_row, p.tile_rows);

  for (int at = static_cast<int>(threadIdx.x); at < rows * D / 4; at += kMergeThreads) {
    const int row = at / (D / 4), column = at % (D / 4) * 4;
    MergeState open[kMaxLevels + 1];
    MergeState node{};
    for (int block = first_block; block <= last_block; ++block) {
      const int begin = max(share_begin(total, block, p.num_blocks) - start, 0);
      const int end = min(share_begin(total, block + 1, p.num_blocks) - start, chunks);
      int slot = first_slot(p, begin), position = begin;
      for_each_partial(begin, end, chunks, [&](int level, bool opens, int length) {
        const float* from = p.partials + partial_offset(p, D, block, slot++);
        const float2 scalars =
            *reinterpret_cast<const float2*>(from + p.partial_rows * D + 2 * row);
        node = {*reinterpret_cast<const float4*>(from + row * D + column), scalars.x, scalars.y};
        position += length;
        if (opens) {
          open[level] = node;
          return;
        }
        // The node ends at `position`; every parent that ends there too is complete.
        int64_t span = 1;
        for (int i = 0; i <= level; ++i) span *= kFan;
        for (int parent = level + 1; parent <= p.levels; ++parent, span *= kFan) {
          const int64_t parent_begin = (position - 1) / span * span;
          const bool first_child = parent_begin == (position - 1) / (span / kFan) * (span / kFan);
          if (first_child) {
            open[parent] = node;
          } else {
            open[parent].fold(node);
          }
          if (position < chunks && position % span != 0) break;
          node = open[parent];
        }
      });
    }
    const int index = first_row + row;
    if (column >= p.head_dim) continue;
    __nv_bfloat16* to = p.out + (p.cu_q[segment] + index / p.group) * p.out_row +
                        (pair % p.kv_heads * p.group + index % p.group) * p.out_head + column;
    const float scale = inverse(node.sum);
    *reinterpret_cast<uint2*>(to) = {pack_bf16(node.o.x * scale, node.o.y * scale),
                                     pack_bf16(node.o.z * scale, node.o.w * scale)};
  }
}

// ---- Host

int padded_dim(int head_dim) {
  return head_dim <= 64 ? 64 : (head_dim <= 128 ? 128 : 256);
}

int num_processors() {
  static const int count = [] {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "processors");
    return value;
  }();
  return count;
}

/// Levels of a tree over `num_keys` keys, at least 1.
int tree_levels(int padded, int64_t num_keys) {
  int levels = 1;
  for (int64_t keys = int64_t{kFan} * chunk_keys(padded); keys < num_keys; keys *= kFan) ++levels;
  return levels;
}

int64_t partial_bytes(int padded, int levels, int rows) {
  return int64_t{num_processors()} * levels * kFan * rows * (padded + 2) *
         static_cast<int64_t>(sizeof(float));
}

template <int D>
void launch_decode(Stream& stream, const AttnArgs& args, DecodeParams p) {
  // A box is as many keys as lie together: up to a tile.
  MapShape shape;
  shape.rank = 3;
  shape.dims[0] = static_cast<uint64_t>(p.head_dim);
  shape.dims[1] = static_cast<uint64_t>(2 * p.kv_heads * p.block_size);
  shape.dims[2] = static_cast<uint64_t>(args.kv.num_blocks);
  shape.stride_bytes[0] = static_cast<uint64_t>(p.head_dim) * 2;
  shape.stride_bytes[1] = static_cast<uint64_t>(args.kv.block_bytes);
  shape.box[0] = 64;
  shape.box[1] = static_cast<uint32_t>(p.box_rows);
  shape.box[2] = 1;
  const CUtensorMap map = encode_map(args.kv.data, shape);
  const auto grid = static_cast<unsigned>(p.num_blocks);
  const auto threads = static_cast<unsigned>(p.tile_rows / 16 * 128 + 32);
  launch(stream,
         {.grid = dim3(grid),
          .block = dim3(threads),
          .shared_bytes = sizeof(Shared<D>),
          .overlap = true},
         decode_kernel<D>, map, p);
  const int row_groups = (args.max_decode_len * p.group + p.tile_rows - 1) / p.tile_rows;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(p.num_segments * row_groups * p.kv_heads)),
          .block = dim3(kMergeThreads),
          .overlap = true},
         merge_kernel<D>, p);
}

}  // namespace

int64_t attention_decode_scratch(const AttnShape& shape, int64_t num_sequences, int64_t num_keys) {
  if (num_sequences == 0) return 0;
  const int padded = padded_dim(shape.head_dim);
  // A block table may be a little wider than the longest context.
  const int levels = tree_levels(padded, num_keys + kSlackKeys);
  return partial_bytes(padded, levels, kMaxRowTiles * 16) + 64;
}

void attention_decode(Stream& stream, const AttnArgs& args) {
  const int first = args.num_prompt_segments, segments = args.seqs.num_segments - first;
  if (segments <= 0 || args.out.dim(0) == 0) return;
  const AttnShape& shape = args.shape;
  const int group = shape.q_heads / shape.kv_heads, padded = padded_dim(shape.head_dim);
  const KvShape& kv = args.kv.shape;
  CHECK(kv.format == KvFormat::kBf16 && kv.block_size % 16 == 0 && shape.head_dim % 8 == 0 &&
            shape.head_dim <= 256 && shape.scale > 0,
        "attention_decode: shape");
  CHECK(segments <= kMaxSegments, "attention_decode: segments");
  const int64_t max_keys = args.seqs.block_table.dim(1) * kv.block_size;
  DecodeParams p{
      .q = static_cast<const __nv_bfloat16*>(args.q.data),
      .out = static_cast<__nv_bfloat16*>(args.out.data),
      .cu_q = args.seqs.cu_q.ptr<int32_t>() + first,
      .kv_start = args.seqs.kv_start.ptr<int32_t>() + first,
      .table = args.seqs.block_table.row<int32_t>(first),
      .partials = nullptr,
      .q_row = args.q.stride[0],
      .q_head = args.q.stride[1],
      .out_row = args.out.stride[0],
      .out_head = args.out.stride[1],
      .table_row = args.seqs.block_table.stride[0],
      .total_rows = args.out.dim(0),
      .num_segments = segments,
      .kv_heads = shape.kv_heads,
      .group = group,
      .head_dim = shape.head_dim,
      .block_size = kv.block_size,
      .box_rows = std::min(kTileKeys, kv.block_size & -kv.block_size),
      .tile_rows = int64_t{args.max_decode_len} * group <= 16 ? 16 : kMaxRowTiles * 16,
      .partial_rows = 0,
      .levels = tree_levels(padded, max_keys),
      .num_blocks = num_processors(),
      .scale = shape.scale * 1.44269504088896341f,
  };
  p.partial_rows =
      static_cast<int>(std::min<int64_t>(int64_t{args.max_decode_len} * group, p.tile_rows) + 1) /
      2 * 2;
  const ArenaScope scope(stream.scratch());
  p.partials =
      static_cast<float*>(stream.scratch().take(partial_bytes(padded, p.levels, p.partial_rows)));
  if (padded == 64) {
    launch_decode<64>(stream, args, p);
  } else if (padded == 128) {
    launch_decode<128>(stream, args, p);
  } else {
    launch_decode<256>(stream, args, p);
  }
}

}  // namespace weft::cuda
