#include <cstring>

#include "device/gpu.h"

namespace weft {
namespace {

constexpr char kAbsent[] = "this weft was built without CUDA";

}  // namespace

Result<GpuStream> GpuStream::create() {
  return unsupported(kAbsent);
}
GpuStream::~GpuStream() {}

Result<GpuEvent> GpuEvent::create(bool) {
  return unsupported(kAbsent);
}
GpuEvent::~GpuEvent() {}
void GpuEvent::record(Stream&) {
  CHECK(false, kAbsent);
}
void GpuEvent::wait() {
  CHECK(false, kAbsent);
}

void GpuEvent::hold(Stream&) const {
  CHECK(false, kAbsent);
}
double GpuEvent::microseconds_since(const GpuEvent&) const {
  CHECK(false, kAbsent);
  return 0;
}

void GpuGraph::begin_capture(Stream&) {
  CHECK(false, kAbsent);
}
GpuGraph GpuGraph::end_capture(Stream&) {
  CHECK(false, kAbsent);
  return GpuGraph(nullptr);
}
GpuGraph::~GpuGraph() {}
void GpuGraph::launch(Stream&) {
  CHECK(false, kAbsent);
}

void copy_bytes(Stream&, void* dst, const void* src, int64_t bytes) {
  if (bytes > 0) std::memcpy(dst, src, static_cast<size_t>(bytes));
}
void copy_rows(Stream&, void* dst, const void* src, const RowBytes& shape) {
  for (int64_t i = 0; i < shape.rows; ++i) {
    std::memcpy(static_cast<std::byte*>(dst) + i * shape.pitch,
                static_cast<const std::byte*>(src) + i * shape.pitch,
                static_cast<size_t>(shape.bytes));
  }
}
void fill_bytes(Stream&, void* dst, uint8_t value, int64_t bytes) {
  if (bytes > 0) std::memset(dst, value, static_cast<size_t>(bytes));
}
void* device_address(void* pinned) {
  return pinned;
}
void synchronize(Stream&) {}

}  // namespace weft
