#include "base/hash.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

namespace weft {

Hash128 chain_hash(uint64_t key, Hash128 parent, std::span<const std::byte> bytes) {
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_128bits_reset_withSeed(&state, key);
  XXH3_128bits_update(&state, &parent, sizeof(parent));
  XXH3_128bits_update(&state, bytes.data(), bytes.size());
  const XXH128_hash_t h = XXH3_128bits_digest(&state);
  return {h.low64, h.high64};
}

}  // namespace weft
