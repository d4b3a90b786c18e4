#pragma once

#include <cstdint>
#include <vector>

#include "base/plan_counters.h"

namespace weft {

/// The plan of one prompt, layer by layer, for tests and for `weft inspect attention`.
struct PlanRecord {
  struct Layer {
    std::vector<float> logits;     ///< [G, 2] of the router; empty without one
    std::vector<int32_t> kinds;    ///< [H] HeadKind
    std::vector<uint8_t> blocks;   ///< [H, num_blocks, num_blocks] 1: computed
    std::vector<float> estimated;  ///< [H, num_blocks] share of the estimated mass; 1: no estimate
    std::vector<float> mass;  ///< [H, num_blocks] mean share of the softmax that is kept; or empty
  };
  int64_t num_blocks = 0;     ///< blocks of 128 of the prompt, set by who asks
  bool true_mass = false;     ///< also compute `mass`, by a second attention to all keys
  std::vector<Layer> layers;  ///< of attention, in order
};

/// Where layers tell what they did. `counters` and `record`: only where plans lie in host memory.
struct PlanSink {
  PlanCounters counters;
  PlanCounters* device = nullptr;  ///< where plans lie on a GPU, in its memory: sums for ever
  PlanRecord* record = nullptr;    ///< of the first prompt segment of each step
};

}  // namespace weft
