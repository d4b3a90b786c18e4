#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <initializer_list>

#include "base/check.h"
#include "tensor/dtype.h"

namespace weft {

/// A borrowed, strided view of a tensor of rank 0 to 4. Owns nothing; strides count elements.
/// The last dimension is contiguous unless a function says otherwise.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{};
  std::array<int64_t, 4> stride{};

  TensorView() = default;
  /// A contiguous row-major view.
  TensorView(void* p, DType type, std::initializer_list<int64_t> dims) : data(p), dtype(type) {
    CHECK(dims.size() <= 4);
    for (int64_t d : dims) shape[static_cast<size_t>(rank++)] = d;
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      stride[static_cast<size_t>(i)] = step;
      step *= shape[static_cast<size_t>(i)];
    }
  }

  bool defined() const { return data != nullptr; }
  int64_t dim(int i) const { return shape[static_cast<size_t>(i)]; }
  int64_t size() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= dim(i);
    return n;
  }
  int64_t bytes() const { return size() * dtype_size(dtype); }
  bool contiguous() const {
    int64_t step = 1;
    for (int i = rank - 1; i >= 0; --i) {
      if (dim(i) != 1 && stride[static_cast<size_t>(i)] != step) return false;
      step *= dim(i);
    }
    return true;
  }

  template <class T>
  T* ptr() const {
    DCHECK(sizeof(T) == static_cast<size_t>(dtype_size(dtype)));
    return static_cast<T*>(data);
  }
  /// Pointer to row `i` of dimension 0.
  template <class T>
  T* row(int64_t i) const {
    return ptr<T>() + i * stride[0];
  }

  /// Rows [begin, end) of dimension 0.
  TensorView rows(int64_t begin, int64_t end) const {
    CHECK(rank >= 1 && 0 <= begin && begin <= end && end <= dim(0));
    TensorView v = *this;
    v.data = static_cast<std::byte*>(data) + begin * stride[0] * dtype_size(dtype);
    v.shape[0] = end - begin;
    return v;
  }
  /// Columns [begin, end) of the last dimension (the result is strided).
  TensorView columns(int64_t begin, int64_t end) const {
    CHECK(rank >= 1 && 0 <= begin && begin <= end && end <= dim(rank - 1));
    TensorView v = *this;
    v.data = static_cast<std::byte*>(data) + begin * dtype_size(dtype);
    v.shape[static_cast<size_t>(rank - 1)] = end - begin;
    return v;
  }
  /// Splits the last dimension into [heads, width]; heads * width must equal it.
  TensorView split_last(int64_t heads, int64_t width) const {
    CHECK(rank >= 1 && rank < 4 && dim(rank - 1) == heads * width &&
          stride[static_cast<size_t>(rank - 1)] == 1);
    TensorView v = *this;
    v.rank = rank + 1;
    v.shape[static_cast<size_t>(rank - 1)] = heads;
    v.shape[static_cast<size_t>(rank)] = width;
    v.stride[static_cast<size_t>(rank - 1)] = width;
    v.stride[static_cast<size_t>(rank)] = 1;
    return v;
  }
};

}  // namespace weft
