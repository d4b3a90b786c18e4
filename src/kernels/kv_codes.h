#pragma once

// The one definition of the codes of quantised KV caches, so that every backend holds equal codes
// and scales whatever its layout. A row is K (after norm and rope) or V of one token and head; its
// scale depends on nothing else, so nothing is ever scaled again. Values are f32 when they come.
//
//   int8_dynamic: s = a / 127,  q = clamp(rne(x * (127 / a)), -127, 127)
//   fp8_block:    s = a / 448,  q = e4m3(x * (448 / a)), nearest even, at most +-448
//
// a = max(amax, 1e-30), divisions and the product each rounded to f32 once. The value of a code is
// q * s. A row with a NaN or an infinity has s = NaN and codes 0: all of it is NaN.

#include <limits>

#include "kernels/kv_view.h"
#include "tensor/dtype.h"

namespace weft {

/// The largest value of a code.
constexpr float kv_largest_code(KvFormat format) {
  return format == KvFormat::kInt8Dynamic ? 127.0f : kE4m3Max;
}

struct KvRowScale {
  float inverse, scale;
};
/// `amax` of the row; infinite or NaN if any value is.
constexpr KvRowScale kv_row_scale(float amax, float largest_code) {
  constexpr float kLeast = 1e-30f;
  if (!(amax <= std::numeric_limits<float>::max())) {
    return {0.0f, std::numeric_limits<float>::quiet_NaN()};
  }
  const float a = amax > kLeast ? amax : kLeast;
  return {largest_code / a, a / largest_code};
}

/// The code of a value times KvRowScale::inverse (a product that must not be fused into a sum).
constexpr uint8_t kv_int8_code(float scaled) {
  if (!(scaled == scaled)) return 0;
  const float clamped = scaled > 127.0f ? 127.0f : (scaled < -127.0f ? -127.0f : scaled);
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: sums are whole numbers, nearest even
  return static_cast<uint8_t>(static_cast<int>((clamped + kRound) - kRound));
}
constexpr uint8_t kv_fp8_code(float scaled) {
  return scaled == scaled ? float_to_e4m3(scaled) : uint8_t{0};
}

}  // namespace weft
