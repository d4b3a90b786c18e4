#pragma once

#include "base/thread_pool.h"
#include "device/buffer.h"

namespace weft {

/// Where work of one device runs, in order: the scratch memory of the device that an op may use
/// inside itself (taken and rewound by the op), and on the CPU the thread pool that executes the
/// ops, on a GPU the CUDA stream that they are launched on.
class Stream {
 public:
  Stream(ThreadPool& pool, Arena& scratch, void* native = nullptr)
      : pool_(pool), scratch_(scratch), native_(native) {}
  ThreadPool& pool() { return pool_; }
  Arena& scratch() { return scratch_; }
  /// The cudaStream_t; null on the CPU.
  void* native() const { return native_; }

 private:
  ThreadPool& pool_;
  Arena& scratch_;
  void* native_;
};

}  // namespace weft
