// Packing of activations (gemm.h).

#include <cstring>

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr float kIntMax = 32639.0f;

/// Values [k0, k0 + 32) of a row, zeros past k.
WEFT_INLINE void load_step(const float* x, int64_t k0, int64_t k, Vec& a, Vec& b) {
  const int64_t left = k - k0;
  if (left >= kStep) {
    a = vec_load(x + k0);
    b = vec_load(x + k0 + 16);
    return;
  }
  a = left >= 16 ? vec_load(x + k0)
      : left > 0 ? vec_load(x + k0, static_cast<int>(left))
                 : vec_zero();
  b = left > 16 ? vec_load(x + k0 + 16, static_cast<int>(left - 16)) : vec_zero();
}

#if WEFT_AVX512_BF16

WEFT_INLINE void store_act(uint16_t* out, Vec a, Vec b) {
  _mm512_store_si512(out, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
}

#else

#if WEFT_AVX512
WEFT_INLINE Vec round_bf16(Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i sum = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7FFF)), odd);
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  sum = _mm512_mask_or_epi32(sum, nan, bits, _mm512_set1_epi32(0x00400000));
  return {
      _mm512_castsi512_ps(_mm512_and_si512(sum, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))))};
}
#else
WEFT_INLINE __m256 round_bf16(__m256 x) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i sum = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7FFF)), odd);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  sum = _mm256_blendv_epi8(sum, quiet, nan);
  return _mm256_castsi256_ps(
      _mm256_and_si256(sum, _mm256_set1_epi32(static_cast<int>(0xFFFF0000u))));
}
WEFT_INLINE Vec round_bf16(Vec x) {
  return {round_bf16(x.a), round_bf16(x.b)};
}
#endif

WEFT_INLINE void store_act(float* out, Vec a, Vec b) {
  vec_store(out, round_bf16(a));
  vec_store(out + 16, round_bf16(b));
}

#endif

/// Largest magnitude of 32 values (NaN is ignored).
WEFT_INLINE float largest_magnitude(Vec a, Vec b) {
#if WEFT_AVX512
  return _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a.v), _mm512_abs_ps(b.v)));
#else
  const __m256 mask = _mm256_castsi256_ps(_mm256_set1_epi32(0x7FFFFFFF));
  const __m256 m = _mm256_max_ps(_mm256_max_ps(_mm256_and_ps(a.a, mask), _mm256_and_ps(a.b, mask)),
                                 _mm256_max_ps(_mm256_and_ps(b.a, mask), _mm256_and_ps(b.b, mask)));
  __m128 n = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
  n = _mm_max_ps(n, _mm_movehl_ps(n, n));
  return _mm_cvtss_f32(_mm_max_ss(n, _mm_movehdup_ps(n)));
#endif
}

/// Rounds 32 values to integers, stores them as a row's group and returns their sum.
WEFT_INLINE int32_t store_ints(Vec a, Vec b, std::byte* out) {
#if WEFT_AVX512
  const __m512i x = _mm512_cvtps_epi32(a.v), y = _mm512_cvtps_epi32(b.v);
#if WEFT_AVX512_BF16
  const __m512i xl = _mm512_srai_epi32(_mm512_slli_epi32(x, 24), 24);
  const __m512i yl = _mm512_srai_epi32(_mm512_slli_epi32(y, 24), 24);
  auto* lanes = reinterpret_cast<__m128i*>(out);
  _mm_store_si128(lanes, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(x, xl), 8)));
  _mm_store_si128(lanes + 1, _mm512_cvtepi32_epi8(_mm512_srai_epi32(_mm512_sub_epi32(y, yl), 8)));
  _mm_store_si128(lanes + 2, _mm512_cvtepi32_epi8(xl));
  _mm_store_si128(lanes + 3, _mm512_cvtepi32_epi8(yl));
#else
  auto* lanes = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(lanes, _mm512_cvtepi32_epi16(x));
  _mm256_store_si256(lanes + 1, _mm512_cvtepi32_epi16(y));
#endif
  return _mm512_reduce_add_epi32(_mm512_add_epi32(x, y));
#else
  const __m256i x0 = _mm256_cvtps_epi32(a.a), x1 = _mm256_cvtps_epi32(a.b);
  const __m256i y0 = _mm256_cvtps_epi32(b.a), y1 = _mm256_cvtps_epi32(b.b);
  auto* lanes = reinterpret_cast<__m256i*>(out);
  _mm256_store_si256(lanes, _mm256_permute4x64_epi64(_mm256_packs_epi32(x0, x1), 0xD8));
  _mm256_store_si256(lanes + 1, _mm256_permute4x64_epi64(_mm256_packs_epi32(y0, y1), 0xD8));
  const __m256i sum = _mm256_add_epi32(_mm256_add_epi32(x0, x1), _mm256_add_epi32(y0, y1));
  __m128i s = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
  s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4E));
  return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xB1)));
#endif
}

}  // namespace

int64_t packed_rows_bytes(int64_t rows, int64_t steps, bool f32) {
  return padded_rows({nullptr, rows, steps}) * steps * kStep *
         static_cast<int64_t>(f32 ? sizeof(float) : sizeof(Act));
}

void pack_row(const PackedRows& p, int64_t r, const float* x, int64_t k, bool f32) {
  const int64_t at = ((r / kRowTile) * p.steps * kRowTile + r % kRowTile) * kStep;
  const int64_t step_values = tile_rows(p) * kStep;
  for (int64_t s = 0; s < p.steps; ++s) {
    Vec a = vec_zero(), b = vec_zero();
    if (r < p.rows) load_step(x, s * kStep, k, a, b);
    const int64_t offset = at + s * step_values;
    if (f32) {
      vec_store(reinterpret_cast<float*>(p.data) + offset, a);
      vec_store(reinterpret_cast<float*>(p.data) + offset + 16, b);
    } else {
      store_act(reinterpret_cast<Act*>(p.data) + offset, a, b);
    }
  }
}

int64_t int_rows_bytes(int64_t rows, int64_t steps) {
  // Kernels read whole vectors of the rows of a tile: 64 bytes past the last one.
  const int64_t values = padded_rows({nullptr, rows, steps}) * steps + kRowTile;
  return rows * int_row_bytes(steps) + values * 8;
}

IntRows int_rows(void* memory, int64_t rows, const PackedMatrix& matrix) {
  IntRows p;
  p.rows = rows;
  p.steps = matrix.steps;
  p.bias = matrix.format == WeightFormat::kInt4 ? 8 : 128;
  p.data = static_cast<std::byte*>(memory);
  p.scales = reinterpret_cast<float*>(p.data + rows * int_row_bytes(p.steps));
  const int64_t values = padded_rows({nullptr, rows, p.steps}) * p.steps + kRowTile;
  p.minus = reinterpret_cast<int32_t*>(p.scales + values);
  return p;
}

void pack_int_row(const IntRows& p, int64_t r, const float* x, int64_t k) {
  for (int64_t s = 0; s < p.steps; ++s) {
    Vec a, b;
    load_step(x, s * kStep, k, a, b);
    const float largest = largest_magnitude(a, b);
    const bool zero = !(largest > 1e-30f);  // 32639 / largest would overflow: nothing is lost
    const Vec inverse = vec_set(zero ? 0.0f : kIntMax / largest);
    std::byte* out = p.data + r * int_row_bytes(p.steps) + s * 64;
    const int32_t sum = store_ints(vec_clamp(vec_mul(a, inverse), -kIntMax, kIntMax),
                                   vec_clamp(vec_mul(b, inverse), -kIntMax, kIntMax), out);
    const int64_t at = int_row_at(p, r) + s * int_tile_rows(p);
    p.minus[at] = -p.bias * sum;
    p.scales[at] = zero ? 0.0f : largest / kIntMax;
  }
}

}  // namespace weft::WEFT_ISA_NS
