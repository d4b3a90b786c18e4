#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"
#include "cache/block_pool.h"
#include "cache/prefix_index.h"
#include "cache/state_pool.h"

namespace weft {

struct CacheConfig {
  int block_size = 64;    ///< tokens; a divisor or a multiple of `boundary`
  int num_blocks = 0;     ///< KV blocks
  int num_slots = 0;      ///< recurrent-state slots; 0: the model has no recurrent state
  int boundary = 64;      ///< states exist, and prefixes are reused, only at multiples of this
  uint64_t hash_key = 0;  ///< random per process
  int hash_bits = 128;    ///< fewer: blocks collide, for tests
};

/// Tokens of one sequence with the chained hashes of their full blocks: hashes[0] is the root of
/// its scope, hashes[i + 1] that of block i. `blocks` are those that the sequence holds.
struct PrefixView {
  std::span<const int32_t> tokens;
  std::span<const Hash128> hashes;
  std::span<const BlockId> blocks = {};
  std::span<const Hash128> images = {};  ///< one a full block: hash of the images in it; or empty
};

/// What the cache holds of a prefix. Nothing is referenced yet.
struct PrefixHit {
  int kv_blocks = 0;  ///< consecutive cached blocks, a multiple of the boundary
  int blocks = 0;     ///< usable ones: with recurrent state, up to the deepest checkpoint
  SlotId state;       ///< the checkpoint there; invalid without recurrent state or hit
};

/// Blocks, state slots and the prefix index as one: evicting a block also drops the checkpoint at
/// its end (it could not be reached any more), evicting a checkpoint takes it out of the index.
class PrefixCache {
 public:
  explicit PrefixCache(const CacheConfig& config);

  const BlockPool& blocks() const { return blocks_; }
  const StatePool& slots() const { return slots_; }
  const PrefixIndex& index() const { return index_; }
  bool recurrent() const { return slots_.num_slots() > 0; }
  int64_t block_evictions() const { return block_evictions_; }
  int64_t state_evictions() const { return state_evictions_; }

  /// The cached prefix of `prefix`, at most `max_blocks` blocks. matched() lists its KV blocks
  /// until the next call.
  PrefixHit lookup(const PrefixView& prefix, int max_blocks);
  std::span<const BlockId> matched() const { return matched_; }
  /// True when a checkpoint exists behind block `block_index` of this prefix.
  bool has_checkpoint(const PrefixView& prefix, int block_index) const;

  /// A block with one reference; evicts the least recently used one when none is free.
  BlockId allocate_block();
  void ref_block(BlockId block) { blocks_.ref(block); }
  void unref_block(BlockId block) { blocks_.unref(block); }
  void touch_block(BlockId block) { blocks_.touch(block); }
  /// A slot with one holder for a sequence to run in; invalid: all are held.
  SlotId allocate_slot();
  /// A slot for a sequence to go on in when its own becomes a checkpoint at `position`; invalid:
  /// all are held or worth more.
  SlotId allocate_slot_for_checkpoint(CheckpointKind kind, int64_t position);
  void ref_slot(SlotId slot) { slots_.ref(slot); }
  void unref_slot(SlotId slot) { slots_.unref(slot); }
  void touch_slot(SlotId slot) { slots_.touch(slot); }
  void raise_slot(SlotId slot, CheckpointKind kind) { slots_.raise(slot, kind); }
  /// Makes the checkpoint `slot`, held by the caller alone, an ordinary live slot.
  void take_over(SlotId slot);

  /// Registers block `block_index` of this prefix, held in `block` and computed without error.
  /// False when the same content is cached already in another block, or when what comes before it
  /// is not. `twin`: the caller keeps it from the block before to the next; names the cached block
  /// of the same content where the sequence has one of its own.
  bool register_block(const PrefixView& prefix, int block_index, BlockId block, uint64_t& twin);
  /// Makes the held slot `slot` the checkpoint behind `position` tokens (a multiple of the
  /// boundary). False when there is one already, or the block before it is not cached.
  bool register_checkpoint(const PrefixView& prefix, int64_t position, SlotId slot,
                           CheckpointKind kind);
  /// Forgets every block and checkpoint of this prefix (suspected of holding NaN).
  void forget_prefix(const PrefixView& prefix);

 private:
  BlockKey key(const PrefixView& prefix, int block_index) const;
  BlockId find_behind(const PrefixView& prefix, int block_index, uint64_t before) const;
  BlockId find_exact(const PrefixView& prefix, int block_index) const;
  void forget(BlockId block);
  SlotId take(const StatePool::Allocation& got);

  const CacheConfig config_;
  const int boundary_blocks_;
  BlockPool blocks_;
  StatePool slots_;
  PrefixIndex index_;
  std::vector<BlockId> matched_;
  int64_t block_evictions_ = 0;
  int64_t state_evictions_ = 0;
};

}  // namespace weft
