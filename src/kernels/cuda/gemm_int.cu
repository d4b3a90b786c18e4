// out = x w^T with w of int8 or int4 codes and a scale for each row and 32 columns. w is the A
// operand of wgmma: a warpgroup takes 128 rows of w, makes bf16(code * scale) in registers (the
// tiles of weight_layout.h are in the order of A) and multiplies by a tile of tokens from shared
// memory, while the products of its other 64 rows run. Tile: 128 Groups rows of w x Tokens x 64,
// persistent, one producer thread. Bytes: the codes once for each tile of tokens, from L2. Bound:
// the tensor cores' bf16 rate, for few tokens reading the codes. docs/kernels/gemm.md.

#include <cuda_fp16.h>

#include "kernels/cuda/gemm_best.h"
#include "kernels/cuda/gemm_decode_kernel.h"
#include "kernels/cuda/gemm_device.h"
#include "kernels/cuda/gemm_drafts.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kStep = 64;  // K of a stage
constexpr int kGroupBarrier = 1;

/// Blocks of a processor. One warpgroup waits as long for loads, registers and its own products as
/// it multiplies, so that three of them share a processor (two of int8, whose stages are larger);
/// several in a block take one tile of tokens.
constexpr int blocks_of(bool int8, int groups) {
  return groups > 1 ? 1 : int8 ? 2 : 3;
}
/// Behind the threads that multiply. A whole warpgroup where registers change hands.
constexpr int producer_threads(int groups) {
  return groups > 1 ? 128 : 32;
}

struct Params {
  TileSpace space;
  GemmOutput out;
  int k_steps = 0;
  int x_bytes = 0;  // of x's box, as in gemm_bf16.cu
  const std::byte* tiles = nullptr;
  int64_t expert_bytes = 0;
  int row_tiles = 0;         // of w
  int up_tile = 0;           // kSiluMul: where `up` begins
  uint64_t* best = nullptr;  // gemm_int4_best()
};

template <bool Int8, int Groups, int Tokens>
struct Layout {
  static constexpr int kTileBytes = Int8 ? kInt8TileBytes : kInt4TileBytes;
  static constexpr int kXBytes = Tokens * 128;
  static constexpr int kStageBytes = (kXBytes + Groups * 2 * kTileBytes + 1023) / 1024 * 1024;
  static constexpr int kStagingBytes = Tokens * 128;       // of a warpgroup
  static constexpr int kBlocks = blocks_of(Int8, Groups);  // of a processor
  static constexpr int kRoom = (kBlocks == 1 ? 220 : kBlocks == 2 ? 100 : 73) * 1024;
  static constexpr int kStages = (kRoom - Groups * kStagingBytes) / (kStageBytes + 16);
  static constexpr int kStaging = kStages * kStageBytes;
  static constexpr int kBarriers = kStaging + Groups * kStagingBytes;
  static constexpr int kUnits = kBarriers + 2 * kStages * 8;
  static int bytes(int experts) { return kUnits + (experts + 1) * 4; }
};

/// Columns of out that a block yields.
__device__ __forceinline__ int block_columns(const GemmOutput& out, int groups) {
  return groups * (out.silu_mul ? 64 : 128);
}

/// The tile of w that sub-product `sub` of warpgroup `group` takes.
__device__ __forceinline__ int row_tile_of(const Params& p, int column, int group, int sub) {
  const int tile =
      p.out.silu_mul ? column / 64 + group + sub * p.up_tile : column / 64 + 2 * group + sub;
  return min(tile, p.row_tiles - 1);
}

template <bool Int8, int Groups, int Tokens>
__device__ __forceinline__ void produce(const CUtensorMap* x_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<Int8, Groups, Tokens>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int units = num_units<Tokens>(p.space, first_unit);
  Pipe pipe;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    const Tile tile = tile_of<Tokens>(p.space, first_unit, unit, 0);
    const int column = tile.column_tile * block_columns(p.out, Groups);
    const std::byte* from[2 * Groups];
#pragma unroll
    for (int i = 0; i < 2 * Groups; ++i) {
      from[i] = p.tiles + tile.expert * p.expert_bytes +
                int64_t{row_tile_of(p, column, i / 2, i % 2)} * p.k_steps * L::kTileBytes;
    }
    for (int step = 0; step < p.k_steps; ++step) {
      wait(empty + pipe.stage, pipe.parity ^ 1);
      Barrier* bar = full + pipe.stage;
      uint8_t* x = shared + pipe.stage * L::kStageBytes;
      arrive_expect(bar, p.x_bytes + 2 * Groups * L::kTileBytes);
      tma_load(x, x_map, bar, Coords{step * kStep, tile.row});
#pragma unroll
      for (int i = 0; i < 2 * Groups; ++i) {
        bulk_load(x + L::kXBytes + i * L::kTileBytes, from[i] + step * L::kTileBytes, L::kTileBytes,
                  bar);
      }
      pipe.next<L::kStages>();
    }
  }
}

__device__ __forceinline__ uint32_t times_bf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}
__device__ __forceinline__ uint32_t fma_bf16(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// An f16 scale as the exact sum of two bf16 numbers, each twice.
struct SplitScale {
  uint32_t high, low;
  __device__ __forceinline__ explicit SplitScale(float s) {
    high = pack_bf16(s, s);
    const float rest = s - __uint_as_float(high << 16);
    low = pack_bf16(rest, rest);
  }
  /// code * scale, rounded once (but for 2^-17 of it).
  __device__ __forceinline__ uint32_t of(uint32_t codes) const {
    return fma_bf16(codes, high, times_bf16(codes, low));
  }
};

/// An f16 scale as one bf16 number, twice: the weight is rounded twice.
struct RoundedScale {
  uint32_t both;
  __device__ __forceinline__ explicit RoundedScale(float s) : both(pack_bf16(s, s)) {}
  __device__ __forceinline__ uint32_t of(uint32_t codes) const { return times_bf16(codes, both); }
};

/// (x & mask) | bits in one instruction: of two constants ptxas makes two.
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t bits) {
  uint32_t d;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(d) : "r"(x), "r"(mask), "r"(bits));
  return d;
}
/// As int4_step(), in fewer instructions: this kernel waits for them.
__device__ __forceinline__ void widen(uint32_t (&a)[4], uint32_t word) {
  const auto pair = [](uint32_t x) {
    return subtract_bf16(and_or(x, 0x000F000Fu, 0x43004300u), 0x43084308u);  // 128 + (q + 8) - 136
  };
  a[0] = pair(word);
  a[2] = pair(word >> 4);
  a[1] = pair(word >> 8);
  a[3] = pair(word >> 12);
}

/// The warpgroup's 64 x 64 of w as A operands of four steps.
template <bool Int8, class Scale>
__device__ __forceinline__ void dequantize_tile(uint32_t (&a)[4][4], const uint8_t* tile) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (Int8) {
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      const uint4 codes = *reinterpret_cast<const uint4*>(tile + warp * 1024 + v * 512 + lane * 16);
      int8_step(a[2 * v], codes.x, codes.y);
      int8_step(a[2 * v + 1], codes.z, codes.w);
    }
  } else {
    const uint4 codes = *reinterpret_cast<const uint4*>(tile + warp * 512 + lane * 16);
    widen(a[0], codes.x);
    widen(a[1], codes.y);
    widen(a[2], codes.z);
    widen(a[3], codes.w);
  }
#pragma unroll
  for (int v = 0; v < 2; ++v) {
    const float2 scale = __half22float2(*reinterpret_cast<const __half2*>(
        tile + (Int8 ? kInt8CodeBytes : kInt4CodeBytes) + v * 128 + warp * 32 + lane / 4 * 4));
    const Scale upper(scale.x), lower(scale.y);
#pragma unroll
    for (int s = 2 * v; s < 2 * v + 2; ++s) {
      a[s][0] = upper.of(a[s][0]);
      a[s][1] = lower.of(a[s][1]);
      a[s][2] = upper.of(a[s][2]);
      a[s][3] = lower.of(a[s][3]);
    }
  }
}

/// One element a store: f32 (a warp writes whole sectors), and rows that TMA can't write.
template <int Tokens>
__device__ __forceinline__ void store_elements(const float (&d)[Tokens / 2], const GemmOutput& p,
                                               const Tile& tile, int n) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < Tokens / 2; ++i) {
    const int row = tile.row + i / 4 * 8 + 2 * (lane % 4) + i % 2, column = n + i % 4 / 2 * 8;
    if (row >= tile.row_end || column >= p.columns) continue;
    const int64_t at = row * p.out_stride + column;
    if (p.f32) {
      float* out = static_cast<float*>(p.out) + at;
      *out = p.add ? *out + d[i] : d[i];
    } else {
      uint16_t* out = static_cast<uint16_t*>(p.out) + at;
      const float old = p.add ? __uint_as_float(uint32_t{*out} << 16) : 0.0f;
      *out = static_cast<uint16_t>(pack_bf16(p.add ? old + d[i] : d[i], 0.0f));
    }
  }
}

/// d, 64 columns of out from `column` on for Tokens rows, by way of `staging` ([Tokens] rows of 128
/// bytes, swizzled). The warpgroup meets inside.
template <int Tokens>
__device__ __forceinline__ void store_columns(const float (&d)[Tokens / 2], const GemmOutput& p,
                                              const Tile& tile, int column, const CUtensorMap* map,
                                              uint8_t* staging) {
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int barrier = kGroupBarrier + static_cast<int>(threadIdx.x) / 128;
  if (column >= p.columns) return;  // uniform over the warpgroup
  if (p.direct || p.f32) {
    store_elements<Tokens>(d, p, tile, column + 16 * warp + lane / 4);
    return;
  }
  if (lane == 0) bulk_wait_read<0>();
  barrier_sync(barrier, 128);
#pragma unroll
  for (int j = 0; j < Tokens / 8; j += 2) {
    const float* v = d + 4 * j;
    const uint32_t r[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                           pack_bf16(v[6], v[7])};
    const int row = 8 * (j + lane / 16) + lane % 8;
    store_matrices<true>(shared_address(staging) +
                             swizzled_128(static_cast<uint32_t>(row),
                                          static_cast<uint32_t>(32 * warp + lane / 8 % 2 * 16)),
                         r);
  }
  fence_async_shared();
  barrier_sync(barrier, 128);
  for (int box = warp; box < Tokens / 16; box += 4) {  // of 16 rows x 128 bytes
    Tile part = tile;
    part.row += box * 16;
    if (part.row < part.row_end) store_box(map, staging + box * 2048, p, part, column);
  }
}

template <bool Int8, int Groups, int Tokens, class Scale, bool OnlyBest>
__device__ __forceinline__ void consume(const CUtensorMap* out_map, const Params& p,
                                        uint8_t* shared) {
  using L = Layout<Int8, Groups, Tokens>;
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  Barrier* empty = full + L::kStages;
  const int* first_unit = reinterpret_cast<const int*>(shared + L::kUnits);
  const int units = num_units<Tokens>(p.space, first_unit);
  const int warp = warp_index();
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int group = warp / 4;
  uint8_t* staging = shared + L::kStaging + group * L::kStagingBytes;
  const uint64_t x_rows = k_major_128(shared);
  const auto release = [&](int stage) {
    if (lane == 0) arrive(empty + stage);
  };
  [[maybe_unused]] uint64_t best[2] = {};
  Pipe pipe;
  for (int unit = static_cast<int>(blockIdx.x); unit < units; unit += static_cast<int>(gridDim.x)) {
    float total[2][Tokens / 2];
    uint32_t a[2][4][4];
    int last = 0;
    for (int step = 0; step < p.k_steps; ++step) {
      wait(full + pipe.stage, pipe.parity);
      const uint8_t* tiles = shared + pipe.stage * L::kStageBytes + L::kXBytes;
      const uint64_t x = advance(x_rows, static_cast<uint32_t>(pipe.stage * L::kStageBytes));
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
        wgmma_wait<1>();  // this half's products of the last step are done
#pragma unroll
        for (int s = 0; s < 4; ++s) hold(a[sub][s]);
        if (sub == 1 && step > 0) release(last);
        dequantize_tile<Int8, Scale>(a[sub], tiles + (2 * group + sub) * L::kTileBytes);
#pragma unroll
        for (int s = 0; s < 4; ++s) hold(a[sub][s]);
        hold(total[sub]);
        wgmma_fence();
#pragma unroll
        for (int s = 0; s < 4; ++s) {
          Wgmma<Tokens>::bf16_a(total[sub], a[sub][s], advance(x, 32 * s), (step | s) != 0);
        }
        wgmma_commit();
        hold(total[sub]);
      }
      last = pipe.stage;
      pipe.next<L::kStages>();
    }
    wgmma_wait<0>();
    hold(total[0]);
    hold(total[1]);
    release(last);
    const Tile tile = tile_of<Tokens>(p.space, first_unit, unit, 0);
    const int column =
        tile.column_tile * block_columns(p.out, Groups) + group * (p.out.silu_mul ? 64 : 128);
    const int n = column + 16 * (warp % 4) + lane / 4;
    if (p.out.bias != nullptr) {
#pragma unroll
      for (int sub = 0; sub < 2; ++sub) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int own = n + 8 * half + (p.out.silu_mul ? 0 : 64 * sub);
          const float bias = own < p.out.columns
                                 ? p.out.bias[own + (p.out.silu_mul ? sub * p.out.bias_half : 0)]
                                 : 0.0f;
#pragma unroll
          for (int i = 0; i < Tokens / 2; ++i) {
            if (i % 4 / 2 == half) total[sub][i] += bias;
          }
        }
      }
    }
    if constexpr (OnlyBest) {
      take_best<Tokens>(total, column, p.out.columns, best);
      continue;
    }
    if (p.out.silu_mul) {
#pragma unroll
      for (int i = 0; i < Tokens / 2; ++i) total[0][i] = silu(total[0][i]) * total[1][i];
    }
    store_columns<Tokens>(total[0], p.out, tile, column, out_map, staging);
    if (!p.out.silu_mul) {
      store_columns<Tokens>(total[1], p.out, tile, column + 64, out_map, staging);
    }
  }
  if constexpr (OnlyBest) {
    put_part<Groups, Tokens>(best, reinterpret_cast<uint64_t*>(shared + L::kStaging), p.best);
  } else if (lane == 0) {
    bulk_wait<0>();
  }
}

template <bool Int8, int Groups, int Tokens, class Scale, bool OnlyBest>
__global__ void __launch_bounds__(Groups * 128 + producer_threads(Groups), blocks_of(Int8, Groups))
    gemm_kernel(const __grid_constant__ CUtensorMap x_map,
                const __grid_constant__ CUtensorMap out_map, const Params p) {
  using L = Layout<Int8, Groups, Tokens>;
  extern __shared__ __align__(1024) uint8_t shared[];
  Barrier* full = reinterpret_cast<Barrier*>(shared + L::kBarriers);
  if (threadIdx.x == 0) {
    for (int i = 0; i < L::kStages; ++i) {
      barrier_init(full + i, 1);
      barrier_init(full + L::kStages + i, Groups * 4);
    }
    fence_barrier_init();
    prefetch_map(&x_map);
    prefetch_map(&out_map);
  }
  wait_for_predecessor();
  let_successor_begin();
  count_units<Tokens>(p.space, reinterpret_cast<int*>(shared + L::kUnits));
  __syncthreads();
  if (threadIdx.x >= Groups * 128) {
    if constexpr (Groups > 1) drop_registers_to<40>();
    if (threadIdx.x == Groups * 128) produce<Int8, Groups, Tokens>(&x_map, p, shared);
  } else {
    if constexpr (Groups > 1) raise_registers_to<Groups == 2 ? 232 : 152>();
    consume<Int8, Groups, Tokens, Scale, OnlyBest>(&out_map, p, shared);
  }
}

template <bool Int8, int Groups, int Tokens, class Scale = SplitScale, bool OnlyBest = false>
int launch_gemm(Stream& stream, const Gemm& g, Params p) {
  using L = Layout<Int8, Groups, Tokens>;
  const int columns = Groups * (p.out.silu_mul ? 64 : 128);
  p.space.column_tiles = (p.out.columns + columns - 1) / columns;
  const int64_t rows = g.a.dim(0);
  const int64_t box_rows = std::min<int64_t>(Tokens, (rows + 7) / 8 * 8);
  p.x_bytes = static_cast<int>(box_rows * 128);
  const CUtensorMap x_map =
      encode_map(g.a.data, MatrixMap{.rows = rows,
                                     .columns = g.a.dim(1),
                                     .row_bytes = g.a.stride[0] * 2,
                                     .box_rows = static_cast<uint32_t>(box_rows),
                                     .box_columns = kStep});
  unsigned blocks = static_cast<unsigned>(num_processors() * L::kBlocks);
  if (g.offsets == nullptr) {
    const int64_t units = ceil_div(rows, Tokens) * p.space.column_tiles;
    blocks = static_cast<unsigned>(std::min<int64_t>(units, blocks));
  }
  const int experts = g.offsets != nullptr ? p.space.experts : 0;
  launch(stream,
         {.grid = blocks,
          .block = Groups * 128 + producer_threads(Groups),
          .shared_bytes = static_cast<size_t>(L::bytes(experts)),
          .overlap = true},
         gemm_kernel<Int8, Groups, Tokens, Scale, OnlyBest>, x_map, map_of(p.out, rows), p);
  return static_cast<int>(blocks);
}

template <bool Int8>
void launch_best(Stream& stream, const Gemm& g, const Params& p) {
  const int64_t rows = g.a.dim(0);
  const auto waves = [&](int64_t tokens, int64_t w_rows, int64_t at_once) {
    return static_cast<double>(ceil_div(ceil_div(rows, tokens) * ceil_div(g.n, w_rows), at_once));
  };
  const bool small = g.offsets != nullptr ? rows / g.experts < 96
                                          : 0.5 * waves(64, 128, 2 * num_processors()) <=
                                                waves(128, 256, num_processors());
  if (small) {
    launch_gemm<Int8, 1, 64>(stream, g, p);
  } else {
    launch_gemm<Int8, 2, 128>(stream, g, p);
  }
}

Params params_of(const Gemm& g) {
  CHECK(g.a.dtype == DType::kBF16 && g.a.stride[0] % 8 == 0 &&
            reinterpret_cast<uintptr_t>(g.a.data) % 16 == 0,
        "gemm: rows of bf16, aligned to 16 bytes");
  Params p;
  p.space.rows = static_cast<int>(g.a.dim(0));
  p.space.experts = static_cast<int>(g.experts);
  p.space.offsets = g.offsets;
  p.k_steps = static_cast<int>(ceil_div(g.a.dim(1), kStep));
  p.out = output_of(g);
  p.out.bias_half = static_cast<int>(g.bias_up > 0 ? g.bias_up : g.n / 2);
  p.tiles = g.b;
  p.expert_bytes = g.b_expert_bytes;
  p.row_tiles = static_cast<int>(ceil_div(g.n, kQuantTile));
  p.up_tile = static_cast<int>(g.n / 2 / kQuantTile);
  return p;
}

}  // namespace

void gemm_int(Stream& stream, const Gemm& g, WeightFormat format) {
  if (g.a.dim(0) == 0) return;
  const Params p = params_of(g);
  if (format == WeightFormat::kInt8) {
    launch_best<true>(stream, g, p);
  } else {
    launch_best<false>(stream, g, p);
  }
}

void gemm_int4_drafts(Stream& stream, const Gemm& g) {
  CHECK(g.offsets == nullptr && g.a.dim(0) > 0, "gemm: drafts");
  launch_gemm<false, 3, kDraftRows, RoundedScale>(stream, g, params_of(g));
}

int gemm_int4_best(Stream& stream, const Gemm& g, uint64_t* best) {
  CHECK(g.offsets == nullptr && g.a.dim(0) > 0 && g.a.dim(0) <= kDraftRows, "gemm: drafts");
  Params p = params_of(g);
  p.best = best;
  return launch_gemm<false, 3, kDraftRows, RoundedScale, true>(stream, g, p);
}

int64_t gemm_int4_best_bytes(int64_t n) {
  return ceil_div(n, 3 * 128) * kDraftRows * static_cast<int64_t>(sizeof(uint64_t));
}

}  // namespace weft::cuda
