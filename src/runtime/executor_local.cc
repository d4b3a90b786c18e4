#include "runtime/executor_local.h"

#include <utility>

#include "base/check.h"
#include "runtime/prefault.h"

namespace weft {

Result<std::unique_ptr<LocalExecutor>> LocalExecutor::create(const Model& model, KvStore& kv,
                                                             Stream& stream, const OpTable& ops,
                                                             const StepLimits& limits) {
  Runner runner = TRY(Runner::create(model, kv, stream, ops, limits));
  std::array<PackedStep, kStepsInFlight> steps = {TRY(PackedStep::create(limits)),
                                                  TRY(PackedStep::create(limits))};
  for (PackedStep& step : steps) step.set_image_features(runner.image_features());
  std::unique_ptr<LocalExecutor> executor(new LocalExecutor(std::move(runner), std::move(steps)));
  const auto num_layers = static_cast<int>(model.cache_specs().size());
  executor->prefault_ = std::jthread(
      [&kv, num_layers](const std::stop_token& stop) { prefault_caches(kv, num_layers, stop); });
  return executor;
}

int64_t LocalExecutor::bytes(const StepLimits& limits, int64_t hidden_size, int num_threads) {
  return static_cast<int64_t>(kStepsInFlight) * PackedStep::bytes(limits) +
         Runner::logit_bytes(limits, hidden_size, num_threads);
}

LocalExecutor::LocalExecutor(Runner runner, std::array<PackedStep, kStepsInFlight> steps)
    : runner_(std::move(runner)), steps_(std::move(steps)), thread_([this] { run_steps(); }) {}

LocalExecutor::~LocalExecutor() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
  }
  launched_changed_.notify_one();
  thread_.join();
}

void LocalExecutor::launch(const StepPlan& plan) {
  // The step that last used this memory was collected; nothing else writes these counters.
  CHECK(num_launched_ - num_collected_ < kStepsInFlight, "too many steps in flight");
  steps_[num_launched_ % kStepsInFlight].pack(plan, sequences_);
  {
    const std::lock_guard lock(mutex_);
    ++num_launched_;
  }
  launched_changed_.notify_one();
}

StepResult LocalExecutor::collect() {
  std::unique_lock lock(mutex_);
  CHECK(num_collected_ < num_launched_, "no step in flight");
  done_changed_.wait(lock, [&] { return num_done_ > num_collected_ || failure_; });
  if (num_done_ == num_collected_) std::rethrow_exception(failure_);
  ++num_collected_;
  StepResult result = std::move(results_.front());
  results_.pop_front();
  return result;
}

void LocalExecutor::run_steps() {
  for (;;) {
    PackedStep* step = nullptr;
    {
      std::unique_lock lock(mutex_);
      launched_changed_.wait(lock, [&] { return stop_ || num_done_ < num_launched_; });
      if (stop_) return;
      step = &steps_[num_done_ % kStepsInFlight];
    }
    StepResult result;
    try {
      runner_.run(*step, result);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
      done_changed_.notify_one();
      return;
    }
    step->forget_retired();
    const std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
    ++num_done_;
    done_changed_.notify_one();
  }
}

}  // namespace weft
