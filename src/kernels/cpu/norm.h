#pragma once

#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {

/// 1 / sqrt(mean(x^2) + eps) of n values.
inline float rms_scale(const float* x, int64_t n, float eps) {
  Vec even = splat(0), odd = splat(0);  // two chains, to hide the latency of the addition
  int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const Vec a = load(x + i), b = load(x + i + kLanes);
    even = fma(a, a, even);
    odd = fma(b, b, odd);
  }
  for (; i < n; i += kLanes) {
    const Vec a = load_n(x + i, n - i < kLanes ? n - i : kLanes);
    even = fma(a, a, even);
  }
  const float mean = sum_lanes(even + odd) / static_cast<float>(n);
  return 1.0f / __builtin_sqrtf(mean + eps);
}

/// out = x * rms_scale(x) * weight; out may be x.
inline void rms_norm_row(const float* x, const float* weight, int64_t n, float eps, float* out) {
  const Vec scale = splat(rms_scale(x, n, eps));
  for_lanes(n, [&](int64_t i, int64_t m) {
    store_n(out + i, load_n(x + i, m) * scale * load_n(weight + i, m), m);
  });
}

struct GatedNorm {
  const float* weight;  ///< [n]
  float eps;
  GateActivation activation;
};

/// out = weight * x * rms_scale(x) * act(z); out may be x.
inline void gated_norm_row(const GatedNorm& norm, const float* x, const float* z, int64_t n,
                           float* out) {
  const Vec scale = splat(rms_scale(x, n, norm.eps));
  for_lanes(n, [&](int64_t i, int64_t m) {
    const Vec gate = load_n(z + i, m);
    const Vec act = norm.activation == GateActivation::kSilu ? silu(gate) : sigmoid(gate);
    store_n(out + i, load_n(norm.weight + i, m) * (load_n(x + i, m) * scale) * act, m);
  });
}

}  // namespace weft::WEFT_ISA_NS
