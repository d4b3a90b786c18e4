#include "kernels/cuda/gemm_decode_kernel.h"

namespace weft::cuda {

void decode_bf16(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  launch_decode<WeightFormat::kBf16>(stream, gemm, cut);
}

}  // namespace weft::cuda
