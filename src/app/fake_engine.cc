#include "app/fake_engine.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <limits>
#include <string>
#include <thread>
#include <unordered_map>
#include <utility>
#include <vector>

#include "sched/executor_fake.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBlockSize = 64;

/// The symbolic device, made to take its time and to say what it is told.
class PacedExecutor final : public Executor {
 public:
  PacedExecutor(const FakeExecutorConfig& config, const FakeEngineOptions& options,
                const Tokenizer& tokenizer, int32_t eos_id)
      : device_(config), options_(options), tokenizer_(tokenizer), eos_id_(eos_id) {
    if (options.tokens_per_second > 0) {
      period_ = std::chrono::duration_cast<Clock::duration>(
          std::chrono::duration<double>(1 / options.tokens_per_second));
    }
    device_.set_sample_hook([this](SeqId id, int64_t position, int32_t token) {
      const auto it = scripts_.find(id);
      if (it == scripts_.end()) return token;
      const Script& script = it->second;
      const auto index = static_cast<size_t>(position - script.prompt_len);
      return index < script.answer.size() ? script.answer[index] : eos_id_;
    });
  }

  void launch(const StepPlan& plan) override {
    for (const auto& request : plan.admitted) remember(*request);
    device_.launch(plan);
    for (const SeqId id : plan.retired) scripts_.erase(id);
    const Clock::time_point before = due_.empty() ? last_due_ : due_.back();
    due_.push_back(std::max(Clock::now(), before) +
                   (plan.slices.empty() ? Clock::duration() : period_));
    ++num_launched_;
  }

  StepResult collect() override {
    last_due_ = due_.front();
    due_.pop_front();
    std::this_thread::sleep_until(last_due_);
    while (options_.hang_after >= 0 && num_launched_ > options_.hang_after) {
      std::this_thread::sleep_for(std::chrono::seconds(1));
    }
    return device_.collect();
  }

 private:
  struct Script {
    int64_t prompt_len = 0;
    std::vector<int32_t> answer;
  };

  void remember(const Request& request) {
    const std::string text = tokenizer_.decode(request.prompt, /*skip_special=*/false);
    const size_t begin = text.find("<<<");
    const size_t end = text.find(">>>", begin == std::string::npos ? 0 : begin);
    if (begin == std::string::npos || end == std::string::npos || eos_id_ < 0) return;
    const auto answer = tokenizer_.encode(text.substr(begin + 3, end - begin - 3), false);
    if (answer) scripts_[request.id] = {static_cast<int64_t>(request.prompt.size()), *answer};
  }

  FakeExecutor device_;
  const FakeEngineOptions options_;
  const Tokenizer& tokenizer_;
  const int32_t eos_id_;
  Clock::duration period_{};
  std::deque<Clock::time_point> due_;  // of the steps in flight
  Clock::time_point last_due_{};
  int64_t num_launched_ = 0;
  std::unordered_map<SeqId, Script> scripts_;
};

}  // namespace

Result<std::unique_ptr<Engine>> make_fake_engine(const EngineOptions& engine,
                                                 const FakeEngineOptions& fake,
                                                 const EngineConfig& config,
                                                 const Tokenizer& tokenizer, int32_t eos_id) {
  const FakeExecutorConfig device{.block_size = kBlockSize,
                                  .num_blocks = kFakeBlocks,
                                  .num_state_slots = fake_slots(engine),
                                  .vocab = tokenizer.vocab_size(),
                                  .reuse_generated = engine.reuse_generated};
  auto scheduler = TRY(Scheduler::create(
      {.block_size = kBlockSize,
       .num_blocks = kFakeBlocks,
       .num_state_slots = device.num_state_slots,
       .max_batched_tokens =
           std::max(batched_tokens(engine, /*gpu=*/false), engine.max_num_seqs + kChunk),
       .max_seqs = engine.max_num_seqs,
       .max_model_len = static_cast<int>(fake.max_model_len),
       .prefix_caching = engine.prefix_caching,
       .reuse_generated = engine.reuse_generated,
       .max_drafts = engine.speculation.on() ? engine.speculation.num_speculative_tokens : 0,
       .hash_key = engine.seed}));
  return std::make_unique<Engine>(config, std::move(scheduler),
                                  std::make_unique<PacedExecutor>(device, fake, tokenizer, eos_id));
}

}  // namespace weft
