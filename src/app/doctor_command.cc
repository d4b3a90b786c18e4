#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "app/cli.h"
#include "app/refusals.h"
#include "app/version.h"
#include "device/cpu_info.h"
#include "device/gpu_health.h"

namespace weft {
namespace {

std::string first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  return std::getline(file, line) ? line : std::string("not available");
}

std::string limit_text(int resource) {
  rlimit limit{};
  if (getrlimit(static_cast<__rlimit_resource>(resource), &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur);
}

double gib(int64_t bytes) {
  return static_cast<double>(bytes) / (1 << 30);
}

void print_gpus() {
  const GpuFacts facts = gpu_facts();
  if (facts.cuda_build) {
    std::printf("cuda       runtime %s, driver %s\n", facts.runtime.c_str(),
                facts.driver.empty() ? "none" : facts.driver.c_str());
  }
  for (size_t i = 0; i < facts.devices.size(); ++i) {
    const CudaDeviceInfo& d = facts.devices[i];
    std::printf("gpu %zu      %s, sm_%d%d, %d SMs, %.1f of %.1f GiB free\n", i, d.name.c_str(),
                d.sm_major, d.sm_minor, d.num_sms, gib(d.free_bytes), gib(d.total_bytes));
  }
  for (const GpuFinding& finding : diagnose_gpus(facts)) {
    const std::string where = finding.device < 0 ? "gpu" : "gpu " + std::to_string(finding.device);
    const char* weight = finding.weight == GpuFinding::Weight::kUnfit     ? "UNFIT: "
                         : finding.weight == GpuFinding::Weight::kWarning ? "warning: "
                                                                          : "";
    std::printf("%-10s %s%s\n           help: %s\n", where.c_str(), weight, finding.what.c_str(),
                finding.remedy.c_str());
  }
}

}  // namespace

int doctor_command(bool refusals) {
  if (refusals) {
    std::fputs(refusals_page().c_str(), stdout);
    return kExitOk;
  }
  const CpuInfo cpu = cpu_info();
  std::printf("weft       %s\n", kVersion);
  std::printf("cpu        %s, %d usable\n", cpu.model.c_str(), cpu.num_cpus);
  std::printf("kernels    %s\n", cpu.supported ? std::string(cpu_isa_name(cpu.isa)).c_str()
                                               : "none: this CPU has no AVX2, FMA and F16C");
  std::printf("caches     L2 %.1f MiB, L3 %.1f MiB\n",
              static_cast<double>(cpu.l2_bytes) / (1 << 20),
              static_cast<double>(cpu.l3_bytes) / (1 << 20));
  std::printf("memory     %.1f of %.1f GiB available\n", gib(cpu.available_bytes),
              gib(cpu.memory_bytes));
  std::printf("hugepages  %s\n", first_line("/sys/kernel/mm/transparent_hugepage/enabled").c_str());
  print_gpus();
  std::printf("limits     open files %s, locked memory %s, address space %s\n",
              limit_text(RLIMIT_NOFILE).c_str(), limit_text(RLIMIT_MEMLOCK).c_str(),
              limit_text(RLIMIT_AS).c_str());
  return cpu.supported ? kExitOk : kExitRuntime;
}

}  // namespace weft
