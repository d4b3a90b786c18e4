#include "device/cpu_info.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "base/cgroup.h"
#include "base/thread_pool.h"

namespace weft {
namespace {

constexpr int kArchReqXcompPerm = 0x1023;
constexpr int kXfeatureTileData = 18;

uint64_t read_xcr0() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

bool bit(uint32_t word, int index) {
  return ((word >> index) & 1) != 0;
}

struct Features {
  bool avx2 = false, avx512 = false, vnni_bf16 = false, amx = false;
};

Features detect() {
  Features f;
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (__get_cpuid(1, &a, &b, &c, &d) == 0 || !bit(c, 27)) return f;  // OSXSAVE
  const uint64_t xcr0 = read_xcr0();
  const bool ymm = (xcr0 & 0x6) == 0x6, zmm = (xcr0 & 0xE6) == 0xE6,
             tile = (xcr0 & 0x60000) == 0x60000;
  const bool fma = bit(c, 12), f16c = bit(c, 29);
  if (__get_cpuid_count(7, 0, &a, &b, &c, &d) == 0) return f;
  f.avx2 = ymm && fma && f16c && bit(b, 5);
  f.avx512 = f.avx2 && zmm && bit(b, 16) && bit(b, 17) && bit(b, 30) && bit(b, 31);
  const bool vnni = bit(c, 11), vbmi = bit(c, 1), amx_bf16 = bit(d, 22), amx_tile = bit(d, 24),
             amx_int8 = bit(d, 25);
  uint32_t a1 = 0, b1 = 0, c1 = 0, d1 = 0;
  const bool bf16_bit = __get_cpuid_count(7, 1, &a1, &b1, &c1, &d1) != 0 && bit(a1, 5);
  f.vnni_bf16 = f.avx512 && vnni && bf16_bit;
  f.amx = f.vnni_bf16 && vbmi && tile && amx_bf16 && amx_tile && amx_int8 &&
          syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
  return f;
}

int64_t proc_value(const char* path, const std::string& key) {  // "Key:   123 kB" in bytes
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    if (line.rfind(key, 0) == 0) return std::stoll(line.substr(key.size() + 1)) * 1024;
  }
  return 0;
}

std::string model_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);) {
    if (line.rfind("model name", 0) == 0) return line.substr(line.find(':') + 2);
  }
  return "unknown CPU";
}

}  // namespace

std::string_view cpu_isa_name(CpuIsa isa) {
  switch (isa) {
    case CpuIsa::kAvx2: return "avx2";
    case CpuIsa::kAvx512: return "avx512";
    case CpuIsa::kAvx512Bf16: return "avx512_bf16";
    case CpuIsa::kAmx: return "amx";
  }
  return "?";
}

CpuInfo cpu_info() {
  const Features f = detect();
  CpuInfo info;
  info.model = model_name();
  info.supported = f.avx2;
  info.isa = f.amx         ? CpuIsa::kAmx
             : f.vnni_bf16 ? CpuIsa::kAvx512Bf16
             : f.avx512    ? CpuIsa::kAvx512
                           : CpuIsa::kAvx2;
  info.num_cpus = usable_cpus();
  info.l2_bytes = std::max(0L, sysconf(_SC_LEVEL2_CACHE_SIZE));
  info.l3_bytes = std::max(0L, sysconf(_SC_LEVEL3_CACHE_SIZE));
  info.memory_bytes = proc_value("/proc/meminfo", "MemTotal");
  info.available_bytes = proc_value("/proc/meminfo", "MemAvailable");
  const CgroupLimits limits = read_cgroup_limits();
  if (limits.memory_bytes && *limits.memory_bytes < info.memory_bytes) {
    info.memory_bytes = *limits.memory_bytes;
  }
  if (limits.available_bytes) {
    info.available_bytes = std::min(info.available_bytes, *limits.available_bytes);
  }
  return info;
}

}  // namespace weft
