#include "kernels/cpu/scratch.h"

namespace weft {

ScratchScope::ScratchScope(Stream& stream)
    : arena_(stream.scratch()), mark_(stream.scratch().mark()) {}

ScratchScope::~ScratchScope() {
  arena_.rewind(mark_);
}

void* ScratchScope::take(int64_t bytes) const {
  return arena_.take(bytes);
}

}  // namespace weft
