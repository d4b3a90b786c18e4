#pragma once

// The two products of an attention tile, S = Q K^T and O += P V, in every arithmetic:
//   FmaF32   fp32 cache, fp32 multiply-add
//   FmaBf16  bf16 cache, widened to fp32
//   DotBf16  bf16 cache, q and p rounded to bf16, vdpbf16ps
//   AmxBf16  the same on AMX tiles
// Each sums in an order that depends on D and the key's position alone: how many rows go together
// never shows in a row's bits.

#include "kernels/cpu/kv_format.h"
#include "kernels/cpu/limits.h"

namespace weft::WEFT_ISA_NS {

inline constexpr int kTileRows = 32;  ///< query rows of a tile: (token, head) pairs of a group
inline constexpr int kMaxHeadDim = kCpuMaxDim;

/// Dims of one product, of D: all, or those that share scales.
struct Dims {
  int64_t begin, end, d;
};

/// Operands of one tile. A: what the arithmetic takes q and p in.
template <class A>
struct TileBuffers {
  alignas(64) A q[kTileRows * kMaxHeadDim];  // [row][D]
  alignas(64) float s[kTileRows * kKeyTile];
  alignas(64) A p[kTileRows * kKeyTile];
  alignas(64) float o[kTileRows * kMaxHeadDim];  // [row][D]
};

struct FmaF32 {
  using Format = KvF32;
  using A = float;
  struct B {
    Vec v;
  };
  WEFT_INLINE static B load_b(const std::byte* p) {
    return {load(reinterpret_cast<const float*>(p))};
  }
  WEFT_INLINE static Vec mac(const float* a, B b, Vec c) { return fma(splat(*a), b.v, c); }
  WEFT_INLINE static Vec weight(Vec x) { return exp2(x); }
  static constexpr bool kTiles = false;
};

struct FmaBf16 {
  using Format = KvBf16;
  using A = float;
  struct B {
    Vec first, second;
  };
  WEFT_INLINE static B load_b(const std::byte* p) {
    const Pairs pairs = load_pairs(p);
    return {first_of(pairs), second_of(pairs)};
  }
  WEFT_INLINE static Vec mac(const float* a, B b, Vec c) {
    return fma(splat(a[1]), b.second, fma(splat(a[0]), b.first, c));
  }
  WEFT_INLINE static Vec weight(Vec x) { return exp2(x); }
  static constexpr bool kTiles = false;
};

#if defined(WEFT_AVX512_BF16)
struct DotBf16 {
  using Format = KvBf16;
  using A = bf16;
  struct B {
    __m512bh v;
  };
  WEFT_INLINE static B load_b(const std::byte* p) { return {(__m512bh)_mm512_loadu_si512(p)}; }
  WEFT_INLINE static Vec mac(const bf16* a, B b, Vec c) {
    int pair;
    memcpy(&pair, a, sizeof(pair));
    return {_mm512_dpbf16_ps(c.v, (__m512bh)_mm512_set1_epi32(pair), b.v)};
  }
  WEFT_INLINE static Vec weight(Vec x) { return exp2_coarse(x); }
  static constexpr bool kTiles = false;
};
#endif

inline void store_operand(float* p, Vec x) {
  store(p, x);
}
inline void store_operand(bf16* p, Vec x) {
#if defined(WEFT_AVX512_BF16)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), (__m256i)_mm512_cvtneps_pbh(x.v));
#else
  store_bf16(p, x);
#endif
}

/// What store_operand() stored.
inline Vec operand_value(const float* p) {
  return load(p);
}
inline Vec operand_value(const bf16* p) {
  return load_bf16(p);
}

/// Vectors of a micro-tile of `rows` rows: what the registers hold, and enough sums to hide
/// latency.
constexpr int micro_vecs(int rows) {
  return kMicroVecs == 1 ? 4 / rows : kMicroVecs;
}

/// s[row][16 n ..] = q[row] . k[n] for kRows rows and kVecs groups of keys.
template <class Math, int kRows, int kVecs>
WEFT_INLINE void qk_micro(const typename Math::A* q, Dims dims, const std::byte* const* k,
                          float* s) {
  constexpr int kPack = Math::Format::kPack;
  Vec acc[kRows][kVecs];
  for (auto& row : acc) {
    for (Vec& x : row) x = splat(0);
  }
  for (int64_t step = dims.begin / kPack; step < dims.end / kPack; ++step) {
    typename Math::B b[kVecs];
#pragma GCC unroll 4
    for (int n = 0; n < kVecs; ++n) b[n] = Math::load_b(k[n] + step * 64);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) {
        acc[r][n] = Math::mac(q + r * dims.d + step * kPack, b[n], acc[r][n]);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kVecs; ++n) store(s + r * kKeyTile + n * kLanes, acc[r][n]);
  }
}

/// o[row][n ..] += p[row] V for kRows rows, kVecs vectors of dims and the first `groups` groups.
template <class Math, int kRows, int kVecs>
WEFT_INLINE void pv_micro(const typename Math::A* p, int64_t d, const std::byte* const* v,
                          int64_t n_bytes, int groups, float* o) {
  constexpr int kPack = Math::Format::kPack;
  Vec acc[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kVecs; ++n) acc[r][n] = load(o + r * d + n * kLanes);
  }
  const int64_t step_bytes = d * 4;
  for (int g = 0; g < groups; ++g) {
    const std::byte* base = v[g] + n_bytes;
    for (int step = 0; step < kGroup / kPack; ++step) {
      typename Math::B b[kVecs];
#pragma GCC unroll 4
      for (int n = 0; n < kVecs; ++n) b[n] = Math::load_b(base + step * step_bytes + n * 64);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
        for (int n = 0; n < kVecs; ++n) {
          acc[r][n] = Math::mac(p + r * kKeyTile + g * kGroup + step * kPack, b[n], acc[r][n]);
        }
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int n = 0; n < kVecs; ++n) store(o + r * d + n * kLanes, acc[r][n]);
  }
}

/// Calls body(integral_constant rows, first row) over `rows` in pieces of 4, 2 and 1.
template <int kRows>
struct RowCount {
  static constexpr int kValue = kRows;
};
template <class Body>
WEFT_INLINE void for_row_pieces(int rows, Body&& body) {
  int r = 0;
  for (; r + 4 <= rows; r += 4) body(RowCount<4>{}, r);
  if (r + 2 <= rows) {
    body(RowCount<2>{}, r);
    r += 2;
  }
  if (r < rows) body(RowCount<1>{}, r);
}

/// scores [row][kKeyTile] = q [row][D] . k over `dims`.
template <class Math>
void qk_product(const typename Math::A* q, float* scores, int rows, Dims dims, const KeyTile& keys,
                int groups) {
  for_row_pieces(rows, [&](auto count, int r) {
    constexpr int kRows = decltype(count)::kValue, kVecs = micro_vecs(kRows);
    int n = 0;
    float* s = scores + r * kKeyTile;
    for (; n + kVecs <= groups; n += kVecs) {
      qk_micro<Math, kRows, kVecs>(q + r * dims.d, dims, keys.k + n, s + n * kLanes);
    }
    for (; n < groups; ++n) {
      qk_micro<Math, kRows, 1>(q + r * dims.d, dims, keys.k + n, s + n * kLanes);
    }
  });
}

/// The columns `dims` of o [row][D] += p [row][kKeyTile] V.
template <class Math>
void pv_product(const typename Math::A* p, float* o, int rows, Dims dims, const KeyTile& keys,
                int groups) {
  const int64_t d = dims.d;
  for_row_pieces(rows, [&](auto count, int r) {
    constexpr int kRows = decltype(count)::kValue, kVecs = micro_vecs(kRows);
    int64_t n = dims.begin;
    for (; n + kVecs * kLanes <= dims.end; n += kVecs * kLanes) {
      pv_micro<Math, kRows, kVecs>(p + r * kKeyTile, d, keys.v, n * 4, groups, o + r * d + n);
    }
    for (; n < dims.end; n += kLanes) {
      pv_micro<Math, kRows, 1>(p + r * kKeyTile, d, keys.v, n * 4, groups, o + r * d + n);
    }
  });
}

#if defined(WEFT_AMX)

/// Sixteen rows of 64 bytes in each of the eight tiles.
struct AmxConfig {
  alignas(64) uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

/// Needs D and the block size to be multiples of 32; rows beyond the count are computed and
/// ignored.
struct AmxBf16 {
  using Format = KvBf16;
  using A = bf16;
  WEFT_INLINE static Vec weight(Vec x) { return exp2_coarse(x); }
  static constexpr bool kTiles = true;
};

/// One or two row tiles times one or two column tiles, K in steps of 32.
/// Tiles: 0-3 sums, 4-5 rows of A, 6-7 columns of B.
template <int kRowTiles, int kColTiles>
struct AmxMicro {
  WEFT_INLINE static void zero() {
    _tile_zero(0);
    if constexpr (kColTiles == 2) _tile_zero(1);
    if constexpr (kRowTiles == 2) _tile_zero(2);
    if constexpr (kRowTiles == 2 && kColTiles == 2) _tile_zero(3);
  }
  WEFT_INLINE static void load_sums(const float* c, int64_t stride) {  // stride in floats
    _tile_loadd(0, c, stride * 4);
    if constexpr (kColTiles == 2) _tile_loadd(1, c + 16, stride * 4);
    if constexpr (kRowTiles == 2) _tile_loadd(2, c + 16 * stride, stride * 4);
    if constexpr (kRowTiles == 2 && kColTiles == 2) {
      _tile_loadd(3, c + 16 * stride + 16, stride * 4);
    }
  }
  WEFT_INLINE static void store_sums(float* c, int64_t stride) {
    _tile_stored(0, c, stride * 4);
    if constexpr (kColTiles == 2) _tile_stored(1, c + 16, stride * 4);
    if constexpr (kRowTiles == 2) _tile_stored(2, c + 16 * stride, stride * 4);
    if constexpr (kRowTiles == 2 && kColTiles == 2) {
      _tile_stored(3, c + 16 * stride + 16, stride * 4);
    }
  }
  WEFT_INLINE static void step(const bf16* a, int64_t a_stride, const std::byte* b0,
                               const std::byte* b1, int64_t b_stride) {
    _tile_loadd(4, a, a_stride * 2);
    _tile_loadd(6, b0, b_stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kColTiles == 2) {
      _tile_loadd(7, b1, b_stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kRowTiles == 2) {
      _tile_loadd(5, a + 16 * a_stride, a_stride * 2);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (kColTiles == 2) _tile_dpbf16ps(3, 5, 7);
    }
  }
};

template <int kRowTiles, int kColTiles>
WEFT_INLINE void amx_qk(const bf16* q, Dims dims, const std::byte* const* k, float* s) {
  using Micro = AmxMicro<kRowTiles, kColTiles>;
  Micro::zero();
  for (int64_t i = dims.begin; i < dims.end; i += 32) {
    Micro::step(q + i, dims.d, k[0] + i * 32, k[kColTiles - 1] + i * 32, 64);
  }
  Micro::store_sums(s, kKeyTile);
}

template <int kRowTiles>
void amx_qk_product(const bf16* q, float* s, Dims dims, const KeyTile& keys, int groups) {
  int n = 0;
  for (; n + 2 <= groups; n += 2) amx_qk<kRowTiles, 2>(q, dims, keys.k + n, s + n * kLanes);
  if (n < groups) amx_qk<kRowTiles, 1>(q, dims, keys.k + n, s + n * kLanes);
}

template <int kRowTiles>
void amx_pv_product(const bf16* p, float* o, Dims dims, const KeyTile& keys, int groups) {
  using Micro = AmxMicro<kRowTiles, 2>;
  const int64_t d = dims.d;
  for (int64_t n = dims.begin; n < dims.end; n += 32) {
    Micro::load_sums(o + n, d);
    for (int g = 0; g < groups; g += 2) {
      const std::byte* v = keys.v[g] + n * 4;
      Micro::step(p + g * kGroup, kKeyTile, v, v + 64, d * 4);
    }
    Micro::store_sums(o + n, d);
  }
}

template <>
inline void qk_product<AmxBf16>(const bf16* q, float* s, int rows, Dims d, const KeyTile& keys,
                                int groups) {
  rows > 16 ? amx_qk_product<2>(q, s, d, keys, groups) : amx_qk_product<1>(q, s, d, keys, groups);
}
template <>
inline void pv_product<AmxBf16>(const bf16* p, float* o, int rows, Dims d, const KeyTile& keys,
                                int groups) {
  rows > 16 ? amx_pv_product<2>(p, o, d, keys, groups) : amx_pv_product<1>(p, o, d, keys, groups);
}

#endif  // WEFT_AMX

}  // namespace weft::WEFT_ISA_NS
