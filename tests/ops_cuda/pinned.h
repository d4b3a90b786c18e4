#pragma once

// Pinned host tensors: what pack_weight is given.

#include <vector>

#include "device/buffer.h"
#include "tensor/view.h"

namespace weft {

class PinnedTensor {
 public:
  PinnedTensor(DType dtype, std::initializer_list<int64_t> dims) : view(nullptr, dtype, dims) {
    memory_ = Buffer::allocate(DeviceKind::kPinned, view.bytes()).value();
    view.data = memory_.data();
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

  TensorView view;

 private:
  Buffer memory_;
};

}  // namespace weft
