#pragma once

// The one definition of the codes of quantised KV caches, so that every backend holds equal codes
// and scales whatever its layout. A row is K (after norm and rope) or V of one token and head; its
// codes depend on nothing else, so nothing is ever scaled again. Values are f32 when they come.
//
//   int8_dynamic: s = a / 127,  q = clamp(rne(x * (127 / a)), -127, 127)
//   fp8_block:    s = a / 448,  q = e4m3(x * (448 / a)), nearest even, at most +-448
//   int8:         s given,      q = clamp(rne(x * (1 / s)), -127, 127)
//   fp8:          s given,      q = e4m3(x * (1 / s)), nearest even, at most +-448
//   int4:         r = 7.5 / m, z = rne(-l * r), s = m / 7.5 with z for its 4 lowest bits,
//                 q = clamp(rne(x * r) + z, 0, 15)
//
// a = max(amax, 1e-30); m = max(h / 2 - l / 2, 1e-30), h = max(0, the largest), l = min(0, the
// least) of 64 dims. Each division, product and difference is rounded to f32 once. The value of a
// code is q * s, of int4 (q - z) * s. A row of a dynamic format (64 dims of int4) with a NaN or an
// infinity has s = NaN and codes 0: all of it is NaN. In a static format a NaN becomes 0, an
// infinity the largest code.

#include <bit>
#include <limits>

#include "kernels/kv_view.h"
#include "tensor/dtype.h"

namespace weft {

// What CPU kernels call is always inlined: a file that is compiled for one instruction set must not
// lend its copy of a function to the others.

inline constexpr int kKvInt4Group = 64;  ///< dims that share a scale; a head's last may be fewer

[[gnu::always_inline]] constexpr int kv_code_bits(KvFormat format) {
  switch (format) {
    case KvFormat::kF32: return 32;
    case KvFormat::kBf16: return 16;
    case KvFormat::kInt4: return 4;
    default: return 8;
  }
}
/// Scales stored beside the codes of a row of D values, 4 bytes each.
[[gnu::always_inline]] constexpr int kv_scales_per_row(KvFormat format, int head_dim) {
  switch (format) {
    case KvFormat::kInt8Dynamic:
    case KvFormat::kFp8Block: return 1;
    case KvFormat::kInt4: return (head_dim + kKvInt4Group - 1) / kKvInt4Group;
    default: return 0;
  }
}

/// The largest value of a code of 8 bits.
[[gnu::always_inline]] constexpr float kv_largest_code(KvFormat format) {
  return format == KvFormat::kInt8Dynamic || format == KvFormat::kInt8 ? 127.0f : kE4m3Max;
}

struct KvRowScale {
  float inverse, scale;
};
/// `amax` of the row; infinite or NaN if any value is.
[[gnu::always_inline]] constexpr KvRowScale kv_row_scale(float amax, float largest_code) {
  constexpr float kLeast = 1e-30f;
  if (!(amax <= std::numeric_limits<float>::max())) {
    return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  }
  const float a = amax > kLeast ? amax : kLeast;
  return {largest_code / a, a / largest_code};
}

/// Nearest even of |x| <= 2^22.
constexpr int kv_round(float x) {
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: sums are whole numbers
  return static_cast<int>((x + kRound) - kRound);
}

/// The code of a value times KvRowScale::inverse (a product that must not be fused into a sum).
constexpr uint8_t kv_int8_code(float scaled) {
  if (!(scaled == scaled)) return 0;
  return static_cast<uint8_t>(
      kv_round(scaled > 127.0f ? 127.0f : (scaled < -127.0f ? -127.0f : scaled)));
}
constexpr uint8_t kv_fp8_code(float scaled) {
  return scaled == scaled ? float_to_e4m3(scaled) : uint8_t{0};
}

/// Scale and zero point of a group of int4 codes.
struct KvInt4Scale {
  float inverse, scale;
  int zero;
};
/// `high` and `low` of the group; `finite`: all values are.
constexpr KvInt4Scale kv_int4_scale(float high, float low, bool finite) {
  constexpr float kLeast = 1e-30f, kHalf = 7.5f;
  if (!finite) return {0.0f, std::numeric_limits<float>::quiet_NaN(), 0};
  const float h = high > 0.0f ? high : 0.0f, l = low < 0.0f ? low : 0.0f;
  const float m = 0.5f * h - 0.5f * l, half = m > kLeast ? m : kLeast;
  const float inverse = kHalf / half, scale = half / kHalf;
  // The comparison keeps a compiler from fusing the product into kv_round's sum.
  const float scaled = -l * inverse;
  const int zero = kv_round(scaled > 15.0f ? 15.0f : scaled);
  const uint32_t bits = (std::bit_cast<uint32_t>(scale) & ~0xFu) | static_cast<uint32_t>(zero);
  return {inverse, std::bit_cast<float>(bits), zero};
}
/// The zero point in a stored scale.
constexpr int kv_int4_zero(float scale) {
  return static_cast<int>(std::bit_cast<uint32_t>(scale) & 0xFu);
}
/// 0 .. 15, of a value times KvInt4Scale::inverse.
constexpr uint8_t kv_int4_code(float scaled, int zero) {
  if (!(scaled == scaled)) return 0;
  const int q = kv_round(scaled > 15.0f ? 15.0f : (scaled < -15.0f ? -15.0f : scaled)) + zero;
  return static_cast<uint8_t>(q > 15 ? 15 : (q < 0 ? 0 : q));
}
constexpr float kv_int4_value(uint8_t code, float scale) {
  return static_cast<float>(static_cast<int>(code) - kv_int4_zero(scale)) * scale;
}

}  // namespace weft
