#pragma once

// Products of f16 operands by one warp.

#include <cuda_fp16.h>

#include <cstdint>

namespace weft::cuda {

/// D (16x8 f32) += A (16x16) B (16x8), by one warp: mma.sync fragments.
__device__ __forceinline__ void mma_f16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0,
                                        uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/// Two floats rounded to f16 (nearest even): `low` in the low half.
__device__ __forceinline__ uint32_t pack_f16(float low, float high) {
  const __half2 packed = __floats2half2_rn(low, high);
  return *reinterpret_cast<const uint32_t*>(&packed);
}

}  // namespace weft::cuda
