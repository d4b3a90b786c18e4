#pragma once

// The kinds of heads of a HeadPlan on the device. Included by .cu files.

#include "kernels/sparse_args.h"

namespace weft::cuda {

struct HeadKinds {
  int32_t* kinds = nullptr;       ///< [rows, H]
  const int32_t* rows = nullptr;  ///< of the segments; null: segment s has row s
  int64_t kinds_row = 0, rows_stride = 0;

  HeadKinds() = default;
  HeadKinds(const TensorView& of_heads, const TensorView& of_segments)
      : kinds(of_heads.ptr<int32_t>()), kinds_row(of_heads.stride[0]) {
    if (!of_segments.defined()) return;
    rows = of_segments.ptr<int32_t>();
    rows_stride = of_segments.stride[0];
  }
  __device__ __forceinline__ int32_t& at(int segment, int head) const {
    const int64_t row = rows != nullptr ? rows[segment * rows_stride] : segment;
    return kinds[row * kinds_row + head];
  }
};

}  // namespace weft::cuda
