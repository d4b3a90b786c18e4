#include "kernels/cuda/gemm_decode_kernel.h"

namespace weft::cuda {

void decode_int8(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  launch_decode<WeightFormat::kInt8>(stream, gemm, cut);
}

void decode_int4(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut) {
  launch_decode<WeightFormat::kInt4>(stream, gemm, cut);
}

}  // namespace weft::cuda
