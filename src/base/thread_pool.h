#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <type_traits>
#include <vector>

namespace weft {

/// Number of CPUs this process may use: the affinity mask bounded by the cgroup CPU quota
/// (v2 cpu.max, v1 cpu.cfs_quota_us), at least 1.
int usable_cpus();

/// What the calling thread has computed, with its waits for a pool's workers but for those so long
/// that another process has one's CPU.
double busy_seconds();

/// A fork-join pool for the step path: the caller is worker 0, the others spin for a while after
/// each job (cheap hand-over between the many short ops of a step) and then sleep.
/// One caller at a time. A job must not throw and must not call parallel() again.
class ThreadPool {
 public:
  /// `num_threads` >= 1, counting the caller.
  explicit ThreadPool(int num_threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int num_threads() const { return num_threads_; }

  /// Runs job(worker) once on each of the num_threads() workers and returns when all have finished.
  template <class Job>
  void parallel(Job&& job) {
    using Fn = std::remove_reference_t<Job>;
    run([](void* context, int worker) { (*static_cast<Fn*>(context))(worker); },
        const_cast<void*>(static_cast<const void*>(&job)));
  }

  /// Runs body(begin, end) over [0, count) in pieces of `grain`, taken by the workers as they
  /// become free. Which worker takes a piece must not matter to the result.
  template <class Body>
  void for_each(int64_t count, int64_t grain, Body&& body) {
    if (count <= 0) return;
    if (count <= grain || num_threads_ == 1) {
      body(int64_t{0}, count);
      return;
    }
    std::atomic<int64_t> next{0};
    parallel([&](int) {
      for (;;) {
        const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= count) return;
        body(begin, begin + grain < count ? begin + grain : count);
      }
    });
  }

  /// A barrier inside a running parallel(): every worker must call it.
  void barrier();

 private:
  using Entry = void (*)(void* context, int worker);
  void run(Entry entry, void* context);
  void worker_main(int worker);

  const int num_threads_;
  Entry entry_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint32_t> generation_{0};  // bumped to start a job; futex word
  alignas(64) std::atomic<int> pending_{0};          // workers still in the job
  alignas(64) std::atomic<int> arrived_{0};          // barrier state
  alignas(64) std::atomic<uint32_t> barrier_generation_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> threads_;
};

}  // namespace weft
