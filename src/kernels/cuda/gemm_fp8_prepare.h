#pragma once

// qkv_prepare() of the rows of an fp8 product whose tiles are 128 columns, a head each: norm and
// rope in registers, with the arithmetic and the order of sums of turn_head() (qkv_prepare.h).
// Included by gemm_fp8.cu alone.

#include "kernels/cuda/common/quad.h"
#include "kernels/cuda/fp8_rows.h"
#include "kernels/cuda/qkv_prepare.h"

namespace weft::cuda {

constexpr int kPreparedDim = 128;

/// The rows r and r + 8 of a thread (lane / 4 and the next 8 of a warp's 16, from row `row` on), of
/// columns 8 j + 2 c and the next of a q or k head (the D layout of wgmma), become
/// rope(norm(bf16 of them)). Rows from `row_end` on are garbage.
__device__ __forceinline__ void turn_rows(float (&d)[kPreparedDim / 2], const PrepareParams& p,
                                          const float* norm, int row, int row_end) {
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = min(row + lane / 4 + 8 * half, row_end - 1);
    const int64_t position = p.index[token] + (p.delta != nullptr ? p.delta[token] : 0);
    const auto* turns =
        reinterpret_cast<const float4*>(p.cos_sin + position * kPreparedDim + 4 * c);
    float4 turn[8];  // cos, sin of columns 8 j + 2 c, and of the next
#pragma unroll
    for (int j = 0; j < 8; ++j) turn[j] = __ldg(turns + 4 * j);
    // Lane 4 j + c of turn_head() has columns 8 j + 2 c, the next, and those 64 behind them.
    float sums[8];
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float *low = d + 4 * j + 2 * half, *high = low + 32;
      round_to_bf16(low[0], low[1]);
      round_to_bf16(high[0], high[1]);
      sums[j] = fmaf(low[0], low[0], 0.0f);
      sums[j] = fmaf(low[1], low[1], sums[j]);
      sums[j] = fmaf(high[0], high[0], sums[j]);
      sums[j] = fmaf(high[1], high[1], sums[j]);
    }
#pragma unroll
    for (int step = 4; step > 0; step /= 2) {
#pragma unroll
      for (int j = 0; j < step; ++j) sums[j] += sums[j + step];
    }
    float sum = sums[0];
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    const float scale =
        norm != nullptr ? rsqrtf(sum / static_cast<float>(kPreparedDim) + p.eps) : 1.0f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float *low = d + 4 * j + 2 * half, *high = low + 32;
      float2 weight[2] = {{1.0f, 1.0f}, {1.0f, 1.0f}};
      if (norm != nullptr) {
        weight[0] = __ldg(reinterpret_cast<const float2*>(norm + 8 * j + 2 * c));
        weight[1] = __ldg(reinterpret_cast<const float2*>(norm + 64 + 8 * j + 2 * c));
      }
      const auto rotate = [&](float& a, float& b, float weight_a, float weight_b, float cosine,
                              float sine) {
        const float first = a * (scale * weight_a), second = b * (scale * weight_b);
        a = fmaf(first, cosine, -__fmul_rn(second, sine));
        b = fmaf(second, cosine, __fmul_rn(first, sine));
      };
      rotate(low[0], high[0], weight[0].x, weight[1].x, turn[j].x, turn[j].y);
      rotate(low[1], high[1], weight[0].y, weight[1].y, turn[j].z, turn[j].w);
    }
  }
}

/// Those rows of head `head` of K (plane 0) or V (1) into the cache.
__device__ __forceinline__ void cache_rows(const float (&d)[kPreparedDim / 2],
                                           const PrepareParams& p, int plane, int head, int row,
                                           int row_end) {
  const int lane = static_cast<int>(threadIdx.x) % 32, c = lane % 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const int token = row + lane / 4 + 8 * half;
    const int64_t slot = token < row_end ? p.kv_slot[token] : -1;
    const int64_t block = slot / p.block_size;
    std::byte* to = p.cache + block * p.block_bytes +
                    p.layout.code_offset(plane, head, slot - block * p.block_size) + 16 * c;
#pragma unroll
    for (int j = 0; j < kPreparedDim / 8; j += 4) {
      uint32_t w[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        w[i] = pack_bf16(d[4 * (j + i) + 2 * half], d[4 * (j + i) + 2 * half + 1]);
      }
      transpose_in_quad(w, c);
      if (slot >= 0) *reinterpret_cast<uint4*>(to + 16 * j) = make_uint4(w[0], w[1], w[2], w[3]);
    }
  }
}

/// Those rows of column tile `head` of q, k and v, a head; true: they are in the cache, else they
/// are q's.
__device__ __forceinline__ bool prepare_head(float (&d)[kPreparedDim / 2], const PrepareParams& p,
                                             int head, int row, int row_end) {
  const int kv_head = head - p.q_heads;
  const bool is_v = kv_head >= p.kv_heads;
  if (!is_v) turn_rows(d, p, kv_head < 0 ? p.q_norm : p.k_norm, row, row_end);
  if (kv_head < 0) return false;
  cache_rows(d, p, is_v ? 1 : 0, is_v ? kv_head - p.kv_heads : kv_head, row, row_end);
  return true;
}

}  // namespace weft::cuda
