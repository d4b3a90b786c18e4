#include "kernels/cpu/scratch.h"

#include <algorithm>

namespace weft {

namespace {

constexpr int64_t kSlack = 4096;  // alignment of the pieces

/// Packed rows of K values: at most 16 rows of padding, 4 bytes a value, K padded to 64; the
/// integer form adds a scale and a sum to each 32 values and a line to each row.
int64_t packed_bytes(int64_t rows, int64_t k) {
  return (rows + 32) * ((k + 63) / 64 * 64 * 17 / 4 + 64);
}

}  // namespace

int64_t linear_scratch_bytes(const WeightShape& shape, int64_t rows, int num_threads) {
  return packed_bytes(rows, shape.k) + rows * shape.n * 4 +
         num_threads * (kColumnScratchBytes + 64) + kSlack;
}

int64_t moe_scratch_bytes(const WeightShape& gate_up, int64_t rows, int top_k, int num_threads) {
  const int64_t pairs = std::min(rows * top_k, std::max<int64_t>(kMoePairs, top_k));
  const int64_t groups = std::min(pairs, gate_up.experts), padded = pairs + 32 * groups;
  return packed_bytes(padded, gate_up.k) + packed_bytes(padded, gate_up.n / 2) +
         pairs * (gate_up.n / 2 * 3 + gate_up.k + 3) * 4 + gate_up.experts * 16 + groups * 1024 +
         num_threads * kColumnScratchBytes + kSlack;
}

ScratchScope::ScratchScope(Stream& stream)
    : arena_(stream.scratch()), mark_(stream.scratch().mark()) {}

ScratchScope::~ScratchScope() {
  arena_.rewind(mark_);
}

void* ScratchScope::take(int64_t bytes) const {
  return arena_.take(bytes);
}

int64_t ScratchScope::left() const {
  return (arena_.capacity() - arena_.mark()) / 64 * 64;
}

}  // namespace weft
