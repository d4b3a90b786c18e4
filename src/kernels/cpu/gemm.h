#pragma once

// The blocks a matrix product is made of, per instruction set. Include isa.h first.
//
// Activations are packed into tiles of 16 rows: [row tile][K/32][16 rows][32 values], so that one
// K step of a tile is what an AMX A tile wants, and a row's values of a step are contiguous for the
// others. Fewer than 16 rows make one tile of just as many. Results of a block are kept as
// [panel][row][16 outputs] f32 until the epilogue.
//
// Exactness: a result element is one chain of additions over the K steps in ascending order,
// whatever the rows and panels beside it; splitting K continues the chain from the stored f32.

#include "kernels/cpu/isa.h"
#include "kernels/cpu/pack.h"

namespace weft::WEFT_ISA_NS {

inline constexpr int kRowTile = 16;

/// What the multiply kernels of this instruction set read as activations: bf16, or bf16-rounded
/// (for bf16, int8, int4 weights) or plain (for f32 weights) floats.
#if WEFT_AVX512_BF16
using Act = uint16_t;
#else
using Act = float;
#endif

/// Rows of activations packed for bf16 panels (Act) or f32 panels (float).
struct PackedRows {
  std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t steps = 0;
};

WEFT_INLINE int64_t tile_rows(const PackedRows& p) {
  return p.rows < kRowTile ? p.rows : kRowTile;
}
/// Rows to pack, those that fill the last tile up included.
WEFT_INLINE int64_t padded_rows(const PackedRows& p) {
  return p.rows < kRowTile ? p.rows : (p.rows + kRowTile - 1) / kRowTile * kRowTile;
}
/// Bytes of `rows` packed rows; `f32`: for f32 weights.
int64_t packed_rows_bytes(int64_t rows, int64_t steps, bool f32);
/// Packs row `r` < padded_rows(): zeros past k, and all zeros when r >= rows.
void pack_row(const PackedRows& p, int64_t r, const float* x, int64_t k, bool f32);

/// Rows of activations as 16-bit integers per group, the decode arithmetic of int8 and int4:
/// x = scale * v with |v| <= 32639 = 127 * 257, so that v = 256 high + low in two int8.
/// A row's group is 64 bytes: 32 high and 32 low bytes, or (without VNNI) 32 int16.
struct IntRows {
  std::byte* data = nullptr;  ///< [rows][K/32][64 bytes], rows int_row_bytes() apart
  float* scales = nullptr;    ///< [row tile][K/32][tile rows]
  int32_t* minus = nullptr;   ///< as scales: -bias sum(v), bias the offset of the codes
  int32_t bias = 0;
  int64_t rows = 0;
  int64_t steps = 0;
};
/// Distance of rows: a line more than they need, so that they don't share a cache set.
WEFT_INLINE int64_t int_row_bytes(int64_t steps) {
  return (steps + 1) * 64;
}
/// Distance of two steps of one row in scales and minus.
WEFT_INLINE int64_t int_tile_rows(const IntRows& p) {
  return p.rows < kRowTile ? p.rows : kRowTile;
}
/// Where step 0 of a row is in scales and minus.
WEFT_INLINE int64_t int_row_at(const IntRows& p, int64_t row) {
  return row / kRowTile * kRowTile * p.steps + row % kRowTile;
}
int64_t int_rows_bytes(int64_t rows, int64_t steps);
IntRows int_rows(void* memory, int64_t rows, const PackedMatrix& matrix);
void pack_int_row(const IntRows& p, int64_t r, const float* x, int64_t k);

/// Row tiles [tile, tile + tiles) against `count` panels over K steps [step, step + steps).
struct Block {
  int64_t tile = 0, tiles = 0;
  const std::byte* const* panels = nullptr;  ///< each at the first of its steps
  int count = 0;
  int64_t step = 0, steps = 0;
  float* c = nullptr;                       ///< [count][tiles * 16][16]
  bool accumulate = false;                  ///< continue the chains in c
  const std::byte* const* ahead = nullptr;  ///< `count` panels that are read next, or null
  int64_t ahead_bytes = 0;                  ///< of each to bring into the cache at once
};

/// What is read behind panel `panel` where `width` panels are read side by side, or null.
WEFT_INLINE const std::byte* read_next(const Block& block, int panel, int width) {
  const int next = panel + width;
  if (next < block.count) return block.panels[next];
  return block.ahead != nullptr ? block.ahead[next - block.count] : nullptr;
}

void multiply_bf16(const PackedRows& a, const Block& block);
void multiply_f32(const PackedRows& a, const Block& block);
/// int8 or int4 panels with the decode arithmetic: sum over groups g of
/// float(sum_k q v) * (weight scale * row scale), one fused multiply-add a group. step must be 0.
void multiply_int(const IntRows& a, const Block& block, bool int4);
#if WEFT_AMX
/// The same by AMX for rows [row, row + rows) of the block, at most 16, and one of its panels.
void multiply_int_tiles(const IntRows& a, const Block& block, bool int4, int64_t row, int64_t rows,
                        int panel);
#endif
/// Steps [0, steps) (even) of an int8 or int4 panel as a bf16 panel, q * scale rounded.
void dequantize_panel(const std::byte* panel, bool int4, int64_t steps, uint16_t* out);

/// Called by a thread before and after a series of multiply calls and what follows them on the
/// results (AMX: denormals are zero in between, as in the tiles; the end frees the tiles).
void multiply_begin();
void multiply_end();

}  // namespace weft::WEFT_ISA_NS
