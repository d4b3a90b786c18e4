#pragma once

#include <array>
#include <atomic>
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
};

struct Health {
  bool healthy = true;
  std::string reason;  ///< why not, for /health and the log
};

struct WatchdogConfig {
  std::chrono::duration<double> base{2.0};  ///< silence that is never a stall
  double factor = 10;                       ///< plus so many times the longest recent step
};

/// Tells an engine that works from one that hangs: while it is busy its heartbeat must move within
/// base + factor x the longest of the last 64 steps. Thread-safe; the clock is an argument.
class Watchdog {
 public:
  using Clock = std::chrono::steady_clock;
  explicit Watchdog(WatchdogConfig config = {}) : config_(config) {}

  /// A step took so long. Lock-free: called on the engine thread.
  void step_took(double seconds);
  /// One look (every 250 ms); returns the new health.
  Health look(const EngineLook& engine, Clock::time_point now);
  /// As of the last look.
  Health health() const;
  /// Silence that counts as a stall now, in seconds.
  double threshold() const;

 private:
  static constexpr size_t kRecent = 64;
  const WatchdogConfig config_;
  std::array<std::atomic<float>, kRecent> recent_{};
  std::atomic<uint32_t> next_{0};

  mutable std::mutex mutex_;  // guards the rest
  bool started_ = false;
  bool was_busy_ = false;
  uint64_t heartbeat_ = 0;
  Clock::time_point moved_;
  Health health_;
};

}  // namespace weft
