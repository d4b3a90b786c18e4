#pragma once

// How weights lie in device memory, for the kernels that read them (docs/kernels/gemm_decode.md).
// All of it is about one expert; experts follow each other Weight::expert_bytes apart.
//
//   kBf16      rows [N] of K rounded up to 8, zeros after K
//   kF32       the same in f32
//   kFp8Block  e4m3 rows [N] of K rounded up to 16, zeros after K; then, at fp8_scales_offset(),
//   f32
//              scales [ceil(N / 16)][ceil(K / 128)]: one for each 16 rows (a weight fused of
//              several checkpoint tensors has blocks of 128 rows that begin with each tensor)
//   kInt8      tiles [ceil(N / 64)][ceil(K / 64)] of kInt8TileBytes
//   kInt4      tiles [ceil(N / 64)][ceil(K / 64)] of kInt4TileBytes
//
// A tile has the codes of 64 rows x 64 k in the order of wgmma's (and mma.sync's) A operand, then
// the f16 scales of its two groups of 32 k. Row r, column k of a tile belong to warp w = r / 16,
// thread t = 4 (r % 8) + (k % 8) / 2 of it, register a = (r % 16) / 8 + 2 ((k % 16) / 8) of step
// s = k / 16 and its half h = k % 2:
//   int8: byte 1024 w + 512 (s / 2) + 16 t + 8 (s % 2) + 4 (a / 2) + 2 h + a % 2, two's complement
//   int4: word (512 w + 16 t) / 4 + s, bits 8 (a % 2) + 4 (a / 2) + 16 h, code + 8
//   scale of row r, group v = k / 32: f16 at codes + 128 v + 32 w + 4 (r % 8) + 2 ((r % 16) / 8)
// so that a thread takes the codes of two steps (int8) or four (int4) with one 16-byte load.
// Rows and columns beyond N and K have scale 0 and code 0.
//
//   kDraft4    tiles [ceil(N / 64)][ceil(K / 128)] of kDraft4TileBytes; then, at
//   draft4_scales_offset(), an f32 scale a row
// A tile has the codes of 64 rows x 128 k in the order of wgmma's A operand of e4m3: of the group
// v = k / 32 warp w = r / 16 and its thread t = 4 (r % 8) + (k % 16) / 4 have the word 1024 w + 512
// (v / 2) + 16 t + 8 (v % 2) + 4 (r % 16 / 8) bytes on. Columns 4 (t % 4) + j of the group (j < 4)
// have m in the word's bits 4 j and the sign in bit 8 j + 7, columns 16 + 4 (t % 4) + j in bits 16
// + 4 j and 8 j + 3. Behind the codes, of row r and group v: byte 64 w + 8 (r % 8) + 4 (r % 16 / 8)
// + v, 8 (e + 5). Rows beyond N have scale 0; columns beyond K have any code.

#include <cstdint>

#include "kernels/weight.h"

namespace weft::cuda {

inline constexpr int kQuantTile = 64;
inline constexpr int kInt8CodeBytes = 4096, kInt4CodeBytes = 2048;
inline constexpr int kQuantScaleBytes = 256;
inline constexpr int kInt8TileBytes = kInt8CodeBytes + kQuantScaleBytes;
inline constexpr int kInt4TileBytes = kInt4CodeBytes + kQuantScaleBytes;
inline constexpr int kFp8ScaleRows = 16;
inline constexpr int kDraft4TileColumns = 128;
inline constexpr int kDraft4CodeBytes = 4096;
inline constexpr int kDraft4TileBytes = kDraft4CodeBytes + 256;

constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Bytes from row to row of kBf16, kF32 and kFp8Block.
constexpr int64_t weight_row_bytes(const WeightShape& shape) {
  switch (shape.format) {
    case WeightFormat::kBf16: return ceil_div(shape.k, 8) * 16;
    case WeightFormat::kF32: return ceil_div(shape.k, 8) * 32;
    case WeightFormat::kFp8Block: return ceil_div(shape.k, 16) * 16;
    default: return 0;
  }
}
/// Bytes of a tile of kInt8 and kInt4.
constexpr int64_t weight_tile_bytes(WeightFormat format) {
  return format == WeightFormat::kInt8 ? kInt8TileBytes : kInt4TileBytes;
}
constexpr int64_t fp8_scales_offset(const WeightShape& shape) {
  return ceil_div(shape.n * weight_row_bytes(shape), 128) * 128;
}
/// Scales of a row of blocks.
constexpr int64_t fp8_scales_stride(const WeightShape& shape) {
  return ceil_div(shape.k, kFp8Block);
}

constexpr int64_t draft4_scales_offset(const WeightShape& shape) {
  return ceil_div(shape.n, kQuantTile) * ceil_div(shape.k, kDraft4TileColumns) * kDraft4TileBytes;
}
/// Of row r and group v: where its eight codes of thread t % 4 = c lie, and its power of two.
constexpr int draft4_word_place(int r, int v, int c) {
  return r / 16 * 1024 + v / 2 * 512 + (r % 8 * 4 + c) * 16 + v % 2 * 8 + r % 16 / 8 * 4;
}
constexpr int draft4_power_place(int r, int v) {
  return kDraft4CodeBytes + r / 16 * 64 + r % 8 * 8 + r % 16 / 8 * 4 + v;
}

/// Where a code lies in its tile (the comment above): the byte, and for int4 the shift in it.
struct CodePlace {
  int byte;
  int shift;
};
constexpr CodePlace int8_place(int r, int k) {
  const int a = r % 16 / 8 + k % 16 / 8 * 2, t = r % 8 * 4 + k % 8 / 2, s = k / 16;
  return {r / 16 * 1024 + s / 2 * 512 + t * 16 + s % 2 * 8 + a / 2 * 4 + k % 2 * 2 + a % 2, 0};
}
constexpr CodePlace int4_place(int r, int k) {
  const int t = r % 8 * 4 + k % 8 / 2;
  return {r / 16 * 512 + t * 16 + k / 16 * 4 + k % 2 * 2 + r % 16 / 8, k % 16 / 8 * 4};
}
/// Where the scale of row r and group v lies behind the tile's codes.
constexpr int scale_place(int r, int v) {
  return v * 128 + r / 16 * 32 + r % 8 * 4 + r % 16 / 8 * 2;
}

}  // namespace weft::cuda
