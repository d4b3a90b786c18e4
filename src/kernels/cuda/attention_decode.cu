// out = softmax(scale q K^T) V over the paged cache, for decode and verification rows: split-KV.
// Keys are cut into chunks of 128 of one kv head; a chunk's partial (top, sum, o) is computed from
// nothing, and partials are folded in a fixed tree of 8 children a node over absolute chunk
// numbers, so that a row's bits know neither who computed which chunk nor what lies beside it.
// Persistent blocks take equal, contiguous shares of all chunks of all (kv head, segment) pairs,
// found on the device; pairs that a border cuts leave partials, which a second kernel
// (attention_merge.cu) folds.
// One producer warp (TMA into a ring), 4 consumer warps (mma m16n8k16: keys or columns
// are M, up to 32 q rows are N). Bytes: K and V once; bound by memory.
// docs/kernels/attention_decode.md

#include <algorithm>
#include <climits>

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

using namespace decode;  // NOLINT: the other half of this kernel

constexpr int kWarps = 4;  // of consumers
constexpr int kTileKeys =
    64;  // a [64 keys][64 columns] tile is 8 KiB in swizzled rows of 128 bytes
constexpr int kTileBytes = kTileKeys * 128;
constexpr int kMaxSegments = kMaxDecodeSegments;
constexpr int kPrefetched = 2;  // chunks
constexpr int kMaxRows = 32;    // of q heads that a block takes at once
constexpr int64_t kSlackKeys = 1024;

/// One thread's part: rows 8 n + 2 (lane % 4) + {0, 1}, columns 16 m + lane / 4 + {0, 8} of the
/// warp's quarter of the head: o[m][n] is {column 0: rows 0, 1; column 8: rows 0, 1}.
template <int M, int N>
struct State {
  float o[M][N][4];
  float top[N][2], sum[N][2];

  __device__ __forceinline__ void fold(const State& other) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      Factors f[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        f[h] = fold_factors(top[n][h], sum[n][h], other.top[n][h], other.sum[n][h]);
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          o[m][n][j] = fold_value(o[m][n][j], other.o[m][n][j], f[j % 2]);
        }
      }
    }
  }
};

// ---- The main kernel

/// Blocks of a processor: a second one computes while the first waits for barriers, where registers
/// (narrow tiles of rows) and stages (96 KiB for each) suffice.
constexpr int blocks_per_processor(int padded_dim, int tile_rows) {
  return padded_dim <= 128 && tile_rows <= 16 ? 2 : 1;
}

template <int D, int N>
struct Shared {
  static constexpr int kStageBytes = kKeys * D * 2;  // K or V of one chunk
  static constexpr int kStages = 192 * 1024 / blocks_per_processor(D, 8 * N) / kStageBytes;
  static constexpr int kWeightRow = kKeys + 8;  // padded: rows shift by 4 banks
  alignas(1024) unsigned char ring[kStages][kStageBytes];
  alignas(16) __nv_bfloat16 weights[8 * N][kWeightRow];
  alignas(8) float tops[kWarps][8 * N];
  alignas(8) float sums[kWarps][8 * N];
  Barrier full[kStages], empty[kStages];
};

/// Walks the ring.
template <int Stages>
struct Cursor {
  int stage = 0;
  uint32_t parity;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Asks for the share's first chunks ahead of wait_for_predecessor(), which orders no reads of what
/// only goes to L2.
template <int D>
__device__ void prefetch_chunks(const DecodeParams& p, const CUtensorMap* map, const Run& run) {
  const int lane = static_cast<int>(threadIdx.x) % 32, boxes = kKeys / p.box_rows;
  for (int item = lane; item < kPrefetched * boxes; item += 32) {
    const int key = run.begin * kKeys + item * p.box_rows;
    if (key >= run.keys || key >= run.end * kKeys) return;
    const int block = p.table[run.segment * p.table_row + key / p.block_size];
    for (int plane = 0; plane < 2; ++plane) {
      const int row = (plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size;
#pragma unroll
      for (int c = 0; c < D / 64; ++c) tma_prefetch(map, Coords<3>{{c * 64, row, block}});
    }
  }
}

/// The warp that fills the ring: K, V, K, V ... of the share whose first run is `run`. Lane i
/// copies box i of a chunk (box_rows keys each). Boxes beyond the context aren't copied.
template <int D, int N>
__device__ void produce(const DecodeParams& p, const CUtensorMap* map, const Plan& plan,
                        Shared<D, N>& shared, Run run, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Cursor<Shared<D, N>::kStages> ring{.parity = 1};
  prefetch_chunks<D>(p, map, run);
  for (bool first = true;; first = false) {
    const int32_t* table = p.table + run.segment * p.table_row;
    const auto block_of = [&](int chunk) {
      const int key = chunk * kKeys + lane * p.box_rows;
      return lane * p.box_rows < kKeys && key < run.keys ? table[key / p.block_size] : -1;
    };
    int block = block_of(run.begin);
    if (first) wait_for_predecessor();
    for (int chunk = run.begin; chunk < run.end; ++chunk) {
      const int next_block = chunk + 1 < run.end ? block_of(chunk + 1) : -1;
      const int key = chunk * kKeys + lane * p.box_rows;
      const int boxes = (min(kKeys, run.keys - chunk * kKeys) + p.box_rows - 1) / p.box_rows;
      const auto bytes = static_cast<uint32_t>(boxes * p.box_rows * D * 2);
      for (int plane = 0; plane < 2; ++plane) {
        Barrier* full = &shared.full[ring.stage];
        wait(&shared.empty[ring.stage], ring.parity);
        if (lane == 0) arrive_expect(full, bytes);
        __syncwarp();
        if (block >= 0) {
          const int in_chunk = lane * p.box_rows;
          unsigned char* to = shared.ring[ring.stage] +
                              in_chunk / kTileKeys * (D / 64) * kTileBytes +
                              in_chunk % kTileKeys * 128;
          const int row = (plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size;
#pragma unroll
          for (int c = 0; c < D / 64; ++c) {
            tma_load(to + c * kTileBytes, map, full, Coords<3>{{c * 64, row, block}},
                     L2Hint::kEvictFirst);
          }
        }
        ring.next();
      }
      block = next_block;
    }
    if (run.next == end) return;
    run = find_run(p, plan, run.segment, run.next, end);
  }
}

/// One of the 4 warps that compute. For the scores (keys x rows) a warp has 32 keys of the chunk,
/// for the outputs (columns x rows) a quarter of the columns; the weights between are exchanged in
/// shared memory. N: tiles of 8 rows.
template <int D, int N>
class Consumer {
 public:
  __device__ Consumer(const DecodeParams& params, const Plan& the_plan, Shared<D, N>& memory,
                      int at_warp)
      : p(params),
        plan(the_plan),
        shared(memory),
        lane(static_cast<int>(threadIdx.x) % 32),
        warp(at_warp),
        block(static_cast<int>(blockIdx.x)) {}

  /// All of the share whose first run is `run`.
  __device__ __forceinline__ void consume(Run run, int end) {
    Partial upper[kMaxLevels];  // indexed at run time: in local memory, on the rare path
    find_rows(run);
    wait_for_predecessor();
    for (;;) {
      load_rows();
      for (int chunk = run.begin; chunk < run.end; ++chunk) {
        compute(run, chunk);
        add_chunk(run, chunk, upper);
      }
      if (run.end < run.chunks) flush(run, upper);
      if (run.next == end) return;
      run = find_run(p, plan, run.segment, run.next, end);
      find_rows(run);
    }
  }

 private:
  static constexpr int kColumns = D / kWarps;  // of a warp
  static constexpr int kM = kColumns / 16;
  static constexpr int kBatch = D * N <= 256 ? 4 : (D * N <= 512 ? 2 : 1);  // as registers allow
  using Partial = State<kM, N>;

  const DecodeParams& p;
  const Plan& plan;
  Shared<D, N>& shared;
  const int lane, warp, block;
  Cursor<Shared<D, N>::kStages> ring{.parity = 0};
  const __nv_bfloat16* q_rows[N];
  uint32_t q[D / 16][N][2];
  int visible[N][2];          // keys that the thread's rows see
  Partial chunk_state, node;  // of the chunk; of the chunks since the last multiple of 8

  __device__ __forceinline__ void release() {
    __syncwarp();
    if (lane == 0) arrive(&shared.empty[ring.stage]);
    ring.next();
  }

  /// What the run's rows see and where they are.
  __device__ __forceinline__ void find_rows(const Run& run) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        visible[n][h] = row < run.rows
                            ? p.kv_start[run.segment] + (run.first_row + row) / p.group + 1
                            : INT_MAX;
      }
      const int row = n * 8 + lane / 4;
      const QRow at = locate(p, run, min(row, run.rows - 1));
      q_rows[n] = row < run.rows ? p.q + at.token * p.q_row + at.head * p.q_head : nullptr;
    }
  }
  __device__ __forceinline__ void load_rows() {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int k = 0; k < D / 16; ++k) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int column = k * 16 + half * 8 + lane % 4 * 2;
          q[k][n][half] = q_rows[n] != nullptr && column < p.head_dim
                              ? *reinterpret_cast<const uint32_t*>(q_rows[n] + column)
                              : 0u;
        }
      }
    }
  }

  /// chunk_state of chunk `chunk`.
  __device__ __forceinline__ void compute(const Run& run, int chunk) {
    const int first_key = chunk * kKeys;
    float s[2][N][4];  // the warp's keys 16 m + lane / 4 + {0, 8} x the thread's rows
    multiply_keys(s);
    const int last_key = first_key + kKeys;
    bool masked = false;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      masked = masked || last_key > visible[n][0] || last_key > visible[n][1];
    }
    if (masked) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const int key = first_key + warp * 32 + m * 16 + lane / 4 + j / 2 * 8;
            if (key >= visible[n][j % 2]) s[m][n][j] = minus_infinity();
          }
        }
      }
    }
    weigh(s);
    multiply_values(run, first_key);
  }

  __device__ __forceinline__ void multiply_keys(float (&s)[2][N][4]) {
#pragma unroll
    for (auto& tile : s) {
#pragma unroll
      for (auto& x : tile) x[0] = x[1] = x[2] = x[3] = 0;
    }
    wait(&shared.full[ring.stage], ring.parity);
    const uint32_t base =
        shared_address(shared.ring[ring.stage]) +
        static_cast<uint32_t>(warp / 2 * (D / 64) * kTileBytes + (warp % 2 * 32 + lane % 16) * 128);
    const auto unit = static_cast<uint32_t>(lane / 16 ^ lane % 8);
    // Loads go ahead in batches: neither they nor the products may be reordered by the compiler.
#pragma unroll
    for (int first = 0; first < D / 16; first += kBatch) {
      uint32_t a[kBatch][2][4];
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
        const int k = first + i;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
          load_matrices(a[i][m], base + static_cast<uint32_t>(k / 4 * kTileBytes + m * 16 * 128) +
                                     ((unit ^ static_cast<uint32_t>(k % 4 * 2)) << 4));
        }
      }
#pragma unroll
      for (int i = 0; i < kBatch; ++i) {
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int n = 0; n < N; ++n) {
            mma_bf16(s[m][n], a[i][m], q[first + i][n][0], q[first + i][n][1]);
          }
        }
      }
    }
    release();
  }

  /// Scores to weights in shared memory; top and sum of chunk_state.
  __device__ __forceinline__ void weigh(float (&s)[2][N][4]) {
    const int my_row = lane % 4 * 2;
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float top[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        top[h] = fmaxf(fmaxf(s[0][n][h], s[0][n][h + 2]), fmaxf(s[1][n][h], s[1][n][h + 2]));
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          top[h] = fmaxf(top[h], __shfl_xor_sync(0xffffffffu, top[h], step));
        }
      }
      if (lane < 4) {
        *reinterpret_cast<float2*>(&shared.tops[warp][n * 8 + my_row]) = {top[0], top[1]};
      }
    }
    barrier_sync(1, kWarps * 32);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float all[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0, 0};
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        const float2 of = *reinterpret_cast<const float2*>(&shared.tops[w][n * 8 + my_row]);
        all[0] = fmaxf(all[0], of.x);
        all[1] = fmaxf(all[1], of.y);
      }
      float shift[2];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        chunk_state.top[n][h] = __fmul_rn(all[h], p.scale);
        shift[h] = all[h] == minus_infinity() ? 0.0f : -chunk_state.top[n][h];
      }
      uint32_t packed[4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          s[m][n][j] = exp2_approx(fmaf(s[m][n][j], p.scale, shift[j % 2]));
          sum[j % 2] += s[m][n][j];
        }
        packed[2 * m] = pack_bf16(s[m][n][0], s[m][n][1]);
        packed[2 * m + 1] = pack_bf16(s[m][n][2], s[m][n][3]);
      }
      store_matrices<true>(
          shared_address(&shared.weights[n * 8 + lane % 8][warp * 32 + lane / 8 * 8]), packed);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
#pragma unroll
        for (int step = 4; step < 32; step *= 2) {
          sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], step);
        }
      }
      if (lane < 4) {
        *reinterpret_cast<float2*>(&shared.sums[warp][n * 8 + my_row]) = {sum[0], sum[1]};
      }
    }
    barrier_sync(1, kWarps * 32);
#pragma unroll
    for (int n = 0; n < N; ++n) {
      float2 of[kWarps];
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        of[w] = *reinterpret_cast<const float2*>(&shared.sums[w][n * 8 + my_row]);
      }
      chunk_state.sum[n][0] = (of[0].x + of[1].x) + (of[2].x + of[3].x);
      chunk_state.sum[n][1] = (of[0].y + of[1].y) + (of[2].y + of[3].y);
    }
  }

  /// chunk_state.o = V^T x weights. A row's product takes keys that it doesn't see as 0, whatever
  /// the memory holds there (0 * NaN is NaN). In most steps of 16 keys all rows see the same keys;
  /// where the rows of several tokens don't, each token's rows get a product of their own.
  __device__ __forceinline__ void multiply_values(const Run& run, int first_key) {
    const int start = p.kv_start[run.segment] + 1 - first_key;
    const int first_limit = start + run.first_row / p.group;
    const int last_limit = start + (run.first_row + run.rows - 1) / p.group;
#pragma unroll
    for (auto& tile : chunk_state.o) {
#pragma unroll
      for (auto& x : tile) x[0] = x[1] = x[2] = x[3] = 0;
    }
    wait(&shared.full[ring.stage], ring.parity);
    if (first_limit >= kKeys) {
#pragma unroll
      for (int k = 0; k < kKeys / 16; k += kBatch) multiply_steps<kBatch>(k);
    } else {
      // Keys that all rows see, up to a multiple of 16; then masked steps.
      const int clean = max(first_limit, 0) / 16;
      for (int k = 0; k < clean; ++k) multiply_steps<1>(k);
      const int steps = min((last_limit + 15) / 16, kKeys / 16);
      for (int limit = first_limit; limit <= last_limit; ++limit) {
        for (int k = clean; k < steps; ++k) multiply_token(k, limit, limit + first_key);
      }
    }
    release();
  }
  /// Fragments of V^T: 16 columns (tile m of the warp's) x the keys of step k.
  __device__ __forceinline__ void load_values(uint32_t (&a)[4], int k, int m) const {
    const int column = warp * kColumns + m * 16;
    const uint32_t base =
        shared_address(shared.ring[ring.stage]) +
        static_cast<uint32_t>((k * 16 / kTileKeys * (D / 64) + column / 64) * kTileBytes +
                              (k * 16 % kTileKeys + lane / 16 * 8 + lane % 8) * 128);
    const auto unit = static_cast<uint32_t>((column % 64 / 8 + lane / 8 % 2) ^ lane % 8);
    load_matrices<true>(a, base + (unit << 4));
  }
  __device__ __forceinline__ uint32_t weights_at(int k, int n) const {
    return shared_address(&shared.weights[n * 8 + lane % 8][k * 16 + lane / 8 % 2 * 8]);
  }
  /// Keys of steps [first, first + Steps).
  template <int Steps>
  __device__ __forceinline__ void multiply_steps(int first) {
    uint32_t a[Steps][kM][4], b[Steps][N][2];
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
#pragma unroll
      for (int n = 0; n < N; ++n) load_matrices(b[i][n], weights_at(first + i, n));
#pragma unroll
      for (int m = 0; m < kM; ++m) load_values(a[i][m], first + i, m);
    }
#pragma unroll
    for (int i = 0; i < Steps; ++i) {
#pragma unroll
      for (int m = 0; m < kM; ++m) {
#pragma unroll
        for (int n = 0; n < N; ++n) mma_bf16(chunk_state.o[m][n], a[i][m], b[i][n][0], b[i][n][1]);
      }
    }
  }
  /// Step k for the rows that see `seen` keys, `limit` of them in the chunk.
  __device__ __forceinline__ void multiply_token(int k, int limit, int seen) {
    const int key = k * 16 + lane % 4 * 2;
    uint32_t keep[2];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      keep[half] =
          (key + 8 * half < limit ? 0xFFFFu : 0u) | (key + 8 * half + 1 < limit ? 0xFFFF0000u : 0u);
    }
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      uint32_t a[4];
      load_values(a, k, m);
#pragma unroll
      for (int i = 0; i < 4; ++i) a[i] &= keep[i / 2];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        uint32_t b[2];
        load_matrices(b, weights_at(k, n));
        float(&o)[4] = chunk_state.o[m][n];
        float product[4] = {o[0], o[1], o[2], o[3]};
        mma_bf16(product, a, b[0], b[1]);
#pragma unroll
        for (int j = 0; j < 4; ++j) o[j] = visible[n][j % 2] == seen ? product[j] : o[j];
      }
    }
  }

  /// Climbs the tree from chunk `chunk`: a node joins its parent when the parent begins in this
  /// run, and is left for the second kernel otherwise.
  __device__ __forceinline__ void add_chunk(const Run& run, int chunk, Partial* upper) {
    if (chunk / kFan * kFan < run.begin) {
      store(run, chunk_state, 0, chunk % kFan);
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
        store(run, node, level, index % kFan);
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
  /// The nodes that the end of the run leaves unfinished.
  __device__ __forceinline__ void flush(const Run& run, const Partial* upper) {
    int64_t span = kFan;
    for (int level = 1; span / kFan <= run.end; ++level, span *= kFan) {
      // The open node of this level: it began in this run, and has a complete child.
      if (run.end / span * span < run.begin || run.end % span / (span / kFan) == 0) continue;
      // Not `level == 1 ? node : ...`: the choice of an address would put all state in local
      // memory.
      if (level > 1) node = upper[level - 1];
      store(run, node, level - 1, 0);
    }
  }

  __device__ __forceinline__ int column(int m, int j) const {
    return warp * kColumns + m * 16 + lane / 4 + j / 2 * 8;
  }
  __device__ __forceinline__ void store(const Run& run, const Partial& x, int level, int child) {
    float* to = p.partials + partial_offset(p, D, block, level, child);
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        if (row >= run.rows) continue;
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          to[row * D + column(m, 0)] = x.o[m][n][h];
          to[row * D + column(m, 2)] = x.o[m][n][h + 2];
        }
        if (warp == 0 && lane < 4) {
          *reinterpret_cast<float2*>(to + p.partial_rows * D + 2 * row) = {x.top[n][h],
                                                                           x.sum[n][h]};
        }
      }
    }
  }
  __device__ __forceinline__ void write(const Run& run, const Partial& x) const {
#pragma unroll
    for (int n = 0; n < N; ++n) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int row = n * 8 + lane % 4 * 2 + h;
        if (row >= run.rows) continue;
        const QRow at = locate(p, run, row);
        __nv_bfloat16* to = p.out + at.token * p.out_row + at.head * p.out_head;
        const float scale = inverse(x.sum[n][h]);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int j = h; j < 4; j += 2) {
            if (column(m, j) < p.head_dim)
              to[column(m, j)] = __float2bfloat16(x.o[m][n][j] * scale);
          }
        }
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

template <int D, int N>
__global__ __launch_bounds__(kWarps * 32 + 32,
                             1) void decode_kernel(const __grid_constant__ CUtensorMap map,
                                                   const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) unsigned char memory[];
  Shared<D, N>& shared = *reinterpret_cast<Shared<D, N>*>(memory);
  const int warp = warp_index();
  let_successor_begin();
  if (threadIdx.x == 0) {
    prefetch_map(&map);
    for (int i = 0; i < Shared<D, N>::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kWarps);
    }
    fence_barrier_init();
  }
  // The SeqMap comes from copies, which a programmatic launch never overtakes.
  const Plan plan(memory + sizeof(Shared<D, N>), p.num_segments);
  make_plan(p, plan);
  const Shares shares(plan.starts[p.num_segments], p.num_blocks);
  const int block = static_cast<int>(blockIdx.x);
  const int begin = shares.begin(block), end = shares.begin(block + 1);
  if (begin == end) {
    wait_for_predecessor();
  } else {
    const Run run = find_run(p, plan, find_segment(p, plan, begin), begin, end);
    if (warp == kWarps) {
      produce<D, N>(p, &map, plan, shared, run, end);
    } else {
      Consumer<D, N>(p, plan, shared, warp).consume(run, end);
    }
  }
  clear_rest(p);
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
int tree_levels(int64_t num_keys) {
  int levels = 1;
  for (int64_t keys = int64_t{kFan} * kKeys; keys < num_keys; keys *= kFan) ++levels;
  return levels;
}

/// Of `blocks` blocks of the main kernel.
int64_t partial_bytes(int padded, int blocks, int levels, int rows) {
  return int64_t{blocks} * levels * kFan * rows * (padded + 2) *
         static_cast<int64_t>(sizeof(float));
}

/// Rows of q heads that a block takes at once, for segments of `rows` of them.
int rows_at_once(int padded, int64_t rows) {
  if (rows <= 8) return 8;
  return rows <= 16 || padded == 256 ? 16 : kMaxRows;
}

template <int D, int N>
void launch_decode(Stream& stream, const AttnArgs& args, const DecodeParams& p) {
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
  const auto plan = static_cast<size_t>(plan_bytes(p.num_segments));
  launch(stream,
         {.grid = dim3(grid),
          .block = dim3(kWarps * 32 + 32),
          .shared_bytes = sizeof(Shared<D, N>) + plan,
          .overlap = true},
         decode_kernel<D, N>, map, p);
  merge(stream, p, D);
}

}  // namespace

int64_t attention_decode_scratch(const AttnShape& shape, int64_t num_sequences, int64_t num_keys) {
  if (num_sequences == 0) return 0;
  const int padded = padded_dim(shape.head_dim);
  // A block table may be a little wider than the longest context.
  const int levels = tree_levels(num_keys + kSlackKeys);
  int64_t bytes = 0;
  for (int rows = 8; rows <= rows_at_once(padded, INT_MAX); rows *= 2) {
    const int blocks = num_processors() * blocks_per_processor(padded, rows);
    bytes = std::max(bytes, partial_bytes(padded, blocks, levels, rows));
  }
  return bytes + 64;
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
  const int64_t rows = int64_t{args.max_decode_len} * group;
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
      .tile_rows = rows_at_once(padded, rows),
      .max_pairs = 0,
      .partial_rows = 0,
      .levels = tree_levels(max_keys),
      .num_blocks = num_processors() * blocks_per_processor(padded, rows_at_once(padded, rows)),
      .scale = shape.scale * 1.44269504088896341f,
  };
  p.max_pairs = static_cast<int>((rows + p.tile_rows - 1) / p.tile_rows) * p.kv_heads;
  p.partial_rows = static_cast<int>(std::min<int64_t>(rows + rows % 2, p.tile_rows));
  const ArenaScope scope(stream.scratch());
  p.partials = static_cast<float*>(
      stream.scratch().take(partial_bytes(padded, p.num_blocks, p.levels, p.partial_rows)));
  const auto choose = [&](auto narrow, auto middle, auto wide) {
    (p.tile_rows == 8 ? narrow : (p.tile_rows == 16 ? middle : wide))(stream, args, p);
  };
  if (padded == 64) {
    choose(launch_decode<64, 1>, launch_decode<64, 2>, launch_decode<64, 4>);
  } else if (padded == 128) {
    choose(launch_decode<128, 1>, launch_decode<128, 2>, launch_decode<128, 4>);
  } else {
    choose(launch_decode<256, 1>, launch_decode<256, 2>, launch_decode<256, 2>);
  }
}

}  // namespace weft::cuda
