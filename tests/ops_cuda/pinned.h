#pragma once

// Pinned host tensors: what pack_weight is given.

#include <algorithm>
#include <utility>
#include <vector>

#include "device/cuda.h"
#include "tensor/view.h"

namespace weft {

class PinnedTensor {
 public:
  PinnedTensor(DType dtype, std::initializer_list<int64_t> dims) : view(nullptr, dtype, dims) {
    view.data = cuda_allocate_pinned(std::max<int64_t>(view.bytes(), 1)).value();
  }
  /// Rounded to `dtype` (kF32, kBF16, kF16).
  PinnedTensor(DType dtype, std::initializer_list<int64_t> dims, const std::vector<float>& values)
      : PinnedTensor(dtype, dims) {
    for (size_t i = 0; i < values.size(); ++i) {
      switch (dtype) {
        case DType::kF32: view.ptr<float>()[i] = values[i]; break;
        case DType::kBF16: view.ptr<bf16>()[i] = float_to_bf16(values[i]); break;
        default: view.ptr<f16>()[i] = float_to_f16(values[i]); break;
      }
    }
  }
  PinnedTensor(PinnedTensor&& other) noexcept : view(std::exchange(other.view, {})) {}
  PinnedTensor& operator=(PinnedTensor&&) = delete;
  ~PinnedTensor() {
    if (view.defined()) cuda_free_pinned(view.data);
  }

  TensorView view;
};

}  // namespace weft
