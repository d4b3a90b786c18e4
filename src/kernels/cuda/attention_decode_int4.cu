// attention_decode over a cache of 4-bit codes: 0.28 of the bytes of bf16.
// docs/kernels/attention_decode.md

#include "kernels/cuda/attention_decode_kernel.cuh"

namespace weft::cuda::decode {

void launch_int4(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  launch_format<KvInt4>(stream, args, p, padded_dim);
}

}  // namespace weft::cuda::decode
