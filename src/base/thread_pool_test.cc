#include "base/thread_pool.h"

#include <gtest/gtest.h>

#include <array>
#include <chrono>
#include <numeric>

namespace weft {
namespace {

TEST(ThreadPool, EveryWorkerRunsEachJobOnce) {
  ThreadPool pool(4);
  for (int round = 0; round < 2000; ++round) {
    std::array<std::atomic<int>, 4> calls{};
    pool.parallel([&](int worker) { calls[static_cast<size_t>(worker)]++; });
    for (const auto& count : calls) ASSERT_EQ(count.load(), 1);
  }
}

TEST(ThreadPool, ForEachCoversTheRangeOnce) {
  ThreadPool pool(3);
  for (int64_t count : {0, 1, 7, 64, 1000}) {
    std::vector<std::atomic<int>> hits(static_cast<size_t>(count));
    pool.for_each(count, 7, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) hits[static_cast<size_t>(i)]++;
    });
    for (const auto& hit : hits) ASSERT_EQ(hit.load(), 1);
  }
}

TEST(ThreadPool, BarrierSeparatesPhases) {
  ThreadPool pool(4);
  std::array<int, 4> first{};
  std::array<int, 4> sums{};
  pool.parallel([&](int worker) {
    first[static_cast<size_t>(worker)] = worker + 1;
    pool.barrier();
    sums[static_cast<size_t>(worker)] = std::accumulate(first.begin(), first.end(), 0);
    pool.barrier();
  });
  for (int sum : sums) EXPECT_EQ(sum, 10);
}

TEST(ThreadPool, WakesAfterSleeping) {
  ThreadPool pool(2);
  std::atomic<int> calls{0};
  pool.parallel([&](int) { calls++; });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  pool.parallel([&](int) { calls++; });
  EXPECT_EQ(calls.load(), 4);
}

TEST(ThreadPool, LongWaitsForWorkersAreNotBusy) {
  ThreadPool pool(2);
  const double begin = busy_seconds();
  pool.parallel([&](int worker) {
    if (worker == 1) std::this_thread::sleep_for(std::chrono::milliseconds(50));
  });
  EXPECT_LT(busy_seconds() - begin, 0.01);
}

}  // namespace
}  // namespace weft
