#pragma once

#include <span>
#include <string>

#include "cache/prefix_cache.h"

namespace weft {

/// Full check of a cache against the owners its user knows of: `block_owners[i]` and
/// `slot_owners[i]` count who holds block or slot i. Every block and slot is free, cached or owned
/// exactly once per owner; every cached one is in the index, and nothing else is. Returns what is
/// wrong, or an empty string. O(blocks + slots).
std::string audit(const PrefixCache& cache, std::span<const int> block_owners,
                  std::span<const int> slot_owners);

/// The O(1) part, for every step: the counters partition the pools and the references add up.
bool counters_agree(const PrefixCache& cache, int64_t block_refs, int64_t slot_refs);

}  // namespace weft
