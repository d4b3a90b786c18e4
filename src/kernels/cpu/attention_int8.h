#pragma once

// Attention over caches of int8 and int4 codes on AMX tiles of 8 bits or by vpdpbusd: codes are
// multiplied as they lie, int4's after their zero points are subtracted. q and the weights of a
// tile of keys are whole numbers of 16 bits, in two bytes:
//   q k_scale = sq (256 h + l), |h|, |l| <= 128, sq = max |q k_scale| / 32639    of a row
//   p v_scale = sp (256 h + l), 0 <= h, l <= 255, sp = max (p v_scale) / 65535   of a row and tile
// The products are exact sums of int32, in any order and the same by either, so that a row's bits
// depend on its q and keys alone; the scales are multiplied behind them, in fp32.

#include "kernels/cpu/attention_worker.h"

#if defined(WEFT_AVX512_BF16)

namespace weft::WEFT_ISA_NS {
namespace {

/// Rows of whole numbers of 16 bits: high bytes, and `half` rows behind them the low ones, as sums.
struct ByteRows {
  const uint8_t* bytes;
  int num, half;
  const int32_t* minus;  // of signed ones, by vpdpbusd: -128 times the sum of each row of bytes
};

#if defined(WEFT_AMX)

// The intrinsics take the numbers of tiles as they are written.
#define WEFT_TILE_MULTIPLY(sum, a, b) \
  if constexpr (kSigned) {            \
    _tile_dpbssd(sum, a, b);          \
  } else                              \
    _tile_dpbusd(sum, a, b)

/// kRows row tiles times kColumns column tiles, summed in tiles 0 to 3; tiles 4 to 7 are operands.
/// kSigned: of A; B is.
template <int kRows, int kColumns, bool kSigned>
struct IntMicro {
  static_assert(kRows * kColumns == 4);

  WEFT_INLINE static void zero() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  /// A: [16 kRows][a_stride]; the columns' tiles of 16 rows, `b_stride` bytes apart.
  WEFT_INLINE static void step(const uint8_t* a, int64_t a_stride, const std::byte* const* b,
                               int64_t b_stride) {
    if constexpr (kRows == 1) {
      _tile_loadd(4, a, a_stride);
      _tile_loadd(5, b[0], b_stride);
      WEFT_TILE_MULTIPLY(0, 4, 5);
      _tile_loadd(6, b[1], b_stride);
      WEFT_TILE_MULTIPLY(1, 4, 6);
      _tile_loadd(7, b[2], b_stride);
      WEFT_TILE_MULTIPLY(2, 4, 7);
      _tile_loadd(5, b[3], b_stride);
      WEFT_TILE_MULTIPLY(3, 4, 5);
    } else if constexpr (kRows == 2) {
      _tile_loadd(4, a, a_stride);
      _tile_loadd(6, b[0], b_stride);
      WEFT_TILE_MULTIPLY(0, 4, 6);
      _tile_loadd(5, a + 16 * a_stride, a_stride);
      WEFT_TILE_MULTIPLY(1, 5, 6);
      _tile_loadd(7, b[1], b_stride);
      WEFT_TILE_MULTIPLY(2, 4, 7);
      WEFT_TILE_MULTIPLY(3, 5, 7);
    } else {
      _tile_loadd(6, b[0], b_stride);
      _tile_loadd(4, a, a_stride);
      WEFT_TILE_MULTIPLY(0, 4, 6);
      _tile_loadd(5, a + 16 * a_stride, a_stride);
      WEFT_TILE_MULTIPLY(1, 5, 6);
      _tile_loadd(4, a + 32 * a_stride, a_stride);
      WEFT_TILE_MULTIPLY(2, 4, 6);
      _tile_loadd(5, a + 48 * a_stride, a_stride);
      WEFT_TILE_MULTIPLY(3, 5, 6);
    }
  }
  /// Sums of column tile c go to `to` + 16 c; `stride` in numbers.
  WEFT_INLINE static void store(int32_t* to, int64_t stride) {
    if constexpr (kRows == 1) {
      _tile_stored(0, to, stride * 4);
      _tile_stored(1, to + 16, stride * 4);
      _tile_stored(2, to + 32, stride * 4);
      _tile_stored(3, to + 48, stride * 4);
    } else if constexpr (kRows == 2) {
      _tile_stored(0, to, stride * 4);
      _tile_stored(1, to + 16 * stride, stride * 4);
      _tile_stored(2, to + 16, stride * 4);
      _tile_stored(3, to + 16 * stride + 16, stride * 4);
    } else {
      _tile_stored(0, to, stride * 4);
      _tile_stored(1, to + 16 * stride, stride * 4);
      _tile_stored(2, to + 32 * stride, stride * 4);
      _tile_stored(3, to + 48 * stride, stride * 4);
    }
  }
};

#undef WEFT_TILE_MULTIPLY

/// The compiler does not know that tiles read and write memory.
WEFT_INLINE void memory_fence() {
  asm volatile("" ::: "memory");
}

/// Of 16 kRows rows.
template <int kRows>
void tile_scores(const uint8_t* q, Dims dims, const std::byte* const* k, int groups,
                 int32_t* sums) {
  constexpr int kColumns = 4 / kRows;
  using Micro = IntMicro<kRows, kColumns, true>;
  memory_fence();
  for (int n = 0; n < groups; n += kColumns) {
    Micro::zero();
    for (int64_t i = dims.begin; i < dims.end; i += 64) {
      const std::byte* b[kColumns];
      for (int c = 0; c < kColumns; ++c) b[c] = k[n + c < groups ? n + c : n] + i * kGroup;
      Micro::step(q + i, dims.d, b, 64);
    }
    Micro::store(sums + n * kGroup, kKeyTile);
  }
  memory_fence();
}

/// Over halves of 64 keys.
template <int kRows>
void tile_values(const uint8_t* p, Dims dims, const std::byte* const* v, int halves,
                 int32_t* sums) {
  constexpr int kColumns = 4 / kRows;
  using Micro = IntMicro<kRows, kColumns, false>;
  memory_fence();
  for (int64_t n = dims.begin; n < dims.end; n += 16 * kColumns) {
    Micro::zero();
    for (int half = 0; half < halves; ++half) {
      const std::byte* b[kColumns];
      for (int c = 0; c < kColumns; ++c) b[c] = v[half] + (n + 16 * c) * 4;
      Micro::step(p + half * 64, kKeyTile, b, dims.d * 4);
    }
    Micro::store(sums + n, dims.d);
  }
  memory_fence();
}

/// sums [row][kKeyTile] = q [row][D] . codes over `dims`.
inline void int_scores(const ByteRows& q, Dims dims, const std::byte* const* k, int groups,
                       int32_t* sums) {
  switch (q.half / 8) {
    case 1: return tile_scores<1>(q.bytes, dims, k, groups, sums);
    case 2: return tile_scores<2>(q.bytes, dims, k, groups, sums);
    default: return tile_scores<4>(q.bytes, dims, k, groups, sums);
  }
}

/// sums [row][D] = p [row][kKeyTile] . codes, the columns `dims`, over halves of 64 keys.
inline void int_values(const ByteRows& p, Dims dims, const std::byte* const* v, int halves,
                       int32_t* sums) {
  switch (p.half / 8) {
    case 1: return tile_values<1>(p.bytes, dims, v, halves, sums);
    case 2: return tile_values<2>(p.bytes, dims, v, halves, sums);
    default: return tile_values<4>(p.bytes, dims, v, halves, sums);
  }
}

#else

/// Sums of kRows rows of bytes `stride` apart from `row` on with four vectors of 16 numbers; at(i,
/// c) is where the codes of one for the bytes [i, i + 4) lie. vpdpbusd takes one factor without a
/// sign: of codes and signed bytes that is the code + 128, what is too much stands in a.minus.
template <int kRows, bool kSigned, class At>
WEFT_INLINE void dot_rows(const ByteRows& a, int row, int64_t stride, Dims bytes, const At& at,
                          int32_t* sums) {
  __m512i sum[2 * kRows][4];
  const auto index = [&](int r) { return row + r % kRows + r / kRows * a.half; };
#pragma GCC unroll 4
  for (int r = 0; r < 2 * kRows; ++r) {
    const __m512i first = kSigned ? _mm512_set1_epi32(a.minus[index(r)]) : _mm512_setzero_si512();
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) sum[r][c] = first;
  }
  for (int64_t i = bytes.begin; i < bytes.end; i += 4) {
    __m512i x[4];
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      x[c] = _mm512_loadu_si512(at(i, c));
      if (kSigned) x[c] = _mm512_xor_si512(x[c], _mm512_set1_epi8(-128));  // + 128
    }
#pragma GCC unroll 4
    for (int r = 0; r < 2 * kRows; ++r) {
      int32_t four;
      memcpy(&four, a.bytes + index(r) * stride + i, sizeof(four));
      const __m512i y = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int c = 0; c < 4; ++c) {
        sum[r][c] = kSigned ? _mm512_dpbusd_epi32(sum[r][c], x[c], y)
                            : _mm512_dpbusd_epi32(sum[r][c], y, x[c]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < 2 * kRows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) _mm512_store_si512(sums + index(r) * bytes.d + 16 * c, sum[r][c]);
  }
}

/// sums [row][kKeyTile] = q [row][D] . codes over `dims`.
inline void int_scores(const ByteRows& q, Dims dims, const std::byte* const* k, int groups,
                       int32_t* sums) {
  const Dims bytes{dims.begin, dims.end, kKeyTile};
  for (int n = 0; n < groups; n += 4) {
    const std::byte* of[4];
    for (int c = 0; c < 4; ++c) of[c] = k[n + c < groups ? n + c : n];
    const auto at = [&](int64_t i, int c) { return of[c] + i * kGroup; };
    int r = 0;
    for (; r + 1 < q.num; r += 2) dot_rows<2, true>(q, r, dims.d, bytes, at, sums + n * kGroup);
    if (r < q.num) dot_rows<1, true>(q, r, dims.d, bytes, at, sums + n * kGroup);
  }
}

/// sums [row][D] = p [row][kKeyTile] . codes, the columns `dims`, over halves of 64 keys.
inline void int_values(const ByteRows& p, Dims dims, const std::byte* const* v, int halves,
                       int32_t* sums) {
  const Dims bytes{0, 64 * halves, dims.d};
  for (int64_t n = dims.begin; n < dims.end; n += 64) {
    const auto at = [&](int64_t i, int c) {
      return v[i / 64] + i % 64 * dims.d + (n + 16 * c) * 4;
    };
    int r = 0;
    for (; r + 1 < p.num; r += 2) dot_rows<2, false>(p, r, kKeyTile, bytes, at, sums + n);
    if (r < p.num) dot_rows<1, false>(p, r, kKeyTile, bytes, at, sums + n);
  }
}

#endif

/// The largest bit pattern of magnitudes: a NaN is above all numbers.
WEFT_INLINE __m512i larger_bits(__m512i top, Vec x) {
  return _mm512_max_epu32(
      top, _mm512_and_si512(_mm512_castps_si512(x.v), _mm512_set1_epi32(0x7FFFFFFF)));
}

/// Steps of a row of whole numbers whose largest magnitude is `bits`: NaN where a value is no
/// finite number.
struct Steps {
  float inverse, scale;

  Steps(__m512i bits, float largest) {
    constexpr float kLeast = 1e-33f;  // largest / kLeast is finite
    const uint32_t top = _mm512_reduce_max_epu32(bits);
    float amax;
    memcpy(&amax, &top, sizeof(amax));
    const bool finite = top < 0x7F800000;
    if (amax < kLeast) amax = kLeast;
    inverse = finite ? largest / amax : 0.0f;
    scale = finite ? amax / largest : std::numeric_limits<float>::quiet_NaN();
  }
};

WEFT_INLINE __m512i whole(Vec x) {
  return _mm512_cvtps_epi32(x.v);
}
WEFT_INLINE void store_low_bytes(uint8_t* p, __m512i x) {
  _mm_store_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(x));
}
/// (256 high + low) of sums.
WEFT_INLINE Vec joined(const int32_t* high, const int32_t* low) {
  const __m512i h = _mm512_slli_epi32(_mm512_load_si512(high), 8);
  return {_mm512_cvtepi32_ps(_mm512_add_epi32(h, _mm512_load_si512(low)))};
}

/// A Worker (attention_worker.h) for formats with kv_whole_numbers().
class IntWorker {
 public:
  explicit IntWorker(const Call& call)
      : call_(call),
        layout_(call.args.kv.shape),
        int4_(call.args.kv.shape.format == KvFormat::kInt4),
        num_scales_(layout_.scales_per_row) {
#if defined(WEFT_AMX)
    const AmxConfig config;
    _tile_loadconfig(&config);
#endif
  }
  ~IntWorker() {
#if defined(WEFT_AMX)
    _tile_release();
#endif
  }
  IntWorker(const IntWorker&) = delete;
  IntWorker& operator=(const IntWorker&) = delete;

  void load_q(const Piece& piece) {
    const int64_t d = call_.d;
    half_ = piece.rows <= 8 ? 8 : piece.rows <= 16 ? 16 : 32;
    // Rows of a tile beyond the piece's are multiplied too.
    memset(q_, 0, static_cast<size_t>(2 * half_ * d));
    memset(p_, 0, static_cast<size_t>(2 * half_) * kKeyTile);
    const float* channels = call_.k_scale(call_.kv_head(piece));
    for (int r = 0; r < piece.rows; ++r) {
      const float* q = call_.q(piece, r);
      const auto scaled = [&](int64_t i) {
        return channels == nullptr ? load(q + i) : load(q + i) * load(channels + i);
      };
      __m512i top = _mm512_setzero_si512();
      for (int64_t i = 0; i < d; i += kLanes) top = larger_bits(top, scaled(i));
      const Steps steps(top, 32639.0f);
      q_scale_[r] = steps.scale;
      for (int64_t i = 0; i < d; i += kLanes) {
        const __m512i x = whole(scaled(i) * splat(steps.inverse));
        const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
        store_low_bytes(q_ + r * d + i, high);
        store_low_bytes(q_ + (r + half_) * d + i, x);
      }
#if !defined(WEFT_AMX)
      for (int part = 0; part < num_parts(); ++part) {
        for (const int row : {r, r + half_}) minus_[part][row] = minus_128(row, dims_of(part));
      }
#endif
    }
  }

  /// Keys [piece.begin, piece.end), which lie in one segment, from nothing. The result stays in the
  /// worker until the next call.
  Partial run(const Piece& piece) {
    const Sight sight = call_.sight(piece);
    for (int64_t i = 0; i < piece.rows * call_.d; i += kLanes) store(o_ + i, splat(0));
    for (int r = 0; r < piece.rows; ++r) {
      m_[r] = kNegInf;
      store(weight_sums_ + r * kLanes, splat(0));
    }
    for (int64_t key = piece.begin; key < piece.end; key += kKeyTile) {
      if (!sight.sees(key)) continue;
      Tile tile = find(piece, key);
      const bool streaming = piece.rows <= kStreamingRows;
      if (streaming) prefetch(tile.v, tile.groups);
      if (int4_) unpack(tile, 0);
      scores(piece.rows, tile);
      for (int r = 0; r < piece.rows; ++r) softmax_row(piece, r, key, tile.groups);
      if (streaming && key + kKeyTile < piece.end && sight.sees(key + kKeyTile)) {
        const Tile next = find(piece, key + kKeyTile, false);
        prefetch(next.k, next.groups);
      }
      values(piece, key, tile);
    }
    for (int r = 0; r < piece.rows; ++r) l_[r] = sum_lanes(load(weight_sums_ + r * kLanes));
    return {o_, m_, l_};
  }

 private:
  /// The groups of a tile of keys that hold keys a row sees.
  struct Tile {
    int groups = 0;
    const std::byte* k[kTileGroups];
    const std::byte* v[kTileGroups];
  };

  Tile find(const Piece& piece, int64_t key, bool with_scales = true) {
    const PagedKv& kv = call_.args.kv;
    const TensorView& table = call_.args.seqs.block_table;
    const int32_t* blocks =
        static_cast<const int32_t*>(table.data) + piece.sequence * table.stride[0];
    const int64_t end = call_.keys(piece.sequence), seen = piece.end < end ? piece.end : end;
    Tile out;
    for (int64_t k = key; out.groups < kTileGroups && k < seen; k += kGroup, ++out.groups) {
      const int64_t token = k % layout_.block_size;
      std::byte* head = kv.data + int64_t{blocks[k / layout_.block_size]} * kv.block_bytes +
                        call_.kv_head(piece) * layout_.head_bytes;
      out.k[out.groups] = layout_.group(head, 0, token);
      out.v[out.groups] = layout_.group(head, 1, token);
      for (int i = 0; with_scales && i < num_scales_; ++i) {
        for (int plane = 0; plane < 2; ++plane) {
          store(scales_[plane][i] + out.groups * kGroup,
                load(layout_.scales(head, plane, i) + token));
        }
      }
    }
    return out;
  }

  void prefetch(const std::byte* const* groups, int num) {
    for (int g = 0; g < num; ++g) {
      for (int64_t i = 0; i < layout_.group_bytes; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(groups[g] + i), _MM_HINT_T1);
      }
    }
  }

  /// The differences of int4 codes and their zero points, a byte each, in the layout of int8.
  void unpack(Tile& tile, int plane) {
    const int64_t d = call_.d;
    for (int g = 0; g < tile.groups; ++g) {
      const std::byte*& from = plane == 0 ? tile.k[g] : tile.v[g];
      std::byte* to = wide_ + g * kGroup * d;
      widen_int4_bytes({from, scales_[plane][0] + g * kGroup, kKeyTile, d, plane == 1}, to);
      from = to;
    }
  }

  /// Where 64 keys of V lie one after the other.
  const std::byte* half_of_v(const Tile& tile, int half) {
    const int first = half * 4;
    if (int4_ || layout_.block_size % 64 == 0) return tile.v[first];
    const int64_t bytes = layout_.group_bytes;
    for (int g = first; g < tile.groups && g < first + 4; ++g) {
      memcpy(wide_ + g * bytes, tile.v[g], static_cast<size_t>(bytes));
    }
    return wide_ + first * bytes;
  }

  /// -128 times the sum of a row of bytes of q.
  int32_t minus_128(int row, Dims dims) const {
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = dims.begin; i < dims.end; i += 64) {
      const __m512i x = _mm512_load_si512(q_ + row * dims.d + i);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi8(-128), x);
    }
    return -_mm512_reduce_add_epi32(sum);
  }
  int num_parts() const {
    return num_scales_ > 1 ? num_scales_ : 1;
  }
  Dims dims_of(int part) const {
    if (num_scales_ <= 1) return {0, call_.d, call_.d};
    const int64_t begin = int64_t{part} * kKvInt4Group, end = begin + kKvInt4Group;
    return {begin, end < call_.d ? end : call_.d, call_.d};
  }

  /// s = q k with all scales but the softmax's.
  void scores(int rows, const Tile& tile) {
    for (int part = 0; part < num_parts(); ++part) {
      int_scores({q_, rows, half_, minus_[part]}, dims_of(part), tile.k, tile.groups, sums_);
      for (int r = 0; r < rows; ++r) {
        const int32_t* high = sums_ + r * kKeyTile;
        const int32_t* low = sums_ + (r + half_) * kKeyTile;
        float* s = s_ + r * kKeyTile;
        for (int n = 0; n < tile.groups * kGroup; n += kLanes) {
          Vec x = joined(high + n, low + n) * splat(q_scale_[r]);
          if (num_scales_ > 0) x = x * load(scales_[0][part] + n);
          store(s + n, part == 0 ? x : load(s + n) + x);
        }
      }
    }
  }

  /// s -> p = 2^(c s - m) with the new m; o and the sum are rescaled where m has grown.
  void softmax_row(const Piece& piece, int r, int64_t key, int groups) {
    const int64_t visible = call_.position(piece, piece.first_row + r) + 1 - key;
    const Vec c = splat(call_.args.shape.scale * kLog2E);
    float* s = s_ + r * kKeyTile;
    Vec top = splat(kNegInf);
    for (int g = 0; g < groups; ++g) {
      top = max(top, keep_first(load(s + g * kGroup), visible - g * kGroup, kNegInf));
    }
    const float tile_m = max_lanes(top) * first_lane(c);
    const float m = tile_m > m_[r] ? tile_m : m_[r];
    const Vec base = splat(m == kNegInf ? 0.0f : -m);
    Vec sum = splat(0);
    for (int g = 0; g < groups; ++g) {
      const Vec seen = keep_first(load(s + g * kGroup), visible - g * kGroup, kNegInf);
      const Vec p = exp2_coarse(fma(seen, c, base));
      store(s + g * kGroup, p);
      sum = sum + p;
    }
    float* weight_sum = weight_sums_ + r * kLanes;
    if (m != m_[r]) {
      const Vec shrink = exp2(splat(m_[r]) + base);
      store(weight_sum, load(weight_sum) * shrink);
      float* o = o_ + r * call_.d;
      for (int64_t i = 0; i < call_.d; i += kLanes) store(o + i, load(o + i) * shrink);
      m_[r] = m;
    }
    store(weight_sum, load(weight_sum) + sum);
  }

  /// o += p v.
  void values(const Piece& piece, int64_t key, Tile& tile) {
    if (int4_) unpack(tile, 1);
    const int halves = (tile.groups + 3) / 4;
    const std::byte* v[2];
    for (int half = 0; half < halves; ++half) v[half] = half_of_v(tile, half);
    for (int part = 0; part < num_parts(); ++part) {
      const Dims dims = dims_of(part);
      for (int r = 0; r < piece.rows; ++r) take_weights(piece, r, key, part, halves, tile.groups);
      int_values({p_, piece.rows, half_, nullptr}, dims, v, halves, sums_);
      for (int r = 0; r < piece.rows; ++r) {
        const int32_t* high = sums_ + r * call_.d;
        const int32_t* low = sums_ + (r + half_) * call_.d;
        float* o = o_ + r * call_.d;
        const Vec scale = splat(p_scale_[r]);
        for (int64_t i = dims.begin; i < dims.end; i += kLanes) {
          store(o + i, fma(joined(high + i, low + i), scale, load(o + i)));
        }
      }
    }
  }

  /// The weights of a row with the scales of V, as whole numbers; 0 where a key is not seen,
  /// whatever its scale.
  void take_weights(const Piece& piece, int r, int64_t key, int part, int halves, int groups) {
    const int64_t visible = call_.position(piece, piece.first_row + r) + 1 - key;
    Vec weights[kTileGroups];
    __m512i top = _mm512_setzero_si512();
    for (int g = 0; g < groups; ++g) {
      Vec p = load(s_ + r * kKeyTile + g * kGroup);
      if (num_scales_ > 0) {
        p = keep_first(p * load(scales_[1][part] + g * kGroup), visible - g * kGroup, 0);
      }
      weights[g] = p;
      top = larger_bits(top, p);
    }
    const Steps steps(top, 65535.0f);
    p_scale_[r] = steps.scale;
    uint8_t* high = p_ + r * kKeyTile;
    uint8_t* low = p_ + (r + half_) * kKeyTile;
    for (int g = 0; g < 4 * halves; ++g) {
      const __m512i x =
          g < groups ? whole(weights[g] * splat(steps.inverse)) : _mm512_setzero_si512();
      store_low_bytes(high + g * kGroup, _mm512_srli_epi32(x, 8));
      store_low_bytes(low + g * kGroup, x);
    }
  }

  const Call& call_;
  const KvCodeLayout layout_;
  const bool int4_;
  const int num_scales_;  // of a row
  int half_ = 8;          // row r + half_ of the operands and sums is the low byte of row r
  static constexpr int kRows = 2 * kTileRows;
  alignas(64) uint8_t q_[kRows * kMaxHeadDim];
  alignas(64) uint8_t p_[kRows * kKeyTile];
  int32_t minus_[kMaxScales][kRows];
  alignas(64) int32_t sums_[kRows * kMaxHeadDim];  // of scores (a row: kKeyTile), or of values (D)
  alignas(64) float s_[kTileRows * kKeyTile];
  alignas(64) float o_[kTileRows * kMaxHeadDim];
  alignas(64) float scales_[2][kMaxScales][kKeyTile];
  alignas(64) std::byte wide_[kKeyTile * kMaxHeadDim];
  alignas(64) float weight_sums_[kTileRows * kLanes];
  float q_scale_[kTileRows], p_scale_[kTileRows], m_[kTileRows], l_[kTileRows];
};

}  // namespace
}  // namespace weft::WEFT_ISA_NS

#endif  // WEFT_AVX512_BF16
