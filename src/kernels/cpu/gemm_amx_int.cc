// The decode arithmetic of int8 and int4 weights (gemm_int.cc) by AMX, for 6 to 16 rows: per panel
// and group two tdpbsud (the high and the low bytes of 16 rows against 32 x 16 codes) give exact
// int32 sums; the vector units scale and add them. The sums of group g are combined while the
// tiles work on group g + 2.

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_prefetch.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/gemm_vec.h"

#if WEFT_AMX

namespace weft::WEFT_ISA_NS {
namespace {

/// Exact sums of one group: high bytes, low bytes.
struct Sums {
  alignas(64) int32_t high[kRowTile][kPanelWidth];
  alignas(64) int32_t low[kRowTile][kPanelWidth];
};

/// Results 0, 1 (even groups) and 2, 3 (odd), activations 4, 5, codes 6, 7.
void configure(int64_t rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    config.rows[i] = static_cast<uint8_t>(i >= 6 ? 8 : rows);
    config.row_bytes[i] = i == 4 || i == 5 ? 32 : 64;
  }
  load_tile_config(config);
}

WEFT_INLINE void unpack(const std::byte* group, std::byte* codes) {
  const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 4
  for (int q = 0; q < 4; ++q) {
    const __m512i both = _mm512_load_si512(group + q * 64);
    _mm512_store_si512(codes + q * 64, _mm512_and_si512(both, mask));
    _mm512_store_si512(codes + (q + 4) * 64, _mm512_and_si512(_mm512_srli_epi16(both, 4), mask));
  }
}

template <int Half>
WEFT_INLINE void tile_group(const std::byte* x, int64_t row_bytes, const std::byte* codes,
                            Sums& sums) {
  asm volatile("" ::: "memory");
  if constexpr (Half == 0) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_loadd(6, codes, 64);
    _tile_loadd(4, x, row_bytes);
    _tile_dpbsud(0, 4, 6);
    _tile_loadd(5, x + 32, row_bytes);
    _tile_dpbsud(1, 5, 6);
    _tile_stored(0, sums.high, 64);
    _tile_stored(1, sums.low, 64);
  } else {
    _tile_zero(2);
    _tile_zero(3);
    _tile_loadd(7, codes, 64);
    _tile_loadd(4, x, row_bytes);
    _tile_dpbsud(2, 4, 7);
    _tile_loadd(5, x + 32, row_bytes);
    _tile_dpbsud(3, 5, 7);
    _tile_stored(2, sums.high, 64);
    _tile_stored(3, sums.low, 64);
  }
  asm volatile("" ::: "memory");
}

/// acc += float(sums + minus) * (weight scale * row scale), for R rows.
template <int R>
WEFT_INLINE void combine(const Sums& sums, const std::byte* weight_scales, const float* scales,
                         const int32_t* minus, Vec (&acc)[R]) {
  const Vec weight_scale = vec_f16(weight_scales);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    const __m512i high = _mm512_slli_epi32(_mm512_load_si512(sums.high[r]), 8);
    const __m512i low =
        _mm512_add_epi32(_mm512_load_si512(sums.low[r]), _mm512_set1_epi32(minus[r]));
    const Vec dot = {_mm512_cvtepi32_ps(_mm512_add_epi32(high, low))};
    acc[r] = vec_fma(dot, vec_mul(weight_scale, vec_set(scales[r])), acc[r]);
  }
}

/// R: rows rounded up to 8, 12 or 16; what rows past `rows` give is left over and unused.
template <int R, bool Int4>
void panel_rows(const IntRows& a, const Block& block, int64_t row, int64_t rows, int panel) {
  constexpr int kPairBytes = Int4 ? kInt4PairBytes : kInt8PairBytes;
  constexpr int kGroupBytes = Int4 ? 256 : 512;
  const int64_t row_bytes = int_row_bytes(a.steps), first = block.tile * kRowTile + row;
  const std::byte* x = a.data + first * row_bytes;
  const std::byte* pair = block.panels[panel];
  const float* scales = a.scales + int_row_at(a, first);
  const int32_t* minus = a.minus + int_row_at(a, first);
  const int64_t next = int_tile_rows(a);
  Sums sums[2][2] = {};
  alignas(64) std::byte codes[2][512];
  Vec acc[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) acc[r] = vec_zero();
  const auto combine_pair = [&](int64_t s, const std::byte* from) __attribute__((always_inline)) {
    for (int half = 0; half < 2; ++half) {
      const int64_t at = (s + half) * next;
      combine<R>(sums[s / 2 % 2][half], from + half * 32, scales + at, minus + at, acc);
    }
  };
  constexpr Ahead ahead = Ahead::kSecondLevel;
  for (int64_t s = 0; s < block.steps; s += 2, pair += kPairBytes) {
    request<kPairBytes>(ahead, pair + ahead_distance(1));
    const std::byte* group[2] = {pair + 64, pair + 64 + kGroupBytes};
    if constexpr (Int4) {
      unpack(group[0], codes[0]);
      unpack(group[1], codes[1]);
      group[0] = codes[0];
      group[1] = codes[1];
    }
    tile_group<0>(x + s * 64, row_bytes, group[0], sums[s / 2 % 2][0]);
    tile_group<1>(x + s * 64 + 64, row_bytes, group[1], sums[s / 2 % 2][1]);
    if (s > 0) combine_pair(s - 2, pair - kPairBytes);
  }
  combine_pair(block.steps - 2, pair - kPairBytes);
  float* c = block.c + (panel * block.tiles * kRowTile + row) * kPanelWidth;
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
    if (r < rows) vec_store(c + r * kPanelWidth, acc[r]);
  }
}

template <bool Int4>
void some_rows(const IntRows& a, const Block& block, int64_t row, int64_t rows, int panel) {
  if (rows <= 8) {
    panel_rows<8, Int4>(a, block, row, rows, panel);
  } else if (rows <= 12) {
    panel_rows<12, Int4>(a, block, row, rows, panel);
  } else {
    panel_rows<16, Int4>(a, block, row, rows, panel);
  }
}

}  // namespace

void multiply_int_tiles(const IntRows& a, const Block& block, bool int4, int64_t row, int64_t rows,
                        int panel) {
  configure(rows);
  if (int4) {
    some_rows<true>(a, block, row, rows, panel);
  } else {
    some_rows<false>(a, block, row, rows, panel);
  }
}

}  // namespace weft::WEFT_ISA_NS

#endif
