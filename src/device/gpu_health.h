#pragma once

// Why a GPU can't be used, or is slower than it could be: what `weft doctor` says, and `--device
// cuda` where there is no GPU.

#include <optional>
#include <string>
#include <vector>

#include "device/cuda.h"

namespace weft {

/// What NVML tells of a device; empty where it tells nothing.
struct GpuState {
  std::optional<bool> mig, ecc, persistence;
  std::optional<int64_t> uncorrected_errors;  ///< since the driver was loaded
};

struct GpuFacts {
  bool cuda_build = true;  ///< this binary has CUDA code
  bool on_bus = false;     ///< PCI has a display or 3D controller of NVIDIA
  bool has_node = false;   ///< /dev/nvidiactl is there, or WSL's /dev/dxg
  bool may_open = false;   ///< and may be opened
  std::string runtime;     ///< "13.0": what this binary was built with
  std::string driver;      ///< "12.4": up to what the driver goes; empty: no driver
  std::string cuda_error;  ///< why there are no devices
  std::vector<CudaDeviceInfo> devices;
  std::vector<GpuState> states;  ///< of the devices, as far as NVML knows them
};

struct GpuFinding {
  enum class Weight {
    kNote,     ///< nothing is wrong
    kWarning,  ///< slow, or in danger
    kUnfit,    ///< weft can't run there
  };
  Weight weight = Weight::kNote;
  int device = -1;  ///< -1: of all
  std::string what;
  std::string remedy;  ///< one line; empty where there is nothing to do
};

/// Looks at this machine. Takes a second where the driver has to wake up.
GpuFacts gpu_facts();

/// The findings, the gravest cause first. None: all is well.
std::vector<GpuFinding> diagnose_gpus(const GpuFacts& facts);

/// The device that weft runs on (the first one); an Error says what is wrong and what helps.
Result<CudaDeviceInfo> usable_gpu(const GpuFacts& facts);

}  // namespace weft
