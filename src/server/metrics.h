#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "engine/engine.h"
#include "server/request_record.h"

namespace weft {

/// A histogram of fixed buckets. observe() is lock-free.
class Histogram {
 public:
  /// `bounds`: upper bounds, ascending, finite; the bucket "+Inf" comes on top.
  explicit Histogram(std::span<const double> bounds);
  void observe(double value);

  struct Reading {
    std::vector<double> bounds;
    std::vector<uint64_t> counts;  ///< one a bound and the last for +Inf; not cumulative
    double sum = 0;
  };
  Reading read() const;

 private:
  std::vector<double> bounds_;
  std::vector<std::atomic<uint64_t>> counts_;
  std::atomic<double> sum_{0};
};

/// What does not change while the server runs.
struct MetricsInfo {
  std::string model_name;
  int block_size = 0;
  int num_blocks = 0;
  int num_state_slots = 0;
  int num_swap_blocks = 0;
  std::string kv_cache_dtype = "auto";
  bool prefix_caching = true;
  int num_speculative_tokens = 0;  ///< drafts a step at most; 0: nothing is drafted
};

/// Every figure at /metrics, under vLLM's names where vLLM has the figure and under `weft:`
/// otherwise (docs/server.md). All functions may be called from any thread; those called once a
/// token are lock-free. Labels are bounded: nothing that a client chooses becomes one.
class Metrics {
 public:
  explicit Metrics(MetricsInfo info);

  /// The end of a sequence: counts its reason and its times.
  void finished(const RequestRecord& record);
  /// The first token of a sequence has come: its time counts at once, as in vLLM.
  void first_token(const RequestRecord& record);
  /// Seconds between two tokens of one sequence.
  void token_gap(double seconds) { inter_token_.observe(seconds); }
  /// One step of the engine (EngineConfig::on_step).
  void step(const StepRecord& record);
  /// An HTTP answer. `route` is the pattern from the route table, never the client's path.
  void http_answered(std::string_view route, int status);
  void stream_opened() { open_streams_.fetch_add(1, std::memory_order_relaxed); }
  void stream_closed() { open_streams_.fetch_sub(1, std::memory_order_relaxed); }
  /// The client went before its answer was complete.
  void disconnected() { disconnected_.fetch_add(1, std::memory_order_relaxed); }
  /// 429: the queue was full.
  void refused_overload() { refused_.fetch_add(1, std::memory_order_relaxed); }

  /// Prometheus text exposition 0.0.4; content type kMetricsContentType. `healthy` is the
  /// watchdog's word.
  std::string render(const EngineStats& stats, bool healthy) const;

 private:
  const MetricsInfo info_;
  const double start_time_ =
      std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
  Histogram time_to_first_token_, inter_token_, time_per_output_token_, e2e_latency_;
  Histogram queue_time_, inference_time_, prefill_time_, decode_time_;
  Histogram prompt_tokens_, generation_tokens_, max_generation_tokens_, computed_prompt_tokens_;
  Histogram params_n_, params_max_tokens_, iteration_tokens_;
  Histogram step_time_;
  std::atomic<int64_t> open_streams_{0};
  std::atomic<uint64_t> disconnected_{0}, refused_{0};

  mutable std::mutex mutex_;  // guards the maps: one short lock a request
  std::map<std::string, uint64_t, std::less<>> finished_by_reason_;
  std::map<std::pair<std::string, int>, uint64_t> http_by_route_;
};

inline constexpr std::string_view kMetricsContentType = "text/plain; version=0.0.4; charset=utf-8";

}  // namespace weft
