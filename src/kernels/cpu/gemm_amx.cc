// out[r][o] = sum_k x[r][k] w[o][k] with AMX: tdpbf16ps on 16 x 32 tiles of activations and
// 32 x 16 tiles of weights. Many rows: 2 x 2 result tiles a K step (4 loads feed 4 products); at
// most 16 rows: 1 x 4, four streams of weights; at most 3 rows: vector instructions that follow the
// order of tdpbf16ps, because they read memory faster than tile loads do. Bound: 16 cycles a
// product above ~100 rows, weight bandwidth below (docs/kernels/cpu_gemm.md).

#include "kernels/cpu/gemm.h"
#include "kernels/cpu/gemm_prefetch.h"
#include "kernels/cpu/gemm_tiles.h"
#include "kernels/cpu/gemm_vec.h"

#if WEFT_AMX

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kTileBytes = 1024;
constexpr unsigned kFlushDenormals = 0x8040;  // MXCSR: results and operands

/// Activations and results of a job with fewer than 16 rows use so many rows of their tiles.
void configure(int64_t rows) {
  TileConfig config;
  for (int i = 0; i < 8; ++i) {
    const bool weights = i == 6 || i == 7 || (i == 5 && rows <= kRowTile);
    config.rows[i] = static_cast<uint8_t>(weights || rows > kRowTile ? kRowTile : rows);
    config.row_bytes[i] = 64;
  }
  load_tile_config(config);
}

/// A row tile of packed activations; the next row tile and the next K step lie so many bytes on.
struct Activations {
  const std::byte* at;
  int64_t tile, step;
};

/// 2 x 2: results 0..3, activations 4, 5, weights 6, 7. 1 x 4: results 0..3, activations 4,
/// weights 5..7.
template <int Tiles, int Panels>
void tiles_block(const Block& block, const Activations& x, const std::byte* const* b, float* c,
                 int64_t c_panel) {
  const std::byte* const a = x.at;
  const int64_t a_tile = x.tile, a_step = x.step, steps = block.steps;
  constexpr int kC = kRowTile * kPanelWidth;
  if (block.accumulate) {
    _tile_loadd(0, c, 64);
    if constexpr (Panels > 1) _tile_loadd(1, c + c_panel, 64);
    if constexpr (Tiles > 1) _tile_loadd(2, c + kC, 64);
    if constexpr (Tiles > 1 && Panels > 1) _tile_loadd(3, c + c_panel + kC, 64);
  } else {
    _tile_zero(0);
    if constexpr (Panels > 1) _tile_zero(1);
    if constexpr (Tiles > 1) _tile_zero(2);
    if constexpr (Tiles > 1 && Panels > 1) _tile_zero(3);
  }
  const std::byte* b0 = b[0];
  const std::byte* b1 = Panels > 1 ? b[1] : nullptr;
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(6, b0 + s * kTileBytes, 64);
    _tile_loadd(4, a + s * a_step, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (Panels > 1) {
      _tile_loadd(7, b1 + s * kTileBytes, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (Tiles > 1) {
      _tile_loadd(5, a + a_tile + s * a_step, 64);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (Panels > 1) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, 64);
  if constexpr (Panels > 1) _tile_stored(1, c + c_panel, 64);
  if constexpr (Tiles > 1) _tile_stored(2, c + kC, 64);
  if constexpr (Tiles > 1 && Panels > 1) _tile_stored(3, c + c_panel + kC, 64);
}

/// One row tile, four panels from `panel`. Lines kStepsAhead K steps on are requested by turns from
/// the four panels, some before each tile load; behind a panel's end those of the next one.
void stream_block(const Block& block, const Activations& x, int panel, int64_t c_panel) {
  constexpr int kStreams = 4, kLines = kTileBytes / 64 / kStreams;  // lines of a panel a tile load
  constexpr int64_t kStepsAhead = 2;
  const std::byte* const a = x.at;
  const std::byte* const* const b = block.panels + panel;
  float* const c = block.c + panel * c_panel;
  const int64_t a_step = x.step, steps = block.steps;
  if (block.accumulate) {
    _tile_loadd(0, c, 64);
    _tile_loadd(1, c + c_panel, 64);
    _tile_loadd(2, c + 2 * c_panel, 64);
    _tile_loadd(3, c + 3 * c_panel, 64);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  const std::byte *b0 = b[0], *b1 = b[1], *b2 = b[2], *b3 = b[3];
  const std::byte* next[kStreams];
  for (int i = 0; i < kStreams; ++i) {
    const std::byte* then = read_next(block, panel + i, kStreams);
    next[i] = (then != nullptr ? then : b[i]) - steps * kTileBytes;
  }
  for (int64_t s = 0; s < steps; ++s) {
    const std::byte* const* const from = s + kStepsAhead < steps ? b : next;
    // Always inline: gcc takes a function that only requests lines for one without effect.
    const auto request_lines = [&](int part) __attribute__((always_inline)) {
#pragma GCC unroll 4
      for (int line = part * kLines; line < (part + 1) * kLines; ++line) {
#pragma GCC unroll 4
        for (int i = 0; i < kStreams; ++i) {
          const std::byte* at = from[i] + (s + kStepsAhead) * kTileBytes + line * 64;
          _mm_prefetch(reinterpret_cast<const char*>(at), _MM_HINT_T0);
        }
      }
    };
    _tile_loadd(4, a + s * a_step, 64);
    request_lines(0);
    _tile_loadd(5, b0 + s * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 5);
    request_lines(1);
    _tile_loadd(6, b1 + s * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 6);
    request_lines(2);
    _tile_loadd(7, b2 + s * kTileBytes, 64);
    _tile_dpbf16ps(2, 4, 7);
    request_lines(3);
    _tile_loadd(5, b3 + s * kTileBytes, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + c_panel, 64);
  _tile_stored(2, c + 2 * c_panel, 64);
  _tile_stored(3, c + 3 * c_panel, 64);
}

/// R rows, P panels by vector instructions with the bits of tdpbf16ps: per K step the even and the
/// odd products are two chains of fused multiply-adds from zero, their sum is added to the result;
/// denormals are zero (multiply_begin() sets that). Beside each line that is used, the line a step
/// on is requested; behind the last step that is `jump` bytes from the panel's beginning.
template <int R, int P>
void vector_block(const PackedRows& a, const Block& block, int panel, int64_t jump) {
  const auto* x = reinterpret_cast<const int32_t*>(a.data) + block.step * a.rows * kStep / 2;
  const std::byte* b[P];
  Vec acc[P][R];
  const int64_t c_panel = kRowTile * kPanelWidth;
  float* c = block.c + panel * c_panel;
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    b[p] = block.panels[panel + p];
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r)
      acc[p][r] = block.accumulate ? vec_load(c + p * c_panel + r * kPanelWidth) : vec_zero();
  }
  const int64_t end = block.steps * kTileBytes;
  for (int64_t at = 0; at < end; at += kTileBytes) {
    const int64_t ahead = at + kTileBytes < end ? at + kTileBytes : jump;
    Vec even[P][R], odd[P][R];
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) even[p][r] = odd[p][r] = vec_zero();
    }
#pragma GCC unroll 16
    for (int pair = 0; pair < kStep / 2; ++pair) {
      __m512 xe[R], xo[R];
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) {
        const __m512i both = _mm512_set1_epi32(x[r * kStep / 2 + pair]);
        xe[r] = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
        xo[r] = _mm512_castsi512_ps(
            _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xFFFF0000u))));
      }
#pragma GCC unroll 8
      for (int p = 0; p < P; ++p) {
        const std::byte* line = b[p] + pair * 64;
        _mm_prefetch(reinterpret_cast<const char*>(line + ahead), _MM_HINT_T0);
        const Vec we = vec_bf16_even(line + at), wo = vec_bf16_odd(line + at);
#pragma GCC unroll 4
        for (int r = 0; r < R; ++r) {
          even[p][r] = vec_fma({xe[r]}, we, even[p][r]);
          odd[p][r] = vec_fma({xo[r]}, wo, odd[p][r]);
        }
      }
    }
    x += a.rows * kStep / 2;
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
      for (int r = 0; r < R; ++r) acc[p][r] = vec_add(acc[p][r], vec_add(even[p][r], odd[p][r]));
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) vec_store(c + p * c_panel + r * kPanelWidth, acc[p][r]);
  }
}

/// Panels from `panel` on, P at once, then what is left by half as many.
template <int R, int P>
void vector_rows(const PackedRows& a, const Block& block, int panel = 0) {
  for (; panel + P <= block.count; panel += P) {
    const std::byte* next = read_next(block, panel, P);
    vector_block<R, P>(a, block, panel, next != nullptr ? next - block.panels[panel] : 0);
  }
  if constexpr (P > 1) vector_rows<R, P / 2>(a, block, panel);
}

/// Requests part `part` of `parts` of what the next block will read.
void bring(const Block& block, int64_t part, int64_t parts) {
  const int64_t lines = block.ahead_bytes / 64;
  const int64_t begin = lines * part / parts, end = lines * (part + 1) / parts;
  for (int p = 0; p < block.count; ++p) {
    const auto* panel = reinterpret_cast<const char*>(block.ahead[p]);
    for (int64_t i = begin; i < end; ++i) _mm_prefetch(panel + i * 64, _MM_HINT_T1);
  }
}

}  // namespace

void multiply_bf16(const PackedRows& a, const Block& block) {
  switch (a.rows) {
    case 1: vector_rows<1, 8>(a, block); return;
    case 2: vector_rows<2, 4>(a, block); return;
    case 3: vector_rows<3, 2>(a, block); return;
    default: configure(a.rows);
  }
  asm volatile("" ::: "memory");  // what the tiles read has been written
  const int64_t a_tile = a.steps * kTileBytes, a_step = tile_rows(a) * 64;
  const std::byte* x = a.data + block.tile * a_tile + block.step * a_step;
  const int64_t c_panel = block.tiles * kRowTile * kPanelWidth;
  int p = 0;
  if (block.tiles == 1) {
    for (; p + 4 <= block.count; p += 4) {
      stream_block(block, {x, a_tile, a_step}, p, c_panel);
    }
  }
  for (; p < block.count; p += 2) {
    const bool two = p + 1 < block.count;
    const std::byte* const* b = block.panels + p;
    for (int64_t t = 0; t < block.tiles; t += 2) {
      float* c = block.c + p * c_panel + t * kRowTile * kPanelWidth;
      const Activations xt{x + t * a_tile, a_tile, a_step};
      const auto fn = t + 1 < block.tiles ? (two ? tiles_block<2, 2> : tiles_block<2, 1>)
                                          : (two ? tiles_block<1, 2> : tiles_block<1, 1>);
      fn(block, xt, b, c, c_panel);
      if (block.ahead != nullptr && p == 0) bring(block, t / 2, (block.tiles + 1) / 2);
    }
  }
  asm volatile("" ::: "memory");
}

void multiply_begin() {
  _mm_setcsr(_mm_getcsr() | kFlushDenormals);
}

void multiply_end() {
  _tile_release();
  _mm_setcsr(_mm_getcsr() & ~kFlushDenormals);
}

}  // namespace weft::WEFT_ISA_NS

#endif
