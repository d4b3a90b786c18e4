// Logits of drafts by a head of kDraft4 (weight_layout.h): out = x w^T of e4m3 products, x rounded
// to e4m3 with one scale a row. w is the A operand of wgmma: a thread looks its codes up among
// eight magnitudes, which are e4m3 numbers for every power of two, so that 8 codes take 12
// instructions. Tile: 384 rows of w x 64 rows of x x 128, three warpgroups, persistent, one
// producer thread. Bytes: the codes once for each 64 rows of x. Bound: reading them.
// docs/kernels/gemm.md.

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/fp8_rows.h"
#include "kernels/cuda/gemm_best.h"
#include "kernels/cuda/gemm_device.h"
#include "kernels/cuda/gemm_drafts.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kGroups = 3;           // warpgroups, of 128 rows of w each
constexpr int kTokens = kDraftRows;  // rows of x
constexpr int kStep = kDraft4TileColumns;
constexpr int kXBytes = kTokens * kStep;
constexpr int kStageBytes = (kXBytes + 2 * kGroups * kDraft4TileBytes + 1023) / 1024 * 1024;
constexpr int kStages = 6;
constexpr int kBest = kStages * kStageBytes;  // [warps][kTokens], at the end
constexpr int kBarriers = kBest + kGroups * 4 * kTokens * static_cast<int>(sizeof(uint64_t));
constexpr int kSharedBytes = kBarriers + 2 * kStages * static_cast<int>(sizeof(Barrier));

struct Params {
  const uint8_t* tiles;
  const float* row_scales;  // of w
  const float* x_scales;
  float* out;
  int64_t out_stride;
  uint64_t* best;
  int rows, columns, column_tiles, k_steps, row_tiles;
};

// ---- x

constexpr int kQuantizeThreads = 256;

/// A block has a row. `stride` bytes from row to row of codes, a multiple of 16.
__global__ __launch_bounds__(kQuantizeThreads) void quantize_kernel(const uint16_t* x,
                                                                    int64_t x_stride, int columns,
                                                                    uint8_t* codes, int64_t stride,
                                                                    float* scales) {
  __shared__ float of_warps[kQuantizeThreads / 32];
  let_successor_begin();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int thread = static_cast<int>(threadIdx.x);
  const auto value = [&](int column) {
    return __uint_as_float(uint32_t{x[row * x_stride + column]} << 16);
  };
  float largest = 0.0f;
  for (int c = thread; c < columns; c += kQuantizeThreads)
    largest = fmaxf(largest, fabsf(value(c)));
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(kAll, largest, lanes));
  }
  if (thread % 32 == 0) of_warps[thread / 32] = largest;
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kQuantizeThreads / 32; ++i) largest = fmaxf(largest, of_warps[i]);
  const Fp8Scale scale = fp8_scale(largest);
  for (int c = 2 * thread; c < columns; c += 2 * kQuantizeThreads) {
    const float next = c + 1 < columns ? value(c + 1) * scale.inverse : 0.0f;
    *reinterpret_cast<uint16_t*>(codes + row * stride + c) =
        static_cast<uint16_t>(e4m3_codes(value(c) * scale.inverse, next));
  }
  if (thread == 0) scales[row] = scale.scale;
}

// ---- The product

__device__ __forceinline__ int row_tile_of(const Params& p, int column_tile, int sub) {
  return min(column_tile * 2 * kGroups + sub, p.row_tiles - 1);
}

/// The codes of w don't depend on the kernel before: the first stages of them are on their way when
/// x is waited for.
__device__ __forceinline__ void produce(const CUtensorMap* x_map, const Params& p,
                                        uint8_t* shared) {
  Barrier* full = reinterpret_cast<Barrier*>(shared + kBarriers);
  Barrier* empty = full + kStages;
  const int units = (p.rows + kTokens - 1) / kTokens * p.column_tiles;
  const int x_bytes = min(kTokens, (p.rows + 7) / 8 * 8) * kStep;
  const auto load_w = [&](const Pipe& pipe, int unit, int step) {
    uint8_t* to = shared + pipe.stage * kStageBytes + kXBytes;
    arrive_expect(full + pipe.stage, x_bytes + 2 * kGroups * kDraft4TileBytes);
#pragma unroll
    for (int i = 0; i < 2 * kGroups; ++i) {
      const int64_t tile = int64_t{row_tile_of(p, unit % p.column_tiles, i)} * p.k_steps + step;
      bulk_load(to + i * kDraft4TileBytes, p.tiles + tile * kDraft4TileBytes, kDraft4TileBytes,
                full + pipe.stage);
    }
  };
  const auto load_x = [&](const Pipe& pipe, int unit, int step) {
    tma_load(shared + pipe.stage * kStageBytes, x_map, full + pipe.stage,
             Coords{step * kStep, unit / p.column_tiles * kTokens});
  };
  Pipe pipe;
  const int first = static_cast<int>(blockIdx.x), ahead = min(kStages, p.k_steps);
  if (first < units) {
    for (int step = 0; step < ahead; ++step) {
      load_w(pipe, first, step);
      pipe.next<kStages>();
    }
  }
  wait_for_predecessor();
  let_successor_begin();
  Pipe x_pipe;
  for (int unit = first; unit < units; unit += static_cast<int>(gridDim.x)) {
    for (int step = 0; step < p.k_steps; ++step) {
      if (unit == first && step < ahead) {
        load_x(x_pipe, unit, step);
        x_pipe.next<kStages>();
        continue;
      }
      wait(empty + pipe.stage, pipe.parity ^ 1);
      load_w(pipe, unit, step);
      load_x(pipe, unit, step);
      pipe.next<kStages>();
    }
  }
}

/// Eight codes as e4m3 numbers of a row: k .. k + 3 and k + 16 .. k + 19 of them. `power`: 8 (e +
/// 5) in every byte.
__device__ __forceinline__ void widen(uint32_t word, uint32_t power, uint32_t& low,
                                      uint32_t& high) {
  const uint32_t small = 0x1E1A1408u + power, large = 0x27252321u + power;
  low = __byte_perm(small, large, word & 0x7777u) | (word & 0x80808080u);
  high = __byte_perm(small, large, word >> 16 & 0x7777u) | (word << 4 & 0x80808080u);
}

/// The warpgroup's 64 x 128 of w as A operands of four steps.
__device__ __forceinline__ void widen_tile(uint32_t (&a)[4][4], const uint8_t* tile) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const uint2 powers =
      *reinterpret_cast<const uint2*>(tile + kDraft4CodeBytes + warp * 64 + lane / 4 * 8);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 codes =
        *reinterpret_cast<const uint4*>(tile + warp * 1024 + half * 512 + lane * 16);
    const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int step = 2 * half + i / 2;
      const uint32_t power =
          __byte_perm(i % 2 == 0 ? powers.x : powers.y, 0, static_cast<uint32_t>(step) * 0x1111u);
      widen(words[i], power, a[step][i % 2], a[step][i % 2 + 2]);
    }
  }
}

/// total times the scales, to the logits: a warp writes whole sectors of eight columns.
__device__ __forceinline__ void store_logits(const float (&total)[kTokens / 2], const Params& p,
                                             int row, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kTokens / 2; ++i) {
    const int at = row + i / 4 * 8 + 2 * (lane % 4) + i % 2, n = column + i % 4 / 2 * 8;
    if (at < p.rows && n < p.columns) p.out[at * p.out_stride + n] = total[i] * p.x_scales[at];
  }
}

template <bool OnlyBest>
__device__ __forceinline__ void consume(const Params& p, uint8_t* shared) {
  Barrier* full = reinterpret_cast<Barrier*>(shared + kBarriers);
  Barrier* empty = full + kStages;
  const int units = (p.rows + kTokens - 1) / kTokens * p.column_tiles;
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % 32, group = warp / 4;
  const uint64_t x_rows = k_major_128(shared);
  const auto release = [&](int stage) {
    if (lane == 0) arrive(empty + stage);
  };
  [[maybe_unused]] uint64_t best[2] = {};
  Pipe pipe;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    float total[2][kTokens / 2];
    uint32_t a[2][4][4];
    int last = 0;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(full + pipe.stage, pipe.parity);
      const uint8_t* tiles = shared + pipe.stage * kStageBytes + kXBytes;
      const uint64_t x = advance(x_rows, static_cast<uint32_t>(pipe.stage * kStageBytes));
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        wgmma_wait<1>();  // this half's products of the last step are done
#pragma unroll
        for (int s = 0; s < 4; ++s) hold(a[sub][s]);
        if (sub == 1 && step > 0) release(last);
        widen_tile(a[sub], tiles + (2 * group + sub) * kDraft4TileBytes);
#pragma unroll
        for (int s = 0; s < 4; ++s) hold(a[sub][s]);
        hold(total[sub]);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          Wgmma<kTokens>::e4m3_a(total[sub], a[sub][s], advance(x, 32 * s), (step | s) != 0);
        }
        wgmma_commit();
        hold(total[sub]);
      }
      last = pipe.stage;
      pipe.next<kStages>();
    }
    wgmma_wait<0>();
    hold(total[0]);
    hold(total[1]);
    release(last);
    const int column = unit % p.column_tiles * 128 * kGroups + group * 128;
#pragma unroll
    for (int sub = 0; sub < 2; ++sub) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int n = column + sub * 64 + 16 * (warp % 4) + half * 8 + lane / 4;
        const float scale = n < p.columns ? p.row_scales[n] : 0.0f;
#pragma unroll
        for (int i = 0; i < kTokens / 2; ++i) {
          if (i % 4 / 2 == half) total[sub][i] *= scale;
        }
      }
    }
    if constexpr (OnlyBest) {
      take_best<kTokens>(total, column, p.columns, best);
    } else {
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        store_logits(total[sub], p, unit / p.column_tiles * kTokens,
                     column + sub * 64 + 16 * (warp % 4) + lane / 4);
      }
    }
  }
  if constexpr (OnlyBest) {
    put_part<kGroups, kTokens>(best, reinterpret_cast<uint64_t*>(shared + kBest), p.best);
  }
}

template <bool OnlyBest>
__global__ void __launch_bounds__(kGroups * 128 + 128, 1)
    draft4_kernel(const __grid_constant__ CUtensorMap x_map, const __grid_constant__ Params p) {
  extern __shared__ __align__(1024) uint8_t shared[];
  Barrier* full = reinterpret_cast<Barrier*>(shared + kBarriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(full + kStages + i, kGroups * 4);
    }
    fence_barrier_init();
    prefetch_map(&x_map);
  }
  __syncthreads();
  if (threadIdx.x >= kGroups * 128) {
    drop_registers_to<40>();
    if (threadIdx.x == kGroups * 128) produce(&x_map, p, shared);
  } else {
    raise_registers_to<152>();
    wait_for_predecessor();  // x_scales, and what out was
    consume<OnlyBest>(p, shared);
  }
}

/// Codes [rows][stride], then scales.
int64_t code_stride(int64_t k) {
  return ceil_div(k, 16) * 16;
}

template <bool OnlyBest>
int launch_draft4(Stream& stream, const Gemm& g, uint64_t* best) {
  const int64_t rows = g.a.dim(0), k = g.a.dim(1), stride = code_stride(k);
  CHECK(rows > 0 && g.a.dtype == DType::kBF16 && g.bias.data == nullptr &&
            g.out.dtype == DType::kF32 && g.epilogue == Epilogue::kStore,
        "gemm: logits of drafts");
  const WeightShape shape{WeightFormat::kDraft4, g.n, k};
  ArenaScope scope(stream.scratch());
  auto* codes = static_cast<uint8_t*>(stream.scratch().take(gemm_draft4_scratch(k, rows)));
  auto* scales = reinterpret_cast<float*>(codes + rows * stride);
  launch(stream, {.grid = static_cast<unsigned>(rows), .block = kQuantizeThreads, .overlap = true},
         quantize_kernel, static_cast<const uint16_t*>(g.a.data), g.a.stride[0],
         static_cast<int>(k), codes, stride, scales);
  Params p{};
  p.tiles = reinterpret_cast<const uint8_t*>(g.b);
  p.row_scales = reinterpret_cast<const float*>(g.b + draft4_scales_offset(shape));
  p.x_scales = scales;
  p.out = static_cast<float*>(g.out.data);
  p.out_stride = g.out.stride[0];
  p.best = best;
  p.rows = static_cast<int>(rows);
  p.columns = static_cast<int>(g.n);
  p.column_tiles = static_cast<int>(ceil_div(g.n, 128 * kGroups));
  p.k_steps = static_cast<int>(ceil_div(k, kStep));
  p.row_tiles = static_cast<int>(ceil_div(g.n, kQuantTile));
  const int64_t box_rows = std::min<int64_t>(kTokens, ceil_div(rows, 8) * 8);
  const CUtensorMap x_map = encode_map(codes, MatrixMap{.type = MapType::kE4M3,
                                                        .rows = rows,
                                                        .columns = k,
                                                        .row_bytes = stride,
                                                        .box_rows = static_cast<uint32_t>(box_rows),
                                                        .box_columns = kStep});
  const int64_t units = ceil_div(rows, kTokens) * p.column_tiles;
  const auto blocks = static_cast<unsigned>(std::min<int64_t>(units, num_processors()));
  launch(
      stream,
      {.grid = blocks, .block = kGroups * 128 + 128, .shared_bytes = kSharedBytes, .overlap = true},
      draft4_kernel<OnlyBest>, x_map, p);
  return static_cast<int>(blocks);
}

}  // namespace

int64_t gemm_draft4_scratch(int64_t k, int64_t rows) {
  return ceil_div(rows * (code_stride(k) + static_cast<int64_t>(sizeof(float))), 64) * 64;
}

void gemm_draft4(Stream& stream, const Gemm& g) {
  launch_draft4<false>(stream, g, nullptr);
}

int gemm_draft4_best(Stream& stream, const Gemm& g, uint64_t* best) {
  CHECK(g.a.dim(0) <= kDraftRows, "gemm: drafts");
  return launch_draft4<true>(stream, g, best);
}

}  // namespace weft::cuda
