#pragma once

// Tests of CUDA ops: device copies of host data, and comparisons with the oracle (kernels/ref), in
// f32 on the host. These tests need a GPU: CI compiles them, bench/gpu.sh runs them.

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "base/philox.h"
#include "device/cuda.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft {

/// Device memory with a view. Outside of [data, data + bytes) lie 256 guard bytes on both sides,
/// checked by the destructor.
class DeviceTensor {
 public:
  DeviceTensor() = default;
  DeviceTensor(DType dtype, std::initializer_list<int64_t> dims);
  /// From host values, rounded to `dtype` (kF32, kBF16).
  DeviceTensor(DType dtype, std::initializer_list<int64_t> dims, const std::vector<float>& values);
  explicit DeviceTensor(const std::vector<int32_t>& values);
  explicit DeviceTensor(const std::vector<int64_t>& values);
  DeviceTensor(DeviceTensor&& other) noexcept { *this = std::move(other); }
  DeviceTensor& operator=(DeviceTensor&& other) noexcept {
    std::swap(base_, other.base_);
    std::swap(view, other.view);
    return *this;
  }
  ~DeviceTensor();

  /// All elements (kF32, kBF16) as floats, after a device synchronisation.
  std::vector<float> floats() const;
  /// The raw bytes, after a device synchronisation.
  std::vector<std::byte> bytes() const;
  /// Every byte becomes 0xFF (NaN in f32 and bf16): an element that is not written shows.
  void poison();

  TensorView view;

 private:
  std::byte* base_ = nullptr;
};

template <class T>
DeviceTensor upload_structs(const std::vector<T>& values) {
  static_assert(sizeof(T) % 4 == 0);
  std::vector<int32_t> raw(values.size() * sizeof(T) / 4);
  if (!values.empty()) std::memcpy(raw.data(), values.data(), raw.size() * 4);
  return DeviceTensor(raw);
}

template <class T>
std::vector<T> download(const DeviceTensor& tensor) {
  const std::vector<std::byte> raw = tensor.bytes();
  std::vector<T> out(raw.size() / sizeof(T));
  std::memcpy(out.data(), raw.data(), out.size() * sizeof(T));
  return out;
}

/// `rows` rows of bf16 values, `apart` elements from each other; what lies between is NaN.
DeviceTensor spread_rows(const std::vector<float>& values, int64_t rows, int64_t apart);
/// The first `width` elements of each row of a bf16 tensor, after a device synchronisation.
std::vector<std::byte> row_bytes(const DeviceTensor& tensor, int64_t width);
/// Whether the device has this much free memory.
bool has_free_memory(int64_t bytes);

/// Uniform in [-scale, scale), rounded to bf16; a function of the seed.
std::vector<float> random_bf16(int64_t count, uint64_t seed, float scale = 1);

/// |a - b| / |b| over all elements (L2); infinite when a holds a NaN or an infinity.
double relative_l2(const std::vector<float>& a, const std::vector<float>& b);

/// A CUDA stream with device scratch memory.
class CudaTestStream {
 public:
  explicit CudaTestStream(int64_t scratch_bytes = int64_t{256} << 20);
  ~CudaTestStream();
  operator Stream&() { return stream_; }  // NOLINT: stands for a Stream in every call
  /// Waits, and fails the test if a kernel failed.
  void sync();

 private:
  ThreadPool pool_{1};
  Arena scratch_;
  void* native_ = nullptr;
  Stream stream_;
};

/// K and V of `slots` as qkv_prepare writes them into the cache, without norm or rotation. Each of
/// `k` and `v`: [slots, kv_heads, head_dim].
void write_rows(const PagedKv& kv, int64_t kv_heads, int64_t head_dim, const std::vector<float>& k,
                const std::vector<float>& v, const std::vector<int64_t>& slots);

}  // namespace weft
