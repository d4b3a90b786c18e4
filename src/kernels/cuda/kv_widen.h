#pragma once

// Rows of a quantised cache as bf16 or f16, for kernels whose operands lie in memory. Included by
// .cu files.

#include "kernels/cuda/common/f16.h"
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

// f16 has the bits and not the range of code * scale (scales are f32): a row lies in memory divided
// by a power of two of its own, which is a function of its scales alone.

/// Values of codes are below 2^this times the scale.
__host__ __device__ constexpr int kv_code_log2(KvFormat format) {
  switch (format) {
    case KvFormat::kInt4: return 4;
    case KvFormat::kInt8:
    case KvFormat::kInt8Dynamic: return 7;
    default: return 9;
  }
}
/// log2 of the power that a row's values are divided by; `scale`: its largest, `code_log2`:
/// kv_code_log2(). 0 where values of up to 2^-12 to 2^15 are the largest; else they become 2^13 to
/// 2^15. Rows below 2^-60 become zeros, those of no number keep it.
__device__ __forceinline__ int kv_row_power(float scale, int code_log2) {
  constexpr int kTop = 15, kUsual = -10, kZero = -60;
  const int exponent = static_cast<int>(__float_as_uint(scale) >> 23 & 0xFF);
  const int top = exponent - 126 + code_log2;  // |x| < 2^top
  if (top >= kUsual && top <= kTop) return 0;
  return exponent == 0xFF || top < kZero ? 0 : top - kTop;
}
/// `x` in [-126, 127].
__device__ __forceinline__ float power_of_two(int x) {
  return __uint_as_float(static_cast<uint32_t>(x + 127) << 23);
}

/// code * scale of eight dims as bf16 or f16, where the scale is that of the row or of each
/// channel.
template <class Format, bool F16 = false>
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
    const float low = low_bf16(pairs[i]) * by.x, high = high_bf16(pairs[i]) * by.y;
    pairs[i] = F16 ? pack_f16(low, high) : pack_bf16(low, high);
  }
  return {pairs[0], pairs[1], pairs[2], pairs[3]};
}

/// widen_eight to f16 with fewer instructions where a format has them. The same bits.
template <class Format>
__device__ __forceinline__ uint4 widen_small(const uint32_t (&words)[kKvEightWords<Format>],
                                             float scale, const float* channels) {
  if constexpr (Format::kBits == 8) {
    uint32_t pairs[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 x = i % 2 == 0 ? Format::template value_pair<0>(words[i / 2])
                                  : Format::template value_pair<1>(words[i / 2]);
      pairs[i] = pack_f16(x.x * (channels != nullptr ? channels[2 * i] : scale),
                          x.y * (channels != nullptr ? channels[2 * i + 1] : scale));
    }
    return {pairs[0], pairs[1], pairs[2], pairs[3]};
  } else {
    return widen_eight<Format, true>(words, scale, channels);
  }
}

/// widen_eight of dims [8 at, 8 at + 8) of a unit of 16 bytes.
template <class Format, bool F16 = false>
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
    return widen_eight<Format, F16>(words, scale,
                                    channels != nullptr ? channels + 8 * at : nullptr);
  }
}

}  // namespace weft::cuda
