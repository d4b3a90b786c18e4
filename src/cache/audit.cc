#include "cache/audit.h"

namespace weft {

std::string audit(const PrefixCache& cache, std::span<const int> block_owners,
                  std::span<const int> slot_owners) {
  const BlockPool& blocks = cache.blocks();
  const StatePool& slots = cache.slots();
  const PrefixIndex& index = cache.index();
  if (!blocks.consistent()) return "the lists of the block pool disagree with its counters";
  if (!slots.consistent()) return "the lists of the state pool disagree with its counters";
  int registered = 0;
  int states = 0;
  for (int i = 0; i < blocks.num_blocks(); ++i) {
    const BlockId id{i};
    const std::string name = "block " + std::to_string(i);
    const int owners = block_owners[static_cast<size_t>(i)];
    if (blocks.refs(id) != owners) {
      return name + " has " + std::to_string(blocks.refs(id)) + " references, but " +
             std::to_string(owners) + " owners";
    }
    if (blocks.cached(id) != index.contains(id)) return name + ": pool and index disagree";
    if (!index.contains(id)) continue;
    ++registered;
    const SlotId state = index.state(id);
    if (!state.valid()) continue;
    ++states;
    if (!slots.cached(state) || slots.checkpoint(state).block != id) {
      return name + ": its checkpoint belongs to another block";
    }
  }
  if (registered != index.size()) return "two hashes name one block";
  for (int i = 0; i < slots.num_slots(); ++i) {
    const int owners = slot_owners[static_cast<size_t>(i)];
    if (slots.refs(SlotId{i}) != owners) {
      return "slot " + std::to_string(i) + " has " + std::to_string(slots.refs(SlotId{i})) +
             " references, but " + std::to_string(owners) + " owners";
    }
  }
  if (states != slots.num_cached()) return "a cached checkpoint is not in the index";
  return {};
}

bool counters_agree(const PrefixCache& cache, int64_t block_refs, int64_t slot_refs) {
  const BlockPool& blocks = cache.blocks();
  const StatePool& slots = cache.slots();
  return blocks.num_free() + blocks.num_evictable() + blocks.num_used() == blocks.num_blocks() &&
         blocks.total_refs() == block_refs && slots.total_refs() == slot_refs;
}

}  // namespace weft
