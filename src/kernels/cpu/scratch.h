#pragma once

#include <cstdint>

#include "device/stream.h"

namespace weft {

/// Scratch memory of one op, given back when it leaves scope. Out of line, because kernel files
/// must not emit the arena's inline functions (isa.h).
class ScratchScope {
 public:
  explicit ScratchScope(Stream& stream);
  ~ScratchScope();
  ScratchScope(const ScratchScope&) = delete;
  ScratchScope& operator=(const ScratchScope&) = delete;

  /// `bytes` (0 too) aligned to 64, uninitialised.
  void* take(int64_t bytes) const;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace weft
