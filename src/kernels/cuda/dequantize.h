#pragma once

// Weights as bf16 matrices, for the prompt products of formats that have no product of their own.

#include "device/stream.h"
#include "kernels/weight.h"

namespace weft::cuda {

/// Rows [first, first + rows) of the experts [expert, expert + experts), to `out`
/// [experts][out_rows][K rounded up to 8], from row `out_row` of each.
struct DequantizedRows {
  int64_t first = 0, rows = 0;
  int64_t expert = 0, experts = 1;
  std::byte* out = nullptr;
  int64_t out_row = 0, out_rows = 0;
  /// Null, or [E + 1] on the device: experts with offsets[e] == offsets[e + 1] are left out.
  const int32_t* offsets = nullptr;
};
/// Code times scale, rounded to bf16. kInt8, kInt4, kFp8Block.
void dequantize(Stream& stream, const Weight& weight, const DequantizedRows& rows);

}  // namespace weft::cuda
