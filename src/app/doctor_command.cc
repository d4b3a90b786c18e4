#include <sys/resource.h>
#include <unistd.h>

#include <cstdio>
#include <fstream>
#include <string>

#include "app/cli.h"
#include "app/version.h"
#include "device/cpu_info.h"
#include "device/cuda.h"

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

void print_gpu() {
  const Result<std::vector<CudaDeviceInfo>> devices = cuda_devices();
  if (access("/dev/nvidiactl", F_OK) != 0) {
    std::printf("gpu        none: /dev/nvidiactl is absent (no NVIDIA driver on this machine)\n");
  }
  if (!devices) {
    std::printf("cuda       %s\n", devices.error().message.c_str());
    return;
  }
  const Result<std::string> runtime = cuda_runtime_version(), driver = cuda_driver_version();
  std::printf("cuda       runtime %s, driver %s\n", runtime ? runtime->c_str() : "?",
              driver ? driver->c_str() : driver.error().message.c_str());
  for (const CudaDeviceInfo& d : *devices) {
    std::printf("gpu        %s, sm_%d%d, %d SMs, %.1f of %.1f GiB free%s\n", d.name.c_str(),
                d.sm_major, d.sm_minor, d.num_sms, gib(d.free_bytes), gib(d.total_bytes),
                d.sm_major == 9 ? "" : " (unfit: weft's kernels are built for sm_90a)");
  }
}

}  // namespace

int doctor_command() {
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
  print_gpu();
  std::printf("limits     open files %s, locked memory %s, address space %s\n",
              limit_text(RLIMIT_NOFILE).c_str(), limit_text(RLIMIT_MEMLOCK).c_str(),
              limit_text(RLIMIT_AS).c_str());
  return cpu.supported ? kExitOk : kExitRuntime;
}

}  // namespace weft
