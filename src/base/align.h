#pragma once

#include <cstdint>

namespace weft {

/// Bytes in steps of 64, a cache line: what Arena::take() and the packed buffers count for a piece.
constexpr int64_t aligned(int64_t bytes) {
  return (bytes + 63) / 64 * 64;
}

}  // namespace weft
