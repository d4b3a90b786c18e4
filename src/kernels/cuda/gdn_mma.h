#pragma once

// Matrix products of f16 operands with f32 sums, in the few shapes of the chunked delta rule.
// Layouts and the order of calls: common/wgmma.h.

#include "kernels/cuda/common/f16.h"
#include "kernels/cuda/common/wgmma.h"

namespace weft::cuda {

#define WEFT_GDN_R32                                                       \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, " \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define WEFT_GDN_R64                                                                   \
  WEFT_GDN_R32                                                                         \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define WEFT_GDN_F8(i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define WEFT_GDN_D32 WEFT_GDN_F8(0), WEFT_GDN_F8(8), WEFT_GDN_F8(16), WEFT_GDN_F8(24)
#define WEFT_GDN_D64 \
  WEFT_GDN_D32, WEFT_GDN_F8(32), WEFT_GDN_F8(40), WEFT_GDN_F8(48), WEFT_GDN_F8(56)

/// D (64 x 64) = A B [+ D], both K-major in shared memory.
__device__ __forceinline__ void mma_f16_64(float (&d)[32], uint64_t a, uint64_t b, int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" WEFT_GDN_R32
      "}, %32, %33, p, 1, 1, 0, 0;\n}"
      : WEFT_GDN_D32
      : "l"(a), "l"(b), "r"(accumulate));
}

/// The same with A, four registers from `a` on.
template <int First, int Count>
__device__ __forceinline__ void mma_f16_64_a(float (&d)[32], const uint32_t (&a)[Count], uint64_t b,
                                             int accumulate) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %37, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.f16.f16 {" WEFT_GDN_R32
      "}, {%32, %33, %34, %35}, %36, p, 1, 1, 0;\n}"
      : WEFT_GDN_D32
      : "r"(a[First]), "r"(a[First + 1]), "r"(a[First + 2]), "r"(a[First + 3]), "l"(b),
        "r"(accumulate));
}

/// D (64 x 128) += A B, A in registers, B N-major (mn_major_128).
template <int First, int Count>
__device__ __forceinline__ void mma_f16_128_a(float (&d)[64], const uint32_t (&a)[Count],
                                              uint64_t b) {
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 {" WEFT_GDN_R64
      "}, {%64, %65, %66, %67}, %68, p, 1, 1, 1;\n}"
      : WEFT_GDN_D64
      : "r"(a[First]), "r"(a[First + 1]), "r"(a[First + 2]), "r"(a[First + 3]), "l"(b));
}

#undef WEFT_GDN_R32
#undef WEFT_GDN_R64
#undef WEFT_GDN_F8
#undef WEFT_GDN_D32
#undef WEFT_GDN_D64

}  // namespace weft::cuda
