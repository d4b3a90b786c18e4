#include "bench/kernels/flags.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace weft::bench {
namespace {

/// False: this CPU has no such instruction set.
bool read_isa(const std::string& name, CpuIsa& isa) {
  for (int i = 0; i <= static_cast<int>(cpu_info().isa); ++i) {
    if (cpu_isa_name(static_cast<CpuIsa>(i)) != name) continue;
    isa = static_cast<CpuIsa>(i);
    return true;
  }
  return false;
}

}  // namespace

bool read_flags(std::vector<std::string> arguments, CpuFlags& common, NumberFlags numbers,
                const OtherFlags& other) {
  numbers.emplace_back("--threads", &common.threads);
  numbers.emplace_back("--samples", &common.samples);
  if (arguments.size() % 2 == 1) arguments.emplace_back();
  for (size_t i = 0; i < arguments.size(); i += 2) {
    const std::string &flag = arguments[i], &value = arguments[i + 1];
    const auto number = std::find_if(numbers.begin(), numbers.end(),
                                     [&](const auto& n) { return n.first == flag; });
    if (number != numbers.end()) *number->second = std::atoi(value.c_str());
    const bool taken = number != numbers.end() ? *number->second > 0
                       : flag == "--isa"       ? read_isa(value, common.isa)
                                               : other(flag, value);
    if (taken) continue;
    std::fprintf(stderr, "%s '%s': see the head of the workshop's source\n", flag.c_str(),
                 value.c_str());
    return false;
  }
  return true;
}

}  // namespace weft::bench
