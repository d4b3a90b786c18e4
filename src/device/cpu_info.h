#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace weft {

/// Instruction sets the CPU kernels are built for, each containing those before it.
enum class CpuIsa : uint8_t {
  kAvx2,        ///< AVX2, FMA, F16C: the least that weft runs on
  kAvx512,      ///< + AVX-512 F, BW, DQ, VL
  kAvx512Bf16,  ///< + AVX-512 VNNI and BF16
  kAmx,         ///< + AMX tiles (bf16, int8), permitted by the kernel
};

std::string_view cpu_isa_name(CpuIsa isa);  ///< "avx2", "avx512", "avx512_bf16", "amx"

struct CpuInfo {
  std::string model;
  bool supported = false;  ///< false: below kAvx2
  CpuIsa isa = CpuIsa::kAvx2;
  int num_cpus = 1;  ///< usable_cpus()
  int64_t l2_bytes = 0, l3_bytes = 0;
  int64_t memory_bytes = 0;     ///< physical memory, or the cgroup's limit where smaller
  int64_t available_bytes = 0;  ///< what can be had now, within the cgroup's limit
};

/// Reads cpuid and /proc; asks the kernel for the AMX tile state once per process when the CPU has
/// it (arch_prctl; every thread started afterwards has it too, so call this before starting pools).
CpuInfo cpu_info();

}  // namespace weft
