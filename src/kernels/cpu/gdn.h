#pragma once

#include "kernels/cpu/isa.h"

namespace weft::WEFT_ISA_NS {

/// Scratch bytes that gdn() takes on a pool of `threads`.
int64_t gdn_scratch_bytes(const GdnShape& shape, int threads);

}  // namespace weft::WEFT_ISA_NS
