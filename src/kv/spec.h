#pragma once

#include <variant>

#include "kernels/args.h"
#include "kernels/kv_codes.h"

namespace weft {

/// What one layer asks of the cache: nothing, paged K and V, or a recurrent-state slot.
using PagedSpec = KvShape;
struct StateSpec {
  GdnShape shape;
  DType dtype = DType::kF32;  ///< of the recurrent state; or kBF16
};
using CacheSpec = std::variant<std::monostate, PagedSpec, StateSpec>;

/// What that layer is handed.
using LayerCache = std::variant<std::monostate, PagedKv, StateSlots>;

}  // namespace weft
