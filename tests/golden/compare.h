#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <string>
#include <vector>

#include "checkpoint/safetensors.h"

namespace weft::testing {

/// The tensor `name` of a golden file.
template <class T>
std::vector<T> golden(const SafetensorsFile& file, const std::string& name) {
  const std::vector<std::byte> bytes = file.load(name).value();
  const T* data = reinterpret_cast<const T*>(bytes.data());
  return {data, data + bytes.size() / sizeof(T)};
}

/// What the difference of two sets of logits is held against.
struct Difference {
  double max_abs = 0, max_value = 0, square = 0, square_value = 0;
  double relative_max() const { return max_abs / max_value; }
  double relative_l2() const { return std::sqrt(square / square_value); }
};

inline Difference difference(std::span<const float> ours, std::span<const float> expected) {
  Difference d;
  EXPECT_EQ(ours.size(), expected.size());
  for (size_t i = 0; i < std::min(ours.size(), expected.size()); ++i) {
    const double x = expected[i], delta = ours[i] - x;
    if (std::isnan(delta)) d.max_abs = INFINITY;
    d.max_abs = std::max(d.max_abs, std::fabs(delta));
    d.max_value = std::max(d.max_value, std::fabs(x));
    d.square += delta * delta;
    d.square_value += x * x;
  }
  return d;
}

}  // namespace weft::testing
