#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace weft {

/// Bookkeeping of the paged KV pool: which block is free, cached or held, by how many owners.
/// A block is free (no owner, not cached), evictable (no owner, cached) or used (>= 1 owner).
/// Every operation is O(1); nothing is allocated after construction.
class BlockPool {
 public:
  explicit BlockPool(int num_blocks);

  int num_blocks() const { return num_blocks_; }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_evictable() const { return num_evictable_; }
  int num_used() const { return num_used_; }
  /// Blocks that allocate() can hand out now.
  int available() const { return num_free() + num_evictable_; }
  /// Sum of the reference counts of all blocks.
  int64_t total_refs() const { return total_refs_; }
  int refs(BlockId id) const { return block(id).refs; }
  bool cached(BlockId id) const { return block(id).cached; }

  struct Allocation {
    BlockId block;
    bool evicted = false;  ///< the block was cached: the caller takes it out of the index
  };
  /// A block with one reference: a free one, else the least recently used evictable one, which
  /// loses its cached mark. Needs available() > 0.
  Allocation allocate();

  /// One owner more (an evictable block becomes used).
  void ref(BlockId id);
  /// One owner less; without owners a cached block becomes the most recently used evictable one,
  /// another one becomes free.
  void unref(BlockId id);
  /// The block's content can be found in the prefix index.
  void set_cached(BlockId id);
  void clear_cached(BlockId id);
  /// Makes an evictable block the most recently used one; no effect on a used block.
  void touch(BlockId id);

  /// True when the lists and the counters agree. O(num_blocks).
  bool consistent() const;

 private:
  struct Block {
    int refs = 0;
    bool cached = false;
    int prev = -1, next = -1;  // least recently used list, while evictable
  };
  Block& block(BlockId id);
  const Block& block(BlockId id) const;
  void link_newest(int index);
  void unlink(int index);

  const int num_blocks_;
  std::vector<Block> blocks_;  // the last entry is the list's sentinel: next is the oldest
  std::vector<int> free_;
  int num_evictable_ = 0;
  int num_used_ = 0;
  int64_t total_refs_ = 0;
};

}  // namespace weft
