#pragma once

// Timing on a GPU: medians of CUDA-graph replays, in-run ceilings, JSON lines. For benches alone.

#include <functional>
#include <string>
#include <vector>

#include "device/buffer.h"
#include "device/stream.h"

namespace weft::bench {

/// A stream with scratch memory, and the name of the GPU.
class Gpu {
 public:
  explicit Gpu(int64_t scratch_bytes = int64_t{1} << 30);
  ~Gpu();
  Stream& stream() { return stream_; }
  const std::string& name() const { return name_; }

  /// Median microseconds of one `body`: a graph of `calls` calls (call i gets i, to rotate among
  /// input sets larger than the L2 cache) is replayed `samples` times between events.
  double time_us(const std::function<void(int)>& body, int calls = 20, int samples = 15);

  /// GB/s that a plain kernel reads from memory, the best of several samples; measured once.
  double read_bandwidth();

 private:
  ThreadPool pool_{1};
  Arena scratch_;
  void* native_ = nullptr;
  Stream stream_;
  std::string name_;
  double read_bandwidth_ = 0;
};

/// Device memory with these bytes.
Buffer upload_bytes(const void* bytes, int64_t count);
template <class T>
Buffer upload(const std::vector<T>& values) {
  return upload_bytes(values.data(), static_cast<int64_t>(values.size() * sizeof(T)));
}

/// Device memory with uniform values in [-1, 1) as bf16 (made on the device, a function of seed).
Buffer random_device_bf16(Gpu& gpu, int64_t count, uint64_t seed);

/// One row of the results; fields of 0 are left out. Peer figures of a peer that runs elsewhere are
/// joined later by kernel and shape.
struct Row {
  std::string kernel, shape, dtype;
  double us = 0, gbps = 0, tflops = 0;
  double share = 0;  ///< of the bound: measured read bandwidth or datasheet peak
  std::string peer;
  double peer_us = 0;
};
/// Prints it as a JSON line with machine, date and (if there is a peer) ratio = peer_us / us.
void print(const Gpu& gpu, const Row& row);

}  // namespace weft::bench
