#pragma once

// wgmma: the matrix instruction of a Hopper warpgroup (4 consecutive warps, the first at a multiple
// of 4; all 128 threads call). D (64 x N, f32 in registers) = A (64 x K) B (K x N) [+ D], K = 16
// for bf16 and f16, 32 for e4m3; A from shared memory or registers, B from shared memory.
//
// Order of calls: wgmma_fence() (after ordinary writes to D or to A in registers), the products,
// wgmma_commit(), wgmma_wait<pending groups>(); until then D, A in registers and the shared memory
// belong to the hardware. hold(d) keeps the compiler from moving accesses of D over these.
//
// D: thread t of the warpgroup holds, with row r = 16 (t / 32) + (t % 32) / 4, c = 2 (t % 4):
//   d[4j + 0], d[4j + 1]: (r,     8j + c), (r,     8j + c + 1)
//   d[4j + 2], d[4j + 3]: (r + 8, 8j + c), (r + 8, 8j + c + 1)
// A of bf16 or f16 in registers (64 x 16): a[0] = (r, c..c+1), a[1] = (r + 8, c..), a[2] = (r, c
// + 8..),
//   a[3] = (r + 8, c + 8..): the D layout of two neighbouring j, rounded.
// A of e4m3 in registers (64 x 32): with c = 4 (t % 4), a[0] = (r, c..c+3), a[1] = (r + 8, c..),
//   a[2] = (r, c + 16..), a[3] = (r + 8, c + 16..).

#include <cstdint>

#include "kernels/cuda/common/ptx.h"

namespace weft::cuda {

// ---- Descriptors of matrices in shared memory

enum class Swizzle : uint64_t { kNone = 0, k128 = 1, k64 = 2, k32 = 3 };

/// Bits 0-13 address, 16-29 leading, 32-45 stride byte offset (all / 16), 62-63 swizzle.
__device__ __forceinline__ uint64_t matrix_descriptor(uint32_t address, uint32_t leading_bytes,
                                                      uint32_t stride_bytes, Swizzle swizzle) {
  return (static_cast<uint64_t>((address & 0x3FFFF) >> 4)) |
         (static_cast<uint64_t>(leading_bytes >> 4) << 16) |
         (static_cast<uint64_t>(stride_bytes >> 4) << 32) | (static_cast<uint64_t>(swizzle) << 62);
}

/// K contiguous ("K-major"): rows (of A: M, of B: N) of 128 bytes = 64 bf16 or 128 e4m3, 128-byte
/// swizzle, groups of 8 rows 1024 bytes apart, as TMA writes a box of 128 bytes x rows. The tile is
/// aligned to 1024 bytes; step along K within the 128 bytes with advance(d, 32) a product (16 bf16
/// or 32 e4m3), along rows with advance(d, 128 * rows), rows a multiple of 8.
__device__ __forceinline__ uint64_t k_major_128(const void* tile) {
  return matrix_descriptor(shared_address(tile), 16, 1024, Swizzle::k128);
}
/// The same with 64-byte rows (32 bf16), 64-byte swizzle, groups of 8 rows 512 bytes apart.
__device__ __forceinline__ uint64_t k_major_64(const void* tile) {
  return matrix_descriptor(shared_address(tile), 16, 512, Swizzle::k64);
}
/// M or N contiguous ("MN-major", not e4m3; pass transpose = true for that operand): panels of 64
/// elements (128 bytes) x K rows, 128-byte swizzle, as TMA writes boxes of 64 elements x K rows;
/// panels `panel_bytes` apart (128 * rows of the panel), ignored if M or N of the product is 64.
/// Step along K by 16 rows with advance(d, 2048).
__device__ __forceinline__ uint64_t mn_major_128(const void* tile, uint32_t panel_bytes) {
  return matrix_descriptor(shared_address(tile), panel_bytes, 1024, Swizzle::k128);
}
__device__ __forceinline__ uint64_t advance(uint64_t descriptor, uint32_t bytes) {
  return descriptor + (bytes >> 4);
}
/// Where TMA with 128-byte swizzle puts byte `byte` (< 128) of 128-byte row `row` of a tile.
__device__ __forceinline__ uint32_t swizzled_128(uint32_t row, uint32_t byte) {
  return row * 128 + (byte ^ ((row & 7) << 4));
}

// ---- Groups

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int Pending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(Pending) : "memory");
}
template <int Count>
__device__ __forceinline__ void hold(float (&d)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    asm volatile("" : "+f"(d[i])::"memory");
  }
}
template <int Count>
__device__ __forceinline__ void hold(uint32_t (&a)[Count]) {
#pragma unroll
  for (int i = 0; i < Count; ++i) {
    asm volatile("" : "+r"(a[i])::"memory");
  }
}

// ---- Products. `accumulate` = 0 overwrites D.
// Wgmma<N>::bf16(d, desc_a, desc_b, accumulate), ::bf16_a(d, a, desc_b, accumulate) with A in
// registers, ::f16, ::f16_a, ::e4m3 and ::e4m3_a likewise.

template <int N>
struct Wgmma;

#define WEFT_R0                      \
  "%0, %1, %2, %3, %4, %5, %6, %7, " \
  "%8, %9, %10, %11, %12, %13, %14, %15"
#define WEFT_R1                              \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31"
#define WEFT_R2                              \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47"
#define WEFT_R3                              \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63"
#define WEFT_R4                              \
  "%64, %65, %66, %67, %68, %69, %70, %71, " \
  "%72, %73, %74, %75, %76, %77, %78, %79"
#define WEFT_R5                              \
  "%80, %81, %82, %83, %84, %85, %86, %87, " \
  "%88, %89, %90, %91, %92, %93, %94, %95"
#define WEFT_R6                                  \
  "%96, %97, %98, %99, %100, %101, %102, %103, " \
  "%104, %105, %106, %107, %108, %109, %110, %111"
#define WEFT_R7                                      \
  "%112, %113, %114, %115, %116, %117, %118, %119, " \
  "%120, %121, %122, %123, %124, %125, %126, %127"
#define WEFT_REGS4 "%0, %1, %2, %3"
#define WEFT_REGS8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define WEFT_REGS16 WEFT_R0
#define WEFT_REGS32 WEFT_R0 ", " WEFT_R1
#define WEFT_REGS40 WEFT_R0 ", " WEFT_R1 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define WEFT_REGS48 WEFT_R0 ", " WEFT_R1 ", " WEFT_R2
#define WEFT_REGS64 WEFT_R0 ", " WEFT_R1 ", " WEFT_R2 ", " WEFT_R3
#define WEFT_REGS96 WEFT_R0 ", " WEFT_R1 ", " WEFT_R2 ", " WEFT_R3 ", " WEFT_R4 ", " WEFT_R5
#define WEFT_REGS128 WEFT_REGS96 ", " WEFT_R6 ", " WEFT_R7
#define WEFT_F4(i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define WEFT_F16(i) WEFT_F4(i), WEFT_F4(i + 4), WEFT_F4(i + 8), WEFT_F4(i + 12)
#define WEFT_ACC4 WEFT_F4(0)
#define WEFT_ACC8 WEFT_F4(0), WEFT_F4(4)
#define WEFT_ACC16 WEFT_F16(0)
#define WEFT_ACC32 WEFT_F16(0), WEFT_F16(16)
#define WEFT_ACC40 WEFT_F16(0), WEFT_F16(16), WEFT_F4(32), WEFT_F4(36)
#define WEFT_ACC48 WEFT_F16(0), WEFT_F16(16), WEFT_F16(32)
#define WEFT_ACC64 WEFT_F16(0), WEFT_F16(16), WEFT_F16(32), WEFT_F16(48)
#define WEFT_ACC96 WEFT_F16(0), WEFT_F16(16), WEFT_F16(32), WEFT_F16(48), WEFT_F16(64), WEFT_F16(80)
#define WEFT_ACC128                                                                                \
  WEFT_F16(0), WEFT_F16(16), WEFT_F16(32), WEFT_F16(48), WEFT_F16(64), WEFT_F16(80), WEFT_F16(96), \
      WEFT_F16(112)

// o0.. are the numbers of the operands after D's N / 2 registers.
#define WEFT_WGMMA_16(NAME, N, HALF, o0, o1, o2, o3, o4, o5, o6)                               \
  template <bool TransposeA = false, bool TransposeB = false>                                  \
  static __device__ __forceinline__ void NAME(float(&d)[HALF], uint64_t a, uint64_t b,         \
                                              int accumulate) {                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2                                      \
                 ", 0;\n"                                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #NAME "." #NAME             \
                 " {" WEFT_REGS##HALF "}, %" #o0 ", %" #o1 ", p, 1, 1, %" #o3 ", %" #o4 ";\n}" \
                 : WEFT_ACC##HALF                                                              \
                 : "l"(a), "l"(b), "r"(accumulate), "n"(TransposeA ? 1 : 0),                   \
                   "n"(TransposeB ? 1 : 0));                                                   \
  }                                                                                            \
  template <bool TransposeB = false>                                                           \
  static __device__ __forceinline__ void NAME##_a(float(&d)[HALF], const uint32_t(&a)[4],      \
                                                  uint64_t b, int accumulate) {                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5                                      \
                 ", 0;\n"                                                                      \
                 "wgmma.mma_async.sync.aligned.m64n" #N "k16.f32." #NAME "." #NAME             \
                 " {" WEFT_REGS##HALF "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4     \
                                      ", p, 1, 1, %" #o6 ";\n}"                                \
                 : WEFT_ACC##HALF                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate),        \
                   "n"(TransposeB ? 1 : 0));                                                   \
  }
#define WEFT_WGMMA(N, HALF, o0, o1, o2, o3, o4, o5, o6)                                         \
  template <>                                                                                   \
  struct Wgmma<N> {                                                                             \
    static constexpr int kRegisters = HALF;                                                     \
    WEFT_WGMMA_16(bf16, N, HALF, o0, o1, o2, o3, o4, o5, o6)                                    \
    WEFT_WGMMA_16(f16, N, HALF, o0, o1, o2, o3, o4, o5, o6)                                     \
    static __device__ __forceinline__ void e4m3(float (&d)[HALF], uint64_t a, uint64_t b,       \
                                                int accumulate) {                               \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o2                                     \
                   ", 0;\n"                                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" WEFT_REGS##HALF \
                   "}, %" #o0 ", %" #o1 ", p, 1, 1;\n}"                                         \
                   : WEFT_ACC##HALF                                                             \
                   : "l"(a), "l"(b), "r"(accumulate));                                          \
    }                                                                                           \
    static __device__ __forceinline__ void e4m3_a(float (&d)[HALF], const uint32_t (&a)[4],     \
                                                  uint64_t b, int accumulate) {                 \
      asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, %" #o5                                     \
                   ", 0;\n"                                                                     \
                   "wgmma.mma_async.sync.aligned.m64n" #N "k32.f32.e4m3.e4m3 {" WEFT_REGS##HALF \
                   "}, {%" #o0 ", %" #o1 ", %" #o2 ", %" #o3 "}, %" #o4 ", p, 1, 1;\n}"         \
                   : WEFT_ACC##HALF                                                             \
                   : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulate));      \
    }                                                                                           \
  }

WEFT_WGMMA(8, 4, 4, 5, 6, 7, 8, 9, 10);
WEFT_WGMMA(16, 8, 8, 9, 10, 11, 12, 13, 14);
WEFT_WGMMA(32, 16, 16, 17, 18, 19, 20, 21, 22);
WEFT_WGMMA(64, 32, 32, 33, 34, 35, 36, 37, 38);
WEFT_WGMMA(80, 40, 40, 41, 42, 43, 44, 45, 46);
WEFT_WGMMA(96, 48, 48, 49, 50, 51, 52, 53, 54);
WEFT_WGMMA(128, 64, 64, 65, 66, 67, 68, 69, 70);
WEFT_WGMMA(192, 96, 96, 97, 98, 99, 100, 101, 102);
WEFT_WGMMA(256, 128, 128, 129, 130, 131, 132, 133, 134);

#undef WEFT_R0
#undef WEFT_R1
#undef WEFT_R2
#undef WEFT_R3
#undef WEFT_R4
#undef WEFT_R5
#undef WEFT_R6
#undef WEFT_R7
#undef WEFT_REGS4
#undef WEFT_REGS8
#undef WEFT_REGS16
#undef WEFT_REGS40
#undef WEFT_ACC4
#undef WEFT_ACC8
#undef WEFT_ACC16
#undef WEFT_ACC40
#undef WEFT_REGS32
#undef WEFT_ACC32
#undef WEFT_REGS48
#undef WEFT_ACC48
#undef WEFT_REGS64
#undef WEFT_ACC64
#undef WEFT_REGS96
#undef WEFT_ACC96
#undef WEFT_REGS128
#undef WEFT_ACC128
#undef WEFT_F4
#undef WEFT_F16
#undef WEFT_WGMMA_16
#undef WEFT_WGMMA

}  // namespace weft::cuda
