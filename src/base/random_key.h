#pragma once

#include <cstdint>

namespace weft {

/// What no client can guess; never for sampling (base/philox.h).
uint64_t random_key();

}  // namespace weft
