#include "kernels/cpu/cpu_ops.h"

namespace weft {

const OpTable& cpu_ops(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2: return avx2::ops();
    case CpuIsa::kAvx512: return avx512::ops();
    case CpuIsa::kAvx512Bf16: return avx512bf16::ops();
    case CpuIsa::kAmx: return amx::ops();
  }
  return avx2::ops();
}

}  // namespace weft
