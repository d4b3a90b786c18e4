#pragma once

// By how much storing K and V in a quantised format may move what attention gives.

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "kernels/kv_view.h"

namespace weft {

/// Largest error of a stored value of a row with smallest and largest value `low`, `high` (0
/// included): half a step of the grid, or half an ulp of e4m3.
inline double store_error(KvFormat format, double low, double high, double x) {
  const double amax = std::max(high, -low);
  switch (format) {
    case KvFormat::kInt8:
    case KvFormat::kInt8Dynamic: return amax / 127 / 2 * (1 + 1e-6);
    case KvFormat::kInt4: return (high - low) / 15 / 2;
    default: return std::max(std::abs(x) / 16, amax / 448 * std::ldexp(1, -10));
  }
}

struct KvRows {
  std::vector<float> k, v, q;
  std::vector<float> k_top, v_top;  // of static scales: each channel's largest magnitude
  int keys = 0, dim = 0;
};

/// Attention of one query over all keys in double, and by how much storing can move it: scores move
/// by at most e = max |scale q . dk|, so weights by factors within exp(+-2 e), so o by at most
/// (exp(2 e) - 1) max |v - o| + max dv.
inline bool within_bound(const KvRows& rows, const float* got, KvFormat format, double scale) {
  const auto d = static_cast<size_t>(rows.dim), n = static_cast<size_t>(rows.keys);
  std::vector<double> scores(n);
  double most = -1e300, moved = 0;
  const auto range = [&](const std::vector<float>& x, size_t j) {
    double low = 0, high = 0;
    for (size_t i = 0; i < d; ++i) {
      low = std::min<double>(low, x[j * d + i]);
      high = std::max<double>(high, x[j * d + i]);
    }
    return std::pair(low, high);
  };
  const auto error_of = [&](const std::vector<float>& top, double low, double high, size_t i,
                            double x) {
    return top.empty() ? store_error(format, low, high, x) : store_error(format, 0, top[i], x);
  };
  for (size_t j = 0; j < n; ++j) {
    const auto [low, high] = range(rows.k, j);
    double dot = 0, error = 0, size = 0;
    for (size_t i = 0; i < d; ++i) {
      const double q = rows.q[i], k = rows.k[j * d + i];
      dot += q * k;
      size += std::abs(q * k);
      error += std::abs(q) * error_of(rows.k_top, low, high, i, k);
    }
    scores[j] = dot * scale;
    most = std::max(most, scores[j]);
    moved = std::max(moved, (error * (1 + 1.0 / 256) + size / 256) * scale);
  }
  double total = 0;
  std::vector<double> out(d, 0.0), spread(d, 0.0), rounding(d, 0.0);
  for (size_t j = 0; j < n; ++j) {
    const double p = std::exp(scores[j] - most);
    total += p;
    for (size_t i = 0; i < d; ++i) out[i] += p * rows.v[j * d + i];
  }
  for (size_t i = 0; i < d; ++i) out[i] /= total;
  for (size_t j = 0; j < n; ++j) {
    const auto [low, high] = range(rows.v, j);
    for (size_t i = 0; i < d; ++i) {
      const double v = rows.v[j * d + i], error = error_of(rows.v_top, low, high, i, v);
      spread[i] = std::max(spread[i], std::abs(v - out[i]) + error);
      rounding[i] = std::max(rounding[i], error + std::abs(v) / 256);
    }
  }
  for (size_t i = 0; i < d; ++i) {
    const double bound = std::expm1(2 * moved) * spread[i] + rounding[i] * (1 + 1e-3) + 1e-6;
    if (!(std::abs(got[i] - out[i]) <= bound)) return false;
  }
  return true;
}

}  // namespace weft
