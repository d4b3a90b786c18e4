#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/hash.h"
#include "base/ids.h"

namespace weft {

/// What names the content of one full block: its tokens after everything before them.
struct BlockKey {
  Hash128 hash;    ///< PrefixIndex::block_hash(parent, tokens, extra)
  Hash128 parent;  ///< hash of the block before, or PrefixIndex::root() of the scope
  std::span<const int32_t> tokens;
  Hash128 extra;  ///< content hash of the images in the block; {} for text
};

/// Finds cached KV blocks by content. Hashes are chained, so a block is found only behind the
/// prefix it was computed after, and keyed by a per-process secret and the request's cache salt.
/// Hashes are only where to look: a hit also compares the stored token ids, and PrefixCache the
/// serials of the blocks before it, so that equal hashes never share a block.
/// A recurrent-state checkpoint hangs on the block whose end it describes.
class PrefixIndex {
 public:
  /// `key` is random per process. Stores num_blocks * block_size token ids. `hash_bits`: what is
  /// kept of a block's hash; fewer than all make collisions, for tests.
  PrefixIndex(uint64_t key, int num_blocks, int block_size, int hash_bits = 128);

  /// The hash that block 0 of a prompt of this scope is chained from. `window`: tokens of the
  /// prompt that decide how all of it is computed.
  Hash128 root(std::string_view cache_salt, std::span<const int32_t> window = {}) const;
  Hash128 block_hash(Hash128 parent, std::span<const int32_t> tokens, Hash128 extra = {}) const;

  /// The block that holds exactly this content; invalid when there is none.
  BlockId find(const BlockKey& key) const;
  /// The block that has this hash, whatever its content; invalid when there is none.
  BlockId holder(Hash128 hash) const;
  /// Registers `block`, which is not registered yet, behind the registration `parent_serial` (0:
  /// it is the first of a prompt). False when the hash is taken already (the same content in
  /// another block, or a collision): the block then stays unregistered.
  bool insert(const BlockKey& key, BlockId block, uint64_t parent_serial = 0);
  /// Forgets a registered block; returns the checkpoint that hung on it (invalid: none).
  SlotId erase(BlockId block);

  bool contains(BlockId block) const { return entry(block).serial != 0; }
  /// Names this registration of a block, with everything before it; never used again. 0: none.
  uint64_t serial(BlockId block) const { return entry(block).serial; }
  uint64_t parent_serial(BlockId block) const { return entry(block).parent_serial; }
  SlotId state(BlockId block) const { return entry(block).state; }
  void attach_state(BlockId block, SlotId slot);
  void detach_state(BlockId block);
  int size() const { return static_cast<int>(by_hash_.size()); }

 private:
  struct Entry {
    Hash128 hash, parent, extra;
    SlotId state;
    uint64_t serial = 0, parent_serial = 0;
  };
  Entry& entry(BlockId block);
  const Entry& entry(BlockId block) const;
  std::span<int32_t> stored_tokens(BlockId block);

  const uint64_t key_;
  const int block_size_;
  const Hash128 kept_;  // bits of a block's hash
  uint64_t last_serial_ = 0;
  std::vector<Entry> entries_;
  std::vector<int32_t> tokens_;
  std::unordered_map<Hash128, BlockId, Hash128Hasher> by_hash_;
};

}  // namespace weft
