#include "app/heap_trim.h"

#include <malloc.h>

#include <algorithm>

namespace weft {
namespace {

constexpr size_t kIdleGrowth = size_t{2} << 20;   // free bytes worth giving back when idle
constexpr size_t kBusyGrowth = size_t{64} << 20;  // and under load

size_t free_bytes() {
  return mallinfo2().fordblks;
}

}  // namespace

void HeapTrim::look(bool idle) {
  const size_t now = free_bytes();
  kept_ = std::min(kept_, now);
  if (now - kept_ < (idle ? kIdleGrowth : kBusyGrowth)) return;
  malloc_trim(0);
  kept_ = free_bytes();
}

}  // namespace weft
