#include "runtime/speculator.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

/// Runs `steps` steps of `sequences` that decode and says in how many of them drafts were made.
/// A plain step takes 1 ms and gives a token each; one with drafts takes and gives what is said.
struct World {
  double drafted_ms = 1;
  int64_t drafted_tokens = 1;
  int64_t sequences = 1;

  int64_t run(DraftPolicy& policy, int64_t steps) const {
    int64_t drafted = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const bool drafts = policy.wants_drafts(sequences);
      drafted += drafts;
      policy.measured(sequences, drafts, drafts ? drafted_tokens : sequences,
                      1e-3 * (drafts ? drafted_ms : 1));
    }
    return drafted;
  }
};

TEST(DraftPolicy, GoesOnWithWhatPays) {
  DraftPolicy policy;
  EXPECT_GE((World{.drafted_ms = 1.5, .drafted_tokens = 3}.run(policy, 1000)), 950);
}

TEST(DraftPolicy, LosesLittleWhereDraftsDoNotPay) {
  DraftPolicy policy;
  const World world{.drafted_ms = 1.5, .drafted_tokens = 1};
  world.run(policy, 100);
  // 1.5 times the time in at most 1 of 33 steps.
  EXPECT_LE(world.run(policy, 3300), 66);
}

TEST(DraftPolicy, FindsOutThatTheyPayNow) {
  DraftPolicy policy;
  World{.drafted_ms = 2, .drafted_tokens = 1}.run(policy, 200);
  const World now{.drafted_ms = 1.2, .drafted_tokens = 4};
  now.run(policy, 5000);
  EXPECT_GE(now.run(policy, 1000), 950);
}

TEST(DraftPolicy, TellsBatchesApart) {
  DraftPolicy policy;
  const World alone{.drafted_ms = 1.2, .drafted_tokens = 3, .sequences = 1};
  const World many{.drafted_ms = 3, .drafted_tokens = 70, .sequences = 64};
  for (int i = 0; i < 20; ++i) {
    alone.run(policy, 50);
    many.run(policy, 50);
  }
  EXPECT_GE(alone.run(policy, 500), 470);
  EXPECT_LE(many.run(policy, 500), 30);
}

TEST(StateSlotMap, AcceptedStatesChangePlaces) {
  StepLimits limits;
  limits.num_slots = 3;
  limits.max_draft_rows = 4;
  limits.max_seqs = 2;
  limits.recurrent = true;
  StateSlotMap map(limits);
  EXPECT_EQ(limits.all_slots(), 5);
  EXPECT_EQ(map.of(SlotId{1}), 1);
  EXPECT_EQ(map.of(SlotId{}), -1);
  EXPECT_EQ(map.spare(0), 3);
  map.exchange(SlotId{1}, 0);
  EXPECT_EQ(map.of(SlotId{1}), 3);
  EXPECT_EQ(map.spare(0), 1);
  map.exchange(SlotId{2}, 0);
  EXPECT_EQ(map.of(SlotId{2}), 1);
  EXPECT_EQ(map.spare(0), 2);
}

TEST(OwnedPlan, OutlivesWhatItWasMadeOf) {
  OwnedPlan owned;
  {
    std::vector<int32_t> tokens = {5, 6, 7}, more = {8}, pages = {3, 4};
    std::vector<BlockId> blocks = {{2}, {9}};
    StepPlan plan;
    plan.step = 4;
    plan.slices.push_back({.seq = SeqId{1}, .tokens = tokens, .blocks = blocks});
    plan.slices.push_back({.seq = SeqId{2}, .tokens = more, .blocks = blocks});
    plan.image_uses.push_back({SeqId{1}, 0, pages});
    owned.copy(plan);
    std::fill(tokens.begin(), tokens.end(), -9);
    std::fill(pages.begin(), pages.end(), -9);
    blocks.assign(2, BlockId{});
  }
  const StepPlan& plan = owned.plan;
  EXPECT_EQ(plan.step, 4u);
  EXPECT_EQ(std::vector(plan.slices[0].tokens.begin(), plan.slices[0].tokens.end()),
            (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(plan.slices[1].tokens[0], 8);
  EXPECT_EQ(plan.slices[1].blocks[1], BlockId{9});
  EXPECT_EQ(plan.image_uses[0].pages[1], 4);
}

}  // namespace
}  // namespace weft
