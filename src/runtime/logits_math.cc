// Compiled for AVX2 and FMA, the least that weft runs on (device/cpu_info.h).
#include "runtime/logits_math.h"

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <limits>

namespace weft {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// exp(x) for x <= 0; 0 below -87 (where the result would leave the normal numbers) and for -inf.
/// x = n ln 2 + r with |r| <= ln 2 / 2, degree-6 polynomial of r: within 2 units in the last place.
inline __m256 exp8(__m256 x) {
  const __m256 tiny = _mm256_cmp_ps(x, _mm256_set1_ps(-87.0f), _CMP_LT_OQ);
  x = _mm256_max_ps(x, _mm256_set1_ps(-87.0f));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504088896341f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
  __m256 p = _mm256_set1_ps(1.0f / 720);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 120));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 24));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f / 6));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0.5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  const __m256i scale =
      _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return _mm256_andnot_ps(tiny, _mm256_mul_ps(p, _mm256_castsi256_ps(scale)));
}

inline __m256 weight8(__m256 x, __m256 max, __m256 temperature) {
  return exp8(_mm256_div_ps(_mm256_sub_ps(x, max), temperature));
}

/// x[0, n) with n <= 8, padded with -inf.
inline __m256 load_up_to_8(const float* x, int64_t n) {
  if (n >= 8) return _mm256_loadu_ps(x);
  alignas(32) float padded[8];
  for (int64_t i = 0; i < 8; ++i) padded[i] = i < n ? x[i] : kMinusInfinity;
  return _mm256_load_ps(padded);
}

inline float horizontal_max(__m256 v) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}

}  // namespace

LogitScan scan_logits(const float* x, int64_t n) {
  __m256 max = _mm256_set1_ps(kMinusInfinity);
  __m256 nan = _mm256_setzero_ps();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 v = load_up_to_8(x + i, n - i);
    nan = _mm256_or_ps(nan, _mm256_cmp_ps(v, v, _CMP_UNORD_Q));
    max = _mm256_max_ps(max, v);
  }
  const float value = horizontal_max(max);
  return {value, _mm256_movemask_ps(nan) != 0 || value == -kMinusInfinity};
}

void block_max(const float* x, int64_t n, float* out) {
  for (int64_t begin = 0; begin < n; begin += kLogitBlock) {
    const int64_t end = std::min(n, begin + kLogitBlock);
    __m256 max = _mm256_set1_ps(kMinusInfinity);
    for (int64_t i = begin; i < end; i += 8) max = _mm256_max_ps(max, load_up_to_8(x + i, end - i));
    *out++ = horizontal_max(max);
  }
}

float softmax_weight(float x, float max, float temperature) {
  return _mm256_cvtss_f32(
      weight8(_mm256_set1_ps(x), _mm256_set1_ps(max), _mm256_set1_ps(temperature)));
}

void softmax_weights8(const float* x, float max, float temperature, float* out) {
  _mm256_storeu_ps(out,
                   weight8(_mm256_loadu_ps(x), _mm256_set1_ps(max), _mm256_set1_ps(temperature)));
}

double softmax_sum(const float* x, int64_t n, float max, float temperature) {
  const __m256 m = _mm256_set1_ps(max), t = _mm256_set1_ps(temperature);
  __m256d low = _mm256_setzero_pd(), high = _mm256_setzero_pd();
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 w = weight8(load_up_to_8(x + i, n - i), m, t);
    low = _mm256_add_pd(low, _mm256_cvtps_pd(_mm256_castps256_ps128(w)));
    high = _mm256_add_pd(high, _mm256_cvtps_pd(_mm256_extractf128_ps(w, 1)));
  }
  alignas(32) double lanes[4];
  _mm256_store_pd(lanes, _mm256_add_pd(low, high));
  return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}

int64_t collect_at_least(const float* x, int64_t n, float threshold, int32_t base, int32_t* out) {
  const __m256 t = _mm256_set1_ps(threshold);
  int64_t count = 0;
  for (int64_t i = 0; i < n; i += 8) {
    const __m256 v = load_up_to_8(x + i, n - i);
    auto mask = static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps(v, t, _CMP_GE_OQ)));
    if (n - i < 8) mask &= (1u << (n - i)) - 1;
    for (; mask != 0; mask &= mask - 1) {
      out[count++] = base + static_cast<int32_t>(i) + std::countr_zero(mask);
    }
  }
  return count;
}

int64_t find_value(const float* x, int64_t n, float value) {
  return std::find(x, x + n, value) - x;
}

}  // namespace weft
