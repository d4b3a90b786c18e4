#pragma once

#include <cstdint>

#include "kernels/args.h"

namespace weft {

/// Upper bounds over every instruction set, for planning memory (those of linear() and moe() are in
/// scratch.h).

/// With this much attention() can spread the rows of `num_sequences` decoding sequences, `num_keys`
/// tokens long in all, over every thread; with less it runs slower, to the same bits.
int64_t attention_scratch_bound(const AttnShape& shape, int64_t num_sequences, int64_t num_keys);
/// What gdn() takes.
int64_t gdn_scratch_bound(const GdnShape& shape, int num_threads);

}  // namespace weft
