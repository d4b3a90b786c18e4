#include "server/watchdog.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

using std::chrono::milliseconds;

/// Looks every 250 ms for `seconds`; returns the seconds after which it was unhealthy, or -1.
double watch(Watchdog& dog, EngineLook look, Watchdog::Clock::time_point& now, double seconds) {
  for (int i = 0; i < static_cast<int>(seconds * 4); ++i) {
    now += milliseconds(250);
    if (!dog.look(look, now).healthy) return (i + 1) * 0.25;
  }
  return -1;
}

TEST(Watchdog, IdleOrMovingIsWell) {
  Watchdog dog;
  Watchdog::Clock::time_point now;
  EXPECT_EQ(watch(dog, {}, now, 1000), -1);
  EngineLook look{.busy = true};
  for (int i = 0; i < 1000; ++i) {
    now += milliseconds(250);
    look.heartbeat += i % 4 == 0;
    EXPECT_TRUE(dog.look(look, now).healthy);
  }
}

TEST(Watchdog, FindsAStallAfterTwoSecondsAndTenSteps) {
  Watchdog dog;
  Watchdog::Clock::time_point now;
  for (int i = 0; i < 100; ++i) dog.step_took(0.01, 4);
  dog.step_took(0.05, 1);
  EXPECT_DOUBLE_EQ(dog.threshold(1), 2.5);
  EngineLook look{.busy = true, .heartbeat = 101, .rows = 1};
  dog.look(look, now);
  EXPECT_EQ(watch(dog, look, now, 60), 2.75);
  EXPECT_NE(dog.health().reason.find("no step for 2.8 s (allowed: 2.5 s)"), std::string::npos)
      << dog.health().reason;
  ++look.heartbeat;
  now += milliseconds(250);
  EXPECT_TRUE(dog.look(look, now).healthy) << "it moves again";
  look.busy = false;
  EXPECT_EQ(watch(dog, look, now, 60), -1);
}

TEST(Watchdog, OldLongStepsAreForgotten) {
  Watchdog dog;
  dog.step_took(3, 1000);
  EXPECT_DOUBLE_EQ(dog.threshold(1), 32);
  for (int i = 0; i < 64; ++i) dog.step_took(0.01, 1);
  EXPECT_NEAR(dog.threshold(1), 2.1, 1e-9);
  EXPECT_DOUBLE_EQ(dog.threshold(1000), 32) << "but a step of that size may take as long again";
  EXPECT_DOUBLE_EQ(dog.threshold(2000), 62) << "and one twice as large twice as long";
}

TEST(Watchdog, FirstStepHasTimeByItsRows) {
  Watchdog dog;
  EXPECT_DOUBLE_EQ(dog.threshold(1), 12);
  EXPECT_DOUBLE_EQ(dog.threshold(2048), 2 + 10 * 20.48);
}

TEST(Watchdog, SleepOfTheMachineIsNoStall) {
  Watchdog dog;
  Watchdog::Clock::time_point now;
  dog.step_took(0.01, 4);
  const EngineLook look{.busy = true, .heartbeat = 1};
  dog.look(look, now);
  now += std::chrono::hours(1);  // SIGSTOP, suspend to disk
  EXPECT_TRUE(dog.look(look, now).healthy);
}

TEST(Watchdog, FailureShowsAtOnce) {
  Watchdog dog;
  const Health health = dog.look({.failed = true}, {});
  EXPECT_FALSE(health.healthy);
  EXPECT_NE(health.reason.find("failed"), std::string::npos);
}

TEST(Watchdog, NewWorkAfterAnIdleTimeStartsItsOwnClock) {
  Watchdog dog;
  Watchdog::Clock::time_point now;
  dog.step_took(0.01, 1);
  EngineLook look{.busy = false, .heartbeat = 5};
  watch(dog, look, now, 100);
  look.busy = true;
  EXPECT_GT(watch(dog, look, now, 60), 2.0);
}

}  // namespace
}  // namespace weft
