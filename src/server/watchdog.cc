#include "server/watchdog.h"

#include <fmt/format.h>

#include <algorithm>

namespace weft {
namespace {

/// A look that comes late counts no more than this: after a suspended process or a machine that
/// slept nobody has been silent.
constexpr double kMaxSilenceOfALook = 0.5;

}  // namespace

void Watchdog::step_took(double seconds, int rows) {
  const std::lock_guard lock(mutex_);
  recent_[num_steps_++ % kRecent] = seconds;
  if (rows < largest_rows_) return;
  largest_rows_ = rows;
  largest_seconds_ = seconds;
}

double Watchdog::threshold_locked(int rows) const {
  double expected = std::max(config_.first_step, config_.seconds_per_row * rows);
  if (num_steps_ > 0) {
    expected = *std::max_element(recent_.begin(), recent_.end());
    if (rows > largest_rows_ && largest_rows_ > 0) {
      expected = std::max(expected, largest_seconds_ * rows / largest_rows_);
    } else if (rows == largest_rows_) {
      expected = std::max(expected, largest_seconds_);
    }
  }
  return config_.base + config_.factor * expected;
}

double Watchdog::threshold(int rows) const {
  const std::lock_guard lock(mutex_);
  return threshold_locked(rows);
}

Health Watchdog::look(const EngineLook& engine, Clock::time_point now) {
  const std::lock_guard lock(mutex_);
  const double since = std::chrono::duration<double>(now - last_look_).count();
  last_look_ = now;
  const bool moved = !engine.busy || !was_busy_ || engine.heartbeat != heartbeat_;
  was_busy_ = engine.busy;
  heartbeat_ = engine.heartbeat;
  silence_ = moved ? 0 : silence_ + std::clamp(since, 0.0, kMaxSilenceOfALook);
  const double allowed = threshold_locked(engine.rows);
  if (engine.failed) {
    health_ = {false, "the engine has failed; restart it"};
  } else if (silence_ > allowed) {
    health_ = {false, fmt::format("the engine is busy but has made no step for {:.1f} s (allowed: "
                                  "{:.1f} s)",
                                  silence_, allowed)};
  } else {
    health_ = {};
  }
  return health_;
}

Health Watchdog::health() const {
  const std::lock_guard lock(mutex_);
  return health_;
}

}  // namespace weft
