#include "api/choice_sink.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

/// The counts of a request of these steps, as its last event has them.
SpeculationCounts told(const std::vector<SpeculationStep>& steps) {
  const Tokenizer tokenizer =
      Tokenizer::load(std::string(WEFT_SOURCE_DIR) + "/models/demo").value();
  SpeculationCounts out;
  ChoiceSink sink(tokenizer, {}, [&](TokenEvent event) {
    if (event.kind == TokenEvent::Kind::kFinish) out = event.end->speculation;
  });
  for (const SpeculationStep& step : steps) sink.on_step(step);
  sink.on_finish(FinishReason::kLength, {}, nullptr);
  return out;
}

void expect_sum(const std::vector<SpeculationStep>& steps) {
  const SpeculationCounts out = told(steps);
  SpeculationCounts sum;
  for (const SpeculationStep& step : steps) sum.add(step);
  EXPECT_EQ(out.steps, sum.steps);
  EXPECT_EQ(out.draft_steps, sum.draft_steps);
  EXPECT_EQ(out.proposed, sum.proposed);
  EXPECT_EQ(out.accepted, sum.accepted);
  EXPECT_EQ(out.per_head, sum.per_head);
  EXPECT_EQ(out.accepted_at, sum.accepted_at);
}

TEST(ChoiceSink, CountsOfStepsBeforeAndBehindTheFirstDraft) {
  const SpeculationStep plain{.emitted = 1};
  const SpeculationStep rejected{.emitted = 1, .proposed = {2, 0}};
  const SpeculationStep taken{.emitted = 3, .proposed = {0, 4}, .accepted = {0, 2}};
  expect_sum({});
  expect_sum({plain, plain, plain});
  expect_sum({plain, plain, rejected, plain, taken, plain});
  expect_sum({taken, plain});
  expect_sum({SpeculationStep{.emitted = 0, .proposed = {1, 0}}, plain});
}

}  // namespace
}  // namespace weft
