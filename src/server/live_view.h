#pragma once

#include <chrono>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "engine/engine.h"

namespace weft {

/// What does not change while the server runs.
struct LiveInfo {
  std::string model_name;
  int block_size = 0;
  int num_blocks = 0;
  int num_state_slots = 0;
  int max_num_seqs = 0;
  int64_t max_model_len = 0;
  int num_speculative_tokens = 0;  ///< drafts a step at most; 0: nothing is drafted
};

/// The last ten minutes, one sample a second, and the last 200 steps, as JSON for the page
/// (GET /weft/live; its shape is in docs/server.md). Thread-safe.
class LiveView {
 public:
  using Clock = std::chrono::steady_clock;
  static constexpr size_t kSamples = 600;
  static constexpr size_t kSteps = 200;

  explicit LiveView(LiveInfo info);

  /// One step (engine thread; a short lock).
  void step(const StepRecord& record);
  /// Once a second.
  void sample(const EngineStats& stats, Clock::time_point now);
  /// `since`: seconds since the epoch; samples and steps not newer are left out (0: all).
  /// `state`: ready, loading, draining, stalled or failed.
  std::string json(double since, const std::string& state) const;

 private:
  struct Sample {
    double time = 0;  // seconds since the epoch
    int running = 0, waiting = 0;
    int blocks_used = 0, blocks_cached = 0, slots_used = 0, slots_cached = 0;
    double prompt_rate = 0, generation_rate = 0, steps = 0;  // a second
    double kv_hit = -1, reuse = -1, state_hit = -1;          // shares; -1: nothing looked up
    double draft_acceptance = -1;                            // share of the drafts; -1: none
    double accepted_length = -1;  // tokens that a step gives a sequence; -1: none
  };
  double epoch_seconds(Clock::time_point t) const;

  const LiveInfo info_;
  const Clock::time_point start_;
  const double start_epoch_;
  mutable std::mutex mutex_;
  std::deque<Sample> samples_;
  std::deque<StepRecord> steps_;
  std::optional<EngineStats> before_;
  Clock::time_point when_;
};

}  // namespace weft
