#pragma once

// What the floors above need of a CUDA stream, without CUDA's headers. In a build without CUDA
// every create() is an Error and the rest can't be reached.

#include <utility>

#include "device/stream.h"

namespace weft {

/// Owns a CUDA stream of the current device.
class GpuStream {
 public:
  static Result<GpuStream> create();
  GpuStream(GpuStream&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
  GpuStream& operator=(GpuStream&&) = delete;
  ~GpuStream();
  /// For Stream.
  void* native() const { return native_; }

 private:
  explicit GpuStream(void* native) : native_(native) {}
  void* native_;
};

/// A point in a stream that the host can wait for; with `timed` also a time.
class GpuEvent {
 public:
  static Result<GpuEvent> create(bool timed = false);
  GpuEvent(GpuEvent&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
  GpuEvent& operator=(GpuEvent&&) = delete;
  ~GpuEvent();
  void record(Stream& stream);
  /// Returns when the stream has passed the last record(); at once if there was none. A kernel's
  /// failure before it is a Panic.
  void wait();
  /// What is enqueued on `stream` from now on waits for the last record(), on the device.
  void hold(Stream& stream) const;
  /// Microseconds from `earlier` to this; both timed, recorded and passed.
  double microseconds_since(const GpuEvent& earlier) const;

 private:
  explicit GpuEvent(void* native) : native_(native) {}
  void* native_;
};

/// A captured piece of a stream, replayed with one launch.
class GpuGraph {
 public:
  /// Everything that `body` enqueues on the stream, instead of running it.
  template <class Body>
  static GpuGraph capture(Stream& stream, Body&& body) {
    begin_capture(stream);
    body();
    return end_capture(stream);
  }
  GpuGraph(GpuGraph&& other) noexcept : native_(std::exchange(other.native_, nullptr)) {}
  GpuGraph& operator=(GpuGraph&&) = delete;
  ~GpuGraph();
  void launch(Stream& stream);

 private:
  explicit GpuGraph(void* native) : native_(native) {}
  static void begin_capture(Stream& stream);
  static GpuGraph end_capture(Stream& stream);
  void* native_;
};

/// Copies in the order of the stream, between any two memories. Host memory must be pinned for the
/// call to return at once, and live until the stream has passed. At once on the CPU.
void copy_bytes(Stream& stream, void* dst, const void* src, int64_t bytes);
/// Likewise the first `bytes` of every row; rows lie `pitch` bytes apart in both.
struct RowBytes {
  int64_t rows = 0, bytes = 0, pitch = 0;
};
void copy_rows(Stream& stream, void* dst, const void* src, const RowBytes& shape);
/// Where kernels find pinned memory (DeviceKind::kPinned): what they write there the host sees when
/// it has waited for an event behind them.
void* device_address(void* pinned);
/// Sets every byte, in the order of the stream.
void fill_bytes(Stream& stream, void* dst, uint8_t value, int64_t bytes);
/// Waits until the stream is done; a kernel's failure is a Panic. Nothing on the CPU.
void synchronize(Stream& stream);

}  // namespace weft
