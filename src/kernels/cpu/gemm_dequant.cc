// int8 and int4 panels as bf16 panels for the prompt arithmetic: w = bf16(q * s), rounded to
// nearest even. (u - bias) * s is exact in fp32, so the rounding to bf16 is the only one.

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

#if WEFT_AVX512

using Ints = __m512i;
WEFT_INLINE Ints load_ints(const std::byte* p) {
  return _mm512_load_si512(p);
}
WEFT_INLINE Ints low_nibbles(Ints x) {
  return _mm512_and_si512(x, _mm512_set1_epi8(15));
}
WEFT_INLINE Ints high_nibbles(Ints x) {
  return low_nibbles(_mm512_srli_epi16(x, 4));
}
/// Byte `I` of each 32-bit lane as a float.
template <int I>
WEFT_INLINE Vec byte_float(Ints x) {
  return {
      _mm512_cvtepi32_ps(_mm512_and_si512(_mm512_srli_epi32(x, 8 * I), _mm512_set1_epi32(255)))};
}
/// Lane i = bf16(even[i]) | bf16(odd[i]) << 16.
WEFT_INLINE void store_pairs(uint16_t* out, Vec even, Vec odd) {
#if WEFT_AVX512_BF16
  const auto both = (__m512i)_mm512_cvtne2ps_pbh(odd.v, even.v);
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  _mm512_store_si512(out, _mm512_permutexvar_epi16(order, both));
#else
  const __m512i half = _mm512_set1_epi32(0x7FFF), one = _mm512_set1_epi32(1);
  __m512i e = _mm512_castps_si512(even.v), o = _mm512_castps_si512(odd.v);
  e = _mm512_add_epi32(_mm512_add_epi32(e, half), _mm512_and_si512(_mm512_srli_epi32(e, 16), one));
  o = _mm512_add_epi32(_mm512_add_epi32(o, half), _mm512_and_si512(_mm512_srli_epi32(o, 16), one));
  o = _mm512_and_si512(o, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u)));
  _mm512_store_si512(out, _mm512_or_si512(_mm512_srli_epi32(e, 16), o));
#endif
}

#else

struct Ints {
  __m256i a, b;
};
WEFT_INLINE Ints load_ints(const std::byte* p) {
  const auto* q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_load_si256(q), _mm256_load_si256(q + 1)};
}
WEFT_INLINE Ints low_nibbles(Ints x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.a, mask), _mm256_and_si256(x.b, mask)};
}
WEFT_INLINE Ints high_nibbles(Ints x) {
  return low_nibbles({_mm256_srli_epi16(x.a, 4), _mm256_srli_epi16(x.b, 4)});
}
template <int I>
WEFT_INLINE __m256 byte_float(__m256i x) {
  return _mm256_cvtepi32_ps(_mm256_and_si256(_mm256_srli_epi32(x, 8 * I), _mm256_set1_epi32(255)));
}
/// Byte `I` of each 32-bit lane as a float.
template <int I>
WEFT_INLINE Vec byte_float(Ints x) {
  return {byte_float<I>(x.a), byte_float<I>(x.b)};
}
WEFT_INLINE __m256i round_up(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
}
WEFT_INLINE __m256i make_pairs(__m256 even, __m256 odd) {
  return _mm256_or_si256(
      _mm256_srli_epi32(round_up(even), 16),
      _mm256_and_si256(round_up(odd), _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
/// Lane i = bf16(even[i]) | bf16(odd[i]) << 16.
WEFT_INLINE void store_pairs(uint16_t* out, Vec even, Vec odd) {
  auto* p = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(p, make_pairs(even.a, odd.a));
  _mm256_store_si256(p + 1, make_pairs(even.b, odd.b));
}

#endif

/// One quad (4 K values of 16 outputs): two lines of bf16 pairs.
WEFT_INLINE void quad(Ints codes, Vec scale, Vec minus, uint16_t* out) {
  store_pairs(out, vec_fma(byte_float<0>(codes), scale, minus),
              vec_fma(byte_float<1>(codes), scale, minus));
  store_pairs(out + 32, vec_fma(byte_float<2>(codes), scale, minus),
              vec_fma(byte_float<3>(codes), scale, minus));
}

}  // namespace

void dequantize_panel(const std::byte* panel, bool int4, int64_t steps, uint16_t* out) {
  for (int64_t s = 0; s < steps; ++s, out += kStep * kPanelWidth) {
    const int64_t half = s % 2;
    const std::byte* pair = panel + s / 2 * (int4 ? kInt4PairBytes : kInt8PairBytes);
    const Vec scale = vec_f16(pair + half * 32);
    const Vec minus = vec_mul(scale, vec_set(int4 ? -8.0f : -128.0f));
    const std::byte* codes = pair + 64 + half * (int4 ? 256 : 512);
    if (int4) {
#pragma GCC unroll 4
      for (int q = 0; q < 4; ++q) {
        const Ints both = load_ints(codes + q * 64);
        quad(low_nibbles(both), scale, minus, out + q * 64);
        quad(high_nibbles(both), scale, minus, out + (q + 4) * 64);
      }
    } else {
#pragma GCC unroll 4
      for (int q = 0; q < 8; ++q) quad(load_ints(codes + q * 64), scale, minus, out + q * 64);
    }
  }
}

}  // namespace weft::WEFT_ISA_NS
