#pragma once

// A chunk of the gated delta rule on AMX tiles with fp32's accuracy: each factor is the sum of two
// bf16 (16 bits of it, of fp32's 24), a product three tile products: hi hi + lo hi + hi lo. What is
// left out is 2^-17 of a product at most, and of either sign. docs/kernels/gated_delta.md
//
// Tiles: a matrix is kept as tiles of 1 KiB, the high part and the low part of a tile side by side.
//   left operand:  16 rows x 32 of depth           right operand: 16 pairs of depth x 16 columns
// K and V are multiples of 32; rows of a chunk are padded with zeros to a multiple of 32.

#include "kernels/cpu/gdn_rows.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/norm.h"

#if WEFT_AMX

namespace weft::WEFT_ISA_NS {

inline constexpr int64_t kTile = 512;             // bf16 of a tile
inline constexpr int64_t kBoth = 2 * kTile;       // of its two parts
inline constexpr int64_t kTilePair = 2 * kLanes;  // rows or columns that are multiplied together

/// Left or right operand: tile (i, s), i along its rows or columns, s along the depth, begins at
/// base + (i * outer + s * step) * kBoth.
struct TileMatrix {
  bf16* base;
  int64_t outer, step;
  bf16* tile(int64_t i, int64_t s) const { return base + (i * outer + s * step) * kBoth; }
  TileMatrix from(int64_t i) const { return {tile(i, 0), outer, step}; }
};

/// Lines to bring to the second cache while tiles are multiplied, some every step: rows lie pages
/// apart, where no hardware prefetcher follows, and all at once they would wait for each other.
class Ahead {
 public:
  /// `width` floats at `row(i)` for i in [0, rows); `steps` steps to bring them in.
  Ahead(const float* first, int64_t stride, int64_t width, int64_t rows, int64_t steps)
      : at_(first), stride_(stride), width_(width), rows_(rows) {
    step_lines_ = (rows * (width / kWide) + steps - 1) / steps;
  }
  WEFT_INLINE void step() {
    for (int64_t i = 0; i < step_lines_; ++i) {
      if (rows_ <= 0) return;
      _mm_prefetch(reinterpret_cast<const char*>(at_ + column_), _MM_HINT_T1);
      column_ += kWide;
      if (column_ < width_) continue;
      column_ = 0;
      at_ += stride_;
      --rows_;
    }
  }

 private:
  static constexpr int64_t kWide = 16;  // of two lines the second comes with the first
  const float* at_;
  int64_t stride_, width_, rows_, step_lines_, column_ = 0;
};

/// c[32, 32] = a b over `steps` tiles of depth: tiles (0, .), (1, .) of each.
/// An element's terms are added in one order, whatever lies beside it.
template <class... Aheads>
WEFT_INLINE void multiply_pair(const TileMatrix& a, const TileMatrix& b, int64_t steps,
                               const RowMatrix& c, Aheads&... ahead) {
  const int64_t stride = c.stride * 4;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t s = 0; s < steps; ++s) {
    const bf16 *a0 = a.tile(0, s), *a1 = a.tile(1, s);
    const bf16 *b0 = b.tile(0, s), *b1 = b.tile(1, s);
    _tile_loadd(4, a0, 64);
    _tile_loadd(6, b0, 64);
    (ahead.step(), ...);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b1, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a0 + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1 + kTile, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
    _tile_loadd(4, a0, 64);
    _tile_loadd(6, b0 + kTile, 64);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(7, b1 + kTile, 64);
    _tile_dpbf16ps(1, 4, 7);
    _tile_loadd(5, a1, 64);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c.base, stride);
  _tile_stored(1, c.base + kLanes, stride);
  _tile_stored(2, c.row(kLanes), stride);
  _tile_stored(3, c.row(kLanes) + kLanes, stride);
}

/// What the compiler can't see of tile loads and stores: memory has been written, may be read.
WEFT_INLINE void tile_fence() {
  asm volatile("" ::: "memory");
}

/// Two vectors as bf16 and what that leaves of them as bf16: [a | b] in order.
WEFT_INLINE void split(Vec a, Vec b, __m512i& high, __m512i& low) {
  high = (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v);
  const __m512 ra = _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_castsi512_si256(high)), 16));
  const __m512 rb = _mm512_castsi512_ps(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(high, 1)), 16));
  low = (__m512i)_mm512_cvtne2ps_pbh(_mm512_sub_ps(b.v, rb), _mm512_sub_ps(a.v, ra));
}

/// The same with a's and b's values by turns: a pair of depth of a right operand.
WEFT_INLINE void split_pairs(Vec a, Vec b, __m512i& high, __m512i& low) {
  alignas(64) static constexpr uint16_t kTurns[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                      21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                      11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const __m512i turns = _mm512_load_si512(kTurns);
  high = _mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v));
  const Pairs pairs{high};
  const Vec ra = a - first_of(pairs), rb = b - second_of(pairs);
  low = _mm512_permutexvar_epi16(turns, (__m512i)_mm512_cvtne2ps_pbh(rb.v, ra.v));
}

/// Row `p` of a tile and of its low part.
WEFT_INLINE void store_split(bf16* tile, int64_t p, __m512i high, __m512i low) {
  _mm512_store_si512(tile + p * 32, high);
  _mm512_store_si512(tile + kTile + p * 32, low);
}

/// Transposes 16 x 16 of 32 bits.
inline void transpose_words(const bf16* from, bf16* to) {
  __m512i x[16], y[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) x[i] = _mm512_load_si512(from + i * 32);
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {  // x[i + l]: column 4 m + l of rows i .. i + 3 in lane m
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int l = 0; l < 4; ++l) {
    const __m512i low01 = _mm512_shuffle_i32x4(x[l], x[4 + l], 0x44);
    const __m512i high01 = _mm512_shuffle_i32x4(x[l], x[4 + l], 0xEE);
    const __m512i low23 = _mm512_shuffle_i32x4(x[8 + l], x[12 + l], 0x44);
    const __m512i high23 = _mm512_shuffle_i32x4(x[8 + l], x[12 + l], 0xEE);
    _mm512_store_si512(to + l * 32, _mm512_shuffle_i32x4(low01, low23, 0x88));
    _mm512_store_si512(to + (4 + l) * 32, _mm512_shuffle_i32x4(low01, low23, 0xDD));
    _mm512_store_si512(to + (8 + l) * 32, _mm512_shuffle_i32x4(high01, high23, 0x88));
    _mm512_store_si512(to + (12 + l) * 32, _mm512_shuffle_i32x4(high01, high23, 0xDD));
  }
}

class TileChunks {
 public:
  static bool takes(const GdnShape& s) {
    return s.key_dim % kTilePair == 0 && s.value_dim % kTilePair == 0;
  }

  TileChunks(const GdnRows& rows, int64_t count, Carver& memory)
      : rows_(rows), kd_(rows.kd()), vd_(rows.vd()) {
    const TensorView& out = rows.args().out;
    const auto lines = [](int64_t floats) { return floats % kLanes == 0; };
    streams_ = out.shape[0] * out.shape[1] * vd_ >= kStreamFloats && lines(out.stride[0]) &&
               lines(out.stride[1]) && reinterpret_cast<uintptr_t>(out.data) % 64 == 0;
    const auto tiles = [&](int64_t n) { return static_cast<bf16*>(memory.bytes(n * kBoth * 2)); };
    const int64_t k_tiles = kd_ / 16, v_tiles = vd_ / 16;
    state_ = memory.floats(count * kd_ * vd_);
    states_ = tiles(count * k_tiles / 2 * v_tiles);
    kq_ = {tiles(8 * k_tiles / 2), k_tiles / 2, 1};
    keys_ = {tiles(4 * k_tiles / 2), k_tiles / 2, 1};
    turned_ = {tiles(k_tiles * 2), 2, 1};
    t_ = {tiles(4 * 2), 2, 1};
    p_ = {tiles(4 * 2), 2, 1};
    y_ = {tiles(2 * v_tiles), 1, v_tiles};
    w_ = {tiles(2 * v_tiles), 1, v_tiles};
    dots_ = memory.floats(2 * kChunk * kChunk);
    a_ = memory.floats(kChunk * kChunk);
    inverse_ = memory.floats(kChunk * kChunk);
    rows_in_ = memory.floats(kChunk * (kd_ > vd_ ? kd_ : vd_));
    read_ = memory.floats(2 * kChunk * vd_);
    u_ = memory.floats(kChunk * vd_);
    change_ = memory.floats(kTilePair * vd_);
    TileConfig config;
    for (int i = 0; i < 8; ++i) {
      config.rows[i] = 16;
      config.row_bytes[i] = 64;
    }
    if (state_ != nullptr) load_tile_config(config);
  }
  ~TileChunks() {
    if (state_ == nullptr) return;
    _tile_release();
    _mm_sfence();  // for what was streamed
  }
  TileChunks(const TileChunks&) = delete;
  TileChunks& operator=(const TileChunks&) = delete;

  float* state(int64_t r) { return state_ + r * kd_ * vd_; }

  /// Head r's state has been written: makes its tiles.
  void state_is_set(int64_t r) {
    for (int64_t k = 0; k < kd_; k += kTilePair) {
      for (int64_t p = 0; p < kLanes; ++p) {
        const float* s = state(r) + (k + 2 * p) * vd_;
        bf16* to = pair_row(states(r), k / kTilePair, p);
        for (int64_t c = 0; c < vd_; c += kLanes) {
          put_pair(to, c, load(s + c), load(s + vd_ + c));
        }
      }
    }
  }

  void load_key_head(const Run& run, int64_t hk) {
    const int64_t rows = padded(run);
    const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(kd_));
    rows_.convolve(run, rows_.q_channel(hk), kd_, rows, rows_in_);
    rows_.l2_normalise(rows_in_, run.n, scale);
    put_rows(rows_in_, rows, kq_, 4);
    rows_.convolve(run, rows_.k_channel(hk), kd_, rows, rows_in_);
    rows_.l2_normalise(rows_in_, run.n, 1.0f);
    put_rows(rows_in_, rows, kq_, 0);
    for (int64_t i = 0; i < rows / kLanes; ++i) {
      for (int64_t s = 0; s < kd_ / kTilePair; ++s) {
        transpose_words(kq_.tile(i, s), keys_.tile(i, s));
        transpose_words(kq_.tile(i, s) + kTile, keys_.tile(i, s) + kTile);
      }
    }
    for (int64_t s = 0; s < rows / kTilePair; ++s) {
      for (int64_t c = 0; c < kd_; c += kLanes) {
        alignas(64) bf16 pairs[kBoth];
        for (int64_t p = 0; p < kLanes; ++p) {
          const float* k = rows_in_ + (s * kTilePair + 2 * p) * kd_ + c;
          __m512i high, low;
          split_pairs(load(k), load(k + kd_), high, low);
          store_split(pairs, p, high, low);
        }
        transpose_words(pairs, turned_.tile(c / kLanes, s));
        transpose_words(pairs + kTile, turned_.tile(c / kLanes, s) + kTile);
      }
    }
    tile_fence();
    for (int64_t i = 0; i < rows / kLanes; i += 2) {  // k k^T, q k^T: the lower triangle
      for (int64_t j = 0; j <= i; j += 2) {
        for (int64_t part = 0; part < 2; ++part) {
          multiply_pair(kq_.from(4 * part + i), keys_.from(j), kd_ / kTilePair,
                        {dots_ + (part * kChunk + i * kLanes) * kChunk + j * kLanes, kChunk});
        }
      }
    }
    tile_fence();
  }

  void run_chunk(const Run& run, int64_t hv, int64_t r) {
    const int64_t rows = padded(run);
    Gates gates;
    rows_.load_gates(run, hv, rows, gates);
    Decays d;
    d.set(gates, rows);
    triangles(gates, d, rows);
    invert(rows);

    tile_fence();
    const int64_t steps = vd_ / kTilePair * 4 * (kd_ / kTilePair);
    Ahead values = next_rows(run, rows_.v_channel(hv), vd_, 0, kChunk, steps);
    Ahead gates_ahead = gate_rows(run, hv, steps);
    for (int64_t c = 0; c < vd_; c += kTilePair) {  // k S over q S
      for (int64_t i = 0; i < kChunk / kLanes * 2; i += 2) {
        if (i % 4 * kLanes >= rows) continue;
        multiply_pair(kq_.from(i), states(r).from(c / kLanes), kd_ / kTilePair,
                      {read_ + i * kLanes * vd_ + c, vd_}, values, gates_ahead);
      }
    }
    tile_fence();
    rows_.convolve(run, rows_.v_channel(hv), vd_, rows, rows_in_);
    for (int64_t i = 0; i < rows; i += 2) {  // y = beta (v - exp(G) k S)
      bf16* to = pair_row(y_, i / kTilePair, i % kTilePair / 2);
      for (int64_t c = 0; c < vd_; c += kLanes) {
        Vec y[2];
        for (int64_t l = 0; l < 2; ++l) {
          const int64_t at = (i + l) * vd_ + c;
          y[l] = splat(gates.beta[i + l]) *
                 fnma(splat(d.decay[i + l]), load(read_ + at), load(rows_in_ + at));
        }
        put_pair(to, c, y[0], y[1]);
      }
    }
    triangle_product(t_, rows, u_);
    for (int64_t i = 0; i < rows; i += 2) {  // u, and u decayed to the end of the chunk
      const Vec first = splat(d.rest[i]), second = splat(d.rest[i + 1]);
      bf16* to = pair_row(y_, i / kTilePair, i % kTilePair / 2);
      bf16* to_decayed = pair_row(w_, i / kTilePair, i % kTilePair / 2);
      for (int64_t c = 0; c < vd_; c += kLanes) {
        const Vec a = load(u_ + i * vd_ + c), b = load(u_ + (i + 1) * vd_ + c);
        put_pair(to, c, a, b);
        put_pair(to_decayed, c, first * a, second * b);
      }
    }
    triangle_product(p_, rows, u_);
    store_outputs(run, hv, d.decay);
    update(run, {r, rows, d.whole}, hv);
  }

 private:
  static constexpr int64_t kStreamFloats = int64_t{2} << 20;

  /// o = exp(G) q S + p u, and the norm. Many rows pass by the caches.
  void store_outputs(const Run& run, int64_t hv, const float* decay) {
    const GdnNorm& norm = rows_.args().norm;
    const GatedNorm row_norm{static_cast<const float*>(norm.weight.data), norm.eps,
                             norm.activation};
    alignas(64) float o[kMaxDim];
    for (int64_t i = 0; i < run.n; ++i) {
      const float* past = read_ + (kChunk + i) * vd_;
      for (int64_t c = 0; c < vd_; c += kLanes) {
        store(o + c, fma(splat(decay[i]), load(past + c), load(u_ + i * vd_ + c)));
      }
      if (norm.z.data != nullptr) {
        gated_norm_row(row_norm, o, rows_.gate_row(run.begin + i, hv), vd_, o);
      }
      float* out = rows_.out_row(run.begin + i, hv);
      for (int64_t c = 0; c < vd_; c += kLanes) {
        if (streams_) {
          _mm512_stream_ps(out + c, load(o + c).v);
        } else {
          store(out + c, load(o + c));
        }
      }
    }
  }

  static int64_t padded(const Run& run) { return run.n <= kTilePair ? kTilePair : kChunk; }

  TileMatrix states(int64_t r) const {
    const int64_t v_tiles = vd_ / kLanes;
    return {states_ + r * (kd_ / kTilePair) * v_tiles * kBoth, 1, v_tiles};
  }

  /// Where rows 2 p and 2 p + 1 of step s of a right operand with outer == 1 begin; 16 columns on
  /// lies kBoth / kLanes elements a column further.
  WEFT_INLINE static bf16* pair_row(const TileMatrix& m, int64_t s, int64_t p) {
    return m.tile(0, s) + p * 32;
  }
  WEFT_INLINE static void put_pair(bf16* row, int64_t c, Vec a, Vec b) {
    __m512i high, low;
    split_pairs(a, b, high, low);
    store_split(row + c * (kBoth / kLanes), 0, high, low);
  }

  /// x [rows, K] as row tiles from `first` on.
  void put_rows(const float* x, int64_t rows, const TileMatrix& to, int64_t first) const {
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t c = 0; c < kd_; c += kTilePair) {
        __m512i high, low;
        split(load(x + t * kd_ + c), load(x + t * kd_ + c + kLanes), high, low);
        store_split(to.tile(first + t / kLanes, c / kTilePair), t % kLanes, high, low);
      }
    }
  }

  /// a_ = -beta_i exp(G_i - G_j) k_i.k_j (i > j) and the tiles of exp(G_i - G_j) q_i.k_j (i >= j),
  /// both 0 above.
  void triangles(const Gates& gates, const Decays& d, int64_t rows) {
    alignas(64) float head[kChunk], tail[kChunk];  // G as a sum of two floats
    for (int64_t i = 0; i < rows; ++i) {
      head[i] = static_cast<float>(d.cumulative[i]);
      tail[i] = static_cast<float>(d.cumulative[i] - static_cast<double>(head[i]));
    }
    for (int64_t i = 0; i < rows; ++i) {
      const Vec beta = splat(-gates.beta[i]);
      for (int64_t j = 0; j <= i; j += kTilePair) {
        Vec p[2];
        for (int64_t l = 0; l < 2; ++l) {
          const int64_t from = j + l * kLanes, at = i * kChunk + from;
          const Vec difference =
              (splat(head[i]) - load(head + from)) + (splat(tail[i]) - load(tail + from));
          // Above the diagonal the difference is positive: cut before exp, then masked.
          const Vec e = exp(min(difference, splat(0)));
          store(a_ + at, keep_first(beta * e * load(dots_ + at), i - from, 0));
          p[l] = keep_first(e * load(dots_ + kChunk * kChunk + at), i - from + 1, 0);
        }
        __m512i high, low;
        split(p[0], p[1], high, low);
        store_split(p_.tile(i / kLanes, j / kTilePair), i % kLanes, high, low);
      }
    }
  }

  /// t = (I - a_)^-1 by blocks of 16 rows: t_II by substitution, t_I,<I = t_II a_I,<I t_<I.
  void invert(int64_t rows) {
    for (int64_t block = 0; block < rows; block += kLanes) {
      invert_diagonal(block);
      alignas(64) float middle[kLanes * kChunk];
      for (int64_t c = 0; c < block; c += kLanes) {
        rows_product(a_ + block * kChunk + c, kChunk, inverse_ + c * kChunk + c, block - c,
                     middle + c);
      }
      for (int64_t c = 0; c < block; c += kLanes) {
        rows_product(inverse_ + block * kChunk + block, kChunk, middle + c, kLanes,
                     inverse_ + block * kChunk + c);
      }
      const int64_t half = block / kTilePair * kTilePair;
      for (int64_t i = block; i < block + kLanes; ++i) {
        float* row = inverse_ + i * kChunk;
        if (block == half) store(row + block + kLanes, splat(0));
        for (int64_t c = 0; c <= half; c += kTilePair) {
          __m512i high, low;
          split(load(row + c), load(row + c + kLanes), high, low);
          store_split(t_.tile(i / kLanes, c / kTilePair), i % kLanes, high, low);
        }
      }
    }
  }

  void invert_diagonal(int64_t block) {
    const float* a = a_ + block * kChunk + block;
    Vec t[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) {
      t[i] = {_mm512_maskz_mov_ps(static_cast<__mmask16>(1u << i), _mm512_set1_ps(1.0f))};
    }
#pragma GCC unroll 16
    for (int j = 0; j < kLanes - 1; ++j) {
#pragma GCC unroll 16
      for (int i = j + 1; i < kLanes; ++i) t[i] = fma(splat(a[i * kChunk + j]), t[j], t[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(inverse_ + (block + i) * kChunk + block, t[i]);
  }

  /// c[16, 16] = a[16, depth] b[depth, 16]; rows of b and c are 64 floats apart.
  static void rows_product(const float* a, int64_t a_stride, const float* b, int64_t depth,
                           float* c) {
    Vec acc[kLanes];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) acc[i] = splat(0);
    for (int64_t k = 0; k < depth; ++k) {
      const Vec row = load(b + k * kChunk);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) acc[i] = fma(splat(a[i * a_stride + k]), row, acc[i]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) store(c + i * kChunk, acc[i]);
  }

  /// out [rows, V] = m y_, m lower triangular.
  void triangle_product(const TileMatrix& m, int64_t rows, float* out) {
    tile_fence();
    for (int64_t c = 0; c < vd_; c += kTilePair) {
      for (int64_t i = 0; i < rows / kLanes; i += 2) {
        multiply_pair(m.from(i), y_.from(c / kLanes), i / 2 + 1, {out + i * kLanes * vd_ + c, vd_});
      }
    }
    tile_fence();
  }

  struct Update {
    int64_t head, rows;
    float whole;
  };
  /// S <- whole S + k^T w_, and its tiles.
  void update(const Run& run, const Update& now, int64_t hv) {
    const Vec factor = splat(now.whole);
    const TileMatrix tiles = states(now.head);
    // The next chunk's q and k: each value head brings its share.
    const int64_t group = rows_.group(), hk = hv / group, share = kChunk / group;
    const int64_t first = hv % group * share, steps = kd_ / kTilePair * (vd_ / kTilePair) * 2;
    Ahead queries = next_rows(run, rows_.q_channel(hk), kd_, first, share, steps);
    Ahead keys = next_rows(run, rows_.k_channel(hk), kd_, first, share, steps);
    for (int64_t k = 0; k < kd_; k += kTilePair) {
      tile_fence();
      for (int64_t c = 0; c < vd_; c += kTilePair) {
        multiply_pair(turned_.from(k / kLanes), w_.from(c / kLanes), now.rows / kTilePair,
                      {change_ + c, vd_}, queries, keys);
      }
      tile_fence();
      for (int64_t p = 0; p < kLanes; ++p) {
        float* s = state(now.head) + (k + 2 * p) * vd_;
        const float* change = change_ + 2 * p * vd_;
        bf16* to = pair_row(tiles, k / kTilePair, p);
        for (int64_t c = 0; c < vd_; c += kLanes) {
          Vec a = fma(factor, load(s + c), load(change + c));
          Vec b = fma(factor, load(s + vd_ + c), load(change + vd_ + c));
          if (rows_.half()) {
            a = round_to_bf16(a);
            b = round_to_bf16(b);
          }
          store(s + c, a);
          store(s + vd_ + c, b);
          put_pair(to, c, a, b);
        }
      }
    }
  }

  /// This chunk's rows of the norm's gate.
  Ahead gate_rows(const Run& run, int64_t hv, int64_t steps) const {
    const TensorView& z = rows_.args().norm.z;
    if (z.data == nullptr) return {nullptr, 0, vd_, 0, 1};
    return {rows_.gate_row(run.begin, hv), z.stride[0], vd_, run.n, steps};
  }
  /// The next chunk's rows of the input from `channel` on, rows [first, first + rows) of it.
  Ahead next_rows(const Run& run, int64_t channel, int64_t width, int64_t first, int64_t rows,
                  int64_t steps) const {
    const int64_t left = run.segment.end - run.begin - kChunk - first;
    return {rows_.input(run.begin + kChunk + first) + channel, rows_.args().qkv.stride[0], width,
            left < rows ? left : rows, steps};
  }

  const GdnRows& rows_;
  const int64_t kd_, vd_;
  bool streams_;
  float* state_;         // [count][K][V]: S^T
  bf16* states_;         // its tiles: depth K, columns V
  TileMatrix kq_;        // rows 0 .. 63 of k, then of q; depth K
  TileMatrix keys_;      // k^T: depth K, columns of the chunk
  TileMatrix turned_;    // k^T: rows K, depth of the chunk
  TileMatrix t_, p_;     // (I + A)^-1 and P: rows and depth of the chunk
  TileMatrix y_, w_;     // y, later u; u decayed: depth of the chunk, columns V
  float* dots_;          // k k^T over q k^T [2][64][64]
  float *a_, *inverse_;  // [64][64]
  float* rows_in_;       // [64][K or V]
  float* read_;          // k S over q S [2][64][V]
  float *u_, *change_;   // [64][V], [32][V]
};

}  // namespace weft::WEFT_ISA_NS

#endif
