#include "cache/prefix_index.h"

#include <algorithm>

#include "base/check.h"

namespace weft {

namespace {

uint64_t low_bits(int n) {
  return n <= 0 ? 0 : n >= 64 ? ~uint64_t{0} : (uint64_t{1} << n) - 1;
}

}  // namespace

PrefixIndex::PrefixIndex(uint64_t key, int num_blocks, int block_size, int hash_bits)
    : key_(key),
      block_size_(block_size),
      kept_{.lo = low_bits(hash_bits), .hi = low_bits(hash_bits - 64)},
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size)) {
  CHECK(block_size > 0);
  by_hash_.reserve(static_cast<size_t>(num_blocks));
}

Hash128 PrefixIndex::root(std::string_view cache_salt, std::span<const int32_t> window) const {
  const Hash128 root = chain_hash(key_, {}, std::as_bytes(std::span(cache_salt)));
  return window.empty() ? root : chain_hash(key_, root, std::as_bytes(window));
}

Hash128 PrefixIndex::block_hash(Hash128 parent, std::span<const int32_t> tokens,
                                Hash128 extra) const {
  if (!(extra == Hash128{})) {
    parent = chain_hash(key_, parent, std::as_bytes(std::span<const Hash128>(&extra, 1)));
  }
  const Hash128 hash = chain_hash(key_, parent, std::as_bytes(tokens));
  return {.lo = hash.lo & kept_.lo, .hi = hash.hi & kept_.hi};
}

PrefixIndex::Entry& PrefixIndex::entry(BlockId block) {
  CHECK(block.value >= 0 && static_cast<size_t>(block.value) < entries_.size());
  return entries_[static_cast<size_t>(block.value)];
}

const PrefixIndex::Entry& PrefixIndex::entry(BlockId block) const {
  CHECK(block.value >= 0 && static_cast<size_t>(block.value) < entries_.size());
  return entries_[static_cast<size_t>(block.value)];
}

std::span<int32_t> PrefixIndex::stored_tokens(BlockId block) {
  const auto size = static_cast<size_t>(block_size_);
  return {tokens_.data() + static_cast<size_t>(block.value) * size, size};
}

BlockId PrefixIndex::find(const BlockKey& key) const {
  const auto it = by_hash_.find(key.hash);
  if (it == by_hash_.end()) return {};
  const Entry& e = entry(it->second);
  const int32_t* stored = tokens_.data() + static_cast<int64_t>(it->second.value) * block_size_;
  if (!(e.parent == key.parent) || !(e.extra == key.extra)) return {};
  if (!std::equal(key.tokens.begin(), key.tokens.end(), stored, stored + block_size_)) return {};
  return it->second;
}

BlockId PrefixIndex::holder(Hash128 hash) const {
  const auto it = by_hash_.find(hash);
  return it == by_hash_.end() ? BlockId{} : it->second;
}

bool PrefixIndex::insert(const BlockKey& key, BlockId block, uint64_t parent_serial) {
  CHECK(key.tokens.size() == static_cast<size_t>(block_size_), "only full blocks are registered");
  Entry& e = entry(block);
  CHECK(e.serial == 0);
  if (!by_hash_.try_emplace(key.hash, block).second) return false;
  e = {.hash = key.hash,
       .parent = key.parent,
       .extra = key.extra,
       .state = {},
       .serial = ++last_serial_,
       .parent_serial = parent_serial};
  std::copy(key.tokens.begin(), key.tokens.end(), stored_tokens(block).begin());
  return true;
}

SlotId PrefixIndex::erase(BlockId block) {
  Entry& e = entry(block);
  CHECK(e.serial != 0);
  by_hash_.erase(e.hash);
  const SlotId state = e.state;
  e = Entry{};
  return state;
}

void PrefixIndex::attach_state(BlockId block, SlotId slot) {
  Entry& e = entry(block);
  CHECK(e.serial != 0 && !e.state.valid() && slot.valid());
  e.state = slot;
}

void PrefixIndex::detach_state(BlockId block) {
  Entry& e = entry(block);
  CHECK(e.state.valid());
  e.state = {};
}

}  // namespace weft
