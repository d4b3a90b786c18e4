#pragma once

#include <cstdint>

namespace weft {

/// What plans of heads did in prompts, summed over layers, heads and rows.
struct PlanCounters {
  int64_t full_heads = 0, streaming_heads = 0, block_heads = 0;  ///< of prompt segments
  int64_t computed_blocks = 0;  ///< pairs of a block of rows and a block of keys that were computed
  int64_t causal_blocks = 0;    ///< that attention to all keys would have computed

  void add(const PlanCounters& other) {
    full_heads += other.full_heads;
    streaming_heads += other.streaming_heads;
    block_heads += other.block_heads;
    computed_blocks += other.computed_blocks;
    causal_blocks += other.causal_blocks;
  }
  /// What came since `before`.
  PlanCounters since(const PlanCounters& before) const {
    return {full_heads - before.full_heads, streaming_heads - before.streaming_heads,
            block_heads - before.block_heads, computed_blocks - before.computed_blocks,
            causal_blocks - before.causal_blocks};
  }
  bool operator==(const PlanCounters&) const = default;
};

}  // namespace weft
