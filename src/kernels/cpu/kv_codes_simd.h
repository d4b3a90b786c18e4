#pragma once

// Codes of quantised KV caches on vectors: rows of floats to codes and codes to bf16. The scalar
// definition, which these equal bit for bit, is kernels/kv_codes.h.

#include <cstring>

#include "kernels/cpu/simd.h"
#include "kernels/kv_codes.h"

namespace weft::WEFT_ISA_NS {

/// How codes become bf16; int4's lose their zero point on the way.
enum class CodeKind : uint8_t { kInt8, kFp8, kInt4 };

#if defined(__AVX512F__)

struct IntVec {
  __m512i v;
};
inline IntVec to_int(Vec x) {  // nearest even; NaN is 0
  return {_mm512_maskz_cvtps_epi32(_mm512_cmp_ps_mask(x.v, x.v, _CMP_ORD_Q), x.v)};
}
inline IntVec clamp_int(IntVec x, int low, int high) {
  return {_mm512_min_epi32(_mm512_max_epi32(x.v, _mm512_set1_epi32(low)), _mm512_set1_epi32(high))};
}
inline IntVec add_int(IntVec x, int y) {
  return {_mm512_add_epi32(x.v, _mm512_set1_epi32(y))};
}
inline void store_bytes(uint8_t* p, IntVec x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x.v));
}
/// kv_fp8_code of 16 values.
inline IntVec to_e4m3(Vec x) {
  const auto set = [](int value) { return _mm512_set1_epi32(value); };
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i magnitude = _mm512_and_si512(bits, set(0x7FFFFFFF));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), set(0x80));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(magnitude, 20), set(1));
  const __m512i rounded = _mm512_add_epi32(_mm512_add_epi32(magnitude, set(0x7FFFF)), odd);
  __m512i code = _mm512_sub_epi32(_mm512_srli_epi32(rounded, 20), set(120 << 3));
  const __m512 shifted = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(0x1p14f));
  const __m512i small = _mm512_sub_epi32(_mm512_castps_si512(shifted), set(0x46800000));
  code = _mm512_mask_mov_epi32(code, _mm512_cmplt_epi32_mask(magnitude, set(0x3C800000)), small);
  code =
      _mm512_mask_mov_epi32(code, _mm512_cmpge_epi32_mask(magnitude, set(0x43E00000)), set(0x7E));
  const __mmask16 number = _mm512_cmple_epi32_mask(magnitude, set(0x7F800000));
  return {_mm512_maskz_or_epi32(number, code, sign)};
}

inline constexpr int kWiden = 32;  ///< codes of one step
using CodeVec = __m256i;           // 32 codes
using ZeroVec = __m256i;
inline CodeVec load_codes(const std::byte* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline void store_words(bf16* p, __m512i x) {
  _mm512_storeu_si512(p, x);
}
inline __m512i widen_int8(const std::byte* p) {  // of memory: no register has to be cut in two
  const auto* q = reinterpret_cast<const __m128i*>(p);
  const __m512 low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q)));
  const __m512 high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(q + 1)));
#if defined(WEFT_AVX512_BF16)
  return (__m512i)_mm512_cvtne2ps_pbh(high, low);
#else
  // The bf16 are the upper halves.
  const __m512i index =
      _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27,
                       25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(_mm512_castps_si512(low), index, _mm512_castps_si512(high));
#endif
}
inline __m512i widen_fp8(CodeVec codes) {
  // m * 2^-9 for the 8 subnormal codes.
  const __m512i subnormal = _mm512_broadcast_i32x4(
      _mm_setr_epi16(0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60));
  const __m512i words = _mm512_cvtepu8_epi16(codes);
  const __m512i magnitude = _mm512_and_si512(words, _mm512_set1_epi16(0x7F));
  __m512i out = _mm512_add_epi16(_mm512_slli_epi16(magnitude, 4), _mm512_set1_epi16(0x3C00));
  out = _mm512_mask_permutexvar_epi16(out, _mm512_cmplt_epi16_mask(magnitude, _mm512_set1_epi16(8)),
                                      magnitude, subnormal);
  const __m512i sign = _mm512_slli_epi16(_mm512_andnot_si512(magnitude, words), 8);
  return _mm512_or_si512(out, sign);
}
#if defined(__AVX512VBMI__)
/// The two bytes of the bf16 of each of the 128 magnitudes.
struct Fp8Tables {
  alignas(64) uint8_t low[128];
  alignas(64) uint8_t high[128];
  constexpr Fp8Tables() : low{}, high{} {
    constexpr uint16_t kSubnormal[8] = {0, 0x3B00, 0x3B80, 0x3BC0, 0x3C00, 0x3C20, 0x3C40, 0x3C60};
    for (int m = 0; m < 128; ++m) {
      const int bits = m < 8 ? kSubnormal[m] : (m << 4) + 0x3C00;
      low[m] = static_cast<uint8_t>(bits & 255);
      high[m] = static_cast<uint8_t>(bits >> 8);
    }
  }
};
inline constexpr Fp8Tables kFp8Tables;
/// `num` codes, a multiple of 64: each byte of a bf16 is looked up by the code's magnitude.
inline void widen_fp8_all(const std::byte* codes, int64_t num, bf16* out) {
  const __m512i low0 = _mm512_load_si512(kFp8Tables.low);
  const __m512i low1 = _mm512_load_si512(kFp8Tables.low + 64);
  const __m512i high0 = _mm512_load_si512(kFp8Tables.high);
  const __m512i high1 = _mm512_load_si512(kFp8Tables.high + 64);
  const __m512i sign = _mm512_set1_epi8(-128);
  // So that the lanes of 128 bits that bytes are paired in come out in order.
  const __m512i order = _mm512_setr_epi64(0, 4, 1, 5, 2, 6, 3, 7);
  for (int64_t i = 0; i < num; i += 64) {
    const __m512i x = _mm512_permutexvar_epi64(order, _mm512_loadu_si512(codes + i));
    const __m512i low = _mm512_permutex2var_epi8(low0, x, low1);
    const __m512i magnitude = _mm512_permutex2var_epi8(high0, x, high1);
    const __m512i high = _mm512_ternarylogic_epi64(magnitude, x, sign, 0xF8);  // a | (b & c)
    _mm512_storeu_si512(out + i, _mm512_unpacklo_epi8(low, high));
    _mm512_storeu_si512(out + i + 32, _mm512_unpackhi_epi8(low, high));
  }
}
#endif
inline __m512i widen_int4(CodeVec differences) {  // -15 .. 15
  alignas(64) static constexpr uint16_t kValues[32] = {
      0,      0x3F80, 0x4000, 0x4040, 0x4080, 0x40A0, 0x40C0, 0x40E0, 0x4100, 0x4110, 0x4120,
      0x4130, 0x4140, 0x4150, 0x4160, 0x4170, 0xC180, 0xC170, 0xC160, 0xC150, 0xC140, 0xC130,
      0xC120, 0xC110, 0xC100, 0xC0E0, 0xC0C0, 0xC0A0, 0xC080, 0xC040, 0xC000, 0xBF80};
  return _mm512_permutexvar_epi16(_mm512_cvtepi8_epi16(differences), _mm512_load_si512(kValues));
}
inline CodeVec low_nibbles(CodeVec x) {
  return _mm256_and_si256(x, _mm256_set1_epi8(15));
}
inline CodeVec high_nibbles(CodeVec x) {
  return low_nibbles(_mm256_srli_epi16(x, 4));
}
inline CodeVec subtract(CodeVec x, ZeroVec zero) {
  return _mm256_sub_epi8(x, zero);
}
/// Of a vector of K, two dims of 16 tokens: each token's zero twice.
inline ZeroVec k_zeros(const uint8_t* zeros) {
  const __m128i z = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  return _mm256_set_m128i(_mm_unpackhi_epi8(z, z), _mm_unpacklo_epi8(z, z));
}

#else  // AVX2: 16 codes a step, of which 32 make a vector of K

struct IntVec {
  __m256i lo, hi;
};
inline IntVec to_int(Vec x) {
  const auto convert = [](__m256 y) {
    return _mm256_cvtps_epi32(_mm256_and_ps(y, _mm256_cmp_ps(y, y, _CMP_ORD_Q)));
  };
  return {convert(x.lo), convert(x.hi)};
}
inline IntVec clamp_int(IntVec x, int low, int high) {
  const __m256i a = _mm256_set1_epi32(low), b = _mm256_set1_epi32(high);
  return {_mm256_min_epi32(_mm256_max_epi32(x.lo, a), b),
          _mm256_min_epi32(_mm256_max_epi32(x.hi, a), b)};
}
inline IntVec add_int(IntVec x, int y) {
  const __m256i v = _mm256_set1_epi32(y);
  return {_mm256_add_epi32(x.lo, v), _mm256_add_epi32(x.hi, v)};
}
inline void store_bytes(uint8_t* p, IntVec x) {
  const __m256i mask = _mm256_set1_epi32(0xFF);
  const __m256i words = _mm256_permute4x64_epi64(
      _mm256_packus_epi32(_mm256_and_si256(x.lo, mask), _mm256_and_si256(x.hi, mask)), 0xD8);
  _mm_storeu_si128(
      reinterpret_cast<__m128i*>(p),
      _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
}
inline __m256i to_e4m3_8(__m256 x) {
  const auto set = [](int value) { return _mm256_set1_epi32(value); };
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i magnitude = _mm256_and_si256(bits, set(0x7FFFFFFF));
  const __m256i sign = _mm256_and_si256(_mm256_srli_epi32(bits, 24), set(0x80));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(magnitude, 20), set(1));
  const __m256i rounded = _mm256_add_epi32(_mm256_add_epi32(magnitude, set(0x7FFFF)), odd);
  __m256i code = _mm256_sub_epi32(_mm256_srli_epi32(rounded, 20), set(120 << 3));
  const __m256 shifted = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(0x1p14f));
  const __m256i small = _mm256_sub_epi32(_mm256_castps_si256(shifted), set(0x46800000));
  code = _mm256_blendv_epi8(code, small, _mm256_cmpgt_epi32(set(0x3C800000), magnitude));
  code = _mm256_blendv_epi8(code, set(0x7E), _mm256_cmpgt_epi32(magnitude, set(0x43DFFFFF)));
  const __m256i no_number = _mm256_cmpgt_epi32(magnitude, set(0x7F800000));
  return _mm256_andnot_si256(no_number, _mm256_or_si256(code, sign));
}
inline IntVec to_e4m3(Vec x) {
  return {to_e4m3_8(x.lo), to_e4m3_8(x.hi)};
}

inline constexpr int kWiden = 32;
struct CodeVec {
  __m128i lo, hi;
};
using ZeroVec = CodeVec;
struct Words {
  __m256i lo, hi;
};
inline CodeVec load_codes(const std::byte* p) {
  const auto* q = reinterpret_cast<const __m128i*>(p);
  return {_mm_loadu_si128(q), _mm_loadu_si128(q + 1)};
}
inline void store_words(bf16* p, Words x) {
  auto* q = reinterpret_cast<__m256i*>(p);
  _mm256_storeu_si256(q, x.lo);
  _mm256_storeu_si256(q + 1, x.hi);
}
inline __m256i widen_int8_16(__m128i codes) {
  const auto high_half = [](__m128i eight) {
    return _mm256_srli_epi32(_mm256_castps_si256(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight))),
                             16);
  };
  return _mm256_permute4x64_epi64(
      _mm256_packus_epi32(high_half(codes), high_half(_mm_srli_si128(codes, 8))), 0xD8);
}
inline Words widen_int8(CodeVec codes) {
  return {widen_int8_16(codes.lo), widen_int8_16(codes.hi)};
}
inline Words widen_int8(const std::byte* p) {
  return widen_int8(load_codes(p));
}
inline __m256i widen_fp8_16(__m128i codes) {
  const __m256i words = _mm256_cvtepu8_epi16(codes);
  const __m256i magnitude = _mm256_and_si256(words, _mm256_set1_epi16(0x7F));
  __m256i out = _mm256_add_epi16(_mm256_slli_epi16(magnitude, 4), _mm256_set1_epi16(0x3C00));
  // m * 2^-9 by two tables of bytes, whose index is the low byte of a word.
  const __m128i low8 = _mm_setr_epi8(0, 0, static_cast<char>(0x80), static_cast<char>(0xC0), 0,
                                     0x20, 0x40, 0x60, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m128i high8 =
      _mm_setr_epi8(0, 0x3B, 0x3B, 0x3B, 0x3C, 0x3C, 0x3C, 0x3C, 0, 0, 0, 0, 0, 0, 0, 0);
  const __m256i index = _mm256_or_si256(magnitude, _mm256_set1_epi16(-32768));  // high byte: 0
  const __m256i low = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(low8), index);
  const __m256i high =
      _mm256_slli_epi16(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(high8), index), 8);
  out = _mm256_blendv_epi8(out, _mm256_or_si256(low, high),
                           _mm256_cmpgt_epi16(_mm256_set1_epi16(8), magnitude));
  const __m256i sign = _mm256_slli_epi16(_mm256_andnot_si256(magnitude, words), 8);
  return _mm256_or_si256(out, sign);
}
inline Words widen_fp8(CodeVec codes) {
  return {widen_fp8_16(codes.lo), widen_fp8_16(codes.hi)};
}
inline Words widen_int4(CodeVec differences) {
  return widen_int8(differences);
}
inline CodeVec low_nibbles(CodeVec x) {
  const __m128i mask = _mm_set1_epi8(15);
  return {_mm_and_si128(x.lo, mask), _mm_and_si128(x.hi, mask)};
}
inline CodeVec high_nibbles(CodeVec x) {
  return low_nibbles({_mm_srli_epi16(x.lo, 4), _mm_srli_epi16(x.hi, 4)});
}
inline CodeVec subtract(CodeVec x, ZeroVec zero) {
  return {_mm_sub_epi8(x.lo, zero.lo), _mm_sub_epi8(x.hi, zero.hi)};
}
inline ZeroVec k_zeros(const uint8_t* zeros) {
  const __m128i z = _mm_loadu_si128(reinterpret_cast<const __m128i*>(zeros));
  return {_mm_unpacklo_epi8(z, z), _mm_unpackhi_epi8(z, z)};
}

#endif

/// The zero points of 16 tokens, in the low bits of their scales.
inline void zero_points(const float* scales, uint8_t* zeros) {
  for (int i = 0; i < 16; ++i) {
    uint32_t bits;
    memcpy(&bits, scales + i, sizeof(bits));
    zeros[i] = bits & 15;
  }
}
/// Of a vector of V, 16 dims of two tokens: the two zeros in turns.
inline ZeroVec v_zeros(const uint8_t* zeros) {
  uint8_t both[kWiden];
  for (int i = 0; i < kWiden; ++i) both[i] = zeros[i % 2];
  return load_codes(reinterpret_cast<const std::byte*>(both));
}

/// Smallest (or 0) and largest (or 0) value of a row of `d`, and whether all are finite.
struct RowRange {
  float low, high;
  bool finite;
};
inline RowRange row_range(const float* x, int64_t d) {
  Vec low = splat(0), high = splat(0), odd = splat(0);
  for (int64_t i = 0; i < d; i += kLanes) {
    const Vec v = load(x + i);
    low = min(low, v);
    high = max(high, v);
    odd = odd + (v - v);  // NaN of what isn't finite
  }
  return {-max_lanes(splat(0) - low), max_lanes(high), sum_lanes(odd) == 0.0f};
}

/// kv_int4_scale(), whose product and sum this TU's flags would fuse.
inline KvInt4Scale int4_scale(const RowRange& range) {
  if (!range.finite) return {0.0f, std::numeric_limits<float>::quiet_NaN(), 0};
  const float m = 0.5f * range.high - 0.5f * range.low;
  const float half = m > 1e-30f ? m : 1e-30f;
  const float inverse = 7.5f / half;
  float scale = half / 7.5f;
  const int zero = _mm_cvtss_si32(_mm_mul_ss(_mm_set_ss(-range.low), _mm_set_ss(inverse)));
  uint32_t bits;
  memcpy(&bits, &scale, sizeof(bits));
  bits = (bits & ~0xFu) | static_cast<uint32_t>(zero);
  memcpy(&scale, &bits, sizeof(bits));
  return {inverse, scale, zero};
}

inline void int8_codes(const float* x, Vec inverse, uint8_t* codes) {
  const Vec scaled = min(splat(127), max(splat(-127), load(x) * inverse));
  store_bytes(codes, to_int(scaled));
}
inline void int4_codes(const float* x, Vec inverse, int zero, uint8_t* codes) {
  const Vec scaled = min(splat(15), max(splat(-15), load(x) * inverse));
  store_bytes(codes, clamp_int(add_int(to_int(scaled), zero), 0, 15));
}
inline void fp8_codes(const float* x, Vec inverse, uint8_t* codes) {
  store_bytes(codes, to_e4m3(load(x) * inverse));
}

inline float fp8_value(uint8_t code) {
  const int exponent = code >> 3 & 15, mantissa = code & 7;
  const uint32_t bits =
      static_cast<uint32_t>(exponent + 120) << 23 | static_cast<uint32_t>(mantissa) << 20;
  float value;
  memcpy(&value, &bits, sizeof(value));
  if (exponent == 0) value = static_cast<float>(mantissa) * 0x1p-9f;
  return code & 0x80 ? -value : value;
}

}  // namespace weft::WEFT_ISA_NS
