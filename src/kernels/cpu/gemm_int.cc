// The decode arithmetic of int8 and int4 weights:
// out[r][o] = sum_g float(sum_{k in g} q[o][k] v[r][k]) * (s[o][g] t[r][g]),
// q the codes, s their scales, v and t the activations as 16-bit integers with a scale a group.
// The inner sums are exact in int32, so every instruction set gives the same bits.
// Per panel and group (512 codes): int8 8 lines, int4 4 lines; 16 vpdpbusd a row (8 for each of the
// two bytes of v), which is why a few rows stay under the weight bandwidth.

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_prefetch.h"
#include "kernels/cpu/gemm_vec.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kQuads = 8;

#if WEFT_AVX512

using Codes = __m512i;
WEFT_INLINE void load_codes(const std::byte* group, bool int4, Codes (&w)[kQuads]) {
  if (!int4) {
#pragma GCC unroll 8
    for (int q = 0; q < kQuads; ++q) w[q] = _mm512_load_si512(group + q * 64);
    return;
  }
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m512i both = _mm512_load_si512(group + q * 64);
    w[q] = _mm512_and_si512(both, mask);
    w[q + 4] = _mm512_and_si512(_mm512_srli_epi16(both, 4), mask);
  }
}

WEFT_INLINE Vec to_float(__m512i x) {
  return {_mm512_cvtepi32_ps(x)};
}

#if WEFT_AVX512_BF16

constexpr int kMaxRows = 16;  // accumulators
constexpr int kStreams = 4;
/// sum_k (code - bias) v for 16 outputs; `minus` = -bias sum(v).
WEFT_INLINE Vec group_dot(const Codes (&w)[kQuads], const std::byte* x, int32_t minus) {
  __m512i high = _mm512_setzero_si512(), low = _mm512_set1_epi32(minus);
  const auto* quads = reinterpret_cast<const int32_t*>(x);
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; ++q) {
    high = _mm512_dpbusd_epi32(high, w[q], _mm512_set1_epi32(quads[q]));
    low = _mm512_dpbusd_epi32(low, w[q], _mm512_set1_epi32(quads[q + kQuads]));
  }
  return to_float(_mm512_add_epi32(_mm512_slli_epi32(high, 8), low));
}

#else

constexpr int kMaxRows = 4;
constexpr int kStreams = 4;
WEFT_INLINE Vec group_dot(const Codes (&w)[kQuads], const std::byte* x, int32_t minus) {
  __m512i a = _mm512_setzero_si512(), b = a;  // outputs 0..7 and 8..15, two sums each
  const auto* quads = reinterpret_cast<const int64_t*>(x);
#pragma GCC unroll 8
  for (int q = 0; q < kQuads; ++q) {
    const __m512i v = _mm512_set1_epi64(quads[q]);
    const __m512i first = _mm512_cvtepu8_epi16(_mm512_castsi512_si256(w[q]));
    const __m512i second = _mm512_cvtepu8_epi16(_mm512_extracti64x4_epi64(w[q], 1));
    a = _mm512_add_epi32(a, _mm512_madd_epi16(first, v));
    b = _mm512_add_epi32(b, _mm512_madd_epi16(second, v));
  }
  const __m512i even = _mm512_set_epi32(30, 28, 26, 24, 22, 20, 18, 16, 14, 12, 10, 8, 6, 4, 2, 0);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  const __m512i sum =
      _mm512_add_epi32(_mm512_permutex2var_epi32(a, even, b), _mm512_permutex2var_epi32(a, odd, b));
  return to_float(_mm512_add_epi32(sum, _mm512_set1_epi32(minus)));
}

#endif

#else

constexpr int kMaxRows = 1;
constexpr int kStreams = 1;
struct Codes {
  __m256i a, b;  // outputs 0..7, 8..15
};
WEFT_INLINE void load_codes(const std::byte* group, bool int4, Codes (&w)[kQuads]) {
  const auto* p = reinterpret_cast<const __m256i*>(group);
  if (!int4) {
    for (int q = 0; q < kQuads; ++q)
      w[q] = {_mm256_load_si256(p + 2 * q), _mm256_load_si256(p + 2 * q + 1)};
    return;
  }
  const __m256i mask = _mm256_set1_epi8(15);
  for (int q = 0; q < 4; ++q) {
    const __m256i a = _mm256_load_si256(p + 2 * q), b = _mm256_load_si256(p + 2 * q + 1);
    w[q] = {_mm256_and_si256(a, mask), _mm256_and_si256(b, mask)};
    w[q + 4] = {_mm256_and_si256(_mm256_srli_epi16(a, 4), mask),
                _mm256_and_si256(_mm256_srli_epi16(b, 4), mask)};
  }
}

WEFT_INLINE __m256i quad_dot(__m128i codes, __m256i v) {
  return _mm256_madd_epi16(_mm256_cvtepu8_epi16(codes), v);
}

WEFT_INLINE Vec group_dot(const Codes (&w)[kQuads], const std::byte* x, int32_t minus) {
  __m256i a = _mm256_setzero_si256(), b = a, c = a, d = a;  // four outputs each, two sums
  const auto* quads = reinterpret_cast<const long long*>(x);
  for (int q = 0; q < kQuads; ++q) {
    const __m256i v = _mm256_set1_epi64x(quads[q]);
    a = _mm256_add_epi32(a, quad_dot(_mm256_castsi256_si128(w[q].a), v));
    b = _mm256_add_epi32(b, quad_dot(_mm256_extracti128_si256(w[q].a, 1), v));
    c = _mm256_add_epi32(c, quad_dot(_mm256_castsi256_si128(w[q].b), v));
    d = _mm256_add_epi32(d, quad_dot(_mm256_extracti128_si256(w[q].b, 1), v));
  }
  const __m256i bias = _mm256_set1_epi32(minus);
  const __m256i first = _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xD8);
  const __m256i second = _mm256_permute4x64_epi64(_mm256_hadd_epi32(c, d), 0xD8);
  return {_mm256_cvtepi32_ps(_mm256_add_epi32(first, bias)),
          _mm256_cvtepi32_ps(_mm256_add_epi32(second, bias))};
}

#endif

/// Rows [row, row + R) of the block against panels [panel, panel + P), all groups. P panels at a
/// time are as many streams of weights.
template <int R, int P, bool Int4>
void panel_rows(const IntRows& a, const Block& block, int64_t row, int panel, Ahead ahead) {
  constexpr int kPairBytes = Int4 ? kInt4PairBytes : kInt8PairBytes;
  constexpr int kGroupBytes = Int4 ? 256 : 512;
  constexpr int64_t kPairsAhead = Int4 ? 2 : 1;  // about 1 KiB of a stream
  constexpr int64_t kFirstLines = (kPairBytes / 64 + 1) / 2 * 64;
  const int64_t first = block.tile * kRowTile + row, row_bytes = int_row_bytes(a.steps);
  const std::byte* x = a.data + first * row_bytes;
  const float* scale = a.scales + int_row_at(a, first);
  const int32_t* minus = a.minus + int_row_at(a, first);
  const int64_t next = int_tile_rows(a);
  const std::byte *pair[P], *behind[P];  // the stream and where it goes on
  Vec acc[P][R];
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    pair[p] = block.panels[panel + p];
    behind[p] = read_next(block, panel + p, P);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) acc[p][r] = vec_zero();
  }
  for (int64_t s = 0; s < block.steps; s += 2) {
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) {
      const int64_t beyond = s + 2 * kPairsAhead - block.steps;
      const std::byte* then =
          beyond < 0 ? pair[p] + kPairsAhead * kPairBytes : behind[p] + beyond / 2 * kPairBytes;
#pragma GCC unroll 2
      for (int half = 0; half < 2; ++half) {
        if (half == 0) {
          request<kFirstLines>(ahead, then);
        } else {
          request<kPairBytes - kFirstLines>(ahead, then + kFirstLines);
        }
        Codes w[kQuads];
        load_codes(pair[p] + 64 + half * kGroupBytes, Int4, w);
        const Vec weight_scale = vec_f16(pair[p] + half * 32);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
          const int64_t at = (s + half) * next + r;
          const Vec dot = group_dot(w, x + r * row_bytes + (s + half) * 64, minus[at]);
          acc[p][r] = vec_fma(dot, vec_mul(weight_scale, vec_set(scale[at])), acc[p][r]);
        }
      }
      pair[p] += kPairBytes;
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    float* c = block.c + ((panel + p) * block.tiles * kRowTile + row) * kPanelWidth;
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) vec_store(c + r * kPanelWidth, acc[p][r]);
  }
}

#if WEFT_AMX
constexpr int64_t kTileMinRows = 6;  // below, vpdpbusd is faster
#endif

template <int P, bool Int4>
void all_rows(const IntRows& a, const Block& block, int panel) {
  constexpr int kMost = kMaxRows / P > 0 ? kMaxRows / P : 1, kHalf = kMost > 1 ? kMost / 2 : 1;
  Ahead ahead = best_ahead();
  const int64_t left = a.rows - block.tile * kRowTile, all = block.tiles * kRowTile;
  const int64_t end = left < all ? left : all;
  for (int64_t row = 0; row < end;) {
#if WEFT_AMX
    if (end - row >= kTileMinRows) {
      const int64_t now = end - row < kRowTile ? end - row : kRowTile;
      for (int p = 0; p < P; ++p) multiply_int_tiles(a, block, Int4, row, now, panel + p);
      row += now;
      continue;
    }
#endif
    if (end - row >= kMost) {
      panel_rows<kMost, P, Int4>(a, block, row, panel, ahead);
      row += kMost;
    } else if (end - row >= kHalf) {
      panel_rows<kHalf, P, Int4>(a, block, row, panel, ahead);
      row += kHalf;
    } else {
      panel_rows<1, P, Int4>(a, block, row, panel, ahead);
      row += 1;
    }
    ahead = Ahead::kNone;  // the panels are in the cache from now on
  }
}

template <bool Int4>
void multiply(const IntRows& a, const Block& block) {
  int panel = 0;
  for (; panel + kStreams <= block.count; panel += kStreams)
    all_rows<kStreams, Int4>(a, block, panel);
  for (; panel < block.count; ++panel) all_rows<1, Int4>(a, block, panel);
}

}  // namespace

void multiply_int(const IntRows& a, const Block& block, bool int4) {
  if (int4) {
    multiply<true>(a, block);
  } else {
    multiply<false>(a, block);
  }
}

}  // namespace weft::WEFT_ISA_NS
