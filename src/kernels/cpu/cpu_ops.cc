#include "kernels/cpu/cpu_ops.h"

namespace weft {

const OpTable& cpu_ops(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAmx: return amx::ops();
#ifndef WEFT_FEW_ISAS  // then the sets between run as the narrowest
    case CpuIsa::kAvx512Bf16: return avx512bf16::ops();
    case CpuIsa::kAvx512: return avx512::ops();
#endif
    default: return avx2::ops();
  }
}

}  // namespace weft
