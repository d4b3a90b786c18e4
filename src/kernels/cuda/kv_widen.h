#pragma once

// Rows of a quantised cache as bf16, for kernels whose operands lie in memory. Included by .cu
// files.

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda {

/// Dims of 16 bytes of codes.
template <class Format>
inline constexpr int kKvUnitDims = 128 / Format::kBits;

/// Words of the codes of eight dims.
template <class Format>
inline constexpr int kKvEightWords = Format::kBits / 4;

/// bf16(code * scale) of eight dims, where the scale is that of the row or of each channel.
template <class Format>
__device__ __forceinline__ uint4 widen_eight(const uint32_t (&words)[kKvEightWords<Format>],
                                             float scale, const float* channels) {
  static_assert(Format::kScaled);
  uint32_t pairs[4];
  if constexpr (Format::kBits == 4) {
    const uint32_t zeros = Format::twice(Format::zero(scale));
    pairs[0] = Format::template widen<0>(words[0], zeros);
    pairs[1] = Format::template widen<1>(words[0], zeros);
    pairs[2] = Format::template widen<2>(words[0], zeros);
    pairs[3] = Format::template widen<3>(words[0], zeros);
  } else {
    pairs[0] = Format::template widen<0>(words[0]);
    pairs[1] = Format::template widen<1>(words[0]);
    pairs[2] = Format::template widen<0>(words[1]);
    pairs[3] = Format::template widen<1>(words[1]);
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 by = channels != nullptr ? reinterpret_cast<const float2*>(channels)[i]
                                          : make_float2(scale, scale);
    pairs[i] = pack_bf16(low_bf16(pairs[i]) * by.x, high_bf16(pairs[i]) * by.y);
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

/// The same of dims [8 at, 8 at + 8) of a unit of 16 bytes.
template <class Format>
__device__ __forceinline__ uint4 widen_unit(const uint4& unit, int at, float scale,
                                            const float* channels) {
  if constexpr (!Format::kScaled) {
    return unit;
  } else {
    constexpr int kWords = kKvEightWords<Format>;
    const uint32_t all[4] = {unit.x, unit.y, unit.z, unit.w};
    uint32_t words[kWords];
#pragma unroll
    for (int i = 0; i < kWords; ++i) words[i] = all[kWords * at + i];
    return widen_eight<Format>(words, scale, channels != nullptr ? channels + 8 * at : nullptr);
  }
}

}  // namespace weft::cuda
