#include <cmath>
#include <limits>

#include "kernels/cuda/common/launch.h"
#include "tests/ops_cuda/support.h"

namespace weft {
namespace {

constexpr int64_t kGuard = 256;
constexpr int kGuardByte = 0xA5;

std::vector<std::byte> to_dtype(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> out(values.size() * static_cast<size_t>(dtype_size(dtype)));
  for (size_t i = 0; i < values.size(); ++i) {
    if (dtype == DType::kF32) {
      std::memcpy(out.data() + i * 4, &values[i], 4);
    } else {
      const bf16 value = float_to_bf16(values[i]);
      std::memcpy(out.data() + i * 2, &value, 2);
    }
  }
  return out;
}

/// Waits for the copy itself: from pageable memory cudaMemcpy returns before it has arrived, and
/// the tests' streams don't wait for the default one.
void upload(void* dst, const void* src, size_t bytes) {
  cuda::check(cudaMemcpy(dst, src, bytes, cudaMemcpyHostToDevice), "upload");
  cuda::check(cudaDeviceSynchronize(), "upload");
}

void* new_stream() {
  cudaStream_t stream = nullptr;
  cuda::check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
  return stream;
}

}  // namespace

DeviceTensor::DeviceTensor(DType dtype, std::initializer_list<int64_t> dims)
    : view(nullptr, dtype, dims) {
  void* data = nullptr;
  const auto bytes = static_cast<size_t>(view.bytes() + 2 * kGuard);
  cuda::check(cudaMalloc(&data, bytes), "memory of a test");
  base_ = static_cast<std::byte*>(data);
  cuda::check(cudaMemset(base_, kGuardByte, bytes), "guards");
  cuda::check(cudaDeviceSynchronize(), "guards");  // the tests' streams would not wait for it
  view.data = base_ + kGuard;
}

DeviceTensor::DeviceTensor(DType dtype, std::initializer_list<int64_t> dims,
                           const std::vector<float>& values)
    : DeviceTensor(dtype, dims) {
  CHECK(static_cast<int64_t>(values.size()) == view.size());
  const std::vector<std::byte> raw = to_dtype(dtype, values);
  upload(view.data, raw.data(), raw.size());
}

DeviceTensor::DeviceTensor(const std::vector<int32_t>& values)
    : DeviceTensor(DType::kI32, {static_cast<int64_t>(values.size())}) {
  upload(view.data, values.data(), values.size() * 4);
}

DeviceTensor::DeviceTensor(const std::vector<int64_t>& values)
    : DeviceTensor(DType::kI64, {static_cast<int64_t>(values.size())}) {
  upload(view.data, values.data(), values.size() * 8);
}

DeviceTensor::~DeviceTensor() {
  if (!base_) return;
  std::vector<unsigned char> guard(kGuard);
  for (const int64_t at : {int64_t{0}, kGuard + view.bytes()}) {
    if (cudaMemcpy(guard.data(), base_ + at, kGuard, cudaMemcpyDeviceToHost) != cudaSuccess) break;
    for (const unsigned char byte : guard) {
      if (byte != kGuardByte) {
        ADD_FAILURE() << "a kernel wrote outside of its tensor";
        break;
      }
    }
  }
  cudaFree(base_);
}

std::vector<std::byte> DeviceTensor::bytes() const {
  cuda::check(cudaDeviceSynchronize(), "kernels");
  std::vector<std::byte> out(static_cast<size_t>(view.bytes()));
  cuda::check(cudaMemcpy(out.data(), view.data, out.size(), cudaMemcpyDeviceToHost), "download");
  return out;
}

std::vector<float> DeviceTensor::floats() const {
  const std::vector<std::byte> raw = bytes();
  std::vector<float> out(static_cast<size_t>(view.size()));
  for (size_t i = 0; i < out.size(); ++i) {
    if (view.dtype == DType::kF32) {
      std::memcpy(&out[i], raw.data() + i * 4, 4);
    } else {
      bf16 value;
      std::memcpy(&value, raw.data() + i * 2, 2);
      out[i] = bf16_to_float(value);
    }
  }
  return out;
}

void DeviceTensor::poison() {
  cuda::check(cudaMemset(view.data, 0xFF, static_cast<size_t>(view.bytes())), "poison");
  cuda::check(cudaDeviceSynchronize(), "poison");
}

DeviceTensor spread_rows(const std::vector<float>& values, int64_t rows, int64_t apart) {
  DeviceTensor out(DType::kBF16, {rows, apart});
  out.poison();
  const std::vector<std::byte> raw = to_dtype(DType::kBF16, values);
  const size_t width = rows > 0 ? raw.size() / static_cast<size_t>(rows) : 0;
  if (width == 0) return out;
  cuda::check(cudaMemcpy2D(out.view.data, static_cast<size_t>(apart) * 2, raw.data(), width, width,
                           static_cast<size_t>(rows), cudaMemcpyHostToDevice),
              "rows");
  cuda::check(cudaDeviceSynchronize(), "rows");
  return out;
}

std::vector<std::byte> row_bytes(const DeviceTensor& tensor, int64_t width) {
  cuda::check(cudaDeviceSynchronize(), "kernels");
  const auto rows = static_cast<size_t>(tensor.view.dim(0)), bytes = static_cast<size_t>(width) * 2;
  std::vector<std::byte> out(rows * bytes);
  if (out.empty()) return out;
  cuda::check(
      cudaMemcpy2D(out.data(), bytes, tensor.view.data, static_cast<size_t>(tensor.view.dim(1)) * 2,
                   bytes, rows, cudaMemcpyDeviceToHost),
      "rows");
  return out;
}

bool has_free_memory(int64_t bytes) {
  size_t free = 0, total = 0;
  cuda::check(cudaMemGetInfo(&free, &total), "memory");
  return static_cast<int64_t>(free) >= bytes;
}

std::vector<float> random_bf16(int64_t count, uint64_t seed, float scale) {
  std::vector<float> out(static_cast<size_t>(count));
  for (size_t i = 0; i < out.size(); ++i) {
    const float unit = uniform01(philox4x32(seed, i, 0)[0]);
    out[i] = bf16_to_float(float_to_bf16((2 * unit - 1) * scale));
  }
  return out;
}

double relative_l2(const std::vector<float>& a, const std::vector<float>& b) {
  CHECK(a.size() == b.size());
  double error = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    if (!std::isfinite(a[i])) return std::numeric_limits<double>::infinity();
    error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
    norm += double{b[i]} * b[i];
  }
  return norm == 0 ? std::sqrt(error) : std::sqrt(error / norm);
}

CudaTestStream::CudaTestStream(int64_t scratch_bytes)
    : scratch_(Buffer::allocate(DeviceKind::kCuda, scratch_bytes).value()),
      native_(new_stream()),
      stream_(pool_, scratch_, native_) {}

CudaTestStream::~CudaTestStream() {
  cudaStreamDestroy(static_cast<cudaStream_t>(native_));
}

void CudaTestStream::sync() {
  EXPECT_EQ(cudaStreamSynchronize(static_cast<cudaStream_t>(native_)), cudaSuccess)
      << cudaGetErrorString(cudaGetLastError());
}

void write_rows(const PagedKv& kv, int64_t kv_heads, int64_t head_dim, const std::vector<float>& k,
                const std::vector<float>& v, const std::vector<int64_t>& slots) {
  const auto count = static_cast<int64_t>(slots.size());
  const DeviceTensor keys(DType::kBF16, {count, kv_heads, head_dim}, k);
  const DeviceTensor values(DType::kBF16, {count, kv_heads, head_dim}, v);
  const DeviceTensor q(DType::kBF16, {count, 1, head_dim});
  const DeviceTensor slot(slots), index(std::vector<int32_t>(slots.size()));
  const DeviceTensor angle(DType::kF32, {1}, {0.0f});
  CudaTestStream stream;
  QkvPrepareArgs args;
  args.q = q.view;
  args.k = keys.view;
  args.v = values.view;
  args.rope.cos_sin = angle.view;
  args.rope.axis = {angle.view.data, DType::kU8, {1}};
  args.positions.index = index.view;
  args.kv_slot = slot.view;
  args.kv = kv;
  cuda::qkv_prepare(stream, args);
  stream.sync();
}

}  // namespace weft
