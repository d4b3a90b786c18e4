#include "sim/sched_sim.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(SchedulerSimulator, ShortRunWithFullAudits) {
  const SimReport report = simulate({.seed = 20261120, .steps = 300'000, .audit_every = 1});
  EXPECT_EQ(report.failure, "") << report.text();
  EXPECT_EQ(report.missing, "") << "an event never happened: the run proves nothing about it";
  EXPECT_GE(report.steps, 300'000);
}

TEST(SchedulerSimulator, SeedReproduces) {
  const SimReport a = simulate({.seed = 7, .steps = 20'000, .audit_every = 16});
  const SimReport b = simulate({.seed = 7, .steps = 20'000, .audit_every = 16});
  EXPECT_EQ(a.text(), b.text());
}

}  // namespace
}  // namespace weft
