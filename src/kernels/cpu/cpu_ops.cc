#include "kernels/cpu/cpu_ops.h"

#include "device/cpu_info.h"

namespace weft {
namespace {

/// Null: not compiled into this build (CMakeLists.txt: with sanitizers some are not).
const OpTable* table_of(CpuIsa isa) {
  switch (isa) {
#ifdef WEFT_HAS_amx
    case CpuIsa::kAmx: return &amx::ops();
#endif
#ifdef WEFT_HAS_avx512bf16
    case CpuIsa::kAvx512Bf16: return &avx512bf16::ops();
#endif
#ifdef WEFT_HAS_avx512
    case CpuIsa::kAvx512: return &avx512::ops();
#endif
    case CpuIsa::kAvx2: return &avx2::ops();
    default: return nullptr;
  }
}

}  // namespace

const OpTable& cpu_ops(CpuIsa isa) {
  const OpTable* table = table_of(isa);
  return table != nullptr ? *table : avx2::ops();
}

std::vector<CpuIsa> cpu_isas() {
  std::vector<CpuIsa> out;
  const CpuIsa widest = cpu_info().isa;
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    if (isa <= widest && table_of(isa) != nullptr) out.push_back(isa);
  }
  return out;
}

}  // namespace weft
