#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace weft {

struct SimOptions {
  uint64_t seed = 1;
  int64_t steps = 500'000;  ///< scheduler steps (launched plans) in all
  int64_t audit_every = 1;  ///< full audit after every so many calls of the scheduler
};

struct SimReport {
  int64_t steps = 0;
  int64_t episodes = 0;
  std::map<std::string, int64_t> events;  ///< how often each thing happened
  std::string failure;                    ///< empty: none; else what, in which episode and step
  /// One line an event; the names of those that never happened are listed in `missing`.
  std::string text() const;
  std::string missing;
};

/// Runs the real scheduler on the symbolic device: random configurations with tiny pools, random
/// requests, priorities, aborts in every state, late results, numeric errors. Every request's
/// output is compared with the request computed alone. A function of the options alone.
SimReport simulate(const SimOptions& options);

}  // namespace weft
