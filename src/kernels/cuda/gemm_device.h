#pragma once

// What the GEMM kernels of prompt arithmetic share: the pipe's counter and the epilogue, from
// wgmma's accumulators to global memory. Included by .cu files.

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/gemm_tiles.h"

namespace weft::cuda {

constexpr int kStagingBytes = 2 * 2048;  // of a consumer warp: two boxes of 16 rows x 128 bytes

/// Where a product goes.
struct GemmOutput {
  int columns = 0;
  int second_half = 0;  ///< row of b (from the tile's first) where the tile's second half begins
  bool silu_mul = false, add = false, f32 = false;
  bool direct = false;   ///< not fit for TMA, or needs reading
  bool grouped = false;  ///< rows after a tile's last one belong to others
  const float* bias = nullptr;
  int bias_half = 0;  ///< as second_half, in `bias`
  void* out = nullptr;
  int64_t out_stride = 0;
};

/// A place in a ring of stages and the parity of its phase.
struct Pipe {
  int stage = 0;
  uint32_t parity = 0;
  template <int Stages>
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

__device__ __forceinline__ float silu(float x) {
  return __fdividef(x, 1.0f + __expf(-x));
}

/// Adds the bias and multiplies the halves, in registers.
template <int BN>
__device__ __forceinline__ void finish_values(float (&d)[BN / 2], const GemmOutput& p, int column) {
  const int c = 2 * (static_cast<int>(threadIdx.x) % 4);
  if (p.bias != nullptr) {
#pragma unroll
    for (int j = 0; j < BN / 8; ++j) {
      const int in_half = j < BN / 16 ? 8 * j : 8 * j - BN / 2;
      const int in_out = column + (p.silu_mul ? in_half : 8 * j) + c;
      const int n = column + in_half + (j < BN / 16 ? 0 : p.bias_half) + c;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float bias = in_out + i < p.columns ? p.bias[n + i] : 0.0f;
        d[4 * j + i] += bias;
        d[4 * j + 2 + i] += bias;
      }
    }
  }
  if (p.silu_mul) {
#pragma unroll
    for (int i = 0; i < BN / 4; ++i) d[i] = silu(d[i]) * d[i + BN / 4];
  }
}

template <int BN>
__device__ __forceinline__ void store_direct(const float (&d)[BN / 2], const GemmOutput& p,
                                             const Tile& tile, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int j = 0; j < BN / 8; ++j) {
    if (p.silu_mul && j >= BN / 16) break;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = tile.row + lane / 4 + (i / 2) * 8;
      const int n = column + 8 * j + 2 * (lane % 4) + i % 2;
      if (row >= tile.row_end || n >= p.columns) continue;
      const int64_t at = row * p.out_stride + n;
      float value = d[4 * j + i];
      if (p.f32) {
        float* out = static_cast<float*>(p.out) + at;
        *out = p.add ? *out + value : value;
      } else {
        uint16_t* out = static_cast<uint16_t*>(p.out) + at;
        if (p.add) value += __uint_as_float(uint32_t{*out} << 16);
        *out = static_cast<uint16_t>(pack_bf16(value, 0.0f));
      }
    }
  }
}

/// One staged box of 16 rows x 128 bytes, from column `column` of out.
__device__ __forceinline__ void store_box(const CUtensorMap* map, const uint8_t* box,
                                          const GemmOutput& p, const Tile& tile, int column) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if (!p.grouped || tile.row + 16 <= tile.row_end) {
    fence_async_shared();
    __syncwarp();
    if (lane == 0) {
      if (p.add) {
        tma_add(map, box, Coords{column, tile.row});
      } else {
        tma_store(map, box, Coords{column, tile.row});
      }
      bulk_commit();
    }
    return;
  }
  __syncwarp();  // the last rows of an expert: those of the next one are not ours
  const int n = column + 8 * (lane % 8);
  for (int row = lane / 8; row < 16 && tile.row + row < tile.row_end; row += 4) {
    if (n >= p.columns) break;
    const uint4 value = *reinterpret_cast<const uint4*>(box + swizzled_128(row, 16 * (lane % 8)));
    *reinterpret_cast<uint4*>(static_cast<uint16_t*>(p.out) + (tile.row + row) * p.out_stride + n) =
        value;
  }
}

/// Until the half of the staging memory that box `box` takes has been read: boxes take the halves
/// by turns, but the first follows whatever the rows before ended with.
__device__ __forceinline__ void wait_for_staging(int box) {
  if (box == 0) {
    bulk_wait_read<0>();
  } else {
    bulk_wait_read<1>();
  }
}

/// The warp's 16 rows of a tile: `tile.row` is the first of them.
template <int BN>
__device__ __forceinline__ void store_rows(const float (&d)[BN / 2], const GemmOutput& p,
                                           const Tile& tile, int column, const CUtensorMap* map,
                                           uint8_t* staging) {
  if (tile.row >= tile.row_end) return;
  if (p.direct) {
    store_direct<BN>(d, p, tile, column);
    return;
  }
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int end = min(p.columns, column + (p.silu_mul ? BN / 2 : BN));
  if (p.f32) {
#pragma unroll
    for (int box = 0; box < BN / 32; ++box) {
      if (column + 32 * box >= end) break;
      uint8_t* to = staging + (box & 1) * 2048;
      if (lane == 0) wait_for_staging(box);
      __syncwarp();
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const uint32_t byte = 32 * j + 8 * (lane % 4);
        const float* v = d + 16 * box + 4 * j;
        *reinterpret_cast<float2*>(to + swizzled_128(lane / 4, byte)) = {v[0], v[1]};
        *reinterpret_cast<float2*>(to + swizzled_128(lane / 4 + 8, byte)) = {v[2], v[3]};
      }
      store_box(map, to, p, tile, column + 32 * box);
    }
    return;
  }
#pragma unroll
  for (int box = 0; box < BN / 64; ++box) {
    if (column + 64 * box >= end) break;
    uint8_t* to = staging + (box & 1) * 2048;
    if (lane == 0) wait_for_staging(box);
    __syncwarp();
    // Lane l writes row l % 16 of columns 8 (l / 16) .. of each 16 x 16 piece.
    const uint32_t address = shared_address(to);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float* v = d + 32 * box + 8 * j;
      const uint32_t r[4] = {pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]),
                             pack_bf16(v[6], v[7])};
      store_matrices(address + swizzled_128(lane % 16, 32 * j + 16 * (lane / 16)), r);
    }
    store_box(map, to, p, tile, column + 64 * box);
  }
}

inline GemmOutput output_of(const Gemm& g) {
  GemmOutput out;
  out.silu_mul = g.epilogue == Epilogue::kSiluMul;
  out.add = g.epilogue == Epilogue::kAdd;
  out.f32 = g.out.dtype == DType::kF32;
  out.grouped = g.offsets != nullptr;
  out.columns = static_cast<int>(out.silu_mul ? g.n / 2 : g.n);
  out.bias = g.bias.defined() ? g.bias.ptr<float>() : nullptr;
  out.out = g.out.data;
  out.out_stride = g.out.stride[0];
  const int64_t row_bytes = g.out.stride[0] * (out.f32 ? 4 : 2);
  out.direct = (out.add && !out.f32) || row_bytes % 16 != 0 ||
               reinterpret_cast<uintptr_t>(g.out.data) % 16 != 0;
  CHECK(!out.grouped || (!out.direct && !out.f32 && !out.bias && g.experts <= kMaxExperts),
        "gemm: grouped problems write bf16");
  return out;
}

/// Boxes of 16 rows x 128 bytes; undefined for direct stores.
inline CUtensorMap map_of(const GemmOutput& out, int64_t rows) {
  if (out.direct) return {};
  const int size = out.f32 ? 4 : 2;
  return encode_map(out.out, MatrixMap{.type = out.f32 ? MapType::kF32 : MapType::kBF16,
                                       .rows = rows,
                                       .columns = out.columns,
                                       .row_bytes = out.out_stride * size,
                                       .box_rows = 16,
                                       .box_columns = static_cast<uint32_t>(128 / size)});
}

}  // namespace weft::cuda
