#include "device/gpu_health.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

namespace weft {
namespace {

using Weight = GpuFinding::Weight;

std::string first_line(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

bool nvidia_on_bus() {
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/sys/bus/pci/devices", error)) {
    // Class 03: display controllers, 3D controllers among them.
    if (first_line(entry.path() / "vendor") == "0x10de" &&
        first_line(entry.path() / "class").starts_with("0x03")) {
      return true;
    }
  }
  return false;
}

/// The management library of the driver, where it is: its own functions by name, no header needed.
class Nvml {
 public:
  Nvml() : library_(dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL)) {
    if (library_ && call<int()>("nvmlInit_v2") != 0) close();
  }
  ~Nvml() { close(); }
  Nvml(const Nvml&) = delete;
  Nvml& operator=(const Nvml&) = delete;

  /// Of the device at a PCI address: CUDA's order and choice may differ from NVML's.
  GpuState state_of(const std::string& pci_address) const {
    GpuState state;
    void* device = nullptr;
    if (!library_ || pci_address.empty() ||
        call<int(const char*, void**)>("nvmlDeviceGetHandleByPciBusId_v2", pci_address.c_str(),
                                       &device) != 0) {
      return state;
    }
    unsigned now = 0, later = 0;
    unsigned long long count = 0;
    using TwoModes = int(void*, unsigned*, unsigned*);
    if (call<TwoModes>("nvmlDeviceGetMigMode", device, &now, &later) == 0) state.mig = now != 0;
    if (call<TwoModes>("nvmlDeviceGetEccMode", device, &now, &later) == 0) state.ecc = now != 0;
    if (call<int(void*, unsigned*)>("nvmlDeviceGetPersistenceMode", device, &now) == 0) {
      state.persistence = now != 0;
    }
    constexpr int kUncorrected = 1, kVolatile = 0;
    if (call<int(void*, int, int, unsigned long long*)>("nvmlDeviceGetTotalEccErrors", device,
                                                        kUncorrected, kVolatile, &count) == 0) {
      state.uncorrected_errors = static_cast<int64_t>(count);
    }
    return state;
  }

 private:
  template <class F, class... A>
  int call(const char* name, A... args) const {
    auto* const function = reinterpret_cast<F*>(dlsym(library_, name));
    return function ? function(args...) : -1;
  }
  void close() {
    if (!library_) return;
    call<int()>("nvmlShutdown");
    dlclose(library_);
    library_ = nullptr;
  }
  void* library_;
};

int major_of(const std::string& version) {
  return std::atoi(version.c_str());
}

/// The first branch of the driver that has a CUDA major version.
std::string driver_branch(int cuda_major) {
  switch (cuda_major) {
    case 12: return " (branch 525 or later)";
    case 13: return " (branch 580 or later)";
    default: return "";
  }
}

std::string gib(int64_t bytes) {
  const int64_t tenths = bytes * 10 / (int64_t{1} << 30);
  return std::to_string(tenths / 10) + "." + std::to_string(tenths % 10);
}

/// Why there is no device at all.
GpuFinding no_device(const GpuFacts& f) {
  const bool has_gpu = f.on_bus || f.has_node;
  if (!has_gpu) {
    return {Weight::kNote, -1, "no NVIDIA GPU on this machine",
            "none needed for the CPU; in a container, start it with `--gpus all`"};
  }
  if (!f.cuda_build) {
    return {Weight::kUnfit, -1, "this weft was built without CUDA",
            "build it with `make build CUDA=1`"};
  }
  if (!f.has_node) {
    return {Weight::kUnfit, -1, "a GPU is there, but no driver is loaded (no /dev/nvidiactl)",
            "install NVIDIA's driver" + driver_branch(major_of(f.runtime)) +
                " or `sudo modprobe nvidia`; in a container, start it with `--gpus all`"};
  }
  if (!f.may_open) {
    return {Weight::kUnfit, -1, "/dev/nvidiactl may not be opened by this user",
            "add the user to the group that owns it (`ls -l /dev/nvidiactl`)"};
  }
  if (f.driver.empty()) {
    return {Weight::kUnfit, -1, "the driver's library libcuda.so.1 was not found",
            "install the driver's CUDA package (libcuda1); in a container, "
            "NVIDIA_DRIVER_CAPABILITIES needs compute"};
  }
  if (major_of(f.driver) < major_of(f.runtime)) {
    return {Weight::kUnfit, -1,
            "the driver goes up to CUDA " + f.driver + ", this weft was built with " + f.runtime,
            "install a newer driver" + driver_branch(major_of(f.runtime)) +
                ", or build weft with the toolkit of CUDA " + std::to_string(major_of(f.driver))};
  }
  return {Weight::kUnfit, -1, "CUDA finds no device: " + f.cuda_error,
          "CUDA_VISIBLE_DEVICES must be unset or name one that `nvidia-smi -L` lists"};
}

/// Whether weft can run on it.
std::optional<GpuFinding> unfit(const CudaDeviceInfo& gpu, int index) {
  const std::string sm = std::to_string(gpu.sm_major) + "." + std::to_string(gpu.sm_minor);
  if (gpu.sm_major != 9 || gpu.sm_minor != 0) {
    return GpuFinding{
        Weight::kUnfit, index,
        gpu.name + " has compute capability " + sm + "; weft's kernels are for 9.0 (Hopper)",
        "use an H100, H200 or GH200, or `--device cpu`"};
  }
  if (!gpu.has_code) {
    return GpuFinding{Weight::kUnfit, index,
                      "this binary has no machine code for compute capability " + sm,
                      "build it again with `make build CUDA=1` (it compiles for sm_90a)"};
  }
  return {};
}

void diagnose(const CudaDeviceInfo& gpu, const GpuState& state, int index,
              std::vector<GpuFinding>& out) {
  const std::string i = std::to_string(index);
  if (std::optional<GpuFinding> finding = unfit(gpu, index)) out.push_back(std::move(*finding));
  if (state.uncorrected_errors.value_or(0) > 0) {
    out.push_back({Weight::kWarning, index,
                   std::to_string(*state.uncorrected_errors) + " uncorrected memory errors (ECC)",
                   "reset it with `sudo nvidia-smi --gpu-reset -i " + i +
                       "`; if they come back, have the card replaced"});
  }
  if (state.ecc.has_value() && !*state.ecc) {
    out.push_back({Weight::kWarning, index, "ECC is off: flipped bits go unnoticed",
                   "`sudo nvidia-smi -e 1 -i " + i + "`, then restart the machine"});
  }
  if (gpu.free_bytes < gpu.total_bytes / 2) {
    out.push_back({Weight::kWarning, index,
                   "only " + gib(gpu.free_bytes) + " of " + gib(gpu.total_bytes) +
                       " GiB of its memory are free",
                   "end the processes that `nvidia-smi` lists, or take a quantised model"});
  }
  if (state.mig.value_or(false)) {
    out.push_back({Weight::kWarning, index,
                   "it is cut into instances (MIG); this one has " + std::to_string(gpu.num_sms) +
                       " multiprocessors",
                   "for all of it `sudo nvidia-smi -i " + i + " -mig 0`"});
  }
  if (state.persistence.has_value() && !*state.persistence) {
    out.push_back({Weight::kNote, index,
                   "persistence is off: the driver starts anew with every first process",
                   "`sudo nvidia-smi -pm 1`"});
  }
}

}  // namespace

GpuFacts gpu_facts() {
  GpuFacts facts;
  facts.cuda_build = cuda_is_built();
  facts.on_bus = nvidia_on_bus();
  for (const char* node : {"/dev/nvidiactl", "/dev/dxg"}) {
    if (access(node, F_OK) != 0) continue;
    facts.has_node = true;
    facts.may_open |= access(node, R_OK | W_OK) == 0;
  }
  if (!facts.cuda_build) return facts;
  if (Result<std::string> version = cuda_runtime_version()) facts.runtime = *version;
  if (Result<std::string> version = cuda_driver_version()) facts.driver = *version;
  Result<std::vector<CudaDeviceInfo>> devices = cuda_devices();
  if (!devices) {
    facts.cuda_error = devices.error().message;
    return facts;
  }
  facts.devices = std::move(devices).value();
  const Nvml nvml;
  for (const CudaDeviceInfo& gpu : facts.devices) {
    facts.states.push_back(nvml.state_of(gpu.pci_address));
  }
  return facts;
}

std::vector<GpuFinding> diagnose_gpus(const GpuFacts& facts) {
  if (facts.devices.empty()) return {no_device(facts)};
  std::vector<GpuFinding> out;
  for (size_t i = 0; i < facts.devices.size(); ++i) {
    const GpuState state = i < facts.states.size() ? facts.states[i] : GpuState{};
    diagnose(facts.devices[i], state, static_cast<int>(i), out);
  }
  return out;
}

Result<CudaDeviceInfo> usable_gpu(const GpuFacts& facts) {
  const auto refused = [](const GpuFinding& finding) {
    return unsupported(finding.what + " (" + finding.remedy + ")");
  };
  if (facts.devices.empty()) return refused(no_device(facts));
  if (const auto finding = unfit(facts.devices.front(), 0)) return refused(*finding);
  return facts.devices.front();
}

}  // namespace weft
