#include "cache/prefix_cache.h"

#include <algorithm>

#include "base/check.h"

namespace weft {

PrefixCache::PrefixCache(const CacheConfig& config)
    : config_(config),
      boundary_blocks_(std::max(1, config.boundary / config.block_size)),
      blocks_(config.num_blocks),
      slots_(config.num_slots),
      index_(config.hash_key, config.num_blocks, config.block_size, config.hash_bits) {
  CHECK(config.boundary % config.block_size == 0 || config.block_size % config.boundary == 0);
}

BlockKey PrefixCache::key(const PrefixView& prefix, int block_index) const {
  const auto i = static_cast<size_t>(block_index);
  CHECK(i + 1 < prefix.hashes.size(), "the block's hash is not known yet");
  const auto size = static_cast<size_t>(config_.block_size);
  return {.hash = prefix.hashes[i + 1],
          .parent = prefix.hashes[i],
          .tokens = prefix.tokens.subspan(i * size, size),
          .extra = prefix.images.empty() ? Hash128{} : prefix.images[i]};
}

/// The block of this content, if it was registered behind `before`: by induction behind exactly
/// these tokens, whatever hashes collide.
BlockId PrefixCache::find_behind(const PrefixView& prefix, int block_index, uint64_t before) const {
  const BlockId block = index_.find(key(prefix, block_index));
  return block.valid() && index_.parent_serial(block) == before ? block : BlockId{};
}

BlockId PrefixCache::find_exact(const PrefixView& prefix, int block_index) const {
  const auto i = static_cast<size_t>(block_index);
  // What a sequence holds and is registered, is registered under the sequence's own tokens.
  if (i < prefix.blocks.size() && index_.contains(prefix.blocks[i])) return prefix.blocks[i];
  BlockId block;
  uint64_t before = 0;
  for (int k = 0; k <= block_index; ++k) {
    block = find_behind(prefix, k, before);
    if (!block.valid()) return {};
    before = index_.serial(block);
  }
  return block;
}

PrefixHit PrefixCache::lookup(const PrefixView& prefix, int max_blocks) {
  matched_.clear();
  PrefixHit hit;
  const int limit = std::min(max_blocks, static_cast<int>(prefix.hashes.size()) - 1);
  uint64_t before = 0;
  for (int i = 0; i < limit; ++i) {
    const BlockId block = find_behind(prefix, i, before);
    if (!block.valid()) break;
    before = index_.serial(block);
    matched_.push_back(block);
    if (recurrent() && index_.state(block).valid()) {
      hit.blocks = i + 1;
      hit.state = index_.state(block);
    }
  }
  hit.kv_blocks = static_cast<int>(matched_.size()) / boundary_blocks_ * boundary_blocks_;
  matched_.resize(static_cast<size_t>(hit.kv_blocks));
  if (!recurrent()) hit.blocks = hit.kv_blocks;
  return hit;
}

bool PrefixCache::has_checkpoint(const PrefixView& prefix, int block_index) const {
  if (static_cast<size_t>(block_index) + 1 >= prefix.hashes.size()) return false;
  const BlockId block = index_.find(key(prefix, block_index));
  return block.valid() && index_.state(block).valid();
}

BlockId PrefixCache::allocate_block() {
  const BlockPool::Allocation got = blocks_.allocate();
  if (got.evicted) {
    ++block_evictions_;
    const SlotId state = index_.erase(got.block);
    if (state.valid()) {
      ++state_evictions_;
      slots_.uncache(state);
    }
  }
  return got.block;
}

SlotId PrefixCache::allocate_slot() {
  return take(slots_.allocate());
}

SlotId PrefixCache::allocate_slot_for_checkpoint(CheckpointKind kind, int64_t position) {
  return take(slots_.allocate_for_checkpoint(kind, position));
}

SlotId PrefixCache::take(const StatePool::Allocation& got) {
  if (got.evicted.valid()) {
    ++state_evictions_;
    index_.detach_state(got.evicted);
  }
  return got.slot;
}

void PrefixCache::take_over(SlotId slot) {
  CHECK(slots_.refs(slot) == 1 && slots_.cached(slot));
  index_.detach_state(slots_.checkpoint(slot).block);
  slots_.uncache(slot);
}

bool PrefixCache::register_block(const PrefixView& prefix, int block_index, BlockId block,
                                 uint64_t& twin) {
  uint64_t before = 0;
  if (block_index > 0) {
    const auto last = static_cast<size_t>(block_index) - 1;
    const bool held = last < prefix.blocks.size() && index_.contains(prefix.blocks[last]);
    before = held ? index_.serial(prefix.blocks[last]) : twin;
    if (before == 0) return false;
  }
  const BlockId there = find_behind(prefix, block_index, before);
  if (there.valid()) {
    twin = index_.serial(there);
    return false;
  }
  const BlockKey wanted = key(prefix, block_index);
  // Another content of this hash, or this one behind a block that is gone: nobody finds it there.
  if (const BlockId holder = index_.holder(wanted.hash); holder.valid()) forget(holder);
  CHECK(index_.insert(wanted, block, before));
  blocks_.set_cached(block);
  twin = index_.serial(block);
  return true;
}

bool PrefixCache::register_checkpoint(const PrefixView& prefix, int64_t position, SlotId slot,
                                      CheckpointKind kind) {
  CHECK(position > 0 && position % config_.boundary == 0 && position % config_.block_size == 0);
  const int last = static_cast<int>(position / config_.block_size) - 1;
  const BlockId block = find_exact(prefix, last);
  if (!block.valid() || index_.state(block).valid()) return false;
  SlotId parent;
  for (int i = last - boundary_blocks_; i >= 0 && !parent.valid(); i -= boundary_blocks_) {
    const BlockId before = index_.find(key(prefix, i));
    if (before.valid()) parent = index_.state(before);
  }
  slots_.cache(slot, {.block = block, .position = position, .parent = parent, .kind = kind});
  index_.attach_state(block, slot);
  return true;
}

void PrefixCache::forget_prefix(const PrefixView& prefix) {
  for (int i = 0; static_cast<size_t>(i) + 1 < prefix.hashes.size(); ++i) {
    const BlockId block = index_.find(key(prefix, i));
    if (block.valid()) forget(block);
  }
}

void PrefixCache::forget(BlockId block) {
  const SlotId state = index_.erase(block);
  if (state.valid()) slots_.uncache(state);
  blocks_.clear_cached(block);
}

}  // namespace weft
