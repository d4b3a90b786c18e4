#include "base/random_key.h"

#include <random>

namespace weft {

uint64_t random_key() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

}  // namespace weft
