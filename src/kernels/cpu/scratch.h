#pragma once

#include <cstdint>

#include "device/stream.h"
#include "kernels/weight.h"

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
  int64_t left() const;  ///< bytes that take() can still give

 private:
  Arena& arena_;
  int64_t mark_;
};

/// An upper bound of the scratch that linear() takes for `rows` rows, on any instruction set.
int64_t linear_scratch_bytes(const WeightShape& shape, int64_t rows, int num_threads);
/// The same for moe(); `gate_up` is the shape of MoeArgs::gate_up.
int64_t moe_scratch_bytes(const WeightShape& gate_up, int64_t rows, int top_k, int num_threads);

/// Pairs (token, expert) that moe() works on at once.
inline constexpr int64_t kMoePairs = 8192;
/// One thread's results of a block and dequantised panels.
inline constexpr int64_t kColumnScratchBytes = (512 + 64) << 10;

}  // namespace weft
