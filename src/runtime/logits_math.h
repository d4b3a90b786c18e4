#pragma once

// Passes over one row of logits. Every one of them adds in a fixed order, so its result depends on
// the row alone: not on threads, not on the rows beside it, not on the instruction set.

#include <cstdint>

namespace weft {

/// Sums are taken by segments of this many ids and then over the segments in order.
inline constexpr int64_t kLogitSegment = 4096;

/// Granularity of the maxima that top-k starts from.
inline constexpr int64_t kLogitBlock = 64;

struct LogitScan {
  float max = 0;         ///< greatest value; undefined if `invalid`
  bool invalid = false;  ///< holds NaN or +inf
};

/// Maximum and validity of x[0, n).
LogitScan scan_logits(const float* x, int64_t n);

/// out[b] = max of x[64 b, 64 b + 64), for ceil(n / 64) blocks. No NaN in x.
void block_max(const float* x, int64_t n, float* out);

/// exp((x - max) / temperature) in float; 0 below exp(-87). x <= max, temperature > 0.
float softmax_weight(float x, float max, float temperature);

/// The same for 8 consecutive values; bit-equal to softmax_weight of each.
void softmax_weights8(const float* x, float max, float temperature, float* out);

/// Sum of softmax_weight over x[0, n), in double, in a fixed order.
double softmax_sum(const float* x, int64_t n, float max, float temperature);

/// Writes base + i for every x[i] >= threshold, ascending, and returns how many. out holds n.
int64_t collect_at_least(const float* x, int64_t n, float threshold, int32_t base, int32_t* out);

/// The first i with x[i] == value, or n.
int64_t find_value(const float* x, int64_t n, float value);

}  // namespace weft
