#pragma once

// Eight consecutive values as floats: the unit of the pointwise kernels (16 bytes of bf16, 32 of
// f32), and sums over a warp or a block in an order that the shape alone fixes.

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/cuda/common/ptx.h"

namespace weft::cuda {

struct Floats8 {
  float v[8];
};

__device__ __forceinline__ float low_bf16(uint32_t pair) {
  return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float high_bf16(uint32_t pair) {
  return __uint_as_float(pair & 0xFFFF0000u);
}

/// 16-byte aligned.
__device__ __forceinline__ Floats8 load8(const __nv_bfloat16* at) {
  const uint4 raw = *reinterpret_cast<const uint4*>(at);
  return {{low_bf16(raw.x), high_bf16(raw.x), low_bf16(raw.y), high_bf16(raw.y), low_bf16(raw.z),
           high_bf16(raw.z), low_bf16(raw.w), high_bf16(raw.w)}};
}
__device__ __forceinline__ Floats8 load8(const float* at) {
  const float4 a = reinterpret_cast<const float4*>(at)[0];
  const float4 b = reinterpret_cast<const float4*>(at)[1];
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}
__device__ __forceinline__ void store8(__nv_bfloat16* at, const Floats8& x) {
  *reinterpret_cast<uint4*>(at) = {pack_bf16(x.v[0], x.v[1]), pack_bf16(x.v[2], x.v[3]),
                                   pack_bf16(x.v[4], x.v[5]), pack_bf16(x.v[6], x.v[7])};
}
__device__ __forceinline__ void store8(float* at, const Floats8& x) {
  reinterpret_cast<float4*>(at)[0] = {x.v[0], x.v[1], x.v[2], x.v[3]};
  reinterpret_cast<float4*>(at)[1] = {x.v[4], x.v[5], x.v[6], x.v[7]};
}

/// Values of x; with a residual it is added to, and the sum is what counts.
template <class X>
__device__ __forceinline__ Floats8 load_added(const X* x, float* residual) {
  Floats8 v = load8(x);
  if (residual) {
    const Floats8 r = load8(residual);
#pragma unroll
    for (int i = 0; i < 8; ++i) v.v[i] += r.v[i];
    store8(residual, v);
  }
  return v;
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

/// The sum over the block in every thread. `partial` is shared memory of 32 floats that nobody else
/// uses until the next __syncthreads(). blockDim.x is a multiple of 32.
__device__ __forceinline__ float block_sum(float x, float* partial) {
  x = warp_sum(x);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (lane == 0) partial[warp] = x;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x) / 32;
  return warp_sum(lane < warps ? partial[lane] : 0.0f);
}

__device__ __forceinline__ float sigmoid(float x) {
  return 1.0f / (1.0f + __expf(-x));
}

}  // namespace weft::cuda
