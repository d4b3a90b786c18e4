#include <gtest/gtest.h>

#include "sched/executor_fake.h"
#include "sched/scheduler.h"

namespace weft {
namespace {

TEST(SchedulerDrafts, ThoseInFlightTakeNoRoomFromTheNext) {
  const auto scheduler =
      Scheduler::create({.num_blocks = 16, .max_model_len = 200, .max_drafts = 5}).value();
  const FakeExecutorConfig device{.num_blocks = 16, .right_drafts = 0};
  FakeExecutor executor(device);
  const auto request = std::make_shared<Request>();
  request->id = SeqId{1};
  request->prompt.assign(100, 7);
  request->sampling.max_tokens = 8;
  ASSERT_TRUE(scheduler->add(request).ok());
  executor.launch(scheduler->schedule());
  // Tokens 100 to 107 are to come; the last one is never computed.
  const StepPlan& first = scheduler->schedule();
  EXPECT_EQ(first.slices[0].max_drafts, 5);
  EXPECT_EQ(first.slices[0].limit, 106);
  executor.launch(first);
  std::vector<int32_t> tokens;
  const auto collect = [&] {
    for (const SequenceOutput& out : scheduler->apply(executor.collect())) {
      tokens.insert(tokens.end(), out.tokens.begin(), out.tokens.end());
    }
    EXPECT_EQ(scheduler->audit(), "");
  };
  collect();
  const StepPlan& second = scheduler->schedule();
  EXPECT_EQ(second.slices[0].max_drafts, 5) << "those of the first may all be wrong";
  EXPECT_EQ(second.slices[0].limit, 107);
  executor.launch(second);
  while (scheduler->num_in_flight() > 0) {
    collect();
    const StepPlan& next = scheduler->schedule();
    if (!next.empty()) executor.launch(next);
  }
  EXPECT_EQ(tokens, FakeExecutor::answer(*request, device, 200).tokens);
}

}  // namespace
}  // namespace weft
