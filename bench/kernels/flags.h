#pragma once

// The command line of the workshops on a CPU. For benches alone.

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "device/cpu_info.h"

namespace weft::bench {

/// What every one of them takes: --isa, --threads, --samples.
struct CpuFlags {
  CpuIsa isa = cpu_info().isa;
  int threads = cpu_info().num_cpus;
  int samples = 10;
};

/// Flags of integers.
using NumberFlags = std::vector<std::pair<std::string, int*>>;
/// Takes a flag and its value, or says no.
using OtherFlags = std::function<bool(const std::string& flag, const std::string& value)>;

/// Reads pairs of a flag and its value. At the first that nobody takes it writes a line to standard
/// error and gives false.
bool read_flags(std::vector<std::string> arguments, CpuFlags& common, NumberFlags numbers,
                const OtherFlags& other);

}  // namespace weft::bench
