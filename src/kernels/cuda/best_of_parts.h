#pragma once

#include "device/stream.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/sample_args.h"

namespace weft::cuda {

/// The first greatest of rows, of each of some parts of the vocabulary.
struct BestOfParts {
  const uint64_t* keys;  ///< [parts][stride], of Best (sample_device.h)
  int parts;
  int64_t stride;  ///< rows, or more
};
/// sample() of plainly greedy rows of which that is known: the logits are not looked at.
void sample_parts(Stream& stream, const SampleArgs& args, const BestOfParts& best);

/// decode_many() that keeps that alone, in the memory of gemm.out, which has no sums then; whether
/// it can, and has room.
BestOfParts decode_best(Stream& stream, const DecodeGemm& gemm, const DecodeCut& cut);
bool decode_takes_best(const DecodeGemm& gemm, const DecodeCut& cut);

}  // namespace weft::cuda
