#include "support.h"

namespace weft {

void PrintTo(CpuIsa isa, std::ostream* out) {
  *out << cpu_isa_name(isa);
}

std::string isa_test_name(const testing::TestParamInfo<CpuIsa>& info) {
  return std::string(cpu_isa_name(info.param));
}

Floats random_floats(std::initializer_list<int64_t> dims, uint64_t seed, float scale) {
  Floats out(dims);
  for (size_t i = 0; i < out.data.size(); ++i) {
    out.data[i] = (2 * uniform01(philox4x32(seed, i, 0)[0]) - 1) * scale;
  }
  return out;
}

double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < b.size(); ++i) {
    const double d = static_cast<double>(a[i]) - b[i];
    difference += d * d;
    norm += static_cast<double>(b[i]) * b[i];
  }
  if (std::isnan(difference)) return std::numeric_limits<double>::infinity();
  return std::sqrt(difference / (norm + 1e-30));
}

}  // namespace weft
