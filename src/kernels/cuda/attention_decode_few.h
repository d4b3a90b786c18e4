#pragma once

// attention_decode of a few (sequence, kv head) pairs in one kernel, with qkv_prepare before it.
// docs/kernels/attention_decode.md

#include "kernels/cuda/attention_decode.h"

namespace weft::cuda::decode {

/// Whether launch_few() takes decode segments of this shape: bf16, one row each, as many pairs as
/// clusters of eight blocks find place at once. A function of shapes alone; the bits are the same.
bool takes_few(const AttnArgs& args);
/// Whether it may begin with qkv_prepare().
bool few_prepares(const AttnArgs& args);
/// With `prepare` qkv_prepare() of it comes first, but for q, which is left as it was. Of `params`
/// what launch_format() takes, without scratch memory.
void launch_few(Stream& stream, const AttnArgs& args, const QkvPrepareArgs* prepare,
                const DecodeParams& params);

}  // namespace weft::cuda::decode
