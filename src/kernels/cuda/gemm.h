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
  TensorView out;   ///< [rows, N] (I for kSiluMul), bf16 or f32
  Epilogue epilogue = Epilogue::kStore;
  /// Null: all rows belong to expert 0. Else [experts + 1] on the device: expert e owns rows
  /// offsets[e] .. offsets[e + 1]; then out is bf16, N and K are multiples of 8.
  const int32_t* offsets = nullptr;
};

/// Sums run over K in steps of 16 in ascending order whatever the tile, so a row's bits depend on
/// its own data alone.
void gemm_bf16(Stream& stream, const Gemm& gemm);

}  // namespace weft::cuda
