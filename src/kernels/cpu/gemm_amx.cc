// out[r][o] = sum_k x[r][k] w[o][k] with AMX: tdpbf16ps on 16 x 32 tiles of activations and
// 32 x 16 tiles of weights. Many rows: 2 x 2 result tiles a K step (4 loads feed 4 products); at
// most 16 rows: 1 x 4, four streams of weights. Bound: 16 cycles a product above ~100 rows, weight
// bandwidth below (docs/kernels/cpu_gemm.md).

#include "kernels/cpu/gemm.h"

#if WEFT_AMX

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kTileBytes = 1024;

struct alignas(64) TileConfig {
  uint8_t palette = 1;
  uint8_t start_row = 0;
  uint8_t reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

/// 2 x 2: results 0..3, activations 4, 5, weights 6, 7. 1 x 4: results 0..3, activations 4,
/// weights 5..7.
template <int Tiles, int Panels>
void tiles_block(const std::byte* a, int64_t a_tile, int64_t a_step, const std::byte* const* b,
                 int64_t steps, float* c, int64_t c_panel, bool accumulate) {
  constexpr int kC = kRowTile * kPanelWidth;
  if (accumulate) {
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

/// One row tile, four panels.
void stream_block(const std::byte* a, int64_t a_step, const std::byte* const* b, int64_t steps,
                  float* c, int64_t c_panel, bool accumulate) {
  if (accumulate) {
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
  for (int64_t s = 0; s < steps; ++s) {
    _tile_loadd(4, a + s * a_step, 64);
    _tile_loadd(5, b0 + s * kTileBytes, 64);
    _tile_dpbf16ps(0, 4, 5);
    _tile_loadd(6, b1 + s * kTileBytes, 64);
    _tile_dpbf16ps(1, 4, 6);
    _tile_loadd(7, b2 + s * kTileBytes, 64);
    _tile_dpbf16ps(2, 4, 7);
    _tile_loadd(5, b3 + s * kTileBytes, 64);
    _tile_dpbf16ps(3, 4, 5);
  }
  _tile_stored(0, c, 64);
  _tile_stored(1, c + c_panel, 64);
  _tile_stored(2, c + 2 * c_panel, 64);
  _tile_stored(3, c + 3 * c_panel, 64);
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
  asm volatile("" ::: "memory");  // what the tiles read has been written
  const int64_t a_tile = a.steps * kTileBytes, a_step = tile_rows(a) * 64;
  const std::byte* x = a.data + block.tile * a_tile + block.step * a_step;
  const int64_t c_panel = block.tiles * kRowTile * kPanelWidth;
  int p = 0;
  if (block.tiles == 1) {
    for (; p + 4 <= block.count; p += 4) {
      stream_block(x, a_step, block.panels + p, block.steps, block.c + p * c_panel, c_panel,
                   block.accumulate);
    }
  }
  for (; p < block.count; p += 2) {
    const bool two = p + 1 < block.count;
    const std::byte* const* b = block.panels + p;
    for (int64_t t = 0; t < block.tiles; t += 2) {
      float* c = block.c + p * c_panel + t * kRowTile * kPanelWidth;
      const std::byte* xt = x + t * a_tile;
      const auto fn = t + 1 < block.tiles ? (two ? tiles_block<2, 2> : tiles_block<2, 1>)
                                          : (two ? tiles_block<1, 2> : tiles_block<1, 1>);
      fn(xt, a_tile, a_step, b, block.steps, c, c_panel, block.accumulate);
      if (block.ahead != nullptr && p == 0) bring(block, t / 2, (block.tiles + 1) / 2);
    }
  }
  asm volatile("" ::: "memory");
}

void multiply_begin(int64_t rows) {
  TileConfig config;
  const int64_t few = rows < 1 ? 1 : rows;
  for (int i = 0; i < 8; ++i) {
    const bool weights = i == 6 || i == 7 || (i == 5 && rows <= kRowTile);
    config.rows[i] = static_cast<uint8_t>(weights || rows > kRowTile ? kRowTile : few);
    config.row_bytes[i] = 64;
  }
  // The intrinsic tells the compiler of 8 bytes only: keep the others.
  asm volatile("" : : "r"(&config) : "memory");
  _tile_loadconfig(&config);
}

void multiply_end() {
  _tile_release();
}

}  // namespace weft::WEFT_ISA_NS

#endif
