#pragma once

#include <array>
#include <condition_variable>
#include <deque>
#include <exception>
#include <memory>
#include <mutex>
#include <thread>

#include "runtime/runner.h"
#include "runtime/speculator.h"
#include "sched/executor.h"

namespace weft {

/// Runs steps of one model in this process, on a thread of its own that uses the stream's pool:
/// nobody else may use the stream between create() and destruction. launch() packs the plan on the
/// calling thread and returns; collect() waits for the oldest step. At most two steps in flight.
/// A Panic of a step is thrown by its collect().
///
/// With speculation a step is packed on its thread when the step before is done: only then is known
/// where its sequences are and what may follow.
class LocalExecutor : public Executor {
 public:
  /// `model`, `kv`, `stream` and `ops` must outlive it. Error when memory can't be had. With
  /// speculation limits.max_draft_rows > 0 and `kv` has limits.all_slots().
  static Result<std::unique_ptr<LocalExecutor>> create(const Model& model, KvStore& kv,
                                                       Stream& stream, const OpTable& ops,
                                                       const StepLimits& limits,
                                                       const SpeculationConfig& speculation = {});
  ~LocalExecutor() override;

  /// For tests, with speculation and before the first launch.
  void set_guess(Speculator::Guess guess) { speculator_->set_guess(std::move(guess)); }
  /// Likewise.
  void set_whim(Speculator::Whim whim) { speculator_->set_whim(std::move(whim)); }

  void launch(const StepPlan& plan) override;
  StepResult collect() override;

  /// Bytes that create() takes, but for the model's arena.
  static int64_t bytes(const StepLimits& limits, int64_t hidden_size, int num_threads,
                       const SpeculationConfig& speculation = {});

 private:
  static constexpr size_t kStepsInFlight = 2;
  LocalExecutor(Runner runner, std::array<PackedStep, kStepsInFlight> steps,
                std::optional<Speculator> speculator);
  void run_steps();
  void run(size_t index, StepResult& result);

  Runner runner_;
  // Step i of the launch order is packed into steps_[i % kStepsInFlight].
  std::array<PackedStep, kStepsInFlight> steps_;
  std::array<OwnedPlan, kStepsInFlight> plans_;  // likewise, with speculation
  std::optional<Speculator> speculator_;         // the running thread's
  PackedStep::Sequences sequences_;              // the launching thread's, or with speculation its

  std::mutex mutex_;
  std::condition_variable launched_changed_, done_changed_;
  uint64_t num_launched_ = 0, num_done_ = 0, num_collected_ = 0;  // guarded by mutex_
  std::deque<StepResult> results_;                                // guarded by mutex_
  std::exception_ptr failure_;                                    // guarded by mutex_
  bool stop_ = false;                                             // guarded by mutex_
  std::thread thread_;
  std::jthread prefault_;  // of the caches, in the first seconds
};

}  // namespace weft
