#pragma once

// One matrix product of a linear layer or of an expert, cut into blocks of output columns that any
// thread may compute. Include isa.h first.

#include "kernels/args.h"
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {

/// out = rows x matrix^T. Rows of `prompt` use the prompt arithmetic and are the first rows of
/// `out`; rows of `decode` (int8, int4 only) follow.
struct ColumnJob {
  PackedMatrix matrix;
  PackedRows prompt;
  IntRows decode;
  float* out = nullptr;
  int64_t out_stride = 0;
  Epilogue epilogue = Epilogue::kStore;  ///< kSiluMul only where N/2 is a multiple of 16
  const float* bias = nullptr;

  int64_t rows() const { return prompt.rows + decode.rows; }
  /// Columns of `out`, in panels of 16.
  int64_t out_panels() const {
    return epilogue == Epilogue::kSiluMul ? matrix.panels / 2 : matrix.panels;
  }
};

/// How a job is cut. Only the order and the place of work depend on it, never a bit of the result.
struct ColumnCut {
  int64_t panels = 4;      ///< output panels of a block
  int64_t row_tiles = 32;  ///< row tiles of a block
  int64_t blocks = 0;      ///< of the whole job
  int64_t row_blocks = 1;  ///< row blocks a column block
  bool stream = false;     ///< few rows: each thread takes one run of consecutive blocks
  int64_t together = 1;    ///< blocks that are best computed at once
};
ColumnCut cut_columns(const ColumnJob& job, int num_threads);

/// Computes `count` blocks of the cut (1 to `together`) from `index` on. Between multiply_begin()
/// and multiply_end(). `scratch`: kColumnScratchBytes of this thread.
void compute_blocks(const ColumnJob& job, const ColumnCut& cut, int64_t index, int64_t count,
                    std::byte* scratch);

/// out[i] = silu(gate_up[i]) * gate_up[inner + i], for an `inner` that panels don't divide.
void silu_mul_row(const float* gate_up, int64_t inner, float* out);

}  // namespace weft::WEFT_ISA_NS
