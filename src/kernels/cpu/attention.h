#pragma once

#include "kernels/cpu/isa.h"

namespace weft::WEFT_ISA_NS {

/// Scratch bytes with which attention() can spread every decode row of a step over all threads:
/// `num_keys` is the sum of their context lengths. With less it runs one thread per (sequence, kv
/// head), to the same bits; 16 bytes a sequence are needed always.
int64_t attention_scratch_bytes(const AttnShape& shape, int64_t num_sequences, int64_t num_keys);

}  // namespace weft::WEFT_ISA_NS
