#pragma once

// out (+)= x W^T + bias for few rows x: W streams through shared memory once for each 64 rows of x.
// docs/kernels/gemm_decode.md. Included by the .cu files of the formats.
//
// A block has 64 G rows of W (G warpgroups) and the K range of its rank in a cluster of 1 to 8; W
// is the A operand of wgmma (m64 n8..64 k16), x the B operand, so that few rows of x cost little.
// One thread keeps a ring of stages full by TMA: those of W before the predecessor kernel has
// ended. The ranks' sums meet in shared memory and are added in rank order. Sums: k ascending
// within a rank in steps of 16, then ranks ascending: the same for every count of rows. Bytes: W
// once (ceil(M / 64) times for more rows), x once a block (from L2). Bound: memory.

#include <cuda_fp16.h>

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {

struct DecodeParams {
  const std::byte* codes;  ///< kInt8, kInt4: tiles; kFp8Block: scales (f32)
  int64_t expert_bytes;
  int64_t tiles_k;  ///< int: tiles of a row of tiles; fp8: scales of a row
  int n, rows;      ///< N; rows of x
  int k_steps;      ///< stages of the whole K
  int up_row;       ///< kSiluMul: I, the row of W where `up` begins; else 0
  int row_tiles;    ///< tiles of x rows
  int stages;
  int split;
  const ExpertRows* groups;
  const float* bias;
  void* out;
  int64_t out_stride;
  Epilogue epilogue;
  bool out_f32;
};

/// What a stage of shared memory holds: x [k / 64][MT][64] bf16 with 128-byte swizzle, then W.
template <WeightFormat F>
struct DecodeStage {
  static constexpr int kColumns = F == WeightFormat::kFp8Block ? 128 : 64;  ///< of K
  static constexpr int kWeightBytes = F == WeightFormat::kInt8   ? kInt8TileBytes
                                      : F == WeightFormat::kInt4 ? kInt4TileBytes
                                                                 : 8192;  ///< a warpgroup's
  static constexpr bool kTiles = F == WeightFormat::kInt8 || F == WeightFormat::kInt4;
  static constexpr int bytes(int row_tile, int warpgroups) {
    return (row_tile * kColumns * 2 + kWeightBytes * warpgroups + 1023) / 1024 * 1024;
  }
};

__device__ __forceinline__ float4 load_of_rank(uint32_t address, uint32_t rank) {
  float4 v;
  asm volatile("ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(v.x), "=f"(v.y), "=f"(v.z), "=f"(v.w)
               : "r"(map_to_block(address, rank))
               : "memory");
  return v;
}

__device__ __forceinline__ float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ __forceinline__ float silu_of(float x) {
  return x / (1.0f + __expf(-x));
}

/// Four bf16 numbers (lows in `low`) of codes that fit 16-bit lanes with these magic numbers.
__device__ __forceinline__ uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// Codes of a step (16 k) of this thread as exact bf16 integers, in the order of wgmma's A.
__device__ __forceinline__ void int8_step(uint32_t (&a)[4], uint32_t first, uint32_t second) {
  const auto pair = [](uint32_t x) {
    // Low 7 bits over 128.0; the sign bit turns 128.0 into 256.0 on the other side.
    return subtract_bf16((x & 0x007F007Fu) | 0x43004300u, (x & 0x00800080u) | 0x43004300u);
  };
  a[0] = pair(first);
  a[1] = pair(first >> 8);
  a[2] = pair(second);
  a[3] = pair(second >> 8);
}
__device__ __forceinline__ void int4_step(uint32_t (&a)[4], uint32_t word) {
  const auto pair = [](uint32_t x) {
    return subtract_bf16((x & 0x000F000Fu) | 0x43004300u, 0x43084308u);  // 128 + (q + 8) - 136
  };
  a[0] = pair(word);
  a[2] = pair(word >> 4);
  a[1] = pair(word >> 8);
  a[3] = pair(word >> 12);
}
/// Two e4m3 codes in the low 16 bits as bf16: exact (the exponent is moved, then multiplied right).
__device__ __forceinline__ uint32_t fp8_pair(uint32_t codes) {
  const uint32_t wide = __byte_perm(codes, 0, 0x1404);
  const uint32_t bits = (wide & 0x80008000u) | ((wide & 0x7F007F00u) >> 4);
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(bits), "r"(0x7B807B80u));  // 2^120
  return d;
}

/// Which part of the product a block has.
struct DecodeWork {
  int tile;  ///< of W's rows
  int rank;  ///< along K
  int expert;
  int first_row;  ///< of x
  int rows;       ///< of x, at most the row tile; <= 0: nothing
};

template <int MT>
__device__ __forceinline__ DecodeWork decode_work(const DecodeParams& p) {
  DecodeWork w;
  const int block = static_cast<int>(blockIdx.x);
  w.rank = block % p.split;
  const int row_tile = block / p.split % p.row_tiles;
  w.tile = block / p.split / p.row_tiles;
  w.expert = 0;
  w.first_row = 0;
  int rows = p.rows;
  if (p.groups != nullptr) {
    const ExpertRows group = p.groups[blockIdx.y];
    w.expert = group.expert;
    w.first_row = group.first_row;
    rows = group.rows;
  }
  w.first_row += row_tile * MT;
  w.rows = min(rows - row_tile * MT, MT);
  return w;
}

template <WeightFormat F, int MT>
struct DecodeRing {
  using Stage = DecodeStage<F>;
  std::byte* memory;
  Barrier* full;
  Barrier* empty;
  int stage_bytes, warpgroups;

  __device__ __forceinline__ std::byte* x(int stage) const { return memory + stage * stage_bytes; }
  __device__ __forceinline__ std::byte* w(int stage) const {
    return x(stage) + MT * Stage::kColumns * 2;
  }
};

template <WeightFormat F, int MT>
__device__ __forceinline__ void load_weights(const DecodeRing<F, MT>& ring, int stage, int k_step,
                                             const DecodeWork& work, const DecodeParams& p,
                                             const CUtensorMap* w_map) {
  using Stage = DecodeStage<F>;
  const int g = ring.warpgroups;
  arrive_expect(&ring.full[stage],
                static_cast<uint32_t>(Stage::kWeightBytes * g + MT * Stage::kColumns * 2));
  if constexpr (Stage::kTiles) {
    const std::byte* from = p.codes + work.expert * p.expert_bytes;
    for (int i = 0; i < g; ++i) {
      // kSiluMul: the first half of the warpgroups has gate, the other up.
      int64_t tile = int64_t{work.tile} * g + i;
      if (p.up_row > 0) {
        tile = int64_t{work.tile} * (g / 2) + i % (g / 2) + i / (g / 2) * (p.up_row / kQuantTile);
      }
      tile = min(tile, int64_t{(p.n + kQuantTile - 1) / kQuantTile - 1});
      bulk_load(ring.w(stage) + i * Stage::kWeightBytes,
                from + (tile * p.tiles_k + k_step) * Stage::kWeightBytes, Stage::kWeightBytes,
                &ring.full[stage], L2Hint::kEvictFirst);
    }
  } else {
    const int k = k_step * Stage::kColumns;
    if (p.up_row > 0) {
      const int row = work.tile * g * 32;
      tma_load(ring.w(stage), w_map, &ring.full[stage], Coords{k, row, work.expert},
               L2Hint::kEvictFirst);
      tma_load(ring.w(stage) + g * Stage::kWeightBytes / 2, w_map, &ring.full[stage],
               Coords{k, p.up_row + row, work.expert}, L2Hint::kEvictFirst);
    } else {
      tma_load(ring.w(stage), w_map, &ring.full[stage], Coords{k, work.tile * g * 64, work.expert},
               L2Hint::kEvictFirst);
    }
  }
}

template <WeightFormat F, int MT>
__device__ __forceinline__ void load_x(const DecodeRing<F, MT>& ring, int stage, int k_step,
                                       const DecodeWork& work, const CUtensorMap* x_map) {
  constexpr int kColumns = DecodeStage<F>::kColumns;
#pragma unroll
  for (int i = 0; i < kColumns / 64; ++i) {
    tma_load(ring.x(stage) + i * MT * 128, x_map, &ring.full[stage],
             Coords{k_step * kColumns + i * 64, work.first_row});
  }
}

/// The sums of this thread (wgmma's D layout) over the k steps [0, count) of its block.
template <WeightFormat F, int MT>
__device__ __forceinline__ void decode_sums(const DecodeRing<F, MT>& ring, const DecodeWork& work,
                                            const DecodeParams& p, int k_begin, int count,
                                            float (&sum)[MT / 2]) {
  using Stage = DecodeStage<F>;
  const int warp = warp_index(), lane = static_cast<int>(threadIdx.x) % 32;
  const int warpgroup = warp / 4;
  int stage = 0, before = 0;
  uint32_t phase = 0;
  const auto next = [&] {
    before = stage;
    if (++stage == p.stages) {
      stage = 0;
      phase ^= 1;
    }
  };
  if constexpr (F == WeightFormat::kBf16) {
    for (int i = 0; i < count; ++i) {
      wait(&ring.full[stage], phase);
      const uint64_t a = k_major_128(ring.w(stage) + warpgroup * Stage::kWeightBytes);
      const uint64_t b = k_major_128(ring.x(stage));
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        Wgmma<MT>::bf16(sum, advance(a, 32u * j), advance(b, 32u * j), i > 0 || j > 0);
      }
      wgmma_commit();
      wgmma_wait<1>();
      if (i > 0 && lane == 0) arrive(&ring.empty[before]);
      next();
    }
    wgmma_wait<0>();
    hold(sum);
    return;
  } else {
#pragma unroll
    for (float& s : sum) s = 0.0f;
    for (int i = 0; i < count; ++i) {
      wait(&ring.full[stage], phase);
      const std::byte* w = ring.w(stage) + warpgroup * Stage::kWeightBytes;
      const uint64_t b = k_major_128(ring.x(stage));
      if constexpr (F == WeightFormat::kFp8Block) {
        // Rows of 128 codes, 128-byte swizzle; a scale for the warp's 16 rows.
        const int row0 = (work.tile * ring.warpgroups + warpgroup) * 64;
        int row = row0;
        if (p.up_row > 0) {
          const int half = ring.warpgroups * 32, local = warpgroup * 64 + warp % 4 * 16;
          row = work.tile * half + local % half + local / half * p.up_row;
        } else {
          row += warp % 4 * 16;
        }
        const float* scales =
            reinterpret_cast<const float*>(p.codes + work.expert * p.expert_bytes);
        const float scale =
            row < p.n ? __ldg(scales + row / kFp8ScaleRows * p.tiles_k + k_begin + i) : 0.0f;
        float part[MT / 2];
        const int r = warp % 4 * 16 + lane / 4;
        uint32_t a[8][4];
#pragma unroll
        for (int j = 0; j < 8; ++j) {
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const auto at =
                swizzled_128(static_cast<uint32_t>(r + e % 2 * 8),
                             static_cast<uint32_t>(16 * j + 2 * (lane % 4) + e / 2 * 8));
            a[j][e] = fp8_pair(*reinterpret_cast<const uint16_t*>(w + at));
          }
          hold(a[j]);
        }
        wgmma_fence();
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          Wgmma<MT>::bf16_a(part, a[j], advance(b, 32u * (j % 4) + (j / 4) * MT * 128u), j > 0);
        }
        wgmma_commit();
        wgmma_wait<0>();
        hold(part);
        if (lane == 0) arrive(&ring.empty[stage]);
#pragma unroll
        for (int c = 0; c < MT / 2; ++c) sum[c] = __fmaf_rn(scale, part[c], sum[c]);
      } else {
        constexpr bool kInt8 = F == WeightFormat::kInt8;
        uint32_t a[4][4];
        if constexpr (kInt8) {
#pragma unroll
          for (int v = 0; v < 2; ++v) {
            const uint4 codes =
                *reinterpret_cast<const uint4*>(w + warp % 4 * 1024 + v * 512 + lane * 16);
            int8_step(a[2 * v], codes.x, codes.y);
            int8_step(a[2 * v + 1], codes.z, codes.w);
          }
        } else {
          const uint4 codes = *reinterpret_cast<const uint4*>(w + warp % 4 * 512 + lane * 16);
          int4_step(a[0], codes.x);
          int4_step(a[1], codes.y);
          int4_step(a[2], codes.z);
          int4_step(a[3], codes.w);
        }
        float2 scale[2];  // of rows lane / 4 and 8 more, for both groups
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          scale[v] = __half22float2(
              *reinterpret_cast<const __half2*>(w + (kInt8 ? kInt8CodeBytes : kInt4CodeBytes) +
                                                v * 128 + warp % 4 * 32 + lane / 4 * 4));
        }
        float part[2][MT / 2];
#pragma unroll
        for (int j = 0; j < 4; ++j) hold(a[j]);
        wgmma_fence();
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          Wgmma<MT>::bf16_a(part[v], a[2 * v], advance(b, 64u * v), 0);
          Wgmma<MT>::bf16_a(part[v], a[2 * v + 1], advance(b, 64u * v + 32), 1);
          wgmma_commit();
        }
        wgmma_wait<1>();
        hold(part[0]);
#pragma unroll
        for (int c = 0; c < MT / 2; ++c) {
          sum[c] = __fmaf_rn(c % 4 < 2 ? scale[0].x : scale[0].y, part[0][c], sum[c]);
        }
        wgmma_wait<0>();
        hold(part[1]);
        if (lane == 0) arrive(&ring.empty[stage]);
#pragma unroll
        for (int c = 0; c < MT / 2; ++c) {
          sum[c] = __fmaf_rn(c % 4 < 2 ? scale[1].x : scale[1].y, part[1][c], sum[c]);
        }
      }
      next();
    }
  }
}

/// Four columns of a row, of which `count` exist.
__device__ __forceinline__ void store_four(const DecodeParams& p, int64_t row, int column,
                                           int count, float4 v) {
  float values[4] = {v.x, v.y, v.z, v.w};
  if (p.bias != nullptr && p.up_row == 0) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) values[i] += p.bias[column + i];
    }
  }
  const bool add = p.epilogue == Epilogue::kAdd, aligned = count == 4 && p.out_stride % 4 == 0;
  if (p.out_f32) {
    float* out = static_cast<float*>(p.out) + row * p.out_stride + column;
    if (aligned && reinterpret_cast<uintptr_t>(p.out) % 16 == 0) {
      float4* to = reinterpret_cast<float4*>(out);
      float4 all{values[0], values[1], values[2], values[3]};
      if (add) all = *to + all;
      *to = all;
      return;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (i < count) out[i] = add ? out[i] + values[i] : values[i];
    }
    return;
  }
  uint16_t* out = static_cast<uint16_t*>(p.out) + row * p.out_stride + column;
  const auto old = [&](int i) { return __uint_as_float(uint32_t{out[i]} << 16); };
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (add && i < count) values[i] += old(i);
  }
  const uint32_t low = pack_bf16(values[0], values[1]), high = pack_bf16(values[2], values[3]);
  if (aligned && reinterpret_cast<uintptr_t>(p.out) % 8 == 0) {
    *reinterpret_cast<uint2*>(out) = {low, high};
    return;
  }
  const uint32_t words[2] = {low, high};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if (i < count) out[i] = static_cast<uint16_t>(words[i / 2] >> (i % 2 * 16));
  }
}

/// Adds the ranks' partial tiles [MT][64 G + 4] in rank order; each rank finishes a share of them.
template <int MT>
__device__ __forceinline__ void decode_finish(const DecodeParams& p, const DecodeWork& work,
                                              const float* partial, int warpgroups) {
  const int width = warpgroups * 64, pitch = width + 4;
  const bool gated = p.up_row > 0;
  const int columns = gated ? width / 2 : width, limit = gated ? p.up_row : p.n;
  const int threads = warpgroups * 128, fours = columns / 4;
  const auto total = [&](int at) {
    float4 v = load_of_rank(shared_address(partial + at), 0);
    for (int r = 1; r < p.split; ++r) {
      v = v + load_of_rank(shared_address(partial + at), static_cast<uint32_t>(r));
    }
    return v;
  };
  for (int i = work.rank * threads + static_cast<int>(threadIdx.x); i < work.rows * fours;
       i += p.split * threads) {
    const int row = i / fours, in_tile = i % fours * 4, column = work.tile * columns + in_tile;
    const int count = min(4, limit - column);
    if (count <= 0) continue;
    float4 v = total(row * pitch + in_tile);
    if (gated) {
      float4 up = total(row * pitch + columns + in_tile);
      if (p.bias != nullptr) {
        const float* b = p.bias + column;
        const auto at = [&](int j) { return j < count ? b[j] : 0.0f; };
        const auto at_up = [&](int j) { return j < count ? b[p.up_row + j] : 0.0f; };
        v = v + float4{at(0), at(1), at(2), at(3)};
        up = up + float4{at_up(0), at_up(1), at_up(2), at_up(3)};
      }
      v = {silu_of(v.x) * up.x, silu_of(v.y) * up.y, silu_of(v.z) * up.z, silu_of(v.w) * up.w};
    }
    store_four(p, work.first_row + row, column, count, v);
  }
}

template <WeightFormat F, int MT>
__global__ void __launch_bounds__(128 * 3 + 32)
    decode_kernel(const __grid_constant__ CUtensorMap w_map,
                  const __grid_constant__ CUtensorMap x_map,
                  const __grid_constant__ DecodeParams p) {
  extern __shared__ __align__(1024) std::byte shared[];
  const int warpgroups = static_cast<int>(blockDim.x) / 128, warp = warp_index();
  const int stage_bytes = DecodeStage<F>::bytes(MT, warpgroups);
  auto* barriers = reinterpret_cast<Barrier*>(shared + p.stages * stage_bytes);
  const DecodeRing<F, MT> ring{shared, barriers, barriers + p.stages, stage_bytes, warpgroups};
  const bool producer = warp == warpgroups * 4;

  if (p.groups != nullptr) wait_for_predecessor();
  const DecodeWork work = decode_work<MT>(p);
  if (work.rows <= 0) return;  // all blocks of a cluster alike
  const int k_begin = p.k_steps * work.rank / p.split;
  const int count = p.k_steps * (work.rank + 1) / p.split - k_begin;
  const int ahead = min(p.stages, count);
  if (producer && static_cast<int>(threadIdx.x) % 32 == 0) {
    for (int i = 0; i < p.stages; ++i) {
      barrier_init(&ring.full[i], 1);
      barrier_init(&ring.empty[i], static_cast<uint32_t>(warpgroups * 4));
    }
    fence_barrier_init();
    for (int i = 0; i < ahead; ++i) {
      load_weights<F, MT>(ring, i, k_begin + i, work, p, &w_map);
    }
  }
  __syncthreads();
  let_successor_begin();

  float sum[MT / 2];
  if (producer) {
    if (static_cast<int>(threadIdx.x) % 32 == 0) {
      wait_for_predecessor();
      for (int i = 0; i < ahead; ++i) load_x<F, MT>(ring, i, k_begin + i, work, &x_map);
      int stage = 0;
      uint32_t phase = 0;
      for (int i = ahead; i < count; ++i) {
        wait(&ring.empty[stage], phase);
        load_weights<F, MT>(ring, stage, k_begin + i, work, p, &w_map);
        load_x<F, MT>(ring, stage, k_begin + i, work, &x_map);
        if (++stage == p.stages) {
          stage = 0;
          phase ^= 1;
        }
      }
    }
    __syncwarp();
  } else {
    decode_sums<F, MT>(ring, work, p, k_begin, count, sum);
  }

  // All stages have been read: their memory takes the partial tile.
  auto* partial = reinterpret_cast<float*>(shared);
  const int threads = warpgroups * 128;
  if (!producer) {
    barrier_sync(1, threads);
    const int pitch = warpgroups * 64 + 4;
    const int row = warp * 16 + static_cast<int>(threadIdx.x) % 32 / 4;
    const int column = static_cast<int>(threadIdx.x) % 4 * 2;
#pragma unroll
    for (int i = 0; i < MT / 2; ++i) {
      partial[(i / 4 * 8 + column + i % 2) * pitch + row + i % 4 / 2 * 8] = sum[i];
    }
  }
  if (p.split > 1) {
    cluster_sync();
  } else if (!producer) {
    barrier_sync(1, threads);
  }
  if (!producer) {
    wait_for_predecessor();
    decode_finish<MT>(p, work, partial, warpgroups);
  }
  if (p.split > 1) cluster_sync();  // nobody ends while others read its memory
}

/// Encodes the maps and launches the kernel of the row tile.
template <WeightFormat F>
void launch_decode(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  using Stage = DecodeStage<F>;
  const WeightShape& shape = gemm.weight->shape;
  const bool gated = gemm.epilogue == Epilogue::kSiluMul;
  const int64_t rows = gemm.x.dim(0), up_row = gated ? shape.n / 2 : 0;
  const int64_t tile_columns = cut.warpgroups * (gated ? 32 : 64);
  CHECK(rows > 0 && gemm.x.dim(1) == shape.k && gemm.x.stride[0] % 8 == 0, "decode gemm: x");
  DecodeParams p{};
  p.codes = gemm.weight->data;
  p.expert_bytes = gemm.weight->expert_bytes;
  p.tiles_k = ceil_div(shape.k, kQuantTile);
  if (F == WeightFormat::kFp8Block) {
    p.codes += fp8_scales_offset(shape);
    p.tiles_k = fp8_scales_stride(shape);
  }
  p.n = static_cast<int>(shape.n);
  p.rows = static_cast<int>(rows);
  p.k_steps = static_cast<int>(ceil_div(shape.k, Stage::kColumns));
  p.up_row = static_cast<int>(up_row);
  p.row_tiles =
      static_cast<int>(ceil_div(gemm.groups != nullptr ? gemm.max_group_rows : rows, cut.row_tile));
  p.split = cut.split;
  p.stages = cut.stages;
  p.groups = gemm.groups;
  p.bias = gemm.bias.defined() ? gemm.bias.ptr<float>() : nullptr;
  p.out = gemm.out.data;
  p.out_stride = gemm.out.stride[0];
  p.epilogue = gemm.epilogue;
  p.out_f32 = gemm.out.dtype == DType::kF32;

  CUtensorMap w_map{};
  if constexpr (!Stage::kTiles) {
    MapShape w;
    w.type = F == WeightFormat::kBf16 ? MapType::kBF16 : MapType::kE4M3;
    w.rank = 3;
    w.dims[0] = static_cast<uint64_t>(shape.k);
    w.dims[1] = static_cast<uint64_t>(shape.n);
    w.dims[2] = static_cast<uint64_t>(shape.experts);
    w.stride_bytes[0] = static_cast<uint64_t>(weight_row_bytes(shape));
    w.stride_bytes[1] = shape.experts > 1 ? static_cast<uint64_t>(gemm.weight->expert_bytes)
                                          : w.stride_bytes[0] * w.dims[1];
    w.box[0] = F == WeightFormat::kBf16 ? 64 : 128;
    w.box[1] = static_cast<uint32_t>(tile_columns);
    w.box[2] = 1;
    w_map = encode_map(gemm.weight->data, w);
  }
  const CUtensorMap x_map =
      encode_map(gemm.x.data, MatrixMap{.rows = rows,
                                        .columns = shape.k,
                                        .row_bytes = gemm.x.stride[0] * 2,
                                        .box_rows = static_cast<uint32_t>(cut.row_tile),
                                        .box_columns = 64});
  LaunchShape at{.block = static_cast<unsigned>(cut.warpgroups * 128 + 32),
                 .cluster = static_cast<unsigned>(cut.split),
                 .overlap = true};
  const int64_t tiles = ceil_div(gated ? up_row : shape.n, tile_columns);
  at.grid = dim3(static_cast<unsigned>(tiles * p.row_tiles * cut.split),
                 static_cast<unsigned>(gemm.groups != nullptr ? gemm.num_groups : 1));
  at.shared_bytes = static_cast<size_t>(
      cut.stages * (Stage::bytes(cut.row_tile, cut.warpgroups) + 2 * int{sizeof(Barrier)}));
  const auto kernel = [&]<int MT>() { launch(stream, at, decode_kernel<F, MT>, w_map, x_map, p); };
  switch (cut.row_tile) {
    case 8: kernel.template operator()<8>(); break;
    case 16: kernel.template operator()<16>(); break;
    case 32: kernel.template operator()<32>(); break;
    default: kernel.template operator()<64>(); break;
  }
}

}  // namespace weft::cuda
