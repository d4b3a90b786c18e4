#pragma once

// The one definition of the int8 and int4 weight codes, so that every backend holds equal codes
// whatever its layout. A group is 32 consecutive weights of one row along K; a row whose K is not a
// multiple of 32 is padded with zeros.
//
//   int8: s = f16(amax / 127),  q = clamp(rne(w * (1 / s)), -127, 127),  amax = max |w|
//   int4: s = f16(m / -8),      q = clamp(rne(w * (1 / s)), -8, 7),      m = the first w of
//         largest |w| with its sign (so that the extreme weight has the code -8; s may be negative)
//
// f16 rounds to nearest even and is capped at +-65504; 1 / s is one f32 division of the rounded s;
// s = 0 gives codes 0. The value of a code is q * float(s).

#include <cmath>
#include <cstdint>

#include "kernels/weight.h"
#include "tensor/dtype.h"

namespace weft {

namespace quantize_detail {

/// f16 bits of a scale: finite whatever `s` is.
inline f16 scale_bits(float s) {
  constexpr float kMax = 65504.0f;
  return float_to_f16(s > kMax ? kMax : (s > -kMax ? s : -kMax));  // NaN becomes -65504
}

/// Round to nearest even and clamp; NaN gives `low`.
inline int8_t code(float x, float low, float high) {
  const float clamped = x > high ? high : (x > low ? x : low);
  return static_cast<int8_t>(std::nearbyint(clamped));
}

}  // namespace quantize_detail

/// Codes and scale (f16 bits) of one group of `count` <= 32 weights; codes past `count` are 0.
inline f16 quantize_group_int8(const float* w, int count, int8_t* codes) {
  float amax = 0.0f;
  for (int i = 0; i < count; ++i) amax = std::fabs(w[i]) > amax ? std::fabs(w[i]) : amax;
  const f16 scale = quantize_detail::scale_bits(amax / 127.0f);
  const float s = f16_to_float(scale);
  const float inverse = s != 0.0f ? 1.0f / s : 0.0f;
  for (int i = 0; i < kWeightGroup; ++i) {
    codes[i] = i < count ? quantize_detail::code(w[i] * inverse, -127.0f, 127.0f) : int8_t{0};
  }
  return scale;
}

/// As above with codes -8 .. 7 (one a byte; how a backend packs two of them is its own business).
inline f16 quantize_group_int4(const float* w, int count, int8_t* codes) {
  float extreme = 0.0f;
  for (int i = 0; i < count; ++i) {
    if (std::fabs(w[i]) > std::fabs(extreme)) extreme = w[i];
  }
  const f16 scale = quantize_detail::scale_bits(extreme / -8.0f);
  const float s = f16_to_float(scale);
  const float inverse = s != 0.0f ? 1.0f / s : 0.0f;
  for (int i = 0; i < kWeightGroup; ++i) {
    codes[i] = i < count ? quantize_detail::code(w[i] * inverse, -8.0f, 7.0f) : int8_t{0};
  }
  return scale;
}

}  // namespace weft
