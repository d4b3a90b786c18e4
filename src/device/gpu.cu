#include <cuda_runtime_api.h>

#include <cstring>
#include <string>

#include "device/gpu.h"

namespace weft {
namespace {

void check(cudaError_t status, const char* what) {
  CHECK(status == cudaSuccess, std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

Error failed(const char* what, cudaError_t status) {
  return unavailable(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

}  // namespace

Result<GpuStream> GpuStream::create() {
  cudaStream_t stream = nullptr;
  const cudaError_t status = cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking);
  if (status != cudaSuccess) return failed("a stream", status);
  return GpuStream(stream);
}

GpuStream::~GpuStream() {
  if (native_) cudaStreamDestroy(static_cast<cudaStream_t>(native_));
}

Result<GpuEvent> GpuEvent::create(bool timed) {
  cudaEvent_t event = nullptr;
  const cudaError_t status =
      cudaEventCreateWithFlags(&event, timed ? cudaEventDefault : cudaEventDisableTiming);
  if (status != cudaSuccess) return failed("an event", status);
  return GpuEvent(event);
}

GpuEvent::~GpuEvent() {
  if (native_) cudaEventDestroy(static_cast<cudaEvent_t>(native_));
}

void GpuEvent::record(Stream& stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(native_), native(stream)), "event");
}

void GpuEvent::wait() {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(native_)), "a step");
}

void GpuEvent::hold(Stream& stream) const {
  check(cudaStreamWaitEvent(native(stream), static_cast<cudaEvent_t>(native_), 0), "event");
}

double GpuEvent::microseconds_since(const GpuEvent& earlier) const {
  float ms = 0;
  check(cudaEventElapsedTime(&ms, static_cast<cudaEvent_t>(earlier.native_),
                             static_cast<cudaEvent_t>(native_)),
        "event");
  return 1e3 * static_cast<double>(ms);
}

void GpuGraph::begin_capture(Stream& stream) {
  check(cudaStreamBeginCapture(native(stream), cudaStreamCaptureModeThreadLocal), "capture");
}

GpuGraph GpuGraph::end_capture(Stream& stream) {
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamEndCapture(native(stream), &graph), "capture");
  const cudaError_t status = cudaGraphInstantiate(&exec, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "graph");
  return GpuGraph(exec);
}

GpuGraph::~GpuGraph() {
  if (native_) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(native_));
}

void GpuGraph::launch(Stream& stream) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(native_), native(stream)), "graph");
}

void copy_bytes(Stream& stream, void* dst, const void* src, int64_t bytes) {
  if (bytes == 0) return;
  if (!stream.native()) {
    std::memcpy(dst, src, static_cast<size_t>(bytes));
    return;
  }
  check(cudaMemcpyAsync(dst, src, static_cast<size_t>(bytes), cudaMemcpyDefault, native(stream)),
        "copy");
}

void copy_rows(Stream& stream, void* dst, const void* src, const RowBytes& shape) {
  if (!stream.native()) {
    for (int64_t i = 0; i < shape.rows; ++i) {
      std::memcpy(static_cast<std::byte*>(dst) + i * shape.pitch,
                  static_cast<const std::byte*>(src) + i * shape.pitch,
                  static_cast<size_t>(shape.bytes));
    }
    return;
  }
  const auto pitch = static_cast<size_t>(shape.pitch);
  check(cudaMemcpy2DAsync(dst, pitch, src, pitch, static_cast<size_t>(shape.bytes),
                          static_cast<size_t>(shape.rows), cudaMemcpyDefault, native(stream)),
        "copy");
}

void* device_address(void* pinned) {
  void* device = nullptr;
  check(cudaHostGetDevicePointer(&device, pinned, 0), "pinned memory");
  return device;
}

void fill_bytes(Stream& stream, void* dst, uint8_t value, int64_t bytes) {
  if (bytes == 0) return;
  if (!stream.native()) {
    std::memset(dst, value, static_cast<size_t>(bytes));
    return;
  }
  check(cudaMemsetAsync(dst, value, static_cast<size_t>(bytes), native(stream)), "memset");
}

void synchronize(Stream& stream) {
  if (stream.native()) check(cudaStreamSynchronize(native(stream)), "the stream");
}

}  // namespace weft
