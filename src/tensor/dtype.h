#pragma once

#include <bit>
#include <cstdint>
#include <string_view>

namespace weft {

enum class DType : uint8_t {
  kF32,
  kBF16,
  kF16,
  kF64,
  kFP8E4M3,
  kFP8E5M2,
  kI64,
  kI32,
  kI16,
  kI8,
  kU8,
  kBool
};

constexpr int dtype_size(DType dtype) {
  switch (dtype) {
    case DType::kF64:
    case DType::kI64: return 8;
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16:
    case DType::kI16: return 2;
    default: return 1;
  }
}

/// The safetensors spelling: "F32", "BF16", "F8_E4M3", ...
constexpr std::string_view dtype_name(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "F32";
    case DType::kBF16: return "BF16";
    case DType::kF16: return "F16";
    case DType::kF64: return "F64";
    case DType::kFP8E4M3: return "F8_E4M3";
    case DType::kFP8E5M2: return "F8_E5M2";
    case DType::kI64: return "I64";
    case DType::kI32: return "I32";
    case DType::kI16: return "I16";
    case DType::kI8: return "I8";
    case DType::kU8: return "U8";
    case DType::kBool: return "BOOL";
  }
  return "?";
}

/// bfloat16 bits; arithmetic is done in float.
using bf16 = uint16_t;

constexpr float bf16_to_float(bf16 x) {
  return std::bit_cast<float>(static_cast<uint32_t>(x) << 16);
}

/// Round to nearest even; NaN stays NaN.
constexpr bf16 float_to_bf16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return static_cast<bf16>((bits >> 16) | 0x40);
  return static_cast<bf16>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16);
}

/// Bits of an fp8 number with 4 exponent and 3 mantissa bits (OCP FP8 e4m3fn: no infinities, 0x7F
/// and 0xFF are NaN, the largest is 448).
constexpr float e4m3_to_float(uint8_t x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x80u) << 24;
  const uint32_t exponent = (x >> 3) & 0xFu, mantissa = x & 0x7u;
  if ((x & 0x7Fu) == 0x7Fu) return std::bit_cast<float>(sign | 0x7FC00000u);
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-9
    const float value = static_cast<float>(mantissa) * 0x1p-9f;
    return sign ? -value : value;
  }
  return std::bit_cast<float>(sign | (exponent + 120) << 23 | mantissa << 20);
}

inline constexpr float kE4m3Max = 448.0f;

/// Rounds to nearest even; what lies beyond +-448 becomes +-448, NaN stays NaN.
constexpr uint8_t float_to_e4m3(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x), magnitude = bits & 0x7FFFFFFFu;
  const auto sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  if (magnitude > 0x7F800000u) return sign | 0x7F;
  if (magnitude >= 0x43E00000u) return sign | 0x7E;  // 448
  uint32_t code = 0;
  if (magnitude < 0x3C800000u) {  // below 2^-6: a multiple of 2^-9, by the float whose ulp that is
    const float shifted = std::bit_cast<float>(magnitude) + 0x1p14f;
    code = std::bit_cast<uint32_t>(shifted) - 0x46800000u;
  } else {
    const uint32_t rounded = magnitude + 0x7FFFFu + (magnitude >> 20 & 1u);
    code = (rounded >> 20) - (120u << 3);
  }
  return static_cast<uint8_t>(sign | code);
}

/// IEEE half-precision bits; arithmetic is done in float.
using f16 = uint16_t;

constexpr float f16_to_float(f16 x) {
  const uint32_t sign = static_cast<uint32_t>(x & 0x8000u) << 16;
  const uint32_t exponent = (x >> 10) & 0x1Fu, mantissa = x & 0x3FFu;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2^-24
    const float value = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -value : value;
  }
  const uint32_t bits = exponent == 31 ? 0x7F800000u : (exponent + 112) << 23;
  return std::bit_cast<float>(sign | bits | (mantissa << 13));
}

/// Round to nearest even; too large becomes infinity, NaN stays NaN.
constexpr f16 float_to_f16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7FFFFFFFu;
  if (magnitude > 0x7F800000u) return static_cast<f16>(sign | 0x7E00u);
  if (magnitude >= 0x477FF000u) return static_cast<f16>(sign | 0x7C00u);  // 65520 and more
  if (magnitude < 0x38800000u) {  // below 2^-14: count of 2^-24, rounded by the adder
    const float sum = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<f16>(sign | (std::bit_cast<uint32_t>(sum) - 0x3F000000u));
  }
  const uint32_t odd = (magnitude >> 13) & 1u;
  return static_cast<f16>(sign | ((magnitude - 0x38000000u + 0xFFFu + odd) >> 13));
}

}  // namespace weft
