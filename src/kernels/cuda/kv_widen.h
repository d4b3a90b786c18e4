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

/// bf16(code * scale) of dims [8 at, 8 at + 8) of the unit, where the scale is that of the row or
/// of each channel.
template <class Format>
__device__ __forceinline__ uint4 widen_unit(const uint4& unit, int at, float scale,
                                            const float* channels) {
  if constexpr (!Format::kScaled) {
    return unit;
  } else {
    const uint32_t words[4] = {unit.x, unit.y, unit.z, unit.w};
    uint32_t pairs[4];
    if constexpr (Format::kBits == 4) {
      const uint32_t zeros = Format::twice(Format::zero(scale));
      pairs[0] = Format::template widen<0>(words[at], zeros);
      pairs[1] = Format::template widen<1>(words[at], zeros);
      pairs[2] = Format::template widen<2>(words[at], zeros);
      pairs[3] = Format::template widen<3>(words[at], zeros);
    } else {
      pairs[0] = Format::template widen<0>(words[2 * at]);
      pairs[1] = Format::template widen<1>(words[2 * at]);
      pairs[2] = Format::template widen<0>(words[2 * at + 1]);
      pairs[3] = Format::template widen<1>(words[2 * at + 1]);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 by = channels != nullptr ? reinterpret_cast<const float2*>(channels)[4 * at + i]
                                            : make_float2(scale, scale);
      pairs[i] = pack_bf16(low_bf16(pairs[i]) * by.x, high_bf16(pairs[i]) * by.y);
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  }
}

}  // namespace weft::cuda
