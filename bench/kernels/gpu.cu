#include <algorithm>
#include <cstdio>
#include <ctime>

#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"

namespace weft::bench {
namespace {

using cuda::check;

void* new_stream() {
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  return stream;
}

__global__ void read_all(const uint4* data, int64_t count, uint32_t* sink) {
  uint32_t mix = 0;
  const int64_t step = int64_t{gridDim.x} * blockDim.x * 4;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x) * 4 + threadIdx.x; i + 3 * blockDim.x < count;
       i += step) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(data + i + j * blockDim.x);
#pragma unroll
    for (int j = 0; j < 4; ++j) mix ^= v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (mix == 0x12345678u) *sink = mix;  // never, as far as the compiler knows maybe
}

__global__ void fill_random(uint16_t* out, int64_t count, uint64_t seed) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    uint64_t x = (static_cast<uint64_t>(i) + 1) * 0x9E3779B97F4A7C15u + seed;  // splitmix64
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    const float value = static_cast<float>(static_cast<int32_t>(x >> 32)) * 0x1p-31f;
    out[i] = static_cast<uint16_t>(__float_as_uint(value) >> 16);
  }
}

}  // namespace

Gpu::Gpu(int64_t scratch_bytes)
    : scratch_(Buffer::allocate(DeviceKind::kCuda, scratch_bytes).value()),
      native_(new_stream()),
      stream_(pool_, scratch_, native_) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, 0), "device");
  name_ = properties.name;
}

Gpu::~Gpu() {
  cudaStreamDestroy(static_cast<cudaStream_t>(native_));
}

double Gpu::time_us(const std::function<void(int)>& body, int calls, int samples) {
  const auto stream = static_cast<cudaStream_t>(native_);
  body(0);  // loads the kernels, which a capture could not
  check(cudaStreamSynchronize(stream), "the first call");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) body(i);
  check(cudaStreamEndCapture(stream, &graph), "capture");
  check(cudaGraphInstantiate(&exec, graph, 0), "graph");
  cudaEvent_t begin = nullptr, end = nullptr;
  check(cudaEventCreate(&begin), "event");
  check(cudaEventCreate(&end), "event");
  std::vector<float> ms;
  for (int i = 0; i < samples + 2; ++i) {
    check(cudaEventRecord(begin, stream), "event");
    check(cudaGraphLaunch(exec, stream), "graph");
    check(cudaEventRecord(end, stream), "event");
    check(cudaEventSynchronize(end), "replay");
    float one = 0;
    check(cudaEventElapsedTime(&one, begin, end), "event");
    if (i >= 2) ms.push_back(one);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  std::nth_element(ms.begin(), ms.begin() + ms.size() / 2, ms.end());
  return 1e3 * ms[ms.size() / 2] / calls;
}

double Gpu::read_bandwidth() {
  if (read_bandwidth_ > 0) return read_bandwidth_;
  constexpr int64_t kBytes = int64_t{4} << 30;
  const Buffer data = random_device_bf16(*this, kBytes / 2, 1);
  const Buffer sink = Buffer::allocate(DeviceKind::kCuda, 256).value();
  double best = 0;
  for (const unsigned blocks : {132u * 4, 132u * 8, 132u * 16, 132u * 64}) {
    const double us = time_us(
        [&](int) {
          cuda::launch(stream_, {.grid = blocks, .block = 512}, read_all,
                       reinterpret_cast<const uint4*>(data.data()), kBytes / 16,
                       reinterpret_cast<uint32_t*>(sink.data()));
        },
        2, 5);
    best = std::max(best, kBytes / us * 1e-3);
  }
  return read_bandwidth_ = best;
}

Buffer upload_bytes(const void* bytes, int64_t count) {
  Buffer buffer = Buffer::allocate(DeviceKind::kCuda, count).value();
  check(cudaMemcpy(buffer.data(), bytes, static_cast<size_t>(count), cudaMemcpyHostToDevice),
        "upload");
  return buffer;
}

Buffer random_device_bf16(Gpu& gpu, int64_t count, uint64_t seed) {
  Buffer buffer = Buffer::allocate(DeviceKind::kCuda, count * 2).value();
  cuda::launch(gpu.stream(), {.grid = 132 * 8, .block = 256}, fill_random,
               reinterpret_cast<uint16_t*>(buffer.data()), count, seed);
  return buffer;
}

void print(const Gpu& gpu, const Row& row) {
  char date[32];
  const time_t now = time(nullptr);
  strftime(date, sizeof date, "%Y-%m-%d", gmtime(&now));
  std::printf("{\"kernel\": \"%s\", \"shape\": \"%s\", \"dtype\": \"%s\", \"us\": %.2f",
              row.kernel.c_str(), row.shape.c_str(), row.dtype.c_str(), row.us);
  const auto field = [](const char* name, double value) {
    if (value > 0) std::printf(", \"%s\": %.4g", name, value);
  };
  field("gbps", row.gbps);
  field("tflops", row.tflops);
  field("share", row.share);
  if (!row.peer.empty()) {
    std::printf(", \"peer\": \"%s\", \"peer_us\": %.2f, \"ratio\": %.3f", row.peer.c_str(),
                row.peer_us, row.peer_us / row.us);
  }
  std::printf(", \"machine\": \"%s\", \"date\": \"%s\"}\n", gpu.name().c_str(), date);
  std::fflush(stdout);
}

}  // namespace weft::bench
