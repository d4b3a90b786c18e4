#pragma once

#include "base/thread_pool.h"
#include "device/buffer.h"

namespace weft {

/// Where work of one device runs, in order. On the CPU: the thread pool that executes the ops and
/// the scratch memory they may use inside one op (taken and rewound by the op itself).
class Stream {
 public:
  Stream(ThreadPool& pool, Arena& scratch) : pool_(pool), scratch_(scratch) {}
  ThreadPool& pool() { return pool_; }
  Arena& scratch() { return scratch_; }

 private:
  ThreadPool& pool_;
  Arena& scratch_;
};

}  // namespace weft
