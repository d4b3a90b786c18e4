#include "runtime/executor_local.h"

#include <sched.h>

#include <utility>

#include "base/check.h"
#include "runtime/prefault.h"

namespace weft {

Result<std::unique_ptr<LocalExecutor>> LocalExecutor::create(const Model& model, KvStore& kv,
                                                             Stream& stream, const OpTable& ops,
                                                             const StepLimits& limits,
                                                             const SpeculationConfig& speculation) {
  CHECK(speculation.on() == (limits.max_draft_rows > 0));
  Runner runner = TRY(Runner::create(model, kv, stream, ops, limits, speculation));
  std::array<PackedStep, kStepsInFlight> steps = {TRY(PackedStep::create(limits)),
                                                  TRY(PackedStep::create(limits))};
  for (PackedStep& step : steps) {
    step.set_image_features(runner.image_features());
    step.set_state_slots(runner.state_slots());
  }
  std::optional<Speculator> speculator;
  if (speculation.on()) {
    speculator.emplace(speculation, limits);
    speculator->set_num_layers(model.spec().layers.size());
  }
  std::unique_ptr<LocalExecutor> executor(
      new LocalExecutor(std::move(runner), std::move(steps), std::move(speculator)));
  const auto num_layers = static_cast<int>(model.cache_specs().size());
  executor->prefault_ = std::jthread([&kv, num_layers](const std::stop_token& stop) {
    const sched_param none{};
    sched_setscheduler(0, SCHED_IDLE, &none);  // the steps' threads go first
    prefault_caches(kv, num_layers, stop);
  });
  return executor;
}

int64_t LocalExecutor::bytes(const StepLimits& limits, int64_t hidden_size, int num_threads,
                             const SpeculationConfig& speculation) {
  int64_t bytes = static_cast<int64_t>(kStepsInFlight) * PackedStep::bytes(limits) +
                  Runner::logit_bytes(limits, hidden_size, num_threads);
  if (speculation.uses_mtp()) bytes += MtpDrafter::bytes(limits, hidden_size, num_threads);
  return bytes;
}

LocalExecutor::LocalExecutor(Runner runner, std::array<PackedStep, kStepsInFlight> steps,
                             std::optional<Speculator> speculator)
    : runner_(std::move(runner)),
      steps_(std::move(steps)),
      speculator_(std::move(speculator)),
      thread_([this] { run_steps(); }) {}

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
  if (speculator_) {
    plans_[num_launched_ % kStepsInFlight].copy(plan);
  } else {
    steps_[num_launched_ % kStepsInFlight].pack(plan, sequences_);
  }
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

void LocalExecutor::run(size_t index, StepResult& result) {
  PackedStep& step = steps_[index];
  if (speculator_) {
    StepPlan& plan = plans_[index].plan;
    speculator_->wants_drafts(plan);
    speculator_->resolve(plan, sequences_, runner_.mtp(), runner_.arena());
    step.pack(plan, sequences_);
    if (runner_.mtp())
      runner_.mtp()->begin(plan, sequences_, speculator_->follows_texts(plan, sequences_));
  }
  runner_.run(step, result);
  if (speculator_)
    speculator_->learn(step, result, runner_.mtp() ? runner_.mtp()->take_seconds() : 0);
  step.forget_retired();
}

void LocalExecutor::run_steps() {
  for (;;) {
    size_t index = 0;
    {
      std::unique_lock lock(mutex_);
      launched_changed_.wait(lock, [&] { return stop_ || num_done_ < num_launched_; });
      if (stop_) return;
      index = num_done_ % kStepsInFlight;
    }
    StepResult result;
    try {
      run(index, result);
    } catch (...) {
      const std::lock_guard lock(mutex_);
      failure_ = std::current_exception();
      done_changed_.notify_one();
      return;
    }
    const std::lock_guard lock(mutex_);
    results_.push_back(std::move(result));
    ++num_done_;
    done_changed_.notify_one();
  }
}

}  // namespace weft
