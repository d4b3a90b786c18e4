#pragma once

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

namespace weft::testing {

struct Backend {
  std::string name;
  const OpTable* ops;
};

/// The reference, and the CPU backend at every instruction set that this machine has. With
/// AddressSanitizer the widest alone: tests/ops has every kernel of the others.
inline const std::vector<Backend>& backends() {
  static const std::vector<Backend> found = [] {
    const CpuInfo cpu = cpu_info();
#ifdef __SANITIZE_ADDRESS__
    if (cpu.supported)
      return std::vector<Backend>{{std::string(cpu_isa_name(cpu.isa)), &cpu_ops(cpu.isa)}};
#endif
    std::vector<Backend> out = {{"ref", &ref_ops()}};
    if (!cpu.supported) return out;
    for (const CpuIsa isa : cpu_isas()) {
      out.push_back({std::string(cpu_isa_name(isa)), &cpu_ops(isa)});
    }
    return out;
  }();
  return found;
}

/// A checkpoint's name and the index of a backend.
using GoldenCase = std::tuple<std::string, size_t>;

inline std::vector<GoldenCase> cases(std::initializer_list<const char*> names) {
  std::vector<GoldenCase> out;
  for (const char* name : names) {
    for (size_t b = 0; b < backends().size(); ++b) out.emplace_back(name, b);
  }
  return out;
}

inline std::string case_name(const ::testing::TestParamInfo<GoldenCase>& info) {
  return std::get<0>(info.param) + "_" + backends()[std::get<1>(info.param)].name;
}

/// A test of a tiny checkpoint against the outputs of transformers (see the oracle's README).
class Golden : public ::testing::TestWithParam<GoldenCase> {
 protected:
  std::string dir() const { return oracle_dir() + "/models/" + std::get<0>(GetParam()); }
  const OpTable* ops() const { return backends()[std::get<1>(GetParam())].ops; }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  std::unique_ptr<Driver> load(WeightFormat format, bool images = false) const {
    auto driver = Driver::load(
        dir(), {.ops = ops(),
                .format = format,
                .kv_format = format == WeightFormat::kF32 ? KvFormat::kF32 : KvFormat::kBf16,
                .images = images});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
};

}  // namespace weft::testing
