// out = bf16(code * scale). A warp takes 16 rows x 64 columns: int8 and int4 in the order of their
// tiles (16-byte loads, then through shared memory to rows of 128 bytes), fp8 row by row. Bytes:
// the codes once, the bf16 rows once; chunks of them stay in the L2 cache for the product that
// follows. docs/kernels/gemm.md.

#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/dequantize.h"
#include "kernels/cuda/gemm_decode_kernel.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kTilesABlock = 8;  // along K

struct Params {
  DequantizedRows rows;
  const std::byte* data;
  int64_t expert_bytes;
  int64_t tiles_k;
  int64_t stride;  ///< elements of a row of out
  int64_t fp8_row_bytes, fp8_scales;
};

/// Both values of a pair times their scale.
__device__ __forceinline__ uint32_t scaled(uint32_t pair, float scale) {
  return pack_bf16(__uint_as_float(pair << 16) * scale,
                   __uint_as_float(pair & 0xffff0000u) * scale);
}

template <WeightFormat F>
__global__ void __launch_bounds__(kThreads) dequantize_kernel(const Params p) {
  __shared__ __align__(128) uint8_t staging[4][2048];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t expert = p.rows.expert + blockIdx.z;
  if (p.rows.offsets != nullptr && p.rows.offsets[expert] == p.rows.offsets[expert + 1]) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const std::byte* data = p.data + expert * p.expert_bytes;
  const int64_t tile_row = p.rows.first / kQuantTile + blockIdx.y;
  const int64_t end = p.rows.first + p.rows.rows;
  auto* out = reinterpret_cast<uint16_t*>(p.rows.out) +
              (int64_t{blockIdx.z} * p.rows.out_rows + p.rows.out_row - p.rows.first) * p.stride;
  for (int i = 0; i < kTilesABlock; ++i) {
    const int64_t tile_k = int64_t{blockIdx.x} * kTilesABlock + i;
    if (tile_k >= p.tiles_k) break;
    const int64_t row0 = tile_row * kQuantTile + warp * 16;  // of the warp's 16
    __syncwarp();
    if constexpr (F == WeightFormat::kFp8Block) {
      const float* scales = reinterpret_cast<const float*>(data + p.fp8_scales);
      const int64_t stride = (p.tiles_k + 1) / 2;
      for (int r = 0; r < 16; r += 4) {  // 8 lanes a row, 8 codes a lane
        const int64_t row = row0 + r + lane / 8, column = tile_k * 64 + lane % 8 * 8;
        uint2 codes = {};
        float scale = 0.0f;
        if (row >= p.rows.first && row < end && column < p.fp8_row_bytes) {
          codes = *reinterpret_cast<const uint2*>(data + row * p.fp8_row_bytes + column);
          scale = scales[row / kFp8ScaleRows * stride + column / 128];
        }
        uint4 values = {
            scaled(fp8_pair(codes.x & 0xffff), scale), scaled(fp8_pair(codes.x >> 16), scale),
            scaled(fp8_pair(codes.y & 0xffff), scale), scaled(fp8_pair(codes.y >> 16), scale)};
        *reinterpret_cast<uint4*>(staging[warp] + swizzled_128(static_cast<uint32_t>(r + lane / 8),
                                                               16u * (lane % 8))) = values;
      }
    } else {
      constexpr bool kInt8 = F == WeightFormat::kInt8;
      const std::byte* tile =
          data + (tile_row * p.tiles_k + tile_k) * (kInt8 ? kInt8TileBytes : kInt4TileBytes);
      uint32_t a[4][4];
      if constexpr (kInt8) {
#pragma unroll
        for (int v = 0; v < 2; ++v) {
          const uint4 codes =
              *reinterpret_cast<const uint4*>(tile + warp * 1024 + v * 512 + lane * 16);
          int8_step(a[2 * v], codes.x, codes.y);
          int8_step(a[2 * v + 1], codes.z, codes.w);
        }
      } else {
        const uint4 codes = *reinterpret_cast<const uint4*>(tile + warp * 512 + lane * 16);
        int4_step(a[0], codes.x);
        int4_step(a[1], codes.y);
        int4_step(a[2], codes.z);
        int4_step(a[3], codes.w);
      }
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        const float2 scale = __half22float2(
            *reinterpret_cast<const __half2*>(tile + (kInt8 ? kInt8CodeBytes : kInt4CodeBytes) +
                                              s / 2 * 128 + warp * 32 + lane / 4 * 4));
        const uint32_t values[4] = {scaled(a[s][0], scale.x), scaled(a[s][1], scale.y),
                                    scaled(a[s][2], scale.x), scaled(a[s][3], scale.y)};
        store_matrices(shared_address(staging[warp]) +
                           swizzled_128(static_cast<uint32_t>(lane % 16),
                                        static_cast<uint32_t>(32 * s + 16 * (lane / 16))),
                       values);
      }
    }
    __syncwarp();
    for (int r = 0; r < 16; r += 4) {
      const int64_t row = row0 + r + lane / 8, column = tile_k * 64 + lane % 8 * 8;
      if (row < p.rows.first || row >= end || column >= p.stride) continue;
      *reinterpret_cast<uint4*>(out + row * p.stride + column) = *reinterpret_cast<const uint4*>(
          staging[warp] + swizzled_128(static_cast<uint32_t>(r + lane / 8), 16u * (lane % 8)));
    }
  }
}

}  // namespace

void dequantize(Stream& stream, const Weight& weight, const DequantizedRows& rows) {
  const WeightShape& shape = weight.shape;
  Params p;
  p.rows = rows;
  p.data = weight.data;
  p.expert_bytes = weight.expert_bytes;
  p.tiles_k = ceil_div(shape.k, kQuantTile);
  p.stride = ceil_div(shape.k, 8) * 8;
  p.fp8_row_bytes = weight_row_bytes(shape);
  p.fp8_scales = fp8_scales_offset(shape);
  const int64_t tile_rows = ceil_div(rows.first + rows.rows, kQuantTile) - rows.first / kQuantTile;
  const LaunchShape at{
      .grid = dim3(static_cast<unsigned>(ceil_div(p.tiles_k, kTilesABlock)),
                   static_cast<unsigned>(tile_rows), static_cast<unsigned>(rows.experts)),
      .block = kThreads,
      .overlap = true};
  switch (shape.format) {
    case WeightFormat::kInt8: return launch(stream, at, dequantize_kernel<WeightFormat::kInt8>, p);
    case WeightFormat::kInt4: return launch(stream, at, dequantize_kernel<WeightFormat::kInt4>, p);
    case WeightFormat::kFp8Block:
      return launch(stream, at, dequantize_kernel<WeightFormat::kFp8Block>, p);
    case WeightFormat::kBf16:
    case WeightFormat::kDraft4:
    case WeightFormat::kF32: break;
  }
  CHECK(false, "dequantize: weight format");
}

}  // namespace weft::cuda
