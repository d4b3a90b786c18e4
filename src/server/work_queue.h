#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace weft {

/// Front-end threads: parsing, templates, tokenizing and grammars happen here, off the I/O thread.
class WorkQueue {
 public:
  /// At most `max_waiting` jobs wait for one of the threads.
  WorkQueue(int num_threads, size_t max_waiting);
  /// Runs what is queued, then joins.
  ~WorkQueue();
  WorkQueue(const WorkQueue&) = delete;
  WorkQueue& operator=(const WorkQueue&) = delete;

  /// False when the queue is full; the work is not taken then.
  bool submit(std::function<void()> work);

 private:
  void run();

  const size_t max_waiting_;
  std::mutex mutex_;
  std::condition_variable came_;
  std::deque<std::function<void()>> waiting_;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace weft
