#include "server/telemetry.h"

#include <charconv>
#include <cmath>

#include "base/log.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;
constexpr std::chrono::milliseconds kLookEvery{250};
constexpr std::chrono::seconds kSampleEvery{1};
constexpr std::chrono::seconds kLogEvery{10};

/// The value of `since` in a query string; 0 when it is absent or no number.
double parse_since(std::string_view query) {
  constexpr std::string_view kName = "since=";
  while (!query.empty()) {
    const std::string_view item = query.substr(0, query.find('&'));
    query.remove_prefix(std::min(query.size(), item.size() + 1));
    if (item.substr(0, kName.size()) != kName) continue;
    const std::string_view text = item.substr(kName.size());
    double value = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && std::isfinite(value) ? value : 0.0;
  }
  return 0;
}

}  // namespace

Telemetry::Telemetry(const TelemetryConfig& config)
    : log_stats_(config.log_stats),
      metrics_(config.metrics),
      live_(config.live),
      watchdog_(config.watchdog) {}

Result<std::unique_ptr<Telemetry>> Telemetry::start(const TelemetryConfig& config) {
  std::unique_ptr<TraceWriter> trace;
  if (!config.trace_file.empty()) trace = TRY(TraceWriter::open(config.trace_file));
  std::unique_ptr<Telemetry> made(new Telemetry(config));
  made->trace_ = std::move(trace);
  made->thread_ = std::thread([self = made.get()] { self->thread_main(); });
  return made;
}

Telemetry::~Telemetry() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
    changed_.notify_one();
  }
  if (thread_.joinable()) thread_.join();
}

void Telemetry::attach(const Engine& engine) {
  const std::lock_guard lock(mutex_);
  engine_ = &engine;
}

void Telemetry::detach() {
  const std::lock_guard lock(mutex_);
  if (engine_) last_stats_ = engine_->stats();
  engine_ = nullptr;
}

EngineStats Telemetry::stats() const {
  const std::lock_guard lock(mutex_);
  return engine_ ? engine_->stats() : last_stats_;
}

void Telemetry::step(const StepRecord& record) {
  metrics_.step(record);
  live_.step(record);
  if (record.rows() > 0) watchdog_.step_took(record.seconds(), record.rows());
  if (trace_) trace_->step(record);
}

void Telemetry::finished(const RequestRecord& record) {
  metrics_.finished(record);
  if (trace_) trace_->request(record);
}

std::string Telemetry::metrics_text() const {
  return metrics_.render(stats(), health().healthy);
}

std::string Telemetry::live_json(std::string_view query, const std::string& state) const {
  bool failed = false;
  {
    const std::lock_guard lock(mutex_);
    failed = engine_ && engine_->failed();
  }
  const bool stalled = !health().healthy;
  return live_.json(parse_since(query), failed ? "failed" : stalled ? "stalled" : state);
}

void Telemetry::look(Clock::time_point now) {
  // The lock is held all along: detach() returns only when nobody looks at the engine any more.
  const bool was_healthy = watchdog_.health().healthy;
  const Health health = watchdog_.look({.busy = engine_->busy(),
                                        .failed = engine_->failed(),
                                        .heartbeat = engine_->steps_completed(),
                                        .rows = engine_->rows_in_flight()},
                                       now);
  if (was_healthy && !health.healthy) log_error("watchdog: " + health.reason);
  if (!was_healthy && health.healthy) log_warning("watchdog: the engine makes progress again");
}

void Telemetry::thread_main() {
  Clock::time_point next_sample = Clock::now(), next_log = next_sample;
  std::unique_lock lock(mutex_);
  while (!stopping_) {
    const Clock::time_point now = Clock::now();
    if (engine_) {
      look(now);
      if (now >= next_sample) {
        live_.sample(engine_->stats(), now);
        // Late rounds are not made up for.
        next_sample = std::max(next_sample + kSampleEvery, now);
      }
      if (now >= next_log) {
        const std::optional<std::string> line = log_.tick(engine_->stats(), now);
        if (line && log_stats_) log_info(*line);
        next_log = std::max(next_log + kLogEvery, now);
      }
    }
    changed_.wait_for(lock, kLookEvery);
  }
}

}  // namespace weft
