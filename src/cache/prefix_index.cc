#include "cache/prefix_index.h"

#include <algorithm>

#include "base/check.h"

namespace weft {

PrefixIndex::PrefixIndex(uint64_t key, int num_blocks, int block_size)
    : key_(key),
      block_size_(block_size),
      entries_(static_cast<size_t>(num_blocks)),
      tokens_(static_cast<size_t>(num_blocks) * static_cast<size_t>(block_size)) {
  CHECK(block_size > 0);
  by_hash_.reserve(static_cast<size_t>(num_blocks));
}

Hash128 PrefixIndex::root(std::string_view cache_salt) const {
  return chain_hash(key_, {}, std::as_bytes(std::span(cache_salt)));
}

Hash128 PrefixIndex::block_hash(Hash128 parent, std::span<const int32_t> tokens,
                                Hash128 extra) const {
  if (!(extra == Hash128{})) {
    parent = chain_hash(key_, parent, std::as_bytes(std::span<const Hash128>(&extra, 1)));
  }
  return chain_hash(key_, parent, std::as_bytes(tokens));
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

bool PrefixIndex::insert(const BlockKey& key, BlockId block) {
  CHECK(key.tokens.size() == static_cast<size_t>(block_size_), "only full blocks are registered");
  Entry& e = entry(block);
  CHECK(!e.registered);
  if (!by_hash_.try_emplace(key.hash, block).second) return false;
  e = {.hash = key.hash, .parent = key.parent, .extra = key.extra, .state = {}, .registered = true};
  std::copy(key.tokens.begin(), key.tokens.end(), stored_tokens(block).begin());
  return true;
}

SlotId PrefixIndex::erase(BlockId block) {
  Entry& e = entry(block);
  CHECK(e.registered);
  by_hash_.erase(e.hash);
  const SlotId state = e.state;
  e = Entry{};
  return state;
}

void PrefixIndex::attach_state(BlockId block, SlotId slot) {
  Entry& e = entry(block);
  CHECK(e.registered && !e.state.valid() && slot.valid());
  e.state = slot;
}

void PrefixIndex::detach_state(BlockId block) {
  Entry& e = entry(block);
  CHECK(e.state.valid());
  e.state = {};
}

}  // namespace weft
