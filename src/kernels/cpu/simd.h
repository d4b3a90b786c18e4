#pragma once

// Sixteen floats at a time on every instruction set: one AVX-512 register or two AVX2 registers.
// Included only by files that are compiled once per CpuIsa. No function here depends on how many
// lanes are in use, so a value's bits never depend on its lane.

#include <immintrin.h>

#include <cstdint>
#include <limits>

#include "kernels/cpu/isa.h"
#include "kernels/cpu/limits.h"
#include "tensor/dtype.h"

namespace weft::WEFT_ISA_NS {

inline constexpr int kLanes = 16;
static_assert(kCpuDimStep % kLanes == 0);
#if defined(WEFT_AVX512)
inline constexpr int kMicroVecs = 4;  // a micro-tile is 4 rows x this: 16 sums in registers
#else
inline constexpr int kMicroVecs = 1;  // 4 sums of two registers each
#endif

#if defined(__AVX512F__)

struct Vec {
  __m512 v;
};
inline Vec load(const float* p) {
  return {_mm512_loadu_ps(p)};
}
inline Vec load_first(const float* p, int64_t n) {  // lanes n.. are 0
  return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)};
}
inline void store(float* p, Vec x) {
  _mm512_storeu_ps(p, x.v);
}
inline void store_first(float* p, Vec x, int64_t n) {
  _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), x.v);
}
inline Vec splat(float x) {
  return {_mm512_set1_ps(x)};
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm512_add_ps(a.v, b.v)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm512_sub_ps(a.v, b.v)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm512_mul_ps(a.v, b.v)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm512_div_ps(a.v, b.v)};
}
inline Vec fma(Vec a, Vec b, Vec c) {  // a * b + c
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {  // c - a * b
  return {_mm512_fnmadd_ps(a.v, b.v, c.v)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm512_max_ps(a.v, b.v)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm512_min_ps(a.v, b.v)};
}
inline Vec abs(Vec a) {
  return {_mm512_abs_ps(a.v)};
}
inline float sum_lanes(Vec a) {
  return _mm512_reduce_add_ps(a.v);
}
inline float first_lane(Vec a) {
  return _mm512_cvtss_f32(a.v);
}
inline float max_lanes(Vec a) {
  return _mm512_reduce_max_ps(a.v);
}
inline Vec keep_first(Vec x, int64_t n, float fill) {  // lanes n.. become `fill`; any n
  const auto mask = static_cast<__mmask16>(n >= 16 ? 0xFFFFu : n <= 0 ? 0u : (1u << n) - 1);
  return {_mm512_mask_blend_ps(mask, _mm512_set1_ps(fill), x.v)};
}
inline Vec swap_pairs(Vec x) {  // lanes 2i <-> 2i + 1
  return {_mm512_permute_ps(x.v, 0xB1)};
}
/// 2^n of integral n; 0 and inf outside the range of floats.
inline Vec scale_by_power(Vec x, Vec n) {
  return {_mm512_scalef_ps(x.v, n.v)};
}
inline Vec round(Vec x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
inline Vec load_bf16(const bf16* p) {
  const __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16))};
}
struct Pairs {  // 16 pairs of bf16
  __m512i v;
};
inline Pairs load_pairs(const void* p) {
  return {_mm512_loadu_si512(p)};
}
inline Vec first_of(Pairs x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))};
}
inline Vec second_of(Pairs x) {
  return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(-65536)))};
}
/// Round to nearest even, as float_to_bf16 (NaN stays NaN).
inline __m256i to_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7FFF)));
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  r = _mm512_mask_or_epi32(r, nan, bits, _mm512_set1_epi32(0x400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(r, 16));
}
inline void store_bf16(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x));
}

/// p[2 i] = x[i] of 16 bf16; what lies between is left alone, also for other threads.
inline void store_every_other(bf16* p, __m256i x) {
  _mm512_mask_storeu_epi16(p, 0x55555555, _mm512_cvtepu16_epi32(x));
}

#else  // AVX2

struct Vec {
  __m256 lo, hi;
};
inline __m256i first_mask8(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline Vec load(const float* p) {
  return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
inline Vec load_first(const float* p, int64_t n) {
  return {_mm256_maskload_ps(p, first_mask8(n)), _mm256_maskload_ps(p + 8, first_mask8(n - 8))};
}
inline void store(float* p, Vec x) {
  _mm256_storeu_ps(p, x.lo);
  _mm256_storeu_ps(p + 8, x.hi);
}
inline void store_first(float* p, Vec x, int64_t n) {
  _mm256_maskstore_ps(p, first_mask8(n), x.lo);
  _mm256_maskstore_ps(p + 8, first_mask8(n - 8), x.hi);
}
inline Vec splat(float x) {
  return {_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
inline Vec operator+(Vec a, Vec b) {
  return {_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
inline Vec operator-(Vec a, Vec b) {
  return {_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
inline Vec operator*(Vec a, Vec b) {
  return {_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
inline Vec operator/(Vec a, Vec b) {
  return {_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
inline Vec fma(Vec a, Vec b, Vec c) {
  return {_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec fnma(Vec a, Vec b, Vec c) {
  return {_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
inline Vec max(Vec a, Vec b) {
  return {_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
inline Vec min(Vec a, Vec b) {
  return {_mm256_min_ps(a.lo, b.lo), _mm256_min_ps(a.hi, b.hi)};
}
inline Vec abs(Vec a) {
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  return {_mm256_and_ps(a.lo, mask), _mm256_and_ps(a.hi, mask)};
}
inline float sum_lanes(Vec a) {
  const __m256 s = _mm256_add_ps(a.lo, a.hi);
  const __m128 q = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_add_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)));
}
inline float first_lane(Vec a) {
  return _mm256_cvtss_f32(a.lo);
}
inline float max_lanes(Vec a) {
  const __m256 s = _mm256_max_ps(a.lo, a.hi);
  const __m128 q = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
  const __m128 d = _mm_max_ps(q, _mm_movehl_ps(q, q));
  return _mm_cvtss_f32(_mm_max_ss(d, _mm_movehdup_ps(d)));
}
inline Vec keep_first(Vec x, int64_t n, float fill) {
  const __m256 f = _mm256_set1_ps(fill);
  return {_mm256_blendv_ps(f, x.lo, _mm256_castsi256_ps(first_mask8(n))),
          _mm256_blendv_ps(f, x.hi, _mm256_castsi256_ps(first_mask8(n - 8)))};
}
inline Vec swap_pairs(Vec x) {
  return {_mm256_permute_ps(x.lo, 0xB1), _mm256_permute_ps(x.hi, 0xB1)};
}
inline __m256 power_of_two8(__m256 n) {  // -126 <= n <= 127
  return _mm256_castsi256_ps(
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
inline __m256 scale_by_power8(__m256 x, __m256 n) {
  // In two halves, so that results from denormal to infinite come out right.
  const __m256 c = _mm256_max_ps(_mm256_min_ps(n, _mm256_set1_ps(252)), _mm256_set1_ps(-252));
  const __m256 half = _mm256_round_ps(_mm256_mul_ps(c, _mm256_set1_ps(0.5f)),
                                      _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  return _mm256_mul_ps(_mm256_mul_ps(x, power_of_two8(half)),
                       power_of_two8(_mm256_sub_ps(c, half)));
}
inline Vec scale_by_power(Vec x, Vec n) {
  return {scale_by_power8(x.lo, n.lo), scale_by_power8(x.hi, n.hi)};
}
inline Vec round(Vec x) {
  constexpr int kMode = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.lo, kMode), _mm256_round_ps(x.hi, kMode)};
}
inline __m256 widen_bf16(__m128i h) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
inline Vec load_bf16(const bf16* p) {
  return {widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
          widen_bf16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
}
struct Pairs {  // 16 pairs of bf16
  __m256i lo, hi;
};
inline Pairs load_pairs(const void* p) {
  const auto* q = static_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline Vec first_of(Pairs x) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(x.lo, 16)),
          _mm256_castsi256_ps(_mm256_slli_epi32(x.hi, 16))};
}
inline Vec second_of(Pairs x) {
  const __m256i high = _mm256_set1_epi32(-65536);
  return {_mm256_castsi256_ps(_mm256_and_si256(x.lo, high)),
          _mm256_castsi256_ps(_mm256_and_si256(x.hi, high))};
}
inline __m256i to_bf16_bits8(__m256 x) {  // the bf16 in the low half of each 32 bits
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  const __m256i r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7FFF)));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  return _mm256_srli_epi32(_mm256_blendv_epi8(r, quiet, nan), 16);
}
inline __m256i to_bf16(Vec x) {
  const __m256i packed = _mm256_packus_epi32(to_bf16_bits8(x.lo), to_bf16_bits8(x.hi));
  return _mm256_permute4x64_epi64(packed, 0xD8);
}
inline void store_bf16(bf16* p, Vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), to_bf16(x));
}
inline void store_every_other(bf16* p, __m256i x) {
  alignas(32) bf16 values[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(values), x);
  for (int i = 0; i < 16; ++i) p[2 * i] = values[i];
}

#endif

inline constexpr float kNegInf = -std::numeric_limits<float>::infinity();

/// 2^x, relative error below 1e-7; exactly 1 at 0, 0 at -inf. Coefficients: minimax fit of 2^f on
/// [-1/2, 1/2], relative error 2e-9.
inline Vec exp2(Vec x) {
  const Vec c = max(splat(-300.0f), x);  // in this order NaN stays NaN
  const Vec n = round(c);
  const Vec f = c - n;
  Vec p = splat(1.534581200e-04f);
  p = fma(p, f, splat(1.339993122e-03f));
  p = fma(p, f, splat(9.618488957e-03f));
  p = fma(p, f, splat(5.550328777e-02f));
  p = fma(p, f, splat(2.402264689e-01f));
  p = fma(p, f, splat(6.931472057e-01f));
  p = fma(p, f, splat(1.0f));
  return scale_by_power(p, n);
}

#if defined(WEFT_AVX512)
/// 2^x for values that are rounded to bf16 next: relative error 8e-5; 0 at -inf. Coefficients:
/// minimax fit of 2^f on [0, 1).
inline Vec exp2_coarse(Vec x) {
  constexpr int kFloor = _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC;
  const Vec f = {_mm512_reduce_ps(x.v, kFloor)};  // x - floor(x), 0 at -inf
  Vec p = splat(7.802452266e-02f);
  p = fma(p, f, splat(2.260671554e-01f));
  p = fma(p, f, splat(6.958335405e-01f));
  p = fma(p, f, splat(9.999252186e-01f));
  return {_mm512_scalef_ps(p.v, x.v)};  // by 2^floor(x)
}
#endif

/// e^x, relative error about 1e-7; 0 below -207, infinite above 88.8.
inline Vec exp(Vec x) {
  const Vec c = min(splat(120.0f), max(splat(-207.0f), x));  // in this order NaN stays NaN
  const Vec n = round(c * splat(1.44269504f));
  // ln 2 = 355 / 512 - 2.12194440e-4: the first product is exact.
  const Vec r = fma(n, splat(2.12194440e-4f), fnma(n, splat(0.693359375f), c));
  Vec p = splat(1.383684599e-03f);
  p = fma(p, r, splat(8.374815804e-03f));
  p = fma(p, r, splat(4.166822557e-02f));
  p = fma(p, r, splat(1.666642017e-01f));
  p = fma(p, r, splat(4.999999208e-01f));
  p = fma(p, r, splat(1.0f));
  p = fma(p, r, splat(1.0f));
  return scale_by_power(p, n);
}

inline Vec sigmoid(Vec x) {
  return splat(1.0f) / (splat(1.0f) + exp(splat(0.0f) - x));
}

inline Vec silu(Vec x) {
  return x * sigmoid(x);
}

/// log(1 + e^x) without cancellation: max(x, 0) + log1p(e^-|x|), log1p(y) = 2 atanh(y / (2 + y)).
inline Vec softplus(Vec x) {
  const Vec y = exp(splat(0.0f) - abs(x));
  const Vec s = y / (y + splat(2.0f));
  const Vec z = s * s;
  Vec p = splat(2.0f / 17);
  p = fma(p, z, splat(2.0f / 15));
  p = fma(p, z, splat(2.0f / 13));
  p = fma(p, z, splat(2.0f / 11));
  p = fma(p, z, splat(2.0f / 9));
  p = fma(p, z, splat(2.0f / 7));
  p = fma(p, z, splat(2.0f / 5));
  p = fma(p, z, splat(2.0f / 3));
  p = fma(p, z, splat(2.0f));
  return max(x, splat(0.0f)) + s * p;
}

/// Denormals count as 0 on this thread in the scope: decays and softmax tails produce them in
/// masses, and each costs the CPU a microcode assist of some 150 cycles.
class FlushDenormals {
 public:
  FlushDenormals() : saved_(_mm_getcsr()) {
    constexpr unsigned kFlushToZero = 0x8000, kDenormalsAreZero = 0x0040;
    _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero);
  }
  ~FlushDenormals() { _mm_setcsr(saved_); }
  FlushDenormals(const FlushDenormals&) = delete;
  FlushDenormals& operator=(const FlushDenormals&) = delete;

 private:
  unsigned saved_;
};

/// Calls body(index, n) over [0, count) in steps of 16, n = 16 but for the last.
template <class Body>
inline void for_lanes(int64_t count, Body&& body) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) body(i, int64_t{kLanes});
  if (i < count) body(i, count - i);
}

inline Vec load_n(const float* p, int64_t n) {
  return n == kLanes ? load(p) : load_first(p, n);
}
inline void store_n(float* p, Vec x, int64_t n) {
  n == kLanes ? store(p, x) : store_first(p, x, n);
}

}  // namespace weft::WEFT_ISA_NS
