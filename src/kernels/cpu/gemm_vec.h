#pragma once

// Sixteen fp32 lanes (one panel of outputs) with the same operations for AVX-512 (one register)
// and AVX2 (two). Include isa.h first.

#include "kernels/cpu/isa.h"

namespace weft::WEFT_ISA_NS {
namespace {

#if WEFT_AVX512

struct Vec {
  __m512 v;
};
WEFT_INLINE Vec vec_zero() {
  return {_mm512_setzero_ps()};
}
WEFT_INLINE Vec vec_set(float x) {
  return {_mm512_set1_ps(x)};
}
WEFT_INLINE Vec vec_load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
WEFT_INLINE void vec_store(float* p, Vec a) {
  _mm512_storeu_ps(p, a.v);
}
/// Lanes past `count` are 0.
WEFT_INLINE Vec vec_load(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), p)};
}
WEFT_INLINE void vec_store(float* p, Vec a, int count) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << count) - 1), a.v);
}
WEFT_INLINE Vec vec_add(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
WEFT_INLINE Vec vec_mul(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
WEFT_INLINE Vec vec_div(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
WEFT_INLINE Vec vec_fma(Vec a, Vec b, Vec c) {  // a b + c
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
WEFT_INLINE Vec vec_clamp(Vec a, float low, float high) {
  return {_mm512_min_ps(_mm512_max_ps(a.v, _mm512_set1_ps(low)), _mm512_set1_ps(high))};
}
WEFT_INLINE Vec vec_round(Vec a) {
  return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
/// 2^a of integral a in [-126, 127].
WEFT_INLINE Vec vec_exp2_integral(Vec a) {
  const __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(a.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
/// The even (low half) or odd bf16 of sixteen pairs as fp32.
WEFT_INLINE Vec vec_bf16_even(const void* pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_load_si512(pairs), 16))};
}
WEFT_INLINE Vec vec_bf16_odd(const void* pairs) {
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_load_si512(pairs),
                                               _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
}
WEFT_INLINE Vec vec_f16(const void* halves) {
  return {_mm512_cvtph_ps(_mm256_load_si256(static_cast<const __m256i*>(halves)))};
}

#else

struct Vec {
  __m256 a, b;
};
WEFT_INLINE Vec vec_zero() {
  return {_mm256_setzero_ps(), _mm256_setzero_ps()};
}
WEFT_INLINE Vec vec_set(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
WEFT_INLINE Vec vec_load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
WEFT_INLINE void vec_store(float* p, Vec v) {
  _mm256_storeu_ps(p, v.a);
  _mm256_storeu_ps(p + 8, v.b);
}
/// Lanes past `count` are 0.
WEFT_INLINE Vec vec_load(const float* p, int count) {
  alignas(64) float lanes[16] = {};
  for (int i = 0; i < count; ++i) lanes[i] = p[i];
  return vec_load(lanes);
}
WEFT_INLINE void vec_store(float* p, Vec v, int count) {
  alignas(64) float lanes[16];
  vec_store(lanes, v);
  for (int i = 0; i < count; ++i) p[i] = lanes[i];
}
WEFT_INLINE Vec vec_add(Vec x, Vec y) {
  return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)};
}
WEFT_INLINE Vec vec_mul(Vec x, Vec y) {
  return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)};
}
WEFT_INLINE Vec vec_div(Vec x, Vec y) {
  return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)};
}
WEFT_INLINE Vec vec_fma(Vec x, Vec y, Vec z) {  // x y + z
  return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
WEFT_INLINE Vec vec_clamp(Vec x, float low, float high) {
  const __m256 l = _mm256_set1_ps(low), h = _mm256_set1_ps(high);
  return {_mm256_min_ps(_mm256_max_ps(x.a, l), h), _mm256_min_ps(_mm256_max_ps(x.b, l), h)};
}
WEFT_INLINE Vec vec_round(Vec x) {
  return {_mm256_round_ps(x.a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC),
          _mm256_round_ps(x.b, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
WEFT_INLINE __m256 exp2_integral(__m256 x) {
  const __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
/// 2^x of integral x in [-126, 127].
WEFT_INLINE Vec vec_exp2_integral(Vec x) {
  return {exp2_integral(x.a), exp2_integral(x.b)};
}
/// The even (low half) or odd bf16 of sixteen pairs as fp32.
WEFT_INLINE Vec vec_bf16_even(const void* pairs) {
  const auto* p = static_cast<const __m256i*>(pairs);
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p), 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_load_si256(p + 1), 16))};
}
WEFT_INLINE Vec vec_bf16_odd(const void* pairs) {
  const auto* p = static_cast<const __m256i*>(pairs);
  const __m256i mask = _mm256_set1_epi32(static_cast<int>(0xFFFF0000u));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(p), mask)),
          _mm256_castsi256_ps(_mm256_and_si256(_mm256_load_si256(p + 1), mask))};
}
WEFT_INLINE Vec vec_f16(const void* halves) {
  const auto* p = static_cast<const __m128i*>(halves);
  return {_mm256_cvtph_ps(_mm_load_si128(p)), _mm256_cvtph_ps(_mm_load_si128(p + 1))};
}

#endif

/// e^x with a relative error below 2e-7 in [-87, 88]; clamped outside.
WEFT_INLINE Vec vec_exp(Vec x) {
  x = vec_clamp(x, -87.0f, 88.0f);
  const Vec n = vec_round(vec_mul(x, vec_set(1.44269504088896341f)));
  Vec r = vec_fma(n, vec_set(-0.693359375f), x);  // ln 2 in two parts
  r = vec_fma(n, vec_set(2.12194440e-4f), r);
  Vec p = vec_set(1.9875691500e-4f);
  p = vec_fma(p, r, vec_set(1.3981999507e-3f));
  p = vec_fma(p, r, vec_set(8.3334519073e-3f));
  p = vec_fma(p, r, vec_set(4.1665795894e-2f));
  p = vec_fma(p, r, vec_set(1.6666665459e-1f));
  p = vec_fma(p, r, vec_set(5.0000001201e-1f));
  p = vec_add(vec_fma(vec_mul(r, r), p, r), vec_set(1.0f));
  return vec_mul(p, vec_exp2_integral(n));
}

/// x / (1 + e^-x).
WEFT_INLINE Vec vec_silu(Vec x) {
  const Vec minus = vec_mul(x, vec_set(-1.0f));
  return vec_div(x, vec_add(vec_set(1.0f), vec_exp(minus)));
}

}  // namespace
}  // namespace weft::WEFT_ISA_NS
