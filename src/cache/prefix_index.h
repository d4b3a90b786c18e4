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
/// prefix it was computed after, and keyed by a per-process secret and the request's cache salt;
/// a hit also compares the stored token ids, so equal hashes alone never share a block.
/// A recurrent-state checkpoint hangs on the block whose end it describes.
class PrefixIndex {
 public:
  /// `key` is random per process. Stores num_blocks * block_size token ids.
  PrefixIndex(uint64_t key, int num_blocks, int block_size);

  /// The hash that block 0 of a prompt of this scope is chained from.
  Hash128 root(std::string_view cache_salt) const;
  Hash128 block_hash(Hash128 parent, std::span<const int32_t> tokens, Hash128 extra = {}) const;

  /// The block that holds exactly this content; invalid when there is none.
  BlockId find(const BlockKey& key) const;
  /// Registers `block`, which is not registered yet. False when the hash is taken already (the
  /// same content in another block, or a collision): the block then stays unregistered.
  bool insert(const BlockKey& key, BlockId block);
  /// Forgets a registered block; returns the checkpoint that hung on it (invalid: none).
  SlotId erase(BlockId block);

  bool contains(BlockId block) const { return entry(block).registered; }
  SlotId state(BlockId block) const { return entry(block).state; }
  void attach_state(BlockId block, SlotId slot);
  void detach_state(BlockId block);
  int size() const { return static_cast<int>(by_hash_.size()); }

 private:
  struct Entry {
    Hash128 hash, parent, extra;
    SlotId state;
    bool registered = false;
  };
  Entry& entry(BlockId block);
  const Entry& entry(BlockId block) const;
  std::span<int32_t> stored_tokens(BlockId block);

  const uint64_t key_;
  const int block_size_;
  std::vector<Entry> entries_;
  std::vector<int32_t> tokens_;
  std::unordered_map<Hash128, BlockId, Hash128Hasher> by_hash_;
};

}  // namespace weft
