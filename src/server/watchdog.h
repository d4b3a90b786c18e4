#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <mutex>
#include <string>

namespace weft {

/// What the watchdog sees of the engine at one moment.
struct EngineLook {
  bool busy = false;    ///< requests accepted and not finished
  bool failed = false;  ///< the loop has ended with a panic
  uint64_t heartbeat = 0;
  int rows = 0;  ///< tokens of the steps in flight
};

struct Health {
  bool healthy = true;
  std::string reason;  ///< why not, for /health and the log
};

struct WatchdogConfig {
  double base = 2.0;              ///< seconds of silence that are never a stall
  double factor = 10;             ///< plus so many times the step time to be expected
  double first_step = 1.0;        ///< step time expected of an engine that has made none
  double seconds_per_row = 0.01;  ///< and a row of it: a slow CPU
};

/// Tells an engine that works from one that hangs: while it is busy its heartbeat must move within
/// base + factor x the expected step time. That is the longest of the last 64 steps, or, when more
/// rows are in flight than the largest step so far had, as much longer. Thread-safe; the clock is
/// an argument.
class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Watchdog(WatchdogConfig config = {}) : config_(config) {}

  /// A step of so many rows took so long. A short lock: called on the engine thread.
  void step_took(double seconds, int rows);
  /// One look (every 250 ms); returns the new health.
  Health look(const EngineLook& engine, Clock::time_point now);
  /// As of the last look.
  Health health() const;
  /// Silence that counts as a stall, in seconds, with so many rows in flight.
  double threshold(int rows) const;

 private:
  double threshold_locked(int rows) const;

  static constexpr size_t kRecent = 64;
  const WatchdogConfig config_;
  mutable std::mutex mutex_;  // guards the rest
  std::array<double, kRecent> recent_{};
  uint64_t num_steps_ = 0;
  int largest_rows_ = 0;  // of the largest step so far
  double largest_seconds_ = 0;
  Clock::time_point last_look_;
  bool was_busy_ = false;
  uint64_t heartbeat_ = 0;
  double silence_ = 0;  // seconds seen
  Health health_;
};

}  // namespace weft
