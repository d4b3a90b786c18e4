// attention_decode over a cache of int8 codes with a scale a token and head: half the bytes of
// bf16. docs/kernels/attention_decode.md

#include "kernels/cuda/attention_decode_kernel.cuh"

namespace weft::cuda::decode {
namespace {

template <int D, int N>
using Int8Consumer = Consumer<KvInt8, D, N>;

}  // namespace

void launch_int8(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim) {
  launch_format<Int8Consumer>(stream, args, p, padded_dim);
}

}  // namespace weft::cuda::decode
