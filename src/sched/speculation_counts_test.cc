#include "sched/speculation_counts.h"

#include <gtest/gtest.h>

#include <numeric>
#include <random>

namespace weft {
namespace {

/// Steps with these heads: head[j] of them gave out more than j tokens.
SpeculationCounts with_heads(const std::vector<int64_t>& heads) {
  SpeculationCounts counts;
  for (size_t j = 0; j < heads.size(); ++j) {
    const int64_t longer = j + 1 < heads.size() ? heads[j + 1] : 0;
    for (int64_t i = longer; i < heads[j]; ++i) {
      counts.add(SpeculationStep{.emitted = static_cast<int>(j) + 1});
    }
  }
  return counts;
}

// FastDeploy's own baselines (its tests of MTP and n-gram).

TEST(SpeculateMetrics, BaselineOfNgramWithFiveDrafts) {
  const SpeculationCounts counts = with_heads({69, 13, 9, 3, 3, 3});
  EXPECT_EQ(counts.steps, 69);
  const SpeculateMetrics m = speculate_metrics(counts, 5);
  EXPECT_EQ(m.accepted_tokens, 100);
  EXPECT_EQ(m.rejected_tokens, 314);
  EXPECT_EQ(m.accept_ratio, 0.31000000000000005);
  EXPECT_EQ(m.average_accept_length, 1.4492753623188406);
  EXPECT_EQ(m.per_head, (std::vector<int64_t>{69, 13, 9, 3, 3, 3}));
  EXPECT_EQ(m.ratio_per_head, (std::vector<double>{0.18840579710144928, 0.6923076923076923,
                                                   0.3333333333333333, 1.0, 1.0}));
}

TEST(SpeculateMetrics, BaselineOfMtpWithOneDraft) {
  const SpeculateMetrics m = speculate_metrics(with_heads({77, 54}), 1);
  EXPECT_EQ(m.accepted_tokens, 131);
  EXPECT_EQ(m.rejected_tokens, 23);
  EXPECT_NEAR(m.accept_ratio, 0.41221, 1e-5);
  EXPECT_NEAR(m.average_accept_length, 1.7013, 1e-4);
  ASSERT_EQ(m.ratio_per_head.size(), 1U);
  EXPECT_NEAR(m.ratio_per_head[0], 0.7013, 1e-4);
}

TEST(SpeculateMetrics, BaselineOfMtpWithThreeDrafts) {
  const SpeculateMetrics m = speculate_metrics(with_heads({79, 51, 23, 9}), 3);
  EXPECT_EQ(m.accepted_tokens, 162);
  EXPECT_EQ(m.rejected_tokens, 154);
}

TEST(SpeculateMetrics, BaselineOfFiveDraftsByItsTotals) {
  // 100 accepted and 206 rejected in 51 steps; the heads are any that sum to 100.
  const SpeculateMetrics m = speculate_metrics(with_heads({51, 30, 10, 5, 3, 1}), 5);
  EXPECT_EQ(m.accepted_tokens, 100);
  EXPECT_EQ(m.rejected_tokens, 206);
  EXPECT_DOUBLE_EQ(m.accept_ratio, .49);
}

TEST(SpeculateMetrics, NoStepIsAllZeros) {
  const SpeculateMetrics m = speculate_metrics({}, 3);
  EXPECT_EQ(m.accepted_tokens, 0);
  EXPECT_EQ(m.rejected_tokens, 0);
  EXPECT_EQ(m.accept_ratio, 0);
  EXPECT_EQ(m.average_accept_length, 0);
  EXPECT_EQ(m.per_head, std::vector<int64_t>(4));
  EXPECT_EQ(m.ratio_per_head, std::vector<double>(3));
}

TEST(SpeculateMetrics, IdentitiesHoldForAnySteps) {
  std::mt19937 random(3);
  for (int round = 0; round < 1000; ++round) {
    const int k = 1 + static_cast<int>(random() % 8);
    SpeculationCounts counts;
    int64_t emitted = 0;
    for (int steps = 1 + static_cast<int>(random() % 50); steps > 0; --steps) {
      const int a = 1 + static_cast<int>(random() % static_cast<uint32_t>(k + 1));
      counts.add(SpeculationStep{.emitted = a});
      emitted += a;
    }
    const SpeculateMetrics m = speculate_metrics(counts, k);
    ASSERT_EQ(m.per_head.size(), static_cast<size_t>(k) + 1);
    ASSERT_EQ(m.ratio_per_head.size(), static_cast<size_t>(k));
    ASSERT_EQ(std::accumulate(m.per_head.begin(), m.per_head.end(), int64_t{0}), emitted);
    ASSERT_EQ(m.accepted_tokens, emitted);
    ASSERT_EQ(m.accepted_tokens + m.rejected_tokens, counts.steps * (k + 1));
    ASSERT_EQ(m.per_head[0], counts.steps);
    ASSERT_GE(m.average_accept_length, 1);
    ASSERT_LE(m.average_accept_length, k + 1);
    ASSERT_NEAR(m.accept_ratio, 1 - 1 / m.average_accept_length, 1e-12);
    for (const double ratio : m.ratio_per_head) {
      ASSERT_GE(ratio, 0);
      ASSERT_LE(ratio, 1);
    }
  }
}

TEST(SpeculationCounts, SourcesAreCountedApart) {
  SpeculationCounts counts;
  counts.add(SpeculationStep{.emitted = 1});  // the first token: nothing was drafted
  counts.add(SpeculationStep{.emitted = 4, .proposed = {3, 2}, .accepted = {3, 0}});
  counts.add(SpeculationStep{.emitted = 5, .proposed = {3, 2}, .accepted = {3, 2}});  // cut
  counts.add(SpeculationStep{.emitted = 0, .proposed = {3, 0}});  // discarded: not a step of ours
  EXPECT_EQ(counts.steps, 3);
  EXPECT_EQ(counts.draft_steps, 2);
  EXPECT_EQ(counts.proposed, (std::array<int64_t, 2>{6, 4}));
  EXPECT_EQ(counts.accepted, (std::array<int64_t, 2>{6, 2}));
  EXPECT_EQ(counts.num_proposed(), 10);
  EXPECT_EQ(counts.num_accepted(), 8);
  EXPECT_EQ(counts.per_head, (std::vector<int64_t>{3, 2, 2, 2, 1}));
  // In the cut step the fifth token was a draft, in the other the target's own.
  EXPECT_EQ(counts.accepted_at, (std::vector<int64_t>{2, 2, 2, 1, 1}));
}

TEST(SpeculationCounts, SumsOfRequestsEqualTheSumOfTheirSteps) {
  SpeculationCounts one, two, all;
  for (int i = 0; i < 12; ++i) {
    const SpeculationStep step{
        .emitted = 1 + i % 4, .proposed = {i % 3, i % 2}, .accepted = {i % 4 / 2, 0}};
    (i % 5 == 0 ? one : two).add(step);
    all.add(step);
  }
  SpeculationCounts sum;
  sum.add(one);
  sum.add(two);
  EXPECT_EQ(sum.per_head, all.per_head);
  EXPECT_EQ(sum.accepted_at, all.accepted_at);
  EXPECT_EQ(sum.steps, all.steps);
  EXPECT_EQ(sum.draft_steps, all.draft_steps);
  EXPECT_EQ(sum.proposed, all.proposed);
}

}  // namespace
}  // namespace weft
