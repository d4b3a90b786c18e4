#pragma once

// The KV formats of the CUDA backend: how a block lies in memory, how a row gets in, and how codes
// become operands of bf16 products. The only code that knows. A block of B tokens and G heads:
//
//   K codes [G][B][D], V codes [G][B][D]                 bf16, a byte, or half of one; rows padded
//   K scales [G][S][B], V scales [G][S][B]               f32; S a row: 1, int4 D / 64, static none
//
// so that the rows of one head lie together (TMA boxes of codes, plain copies of scales), and a
// copied block takes its scales along. Codes and scales: kernels/kv_codes.h. Within a 32-bit word
// of W codes, dimension i has place i / 2 + i % 2 * W / 2: what shares the word's halves bit by bit
// is a pair of neighbours, an operand of a product (kv_place).
//
// Codes become bf16 or f16 without loss (all have at most 8 significant bits), and scales are
// applied to the scores of a key and to the weight of a value: no dequantised copy exists. Every
// byte is a finite number to widen(), so what a row doesn't see can be multiplied by 0, but for its
// scales.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/kv_codes.h"

namespace weft::cuda {

/// Where code i of a word of `codes` codes lies in it, counted in codes.
__host__ __device__ constexpr int kv_place(int i, int codes) {
  return i / 2 + i % 2 * (codes / 2);
}

__device__ __forceinline__ uint32_t bits(__nv_bfloat162 x) {
  return *reinterpret_cast<const uint32_t*>(&x);
}
__device__ __forceinline__ __nv_bfloat162 bf16_pair(uint32_t x) {
  return *reinterpret_cast<const __nv_bfloat162*>(&x);
}

__device__ __forceinline__ __half2 f16_pair(uint32_t x) {
  return *reinterpret_cast<const __half2*>(&x);
}
__device__ __forceinline__ uint32_t bits(__half2 x) {
  return *reinterpret_cast<const uint32_t*>(&x);
}

// One instruction: two constants would be two.
/// (x & mask) | base.
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t mask, uint32_t base) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xEA;" : "=r"(y) : "r"(x), "r"(mask), "r"(base));
  return y;
}
/// (x & mask) ^ base.
__device__ __forceinline__ uint32_t and_xor(uint32_t x, uint32_t mask, uint32_t base) {
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0x6A;" : "=r"(y) : "r"(x), "r"(mask), "r"(base));
  return y;
}

// A format's widen<P>(word, zeros): pair P of a word, as two bf16. `zeros` is of formats with zero
// points: of the low and the high half (twice). Of codes of 8 bits, value_pair<P>(word) is the pair
// as two floats, value_f16<P>(word) as two f16 value / kValueUnit, key_f16<P>(word) of int8 as
// (kKeyZero + value) / kKeyUnit.

struct KvBf16 {
  static constexpr int kBits = 16;
  static constexpr bool kScaled = false, kZeros = false;
};

struct KvInt8 {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeros = false;

  static __host__ __device__ __forceinline__ uint8_t code(float scaled) {
    return kv_int8_code(scaled);
  }
  static __host__ __device__ __forceinline__ float value(uint8_t code) {
    return static_cast<float>(static_cast<int8_t>(code));
  }
  /// (128 + the lower 7 bits) - (128 or, if negative, 256).
  template <int Pair>
  static __device__ __forceinline__ uint32_t widen(uint32_t word, uint32_t = 0) {
    const uint32_t pair = Pair == 0 ? word : word >> 8;
    return bits(__hsub2(bf16_pair(and_or(pair, 0x007F007Fu, 0x43004300u)),
                        bf16_pair(and_or(pair, 0x00800080u, 0x43004300u))));
  }
  /// Subnormal: a mask alone.
  static constexpr float kKeyUnit = 0x1p24f, kKeyZero = 128;
  template <int Pair>
  static __device__ __forceinline__ uint32_t key_f16(uint32_t word) {
    return and_xor(Pair == 0 ? word : word >> 8, 0x00FF00FFu, 0x00800080u);
  }
  /// 1024 + (128 + code), less 1152.
  static constexpr float kValueUnit = 1;
  template <int Pair>
  static __device__ __forceinline__ uint32_t value_f16(uint32_t word) {
    const uint32_t x = and_xor(Pair == 0 ? word : word >> 8, 0x00FF00FFu, 0x64806480u);
    return bits(__hsub2(f16_pair(x), f16_pair(0x64806480u)));
  }
  template <int Pair>
  static __device__ __forceinline__ float2 value_pair(uint32_t word) {
    return __half22float2(f16_pair(value_f16<Pair>(word)));
  }
};

struct KvFp8 {
  static constexpr int kBits = 8;
  static constexpr bool kScaled = true, kZeros = false;

  static __host__ __device__ __forceinline__ uint8_t code(float scaled) {
    return kv_fp8_code(scaled);
  }
  static __host__ __device__ __forceinline__ float value(uint8_t code) {
    return e4m3_to_float(code);
  }
  /// Exponent and mantissa moved to bf16's place are 2^-120 of the value, subnormal ones too.
  template <int Pair>
  static __device__ __forceinline__ uint32_t widen(uint32_t word, uint32_t = 0) {
    return bits(__hmul2(bf16_pair(small<Pair>(word)), bf16_pair(0x7B807B80u)));
  }
  /// By way of f16: an instruction for two neighbours in memory.
  template <int Pair>
  static __device__ __forceinline__ float2 value_pair(uint32_t word) {
    uint32_t low, high;
    asm("{\n.reg .b16 a, b;\nmov.b32 {a, b}, %2;\ncvt.rn.f16x2.e4m3x2 %0, a;\n"
        "cvt.rn.f16x2.e4m3x2 %1, b;\n}"
        : "=r"(low), "=r"(high)
        : "r"(word));
    return Pair == 0 ? make_float2(__low2float(f16_pair(low)), __low2float(f16_pair(high)))
                     : make_float2(__high2float(f16_pair(low)), __high2float(f16_pair(high)));
  }
  template <int Pair>
  static __device__ __forceinline__ uint32_t small(uint32_t word) {
    const uint32_t pair = Pair == 1 ? word : word << 8;
    return (pair & 0x80008000u) | (pair >> 4 & 0x07F007F0u);
  }
  /// Moved to f16's place, 2^-8 of the value.
  static constexpr float kValueUnit = 0x1p8f;
  template <int Pair>
  static __device__ __forceinline__ uint32_t value_f16(uint32_t word) {
    const uint32_t pair = Pair == 1 ? word : word << 8;
    return (pair & 0x80008000u) | (pair >> 1 & 0x3F803F80u);
  }
};

struct KvInt4 {
  static constexpr int kBits = 4;
  static constexpr bool kScaled = true, kZeros = true;

  /// bf16 bits of 128 + the zero point in a scale.
  static __device__ __forceinline__ uint32_t zero(float scale) {
    return (__float_as_uint(scale) & 0xFu) | 0x4300u;
  }
  static __device__ __forceinline__ uint32_t twice(uint32_t zero) { return zero * 0x10001u; }
  /// As two f16: the codes (or zero points in the low bits of the halves, pair 0) times 2^-24, of
  /// odd pairs 2^-20. Subnormal: a mask alone.
  template <int Pair>
  static __device__ __forceinline__ uint32_t tiny_f16(uint32_t word) {
    return (Pair < 2 ? word : word >> 8) & (Pair % 2 == 0 ? 0x000F000Fu : 0x00F000F0u);
  }
  /// (128 + code) - (128 + zero).
  template <int Pair>
  static __device__ __forceinline__ uint32_t widen(uint32_t word, uint32_t zeros) {
    const uint32_t pair = and_or(word >> 4 * Pair, 0x000F000Fu, 0x43004300u);
    return bits(__hsub2(bf16_pair(pair), bf16_pair(zeros)));
  }
};

/// Calls body(Format{}) with the struct of a format's codes.
template <class Body>
auto with_kv_format(KvFormat format, Body&& body) {
  switch (format) {
    case KvFormat::kInt8Dynamic:
    case KvFormat::kInt8: return body(KvInt8{});
    case KvFormat::kFp8Block:
    case KvFormat::kFp8: return body(KvFp8{});
    case KvFormat::kInt4: return body(KvInt4{});
    default:
      CHECK(format == KvFormat::kBf16, "the CUDA backend keeps no f32 K and V");
      return body(KvBf16{});
  }
}

/// Where rows lie in a block; plane 0 is K, 1 is V.
struct KvBlockLayout {
  int64_t heads, block_size, row_bytes;
  int scales;  // of a row

  __host__ __device__ int64_t code_offset(int plane, int64_t head, int64_t token) const {
    return ((plane * heads + head) * block_size + token) * row_bytes;
  }
  __host__ __device__ int64_t scale_offset(int plane, int64_t head, int64_t group,
                                           int64_t token) const {
    return code_offset(2, 0, 0) +
           (((plane * heads + head) * scales + group) * block_size + token) * 4;
  }
  __host__ __device__ int64_t bytes() const { return scale_offset(2, 0, 0, 0); }
};
/// Rows of codes below 128 bytes are an equal part of them, so that copies take 128 at once.
inline KvBlockLayout kv_layout(const KvShape& shape) {
  const int bits = kv_code_bits(shape.format), width = shape.head_dim <= 64 ? 64 : 128;
  int64_t row_bytes = int64_t{shape.head_dim} * bits / 8;
  if (bits < 16) {
    row_bytes = shape.head_dim <= width && width * bits < 1024 ? width * bits / 8
                                                               : (row_bytes + 15) / 16 * 16;
  }
  return {shape.heads, shape.block_size, row_bytes,
          kv_scales_per_row(shape.format, shape.head_dim)};
}

}  // namespace weft::cuda
