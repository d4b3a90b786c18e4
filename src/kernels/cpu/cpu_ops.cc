#include "kernels/cpu/cpu_ops.h"

namespace weft {

// With sanitizers some sets are not compiled; they run as the narrowest there.
const OpTable& cpu_ops(CpuIsa isa) {
  switch (isa) {
#ifdef WEFT_HAS_amx
    case CpuIsa::kAmx: return amx::ops();
#endif
#ifdef WEFT_HAS_avx512bf16
    case CpuIsa::kAvx512Bf16: return avx512bf16::ops();
#endif
#ifdef WEFT_HAS_avx512
    case CpuIsa::kAvx512: return avx512::ops();
#endif
    default: return avx2::ops();
  }
}

}  // namespace weft
