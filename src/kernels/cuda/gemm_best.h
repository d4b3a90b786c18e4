#pragma once

// The first greatest of each row of a product whose A operand is w: what gemm_int.cu and
// gemm_draft4.cu keep instead of logits. Included by .cu files.

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/sample_device.h"

namespace weft::cuda {

/// Makes `best` the first greatest of each row, of itself and this warp's columns among the 128
/// from `column` on. Lane i has those of the rows 2 i and 2 i + 1.
template <int Tokens>
__device__ __forceinline__ void take_best(const float (&d)[2][Tokens / 2], int column, int columns,
                                          uint64_t (&best)[2]) {
  static_assert(Tokens == 64);
  const int warp = static_cast<int>(threadIdx.x) / 32 % 4,
            lane = static_cast<int>(threadIdx.x) % 32;
  const int first = column + 16 * warp + lane / 4;
#pragma unroll
  for (int i = 0; i < Tokens / 4; ++i) {
    const int at = i / 2 * 4 + i % 2;
    Best own;
#pragma unroll
    for (int part = 0; part < 4; ++part) {
      const int id = first + part / 2 * 64 + part % 2 * 8;
      if (id < columns) own.take(d[part / 2][at + part % 2 * 2], id);
    }
    uint64_t key = own.key();
#pragma unroll
    for (int lanes = 4; lanes < 32; lanes *= 2) {
      key = max(key, __shfl_xor_sync(kAll, key, lanes));
    }
    if (lane / 4 == i / 2) best[i % 2] = max(best[i % 2], key);
  }
}

/// Of all warps of the block, to the block's part of `out`.
template <int Groups, int Tokens>
__device__ __forceinline__ void put_part(const uint64_t (&best)[2], uint64_t* of_warps,
                                         uint64_t* out) {
  const int thread = static_cast<int>(threadIdx.x);
#pragma unroll
  for (int i = 0; i < 2; ++i) of_warps[warp_index() * Tokens + 2 * (thread % 32) + i] = best[i];
  barrier_sync(1, Groups * 128);
  if (thread >= Tokens) return;
  uint64_t all = 0;
#pragma unroll
  for (int warp = 0; warp < 4 * Groups; ++warp) all = max(all, of_warps[warp * Tokens + thread]);
  out[static_cast<int64_t>(blockIdx.x) * Tokens + thread] = all;
}

}  // namespace weft::cuda
