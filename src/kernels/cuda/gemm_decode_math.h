#pragma once

// What a warp (bf16: a warpgroup) of the decode GEMM does with a stage of shared memory: x of MT
// rows and 64 or 128 columns, W of 64 rows a unit. docs/kernels/gemm_decode.md.
//
// bf16 goes to wgmma as it lies. The others are widened to exact bf16 in registers and multiplied
// by mma.sync: warps need no common step there, and their work interleaves.

#include <cuda_fp16.h>

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {

/// What a stage of the two rings in shared memory holds: W, whose int8 and int4 pieces are two
/// tiles along K; x [k / 64][MT][64] bf16 with 128-byte swizzle.
template <WeightFormat F>
struct DecodeStage {
  static constexpr bool kTiles = F == WeightFormat::kInt8 || F == WeightFormat::kInt4;
  static constexpr int kColumns = F == WeightFormat::kBf16 ? 64 : 128;  ///< of K
  static constexpr int kTileBytes = F == WeightFormat::kInt8 ? kInt8TileBytes : kInt4TileBytes;
  static constexpr int kWeightBytes = kTiles ? 2 * kTileBytes : 8192;  ///< of a unit of 64 rows
  static constexpr int bytes(int units) { return (kWeightBytes * units + 1023) / 1024 * 1024; }
  static constexpr int x_bytes(int row_tile) { return row_tile * kColumns * 2; }
};

/// int8 and int4 with many rows of x go to wgmma, which gives the bits of mma.sync.
constexpr bool wide_tiles(int row_tile) {
  return row_tile > 16;
}
/// Chunks of 16 rows of W that a warp has. With two, many rows of x are read half as often.
constexpr int decode_chunks(WeightFormat format, int row_tile) {
  return format == WeightFormat::kFp8Block && row_tile > 16 ? 2 : 1;
}
/// Threads of a block besides the producers.
constexpr int decode_most_threads(WeightFormat format, int row_tile) {
  const bool tiles = format == WeightFormat::kInt8 || format == WeightFormat::kInt4;
  return format == WeightFormat::kBf16 || (!tiles && row_tile > 16) ? 256 : 512;
}

__device__ __forceinline__ float silu_of(float x) {
  return x / (1.0f + __expf(-x));
}

__device__ __forceinline__ uint32_t subtract_bf16(uint32_t a, uint32_t b) {
  uint32_t d;
  asm("sub.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
  return d;
}

/// Codes of a step (16 k) of this thread as exact bf16 integers, in the order of an A fragment.
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
/// Two e4m3 codes as bf16: exact (the exponent is moved, then multiplied right). `Bytes`: of
/// __byte_perm, 0x1404 for the low half of `codes`, 0x3424 for the high one.
template <uint32_t Bytes = 0x1404>
__device__ __forceinline__ uint32_t fp8_pair(uint32_t codes) {
  const uint32_t wide = __byte_perm(codes, 0, Bytes);
  const uint32_t bits = (wide & 0x80008000u) | ((wide & 0x7F007F00u) >> 4);
  uint32_t d;
  asm("mul.rn.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(bits), "r"(0x7B807B80u));  // 2^120
  return d;
}

/// The A fragments of the two steps of group `v` (32 k) of a chunk of 16 rows, and the scales of
/// its rows lane / 4 and 8 more. `tile` is that of v / 2.
template <WeightFormat F>
__device__ __forceinline__ float2 tile_group(const std::byte* tile, int chunk, int v,
                                             uint32_t (&a)[2][4]) {
  constexpr bool kInt8 = F == WeightFormat::kInt8;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kInt8) {
    const uint4 c = *reinterpret_cast<const uint4*>(tile + chunk * 1024 + v % 2 * 512 + lane * 16);
    int8_step(a[0], c.x, c.y);
    int8_step(a[1], c.z, c.w);
  } else {
    const uint2 c = *reinterpret_cast<const uint2*>(tile + chunk * 512 + lane * 16 + v % 2 * 8);
    int4_step(a[0], c.x);
    int4_step(a[1], c.y);
  }
  return __half22float2(*reinterpret_cast<const __half2*>(
      tile + (kInt8 ? kInt8CodeBytes : kInt4CodeBytes) + v % 2 * 128 + chunk * 32 + lane / 4 * 4));
}

/// `Tiles` tiles along K of int8 or int4: each group of 32 k by itself, then scaled. `w`: the first
/// unit; `chunk`: the warp's first.
template <WeightFormat F, int MT, int Tiles, int Chunks>
__device__ __forceinline__ void add_tiles(const std::byte* w, int chunk, const std::byte* x,
                                          float (&sum)[Chunks][MT / 2]) {
  using Stage = DecodeStage<F>;
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int v = 0; v < 2 * Tiles; ++v) {
    uint32_t a[Chunks][2][4];
    float2 scale[Chunks];
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
      const std::byte* tile = w + (chunk + c) / 4 * Stage::kWeightBytes + v / 2 * Stage::kTileBytes;
      scale[c] = tile_group<F>(tile, (chunk + c) % 4, v, a[c]);
    }
#pragma unroll
    for (int n = 0; n < MT / 8; ++n) {
      uint32_t b[4];
      load_matrices(b, shared_address(x) + v / 2 * MT * 128 +
                           swizzled_128(static_cast<uint32_t>(n * 8 + lane % 8),
                                        static_cast<uint32_t>(v % 2 * 64 + lane / 8 * 16)));
#pragma unroll
      for (int c = 0; c < Chunks; ++c) {
        float part[4] = {};
        mma_bf16(part, a[c][0], b[0], b[1]);
        mma_bf16(part, a[c][1], b[2], b[3]);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          float& s = sum[c][n * 4 + i];
          s = __fmaf_rn(i < 2 ? scale[c].x : scale[c].y, part[i], s);
        }
      }
    }
  }
}

/// add_tiles() by a warpgroup for its 64 rows.
template <WeightFormat F, int MT>
__device__ __forceinline__ void add_tiles_wide(const std::byte* w, int chunk, const std::byte* x,
                                               int tiles, float (&sum)[MT / 2]) {
  using Stage = DecodeStage<F>;
  w += chunk / 4 * Stage::kWeightBytes;
  uint64_t b = k_major_128(x);
  for (int tile = 0; tile < tiles; ++tile, w += Stage::kTileBytes, b = advance(b, MT * 128)) {
    uint32_t a[2][2][4];
    float2 scale[2];
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      scale[v] = tile_group<F>(w, chunk % 4, v, a[v]);
      hold(a[v][0]);
      hold(a[v][1]);
    }
#pragma unroll
    for (int v = 0; v < 2; ++v) {
      float part[MT / 2];
      wgmma_fence();
      Wgmma<MT>::bf16_a(part, a[v][0], advance(b, 64u * v), 0);
      Wgmma<MT>::bf16_a(part, a[v][1], advance(b, 64u * v + 32), 1);
      wgmma_commit();
      wgmma_wait<0>();
      hold(part);
#pragma unroll
      for (int i = 0; i < MT / 2; ++i) {
        sum[i] = __fmaf_rn(i % 4 < 2 ? scale[v].x : scale[v].y, part[i], sum[i]);
      }
    }
  }
}

/// A stage of fp8: rows of 128 codes with 128-byte swizzle, each chunk scaled by one number. The 16
/// k of a step are those that thread t of a quad finds in bytes 16 t + 4 step of its half: sums
/// don't mind, and codes and x are read 16 bytes at a time.
template <int MT, int Chunks>
__device__ __forceinline__ void add_fp8(const std::byte* w, int chunk, const std::byte* x,
                                        const float (&scale)[Chunks],
                                        float (&sum)[Chunks][MT / 2]) {
  const auto lane = static_cast<uint32_t>(threadIdx.x) % 32, t = lane % 4;
  float part[Chunks][MT / 2] = {};
#pragma unroll
  for (uint32_t half = 0; half < 2; ++half) {
    uint32_t a[Chunks][4][4];
#pragma unroll
    for (int c = 0; c < Chunks; ++c) {
      const std::byte* rows = w + (chunk + c) * 2048;
#pragma unroll
      for (uint32_t e = 0; e < 2; ++e) {
        const uint4 codes = *reinterpret_cast<const uint4*>(
            rows + swizzled_128(lane / 4 + 8 * e, half * 64 + t * 16));
        const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          a[c][j][e] = fp8_pair<0x1404>(words[j]);
          a[c][j][e + 2] = fp8_pair<0x3424>(words[j]);
        }
      }
    }
#pragma unroll
    for (int n = 0; n < MT / 8; ++n) {
#pragma unroll
      for (uint32_t pair = 0; pair < 2; ++pair) {
        const uint4 b = *reinterpret_cast<const uint4*>(
            x + half * MT * 128 +
            swizzled_128(static_cast<uint32_t>(n) * 8 + lane / 4, t * 32 + pair * 16));
#pragma unroll
        for (int c = 0; c < Chunks; ++c) {
          float d[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) d[i] = part[c][n * 4 + i];
          mma_bf16(d, a[c][2 * pair], b.x, b.y);
          mma_bf16(d, a[c][2 * pair + 1], b.z, b.w);
#pragma unroll
          for (int i = 0; i < 4; ++i) part[c][n * 4 + i] = d[i];
        }
      }
    }
  }
#pragma unroll
  for (int c = 0; c < Chunks; ++c) {
#pragma unroll
    for (int i = 0; i < MT / 2; ++i) sum[c][i] = __fmaf_rn(scale[c], part[c][i], sum[c][i]);
  }
}

}  // namespace weft::cuda
