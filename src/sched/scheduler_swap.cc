// Displaced sequences that keep what they have computed, in memory of the host (docs/scheduler.md).
#include <algorithm>

#include "base/check.h"
#include "sched/scheduler.h"

namespace weft {

/// Copies what a victim has computed to the swap space before its blocks and its state go to
/// others; without room there it will be computed again.
void Scheduler::swap_out(Sequence& victim) {
  if (victim.num_computed == 0) return;
  // Drafts in flight may have brought it further: accept() will tell.
  const int64_t reach = victim.num_computed + victim.pending_drafts;
  const int64_t blocks = std::min((reach + config_.block_size - 1) / config_.block_size,
                                  static_cast<int64_t>(victim.blocks.size()));
  SwapHold& hold = victim.swapped.hold;
  if (!swaps_.take(blocks, cache_.recurrent(), hold)) return;
  for (size_t i = 0; i < hold.blocks.size(); ++i) {
    plan_.block_swaps.push_back({victim.blocks[i], hold.blocks[i], true});
  }
  if (cache_.recurrent()) {
    const SlotId state = victim.source.valid() ? victim.source : victim.live;
    plan_.state_swaps.push_back({state, hold.slot, true});
  }
  victim.swapped.computed = victim.num_computed;
  victim.swapped.epoch = victim.epoch;
  ++stats_.swap_outs;
  stats_.swapped_blocks += blocks;
}

/// What of a hit a sequence takes that comes back: its own state, and its own blocks where the
/// prefix cache has none.
PrefixHit Scheduler::hit_of_swapped(const Sequence& seq, const PrefixHit& hit) const {
  const auto own = static_cast<int>(seq.swapped.computed / config_.block_size);
  const int blocks = std::min(hit.kv_blocks, own);
  return {.kv_blocks = blocks, .blocks = blocks, .state = {}};
}

/// Brings back what the first blocks, taken from the prefix cache, don't have.
void Scheduler::swap_in(Sequence& seq) {
  const size_t from_cache = seq.blocks.size();
  SwapHold& hold = seq.swapped.hold;
  give_blocks(seq, seq.swapped.computed);
  CHECK(seq.blocks.size() <= hold.blocks.size());
  for (size_t i = from_cache; i < seq.blocks.size(); ++i) {
    plan_.block_swaps.push_back({seq.blocks[i], hold.blocks[i], false});
  }
  if (cache_.recurrent()) plan_.state_swaps.push_back({seq.live, hold.slot, false});
  stats_.swapped_in_tokens += seq.swapped.computed;
  ++stats_.swap_ins;
}

void Scheduler::drop_swapped(Sequence& seq) {
  swaps_.give_back(seq.swapped.hold);
  seq.swapped.computed = 0;
}

}  // namespace weft
