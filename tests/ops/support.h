#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <ostream>
#include <string>
#include <vector>

#include "base/philox.h"
#include "device/cpu_info.h"
#include "kernels/op_table.h"

namespace weft {

void PrintTo(CpuIsa isa, std::ostream* out);

/// Names the instances of a suite by their instruction set.
std::string isa_test_name(const testing::TestParamInfo<CpuIsa>& info);

#define WEFT_FOR_EACH_ISA(suite) \
  INSTANTIATE_TEST_SUITE_P(Isa, suite, testing::ValuesIn(cpu_isas()), isa_test_name)

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// Owned f32 data with a view.
struct Floats {
  std::vector<float> data;
  TensorView view;

  Floats() = default;
  Floats(std::initializer_list<int64_t> dims, float fill = 0) {
    int64_t n = 1;
    for (int64_t d : dims) n *= d;
    data.assign(static_cast<size_t>(n) + 1, fill);  // never null, so that T = 0 has a view too
    view = TensorView(data.data(), DType::kF32, dims);
  }
  Floats(Floats&&) = default;
  Floats& operator=(Floats&&) = default;
  Floats(const Floats& other) { *this = other; }
  Floats& operator=(const Floats& other) {
    data = other.data;
    view = other.view;
    view.data = data.data();
    return *this;
  }
  bool same_bits(const Floats& other) const {
    return data.size() == other.data.size() &&
           std::memcmp(data.data(), other.data.data(), data.size() * sizeof(float)) == 0;
  }
};

/// Uniform in [-scale, scale), a function of the seed.
Floats random_floats(std::initializer_list<int64_t> dims, uint64_t seed, float scale = 1);

struct Ints {
  std::vector<int32_t> data;
  TensorView view;
  Ints() = default;
  Ints(std::vector<int32_t> values) : data(std::move(values)) {  // NOLINT: a list of ints is one
    data.push_back(0);
    view = TensorView(data.data(), DType::kI32, {static_cast<int64_t>(data.size()) - 1});
  }
  Ints(Ints&&) = default;
  Ints& operator=(Ints&&) = default;
};

/// |a - b| / |b| over all elements (L2); infinite when a holds a NaN.
double relative_l2(const std::vector<float>& a, const std::vector<float>& b);

/// A pool with scratch memory.
class TestStream {
 public:
  explicit TestStream(int threads = 2, int64_t scratch_bytes = int64_t{16} << 20)
      : pool_(threads), scratch_(Buffer::allocate(DeviceKind::kCpu, scratch_bytes).value()) {}
  operator Stream&() { return stream_; }  // NOLINT: stands for a Stream in every call

 private:
  ThreadPool pool_;
  Arena scratch_;
  Stream stream_{pool_, scratch_};
};

}  // namespace weft
