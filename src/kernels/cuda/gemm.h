#pragma once

// The one bf16 matrix product of prompt arithmetic: dense (linear_prompt) and grouped by expert
// (moe_prompt). docs/kernels/gemm.md.

#include <cstdint>

#include "device/stream.h"
#include "kernels/args.h"

namespace weft::cuda {

/// out[r, n] (+)= sum_k a[r, k] b[e][n, k] + bias[n], or the SiluMul of both halves of b.
struct Gemm {
  TensorView a;                  ///< [rows, K] bf16
  const std::byte* b = nullptr;  ///< [experts][N][K] bf16
  int64_t n = 0, experts = 1;    ///< N: rows of b, 2I for kSiluMul
  int64_t b_row_bytes = 0, b_expert_bytes = 0;
  TensorView bias;  ///< [N] f32 or undefined; dense alone
  /// kSiluMul: where in `bias` that of the second half begins, N / 2 if 0.
  int64_t bias_up = 0;
  TensorView out;  ///< [rows, N] (I for kSiluMul), bf16 or f32
  Epilogue epilogue = Epilogue::kStore;
  /// Null: all rows belong to expert 0. Else [experts + 1] on the device: expert e owns rows
  /// offsets[e] .. offsets[e + 1]; then out is bf16, N and K are multiples of 8.
  const int32_t* offsets = nullptr;
};

/// Sums run over K in steps of 16 in ascending order whatever the tile, so a row's bits depend on
/// its own data alone.
void gemm_bf16(Stream& stream, const Gemm& gemm);

/// Rows as e4m3 codes with one scale for each 128 columns: x = code * scale.
struct QuantizedRows {
  uint8_t* codes = nullptr;  ///< [rows][stride]
  int64_t stride = 0;        ///< K rounded up to 16
  float* scales = nullptr;   ///< [ceil(K / 128)][scale_stride]
  int64_t scale_stride = 0;  ///< rows rounded up to 4
};
int64_t quantized_rows_bytes(int64_t rows, int64_t k);
/// Unwritten ones in quantized_rows_bytes() of memory, which begins at a multiple of 16.
QuantizedRows quantized_rows_at(void* memory, int64_t rows, int64_t k);
/// Scale = largest magnitude of the 128 / 448; codes to nearest. Memory from the stream's scratch.
QuantizedRows quantize_rows(Stream& stream, const TensorView& x);
/// quantize_rows() of what rms_norm() would write to norm.out, which stays as it was.
QuantizedRows quantize_norm(Stream& stream, const RmsNormArgs& norm);

/// Scales of b: one for each 16 rows x 128 columns (weight_layout.h).
struct BlockScales {
  const float* scales = nullptr;  ///< [experts][groups][row_stride]
  int groups = 0;                 ///< ceil(N / 16)
  int64_t row_stride = 0;         ///< floats between groups of rows: ceil(K / 128) or more
  int64_t expert_stride = 0;      ///< floats
};
/// Those of a packed weight.
BlockScales block_scales(const Weight& weight);

/// As gemm_bf16 with e4m3 codes in b (row stride a multiple of 16 bytes); `gemm.a` gives the rows
/// and K alone. The products of 128 K are summed by the tensor cores, multiplied by both scales and
/// added in f32. For kSiluMul N / 2 is a multiple of 16.
void gemm_fp8(Stream& stream, const Gemm& gemm, const QuantizedRows& a, const BlockScales& b);
/// gemm_fp8() with kSiluMul of rows of one expert, whose results become `out` (gemm.out isn't
/// looked at): quantize_rows() of what gemm_fp8() would write as bf16.
void gemm_fp8_quantized(Stream& stream, const Gemm& gemm, const QuantizedRows& a,
                        const BlockScales& b, const QuantizedRows& out);
/// Whether that is faster than gemm_fp8() and quantize_rows(): its tiles are twice as wide.
bool quantized_product_pays(const WeightShape& shape, int64_t rows);

/// gemm_fp8() of the rows of q, k and v, then qkv_prepare(): the same bits of q and of the cache;
/// of gemm.out the columns of k and v are not written.
void gemm_fp8_prepared(Stream& stream, const Gemm& gemm, const QuantizedRows& a,
                       const BlockScales& b, const QkvPrepareArgs& prepare);
/// Whether it can: heads of 128 dims, all turned by neighbours 64 apart, a cache of bf16, and rows
/// for which gemm_fp8() takes its large tile.
bool prepared_product_supports(const Gemm& gemm, const QkvPrepareArgs& prepare);

/// As gemm_bf16 with b in tiles of int8 or int4 codes: bf16(code * scale) times x. For kSiluMul N /
/// 2 is a multiple of kQuantTile.
void gemm_int(Stream& stream, const Gemm& gemm, WeightFormat format);

}  // namespace weft::cuda
