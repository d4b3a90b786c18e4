// out (+)= x W^T + bias with decode arithmetic: cuts the product and picks the kernel of the
// weight's format. docs/kernels/gemm_decode.md.

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

/// K that a stage of the kernel takes.
int stage_columns(WeightFormat format) {
  return format == WeightFormat::kFp8Block ? 128 : 64;
}

/// Bytes of a stage of shared memory for one warpgroup.
int stage_weight_bytes(WeightFormat format) {
  switch (format) {
    case WeightFormat::kInt8: return kInt8TileBytes;
    case WeightFormat::kInt4: return kInt4TileBytes;
    default: return 8192;
  }
}

/// Whether gate and up of a column can lie in one block.
bool fused_gate(const WeightShape& shape) {
  const int64_t inner = shape.n / 2;
  switch (shape.format) {
    case WeightFormat::kInt8:
    case WeightFormat::kInt4: return inner % kQuantTile == 0;
    case WeightFormat::kFp8Block: return inner % kFp8ScaleRows == 0;
    case WeightFormat::kBf16: return true;
    case WeightFormat::kF32: return false;
  }
  return false;
}

/// out = silu(wide[:, :I]) * wide[:, I:], one block a row.
template <class Out>
__global__ void silu_mul_rows(const float* wide, Out* out, int64_t out_stride, int inner) {
  wait_for_predecessor();
  let_successor_begin();
  const float* row = wide + int64_t{blockIdx.x} * 2 * inner;
  for (int i = static_cast<int>(threadIdx.x); i < inner; i += static_cast<int>(blockDim.x)) {
    const float value = row[i] / (1.0f + __expf(-row[i])) * row[inner + i];
    if constexpr (sizeof(Out) == 2) {
      out[blockIdx.x * out_stride + i] = static_cast<uint16_t>(pack_bf16(value, 0.0f));
    } else {
      out[blockIdx.x * out_stride + i] = value;
    }
  }
}

void decode_fused(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  switch (gemm.weight->shape.format) {
    case WeightFormat::kBf16: return decode_bf16(stream, gemm, cut);
    case WeightFormat::kFp8Block: return decode_fp8(stream, gemm, cut);
    case WeightFormat::kInt8: return decode_int8(stream, gemm, cut);
    case WeightFormat::kInt4: return decode_int4(stream, gemm, cut);
    case WeightFormat::kF32: break;
  }
  CHECK(gemm.groups == nullptr, "decode gemm: experts in f32");
  LinearArgs args;
  args.x = gemm.x;
  args.weight = gemm.weight;
  args.bias = gemm.bias;
  args.out = gemm.out;
  args.epilogue = gemm.epilogue;
  linear_f32(stream, args);
}

}  // namespace

DecodeCut decode_cut(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  const int columns = stage_columns(shape.format);
  const int64_t steps = ceil_div(shape.k, columns);
  DecodeCut cut;
  // About two blocks for each of the 132 multiprocessors; of experts some eight work at a time.
  const int64_t tiles = ceil_div(shape.n, 64) * (shape.experts > 1 ? 8 : 1);
  while (cut.split < 8 && tiles * cut.split < 240 && steps * columns >= cut.split * 512) {
    cut.split *= 2;
  }
  cut.row_tile = rows <= 8 ? 8 : rows <= 16 ? 16 : rows <= 32 ? 32 : 64;
  const bool tiled = shape.format == WeightFormat::kInt8 || shape.format == WeightFormat::kInt4;
  cut.warpgroups = tiled || cut.row_tile > 16 ? 2 : 1;
  const int64_t bytes =
      cut.row_tile * columns * 2 + int64_t{stage_weight_bytes(shape.format)} * cut.warpgroups;
  const int64_t fit = (cut.row_tile > 16 ? 110 : 72) * 1024 / (ceil_div(bytes, 1024) * 1024 + 16);
  cut.stages = static_cast<int>(std::min(ceil_div(steps, cut.split), fit));
  // The partial sums take the stages' place.
  const int64_t sums = cut.row_tile * (cut.warpgroups * 64 + 4) * int64_t{4};
  cut.stages =
      static_cast<int>(std::max<int64_t>(cut.stages, ceil_div(sums, ceil_div(bytes, 1024) * 1024)));
  (void)epilogue;
  return cut;
}

int64_t decode_gemm_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  if (epilogue != Epilogue::kSiluMul || fused_gate(shape)) return 0;
  return ceil_div(rows * shape.n * 4, 256) * 256;
}

void decode_gemm(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  const WeightShape& shape = gemm.weight->shape;
  if (gemm.epilogue != Epilogue::kSiluMul || fused_gate(shape)) {
    return decode_fused(stream, gemm, cut);
  }
  const int64_t rows = gemm.x.dim(0);
  ArenaScope scope(stream.scratch());
  DecodeGemm wide = gemm;
  wide.epilogue = Epilogue::kStore;
  wide.out = TensorView(stream.scratch().take(rows * shape.n * 4), DType::kF32, {rows, shape.n});
  decode_fused(stream, wide, cut);
  const LaunchShape at{.grid = static_cast<unsigned>(rows), .block = 256, .overlap = true};
  const auto* from = static_cast<const float*>(wide.out.data);
  const int inner = static_cast<int>(shape.n / 2);
  if (gemm.out.dtype == DType::kF32) {
    launch(stream, at, silu_mul_rows<float>, from, gemm.out.ptr<float>(), gemm.out.stride[0],
           inner);
  } else {
    launch(stream, at, silu_mul_rows<uint16_t>, from, static_cast<uint16_t*>(gemm.out.data),
           gemm.out.stride[0], inner);
  }
}

int64_t linear_decode_scratch(const WeightShape& shape, Epilogue epilogue, int64_t rows) {
  return decode_gemm_scratch(shape, epilogue, rows);
}

void linear_decode(Stream& stream, const LinearArgs& args) {
  const int64_t rows = args.x.dim(0);
  if (rows == 0) return;
  DecodeGemm gemm;
  gemm.x = args.x;
  gemm.weight = args.weight;
  gemm.bias = args.bias;
  gemm.out = args.out;
  gemm.epilogue = args.epilogue;
  decode_gemm(stream, gemm, decode_cut(args.weight->shape, args.epilogue, rows));
}

}  // namespace weft::cuda
