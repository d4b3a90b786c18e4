#pragma once

#include <chrono>
#include <optional>
#include <string>

#include "engine/engine.h"

namespace weft {

/// The line of every ten seconds, in vLLM's wording. Not thread-safe.
class StatsLog {
 public:
  using Clock = std::chrono::steady_clock;

  /// The line for what happened since the last call; nothing at the first call, and nothing while
  /// idle: one idle line closes a busy stretch, then it is silent.
  std::optional<std::string> tick(const EngineStats& stats, Clock::time_point now);

 private:
  std::optional<EngineStats> before_;
  Clock::time_point when_;
  bool was_idle_ = true;
};

}  // namespace weft
