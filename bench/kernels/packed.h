#pragma once

// Packed weights of random values for benches: one pinned piece of rows, used again and again.

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {

/// Sets data and expert_bytes of `weight`, whose shape is set; values in +-0.03.
inline Buffer pack_random(Gpu& gpu, Weight& weight) {
  const WeightShape& shape = weight.shape;
  weight.expert_bytes = cuda::weight_bytes(shape);
  Buffer memory = Buffer::allocate(DeviceKind::kCuda, weight.expert_bytes * shape.experts).value();
  weight.data = memory.data();
  const int64_t rows = std::min<int64_t>(shape.n, 512);
  const Buffer piece = Buffer::allocate(DeviceKind::kPinned, rows * shape.k * 2).value();
  auto* values = reinterpret_cast<uint32_t*>(piece.data());
  for (int64_t i = 0; i < rows * shape.k / 2; ++i) {
    values[i] = 0x3C003C00u | (philox4x32(1, static_cast<uint64_t>(i), 0)[0] & 0x80FF80FFu);
  }
  std::vector<TensorView> pieces;
  for (int64_t n = 0; n < shape.n; n += rows) {
    pieces.emplace_back(piece.data(), DType::kBF16,
                        std::initializer_list<int64_t>{std::min(rows, shape.n - n), shape.k});
  }
  for (int64_t e = 0; e < shape.experts; ++e) {
    cuda::pack_weight(gpu.stream(), weight, e, pieces);
  }
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "pack");
  return memory;
}

/// ||a - b|| / ||b|| of device values (f32).
inline double relative_difference(const void* a, const void* b, int64_t count) {
  std::vector<float> x(static_cast<size_t>(count)), y(x.size());
  cuda::check(cudaMemcpy(x.data(), a, x.size() * 4, cudaMemcpyDeviceToHost), "download");
  cuda::check(cudaMemcpy(y.data(), b, y.size() * 4, cudaMemcpyDeviceToHost), "download");
  double error = 0, norm = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - y[i]) * (double{x[i]} - y[i]);
    norm += double{y[i]} * y[i];
  }
  return std::sqrt(error / norm);
}

}  // namespace weft::bench
