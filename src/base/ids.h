#pragma once

#include <compare>
#include <cstdint>
#include <functional>

namespace weft {

/// A strong integer: ids of different kinds don't mix. -1 is "none".
template <class Tag>
struct Id {
  int32_t value = -1;
  constexpr bool valid() const { return value >= 0; }
  constexpr auto operator<=>(const Id&) const = default;
};

using SeqId = Id<struct SeqTag>;      ///< a sequence, unique over the life of an engine
using BlockId = Id<struct BlockTag>;  ///< a block of the paged KV pool
using SlotId = Id<struct SlotTag>;    ///< a recurrent-state slot
using LayerId = Id<struct LayerTag>;  ///< a decoder layer (MTP layers follow the main ones)

}  // namespace weft

template <class Tag>
struct std::hash<weft::Id<Tag>> {
  size_t operator()(weft::Id<Tag> id) const noexcept { return std::hash<int32_t>()(id.value); }
};
