#pragma once

#include <cstdint>

namespace weft {

/// a / b rounded up, of numbers that are not negative.
constexpr int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

/// Bytes in steps of 64, a cache line: what Arena::take() and the packed buffers count for a piece.
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace weft
