// sched_sim [--seed N] [--steps N] [--audit-every N]: the long run of the scheduler simulator.
#include <chrono>
#include <cstdlib>
#include <iostream>
#include <string_view>

#include "sim/sched_sim.h"

int main(int argc, char** argv) {
  weft::SimOptions options{.seed = 1, .steps = 10'000'000, .audit_every = 64};
  for (int i = 1; i < argc; i += 2) {
    const std::string_view flag = argv[i];
    const long long value = i + 1 < argc ? std::atoll(argv[i + 1]) : 0;
    if (flag == "--seed" && i + 1 < argc) {
      options.seed = static_cast<uint64_t>(value);
    } else if (flag == "--steps" && value > 0) {
      options.steps = value;
    } else if (flag == "--audit-every" && value > 0) {
      options.audit_every = value;
    } else {
      std::cerr << "usage: sched_sim [--seed N] [--steps N] [--audit-every N]\n";
      return 2;
    }
  }
  const auto start = std::chrono::steady_clock::now();
  const weft::SimReport report = weft::simulate(options);
  const std::chrono::duration<double> wall = std::chrono::steady_clock::now() - start;
  std::cout << "seed " << options.seed << ": " << report.text() << "  "
            << static_cast<int64_t>(static_cast<double>(report.steps) / wall.count())
            << " steps/s\n";
  return report.failure.empty() && report.missing.empty() ? 0 : 1;
}
