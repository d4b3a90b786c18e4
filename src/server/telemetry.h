#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <thread>

#include "server/live_view.h"
#include "server/metrics.h"
#include "server/stats_log.h"
#include "server/trace.h"
#include "server/watchdog.h"

namespace weft {

struct TelemetryConfig {
  MetricsInfo metrics;
  LiveInfo live;
  WatchdogConfig watchdog;
  std::string trace_file;  ///< empty: none
  bool log_stats = true;
};

/// Everything that watches the server, behind few calls: metrics, the live view, the log line,
/// the trace and the watchdog. Make it first; give step() to the engine as EngineConfig::on_step;
/// attach() the engine; detach() before the engine goes.
class Telemetry {
 public:
  static Result<std::unique_ptr<Telemetry>> start(const TelemetryConfig& config);
  ~Telemetry();

  /// From now on a thread looks at the engine: every 250 ms for the watchdog, every second for
  /// the live view, every ten for the log.
  void attach(const Engine& engine);
  void detach();

  /// EngineConfig::on_step.
  void step(const StepRecord& record);
  /// The end of a sequence.
  void finished(const RequestRecord& record);
  /// The rest of the counters: metrics().token_gap(), http_answered(), stream_opened(), ...
  Metrics& metrics() { return metrics_; }

  /// The body of /metrics.
  std::string metrics_text() const;
  /// The body of /weft/live; `query` is the request's query string (`since=SECONDS`). `state`:
  /// what the service is when the engine is well: ready, loading or draining.
  std::string live_json(std::string_view query, const std::string& state) const;
  /// For /health.
  Health health() const { return watchdog_.health(); }

 private:
  explicit Telemetry(const TelemetryConfig& config);
  void thread_main();
  void look(Watchdog::Clock::time_point now);  // with mutex_ held
  EngineStats stats() const;

  const bool log_stats_;
  Metrics metrics_;
  LiveView live_;
  StatsLog log_;
  Watchdog watchdog_;
  std::unique_ptr<TraceWriter> trace_;

  mutable std::mutex mutex_;  // guards the next three
  const Engine* engine_ = nullptr;
  EngineStats last_stats_;  // of the engine that was detached
  bool stopping_ = false;
  std::condition_variable changed_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace weft
