#include "kernels/cuda/gemm_decode_kernel.h"

namespace weft::cuda {

void decode_fp8(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  launch_decode<WeightFormat::kFp8Block>(stream, gemm, cut);
}

}  // namespace weft::cuda
