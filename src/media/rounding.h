#pragma once

#include <cmath>

namespace weft {

/// Python's round(): halves go to the even neighbour.
inline double round_to_even(double x) {
  const double floor = std::floor(x), part = x - floor;
  if (part != 0.5) return std::floor(x + 0.5);
  return std::fmod(floor, 2) == 0 ? floor : floor + 1;
}

}  // namespace weft
