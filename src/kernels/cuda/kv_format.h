#pragma once

// The KV formats of the CUDA backend: how a block lies in memory, how a row gets in, and how codes
// become operands of bf16 products. The only code that knows. A block of B tokens and G heads:
//
//   K codes [G][B][D], V codes [G][B][D]                 bf16, or one byte
//   K scales [G][B], V scales [G][B]                     f32, of quantised formats alone
//
// so that the rows of one head lie together (TMA boxes of codes, plain copies of scales), and a
// copied block takes its scales along. Codes and scales: kernels/kv_codes.h.
//
// Codes become bf16 without loss (both formats have at most 8 significant bits), and scales are
// applied to the scores of a key and to the weight of a value: no dequantised copy exists. Every
// byte is a finite number to widen(), so what a row doesn't see can be multiplied by 0, but for its
// scales.

#include <cuda_bf16.h>

#include <cstdint>

#include "base/check.h"
#include "kernels/kv_codes.h"

namespace weft::cuda {

/// Two bytes of a word as halves of another: Low, High are their numbers; in the halves' low or
/// high bytes.
template <int Low, int High>
__device__ __forceinline__ uint32_t bytes_to_low(uint32_t word) {
  return __byte_perm(word, 0, 0x4040 | Low | High << 8);
}
template <int Low, int High>
__device__ __forceinline__ uint32_t bytes_to_high(uint32_t word) {
  return __byte_perm(word, 0, 0x0404 | Low << 4 | High << 12);
}
__device__ __forceinline__ uint32_t bits(__nv_bfloat162 x) {
  return *reinterpret_cast<const uint32_t*>(&x);
}
__device__ __forceinline__ __nv_bfloat162 bf16_pair(uint32_t x) {
  return *reinterpret_cast<const __nv_bfloat162*>(&x);
}

struct KvBf16 {
  static constexpr KvFormat kFormat = KvFormat::kBf16;
  static constexpr int kCodeBytes = 2;
  static constexpr bool kScaled = false;
};

struct KvInt8 {
  static constexpr KvFormat kFormat = KvFormat::kInt8Dynamic;
  static constexpr int kCodeBytes = 1;
  static constexpr bool kScaled = true;

  static __device__ __forceinline__ uint8_t code(float x, float inverse) {
    return kv_int8_code(__fmul_rn(x, inverse));
  }
  static float value(uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)); }
  /// Codes Low and High of four, as bf16: (128 + the lower 7 bits) - (128 or, if negative, 256).
  template <int Low, int High>
  static __device__ __forceinline__ uint32_t widen(uint32_t codes) {
    const uint32_t pair = bytes_to_low<Low, High>(codes);
    return bits(__hsub2(bf16_pair((pair & 0x007F007Fu) | 0x43004300u),
                        bf16_pair((pair & 0x00800080u) | 0x43004300u)));
  }
};

struct KvFp8 {
  static constexpr KvFormat kFormat = KvFormat::kFp8Block;
  static constexpr int kCodeBytes = 1;
  static constexpr bool kScaled = true;

  static __device__ __forceinline__ uint8_t code(float x, float inverse) {
    return kv_fp8_code(__fmul_rn(x, inverse));
  }
  static float value(uint8_t code) { return e4m3_to_float(code); }
  /// Exponent and mantissa moved to bf16's place are 2^-120 of the value, subnormal ones too.
  template <int Low, int High>
  static __device__ __forceinline__ uint32_t widen(uint32_t codes) {
    const uint32_t pair = bytes_to_high<Low, High>(codes);
    const uint32_t small = (pair & 0x80008000u) | (pair >> 4 & 0x07F007F0u);
    return bits(__hmul2(bf16_pair(small), bf16_pair(0x7B807B80u)));
  }
};

/// Calls body(Format{}) with the struct of a format.
template <class Body>
auto with_kv_format(KvFormat format, Body&& body) {
  switch (format) {
    case KvFormat::kInt8Dynamic: return body(KvInt8{});
    case KvFormat::kFp8Block: return body(KvFp8{});
    default:
      CHECK(format == KvFormat::kBf16, "the CUDA backend keeps K and V as bf16, int8 or fp8");
      return body(KvBf16{});
  }
}

/// Where rows lie in a block; plane 0 is K, 1 is V.
struct KvBlockLayout {
  int64_t heads, block_size, row_bytes;
  bool scaled;

  __host__ __device__ int64_t code_offset(int plane, int64_t head, int64_t token) const {
    return ((plane * heads + head) * block_size + token) * row_bytes;
  }
  __host__ __device__ int64_t scale_offset(int plane, int64_t head, int64_t token) const {
    return code_offset(2, 0, 0) + ((plane * heads + head) * block_size + token) * 4;
  }
  __host__ __device__ int64_t bytes() const {
    return scaled ? scale_offset(2, 0, 0) : code_offset(2, 0, 0);
  }
};
template <class Format>
KvBlockLayout kv_layout(Format, const KvShape& shape) {
  return {shape.heads, shape.block_size, int64_t{shape.head_dim} * Format::kCodeBytes,
          Format::kScaled};
}

}  // namespace weft::cuda
