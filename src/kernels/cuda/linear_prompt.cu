// out (+)= x W^T + bias with prompt arithmetic: picks the product for the weight's format.
// docs/kernels/gemm.md.

#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"

namespace weft::cuda {

int64_t linear_prompt_scratch(const WeightShape&, Epilogue, int64_t) {
  return 0;
}

void linear_prompt(Stream& stream, const LinearArgs& args) {
  const Weight& weight = *args.weight;
  const WeightShape& shape = weight.shape;
  CHECK(args.x.dim(1) == shape.k, "linear: x is [T, K]");
  CHECK(shape.format == WeightFormat::kBf16, "linear: weight format");
  Gemm gemm;
  gemm.a = args.x;
  gemm.b = weight.data;
  gemm.n = shape.n;
  gemm.b_row_bytes = (shape.k + 7) / 8 * 16;
  gemm.bias = args.bias;
  gemm.out = args.out;
  gemm.epilogue = args.epilogue;
  gemm_bf16(stream, gemm);
}

}  // namespace weft::cuda
