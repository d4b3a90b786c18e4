#pragma once

#include <cstdint>

#include "base/philox.h"

namespace weft {

/// Keys of the hash of n-grams to 64 tokens, on the host and on a device: the sum over i of key[i]
/// times the i-th token from the end, modulo 2^64. With keys that nobody knows the upper half is
/// strongly universal (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): two
/// grams fall together there for one seed of 2^32, whoever made the text.
struct GramKeys {
  uint64_t key[64] = {};

  constexpr GramKeys() = default;
  constexpr explicit GramKeys(uint64_t seed) {
    for (uint64_t i = 0; i < 64; ++i) {
      const auto bits = philox4x32(seed, i, 0);
      key[i] = uint64_t{bits[0]} << 32 | bits[1];
    }
  }
};

constexpr uint64_t add_to_gram(uint64_t hash, uint64_t key, int32_t token) {
  return hash + key * static_cast<uint32_t>(token);
}

/// Where a gram is looked for: the sums of a row of numbers are one, too, so they are scattered.
constexpr uint32_t gram_place(uint64_t hash) {
  auto x = static_cast<uint32_t>(hash >> 32);
  x = (x ^ x >> 15) * 0x7feb352du;
  return x ^ x >> 15;
}

}  // namespace weft
