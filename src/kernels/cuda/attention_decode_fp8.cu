// attention_decode over a cache of fp8 codes with a scale a token and head: half the bytes of bf16.
// docs/kernels/attention_decode.md

#include "kernels/cuda/attention_decode_kernel.cuh"

namespace weft::cuda::decode {
namespace {

template <int D, int N>
using Fp8Consumer = Consumer<KvFp8, D, N>;

}  // namespace

void launch_fp8(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  launch_format<Fp8Consumer>(stream, args, p, padded_dim);
}

}  // namespace weft::cuda::decode
