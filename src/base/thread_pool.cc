#include "base/thread_pool.h"

#include <immintrin.h>
#include <sched.h>
#include <time.h>

#include <algorithm>
#include <cmath>

#include "base/cgroup.h"
#include "base/check.h"

namespace weft {
namespace {

constexpr int kSpins = 20000;          // about 0.3 ms of pauses before a worker sleeps
constexpr int kSpinsAlone = 4000;      // by then the one waited for has probably lost its CPU
constexpr int kSpinsBeforeYield = 64;  // when there are more threads than CPUs, let others run

void relax(int spin, bool oversubscribed) {
  const bool yield = oversubscribed || spin > kSpinsAlone;
  if (yield && spin % kSpinsBeforeYield == kSpinsBeforeYield - 1) {
    sched_yield();
  } else {
    _mm_pause();
  }
}

thread_local double long_waits = 0;  // seconds

double thread_clock() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

template <class Done>
void wait_for_workers(int num_threads, Done done) {
  static const int kCpus = usable_cpus();
  double since = 0;
  int spin = 0;
  for (; !done(); ++spin) {
    if (spin == kSpinsAlone) since = thread_clock();
    relax(spin, num_threads > kCpus);
  }
  if (spin > kSpinsAlone) long_waits += thread_clock() - since;
}

}  // namespace

double busy_seconds() {
  return thread_clock() - long_waits;
}

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  int cpus = 1;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) cpus = std::max(1, CPU_COUNT(&set));
  if (const auto quota = read_cgroup_limits().cpus) {
    cpus = std::min(cpus, std::max(1, static_cast<int>(std::ceil(*quota))));
  }
  return cpus;
}

ThreadPool::ThreadPool(int num_threads) : num_threads_(num_threads) {
  CHECK(num_threads >= 1);
  threads_.reserve(static_cast<size_t>(num_threads - 1));
  for (int worker = 1; worker < num_threads; ++worker) {
    threads_.emplace_back([this, worker] { worker_main(worker); });
  }
}

ThreadPool::~ThreadPool() {
  stop_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

void ThreadPool::run(Entry entry, void* context) {
  if (num_threads_ == 1) {
    entry(context, 0);
    return;
  }
  entry_ = entry;
  context_ = context;
  pending_.store(num_threads_ - 1, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  entry(context, 0);
  wait_for_workers(num_threads_, [&] { return pending_.load(std::memory_order_acquire) == 0; });
}

void ThreadPool::worker_main(int worker) {
  static const int kCpus = usable_cpus();
  uint32_t seen = 0;
  for (;;) {
    for (int spin = 0; spin < kSpins && generation_.load(std::memory_order_acquire) == seen;
         ++spin) {
      relax(spin, num_threads_ > kCpus);
    }
    while (generation_.load(std::memory_order_acquire) == seen) generation_.wait(seen);
    ++seen;
    if (stop_.load(std::memory_order_relaxed)) return;
    entry_(context_, worker);
    pending_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::barrier() {
  if (num_threads_ == 1) return;
  const uint32_t generation = barrier_generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) == num_threads_ - 1) {
    arrived_.store(0, std::memory_order_relaxed);
    barrier_generation_.fetch_add(1, std::memory_order_release);
    return;
  }
  wait_for_workers(num_threads_, [&] {
    return barrier_generation_.load(std::memory_order_acquire) != generation;
  });
}

}  // namespace weft
