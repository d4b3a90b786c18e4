#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"

namespace weft {

struct CudaDeviceInfo {
  std::string name;
  int sm_major = 0, sm_minor = 0;
  int64_t total_bytes = 0, free_bytes = 0;
  int num_sms = 0;
  std::string pci_address;  ///< "0000:1B:00.0"
  bool has_code = false;    ///< this binary has machine code that it can run
};

/// Whether this binary has CUDA code at all.
bool cuda_is_built();

/// The NVIDIA devices that this process can use. An Error says why there are none: built without
/// CUDA, no driver, a driver older than the toolkit, no device.
Result<std::vector<CudaDeviceInfo>> cuda_devices();

/// "13.0" and the like, or an Error as above. Toolkit this binary was built with / driver's level.
Result<std::string> cuda_runtime_version();
Result<std::string> cuda_driver_version();

/// Zeroed device memory on the current device. Error kExhausted when there is not enough.
Result<void*> cuda_allocate(int64_t bytes);
void cuda_free(void* data);
/// Pins whole pages of host memory, which then have one address for the host and the GPU.
Result<> cuda_pin(void* data, int64_t bytes);
void cuda_unpin(void* data);

}  // namespace weft
