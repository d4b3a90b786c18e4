#include <gtest/gtest.h>

#include <iostream>

#include "sched/executor_fake.h"
#include "sched/scheduler.h"

namespace weft {
namespace {

constexpr int kShared = 1500;
constexpr int kOwn = 700;
constexpr int kPrompts = 64;

std::shared_ptr<Request> make_request(int index) {
  auto request = std::make_shared<Request>();
  request->id = SeqId{index};
  for (int i = 0; i < kShared; ++i) request->prompt.push_back(i * 31 % 997);
  for (int i = 0; i < kOwn; ++i) request->prompt.push_back((i * 17 + index * 101 + 1) % 997);
  request->sampling.max_tokens = 8;
  return request;
}

struct Outcome {
  int hits = 0;                    // prompts that reused at least 1,436 tokens
  int64_t least_reused = kShared;  // of the hits
  SchedulerStats stats;
};

/// 64 prompts of 1,500 shared and 700 own tokens, one after another.
Outcome run_prompts(const SchedulerConfig& config) {
  auto scheduler = std::move(Scheduler::create(config)).value();
  const FakeExecutorConfig device{.block_size = config.block_size,
                                  .num_blocks = config.num_blocks,
                                  .num_state_slots = config.num_state_slots};
  FakeExecutor executor(device);
  Outcome outcome;
  for (int index = 0; index < kPrompts; ++index) {
    const auto request = make_request(index);
    EXPECT_TRUE(scheduler->add(request).ok());
    std::vector<int32_t> tokens;
    while (!scheduler->idle()) {
      const StepPlan& plan = scheduler->schedule();
      if (!plan.empty()) executor.launch(plan);
      for (const SequenceOutput& out : scheduler->apply(executor.collect())) {
        tokens.insert(tokens.end(), out.tokens.begin(), out.tokens.end());
        if (!out.prompt_done || out.cached_tokens < 1436) continue;
        ++outcome.hits;
        outcome.least_reused = std::min(outcome.least_reused, out.cached_tokens);
      }
      EXPECT_EQ(scheduler->audit(), "");
    }
    EXPECT_EQ(tokens, FakeExecutor::answer(*request, device, config.max_model_len).tokens);
  }
  outcome.stats = scheduler->stats();
  return outcome;
}

SchedulerConfig base_config() {
  return {.num_blocks = 256, .num_state_slots = 40, .max_model_len = 4096, .overlap = false};
}

TEST(HybridPrefix, EveryLaterPromptReusesTheSharedPart) {
  const Outcome outcome = run_prompts(base_config());
  EXPECT_GE(outcome.hits, 63);
  EXPECT_EQ(outcome.least_reused, 1472);
  std::cout << outcome.hits << " hits of " << kPrompts << ", at least " << outcome.least_reused
            << " tokens each, " << outcome.stats.checkpoints << " checkpoints, "
            << outcome.stats.state_evictions << " evicted, " << outcome.stats.state_lost_tokens
            << " tokens lost for want of a state\n";
}

// The memory price: 36 slots hold one prompt's dense checkpoints (2,200 / 64 = 34), its live state
// and the fresh one. With fewer, the second prompt finds a gap and leaves a branch checkpoint.
TEST(HybridPrefix, FewSlotsCostOneMoreMiss) {
  SchedulerConfig config = base_config();
  config.num_state_slots = 8;
  const Outcome outcome = run_prompts(config);
  EXPECT_GE(outcome.hits, 62);
  config.dense_checkpoints = 0;
  config.num_state_slots = 4;
  const Outcome sparse = run_prompts(config);
  EXPECT_EQ(sparse.hits, 62);
  EXPECT_GE(sparse.stats.branch_checkpoints, 1);
}

TEST(HybridPrefix, WithoutRecurrentStateBlocksAreEnough) {
  SchedulerConfig config = base_config();
  config.num_state_slots = 0;
  const Outcome outcome = run_prompts(config);
  EXPECT_EQ(outcome.hits, 63);
  EXPECT_EQ(outcome.least_reused, 1472);
  EXPECT_EQ(outcome.stats.state_lost_tokens, 0);
}

}  // namespace
}  // namespace weft
