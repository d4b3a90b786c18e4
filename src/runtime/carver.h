#pragma once

#include <cstddef>
#include <cstdint>

#include "base/align.h"

namespace weft {

/// Cuts one buffer into arrays, one behind the other; with a null base it only measures.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  /// The next `count` elements; null where there is no memory.
  template <class T>
  void take(T*& piece, int64_t count) {
    piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += aligned(count * static_cast<int64_t>(sizeof(T)));
  }
  /// Bytes of all pieces so far.
  int64_t used() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

}  // namespace weft
