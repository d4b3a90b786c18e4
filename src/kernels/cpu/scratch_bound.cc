#include "kernels/cpu/scratch_bound.h"

#include <algorithm>

#define WEFT_DECLARE_SCRATCH(isa)                                                \
  namespace isa {                                                                \
  int64_t attention_scratch_bytes(const AttnShape& shape, int64_t num_sequences, \
                                  int64_t num_keys);                             \
  int64_t gdn_scratch_bytes(const GdnShape& shape, int threads);                 \
  }

namespace weft {

WEFT_DECLARE_SCRATCH(avx2)
WEFT_DECLARE_SCRATCH(avx512)
WEFT_DECLARE_SCRATCH(avx512bf16)
WEFT_DECLARE_SCRATCH(amx)

int64_t attention_scratch_bound(const AttnShape& shape, int64_t num_sequences, int64_t num_keys) {
  return std::max({avx2::attention_scratch_bytes(shape, num_sequences, num_keys),
                   avx512::attention_scratch_bytes(shape, num_sequences, num_keys),
                   avx512bf16::attention_scratch_bytes(shape, num_sequences, num_keys),
                   amx::attention_scratch_bytes(shape, num_sequences, num_keys)});
}

int64_t gdn_scratch_bound(const GdnShape& shape, int num_threads) {
  return std::max({avx2::gdn_scratch_bytes(shape, num_threads),
                   avx512::gdn_scratch_bytes(shape, num_threads),
                   avx512bf16::gdn_scratch_bytes(shape, num_threads),
                   amx::gdn_scratch_bytes(shape, num_threads)});
}

}  // namespace weft
