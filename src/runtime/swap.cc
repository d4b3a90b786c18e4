#include "runtime/swap.h"

namespace weft {

void swap_displaced(Stream& stream, KvStore& kv, const PackedStep& step,
                    const StateSlotMap* slots) {
  for (const BlockSwap& s : step.block_swaps()) kv.swap_block(stream, s.block, s.host, s.out);
  for (const StateSwap& s : step.state_swaps()) {
    const int64_t slot = slots != nullptr ? slots->of(s.slot) : s.slot.value;
    kv.swap_slot(stream, slot, s.host, s.out);
  }
}

}  // namespace weft
