#include "cache/block_pool.h"

#include "base/check.h"

namespace weft {

BlockPool::BlockPool(int num_blocks)
    : num_blocks_(num_blocks), blocks_(static_cast<size_t>(num_blocks) + 1) {
  CHECK(num_blocks >= 0);
  blocks_.back().prev = blocks_.back().next = num_blocks;
  free_.reserve(static_cast<size_t>(num_blocks));
  for (int i = num_blocks; i-- > 0;) free_.push_back(i);
}

BlockPool::Block& BlockPool::block(BlockId id) {
  CHECK(id.value >= 0 && id.value < num_blocks_);
  return blocks_[static_cast<size_t>(id.value)];
}

const BlockPool::Block& BlockPool::block(BlockId id) const {
  CHECK(id.value >= 0 && id.value < num_blocks_);
  return blocks_[static_cast<size_t>(id.value)];
}

void BlockPool::link_newest(int index) {
  const int last = blocks_.back().prev;
  blocks_[static_cast<size_t>(index)].prev = last;
  blocks_[static_cast<size_t>(index)].next = num_blocks_;
  blocks_[static_cast<size_t>(last)].next = index;
  blocks_.back().prev = index;
  ++num_evictable_;
}

void BlockPool::unlink(int index) {
  Block& b = blocks_[static_cast<size_t>(index)];
  blocks_[static_cast<size_t>(b.prev)].next = b.next;
  blocks_[static_cast<size_t>(b.next)].prev = b.prev;
  b.prev = b.next = -1;
  --num_evictable_;
}

BlockPool::Allocation BlockPool::allocate() {
  Allocation result;
  if (!free_.empty()) {
    result.block.value = free_.back();
    free_.pop_back();
  } else {
    CHECK(num_evictable_ > 0, "no block is available");
    result.block.value = blocks_.back().next;
    result.evicted = true;
    unlink(result.block.value);
    block(result.block).cached = false;
  }
  block(result.block).refs = 1;
  ++num_used_;
  ++total_refs_;
  return result;
}

void BlockPool::ref(BlockId id) {
  Block& b = block(id);
  if (b.refs == 0) {
    CHECK(b.cached, "a free block has no content to share");
    unlink(id.value);
    ++num_used_;
  }
  ++b.refs;
  ++total_refs_;
}

void BlockPool::unref(BlockId id) {
  Block& b = block(id);
  CHECK(b.refs > 0, "block released twice");
  --total_refs_;
  if (--b.refs > 0) return;
  --num_used_;
  if (b.cached) {
    link_newest(id.value);
  } else {
    free_.push_back(id.value);
  }
}

void BlockPool::set_cached(BlockId id) {
  Block& b = block(id);
  CHECK(b.refs > 0 && !b.cached, "only a held block becomes cached, once");
  b.cached = true;
}

void BlockPool::clear_cached(BlockId id) {
  Block& b = block(id);
  CHECK(b.cached);
  b.cached = false;
  if (b.refs == 0) {
    unlink(id.value);
    free_.push_back(id.value);
  }
}

void BlockPool::touch(BlockId id) {
  if (block(id).refs > 0 || !block(id).cached) return;
  unlink(id.value);
  link_newest(id.value);
}

bool BlockPool::consistent() const {
  std::vector<int> seen(static_cast<size_t>(num_blocks_), 0);
  for (const int i : free_) {
    const Block& b = blocks_[static_cast<size_t>(i)];
    if (b.refs != 0 || b.cached) return false;
    ++seen[static_cast<size_t>(i)];
  }
  int evictable = 0;
  for (int i = blocks_.back().next; i != num_blocks_; i = blocks_[static_cast<size_t>(i)].next) {
    if (++evictable > num_evictable_) return false;
    const Block& b = blocks_[static_cast<size_t>(i)];
    if (b.refs != 0 || !b.cached) return false;
    ++seen[static_cast<size_t>(i)];
  }
  int used = 0;
  int64_t refs = 0;
  for (int i = 0; i < num_blocks_; ++i) {
    const int expected = blocks_[static_cast<size_t>(i)].refs == 0 ? 1 : 0;
    if (seen[static_cast<size_t>(i)] != expected) return false;
    used += blocks_[static_cast<size_t>(i)].refs > 0;
    refs += blocks_[static_cast<size_t>(i)].refs;
  }
  return evictable == num_evictable_ && used == num_used_ && refs == total_refs_;
}

}  // namespace weft
