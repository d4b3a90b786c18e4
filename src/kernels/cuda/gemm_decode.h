#pragma once

// The matrix product of decode arithmetic: dense (linear_decode) and by expert (moe_decode), for
// every weight format but f32. docs/kernels/gemm_decode.md.

#include <cstdint>

#include "device/stream.h"
#include "kernels/args.h"

namespace weft::cuda {

/// Rows [first_row, first_row + rows) of x and out belong to `expert`.
struct ExpertRows {
  int expert, first_row, rows;
};

struct DecodeGemm {
  TensorView x;  ///< [rows, K] bf16
  /// Null, or x is what rms_norm() of these would write to norm->out (x f32, no residual), and the
  /// product computes it itself: where decode_few_norms().
  const RmsNormArgs* norm = nullptr;
  const Weight* weight = nullptr;
  TensorView bias;  ///< [N] f32 or undefined
  TensorView out;   ///< [rows, N] (I for kSiluMul), bf16 or f32
  Epilogue epilogue = Epilogue::kStore;
  /// Null: all rows belong to expert 0. Else [num_groups] on the device, each of at most
  /// `max_group_rows` rows.
  const ExpertRows* groups = nullptr;
  int num_groups = 1;
  int64_t max_group_rows = 0;
};

/// How a product is cut. `split` and `turns` decide the order of sums; the others only speed.
struct DecodeCut {
  int row_tile = 8;  ///< rows of x held at once: 8, 16, 32 or 64, for bf16 also 128
  int units = 1;     ///< of 64 rows of the weight in a block; even for kSiluMul of int8 and int4
  int turns = 1;     ///< sets of warps that take turns along K
  int split = 1;     ///< blocks along K: 1, 2, 4 or 8, at most the stages of K
  int stages = 8;    ///< pieces of K in flight, a multiple of `turns`
  int x_stages = 0;  ///< of x in shared memory, `turns` to `stages`; 0: `stages`
  int ahead = 0;     ///< further pieces fetched into L2 before the predecessor has ended
  /// Pieces of W that a block has yet to ask for when it lets the next kernel begin; 0: at once.
  int let_in = 0;
  /// > 0: up to 8 rows of x and a small bf16 weight, of which each block holds 16 chunks rows at
  /// once (decode_few()); units, stages and ahead don't count.
  int chunks = 0;

  int x() const { return x_stages > 0 ? x_stages : stages; }
};
/// Shared memory of a block.
int64_t decode_shared_bytes(WeightFormat format, const DecodeCut& cut);
/// `split` and `turns` are functions of the weight's shape and epilogue alone. `rows`: of an
/// expert, as expected.
DecodeCut decode_cut(const WeightShape& shape, Epilogue epilogue, int64_t rows);

/// Scratch of decode_gemm().
int64_t decode_gemm_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows);
void decode_gemm(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);

/// Few rows of x and a small weight; its shared memory for a cut; whether it can begin with a norm.
void decode_few(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
int64_t decode_few_bytes(const WeightShape& shape, Epilogue epilogue, int64_t rows,
                         const DecodeCut& cut);
bool decode_few_norms(const WeightShape& shape, int64_t rows, const DecodeCut& cut);

/// More than 64 rows of x and a large bf16 weight: the bits of decode_bf16(); whether it can.
void decode_many(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
bool decode_takes_many(const WeightShape& shape, int64_t rows, const DecodeCut& cut);

// The formats; kSiluMul of int8 and int4 needs I % 64 == 0, of fp8 I % 16 == 0.
void decode_bf16(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
void decode_fp8(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
void decode_int8(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
void decode_int4(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
/// f32 weights (routers), x in bf16 or f32, any number of rows.
void linear_f32(Stream& stream, const LinearArgs& args);

}  // namespace weft::cuda
