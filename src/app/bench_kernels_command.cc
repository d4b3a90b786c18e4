// weft bench kernels: the workshops of the kernels (bench/kernels), built beside this binary. Each
// checks its results against the reference first, then prints a row a line.

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>

#include "app/cli.h"
#include "device/gpu_health.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kGpuSuffix = "_gpu_bench";
constexpr std::string_view kCpuWorkshops[] = {"attention_bench", "gdn_bench", "gemm_bench"};

bool is_workshop(const std::string& name, bool on_gpu) {
  if (on_gpu) return name.ends_with(kGpuSuffix);
  return std::find(std::begin(kCpuWorkshops), std::end(kCpuWorkshops), name) !=
         std::end(kCpuWorkshops);
}

Result<std::vector<fs::path>> find_workshops(const fs::path& directory, bool on_gpu,
                                             const std::string& only) {
  std::vector<fs::path> out;
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(directory, error)) {
    const std::string name = entry.path().filename().string();
    if (entry.is_regular_file(error) && access(entry.path().c_str(), X_OK) == 0 &&
        is_workshop(name, on_gpu) && name.find(only) != std::string::npos) {
      out.push_back(entry.path());
    }
  }
  if (out.empty()) {
    return not_found("no workshop " + (only.empty() ? "" : "named *" + only + "* ") +
                     (on_gpu ? "for the GPU" : "for the CPU") + " in " + directory.string() +
                     " (build them: " +
                     (on_gpu ? "cmake --preset cuda-kernels, bench/gpu.sh" : "make bench") + ")");
  }
  std::sort(out.begin(), out.end());
  return out;
}

/// True if it ended with 0.
bool run_workshop(const fs::path& program) {
  std::string path = program.string();
  char* arguments[] = {path.data(), nullptr};
  pid_t child = 0;
  std::fflush(stdout);
  if (posix_spawn(&child, path.c_str(), nullptr, nullptr, arguments, environ) != 0) return false;
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return false;
  }
  return WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

Result<int> run(const BenchKernelsOptions& options) {
  bool on_gpu = options.device == "cuda";
  if (options.device != "cpu") {
    const Result<CudaDeviceInfo> gpu = usable_gpu(gpu_facts());
    if (!gpu && on_gpu) return with_context(gpu.error(), "--device cuda");
    on_gpu = gpu.ok();
  }
  std::error_code error;
  const fs::path self = fs::read_symlink("/proc/self/exe", error);
  const fs::path directory =
      options.directory.empty() ? self.parent_path() / "bench" : fs::path(options.directory);
  int failed = 0;
  for (const fs::path& workshop : TRY(find_workshops(directory, on_gpu, options.only))) {
    if (run_workshop(workshop)) continue;
    ++failed;
    std::fprintf(stderr, "weft: %s failed\n", workshop.filename().c_str());
  }
  return failed == 0 ? kExitOk : kExitRuntime;
}

}  // namespace

int bench_kernels_command(const BenchKernelsOptions& options) {
  const Result<int> code = run(options);
  return code ? *code : report_error(code.error());
}

}  // namespace weft
