#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace weft {

struct Hash128 {
  uint64_t lo = 0, hi = 0;
  bool operator==(const Hash128&) const = default;
};

/// Keyed 128-bit hash (XXH3) of `bytes`, chained from `parent`: H(key, parent, bytes).
Hash128 chain_hash(uint64_t key, Hash128 parent, std::span<const std::byte> bytes);

struct Hash128Hasher {
  size_t operator()(const Hash128& h) const noexcept { return static_cast<size_t>(h.lo); }
};

}  // namespace weft
