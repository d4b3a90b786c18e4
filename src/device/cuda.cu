#include <cuda_runtime_api.h>

#include "device/cuda.h"

namespace weft {
namespace {

/// Compiled for what all kernels are compiled for: a device that can load it can run them.
__global__ void probe_kernel() {}

Error cuda_error(const char* what, cudaError_t status) {
  return unavailable(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

}  // namespace

bool cuda_is_built() {
  return true;
}

Result<std::vector<CudaDeviceInfo>> cuda_devices() {
  int count = 0, current = 0;
  if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
    return cuda_error("no usable device", status);
  }
  cudaGetDevice(&current);
  std::vector<CudaDeviceInfo> devices;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties;
    if (const cudaError_t status = cudaGetDeviceProperties(&properties, i); status != cudaSuccess) {
      return cuda_error("device properties", status);
    }
    CudaDeviceInfo info{.name = properties.name,
                        .sm_major = properties.major,
                        .sm_minor = properties.minor,
                        .total_bytes = static_cast<int64_t>(properties.totalGlobalMem),
                        .num_sms = properties.multiProcessorCount};
    size_t free_bytes = 0, total_bytes = 0;
    cudaFuncAttributes attributes;
    char address[32];
    if (cudaSetDevice(i) == cudaSuccess &&
        cudaMemGetInfo(&free_bytes, &total_bytes) == cudaSuccess) {
      info.free_bytes = static_cast<int64_t>(free_bytes);
      info.has_code = cudaFuncGetAttributes(&attributes, probe_kernel) == cudaSuccess;
    }
    if (cudaDeviceGetPCIBusId(address, sizeof address, i) == cudaSuccess) {
      info.pci_address = address;
    }
    cudaGetLastError();  // of these questions, so that none is taken for a kernel's
    devices.push_back(std::move(info));
  }
  cudaSetDevice(current);
  return devices;
}

Result<std::string> cuda_runtime_version() {
  int version = 0;
  if (const cudaError_t status = cudaRuntimeGetVersion(&version); status != cudaSuccess) {
    return cuda_error("runtime version", status);
  }
  return version_text(version);
}

Result<std::string> cuda_driver_version() {
  int version = 0;
  if (const cudaError_t status = cudaDriverGetVersion(&version); status != cudaSuccess) {
    return cuda_error("driver version", status);
  }
  if (version == 0) return unavailable("CUDA: no NVIDIA driver is installed");
  return version_text(version);
}

Result<void*> cuda_allocate(int64_t bytes) {
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, static_cast<size_t>(bytes));
  if (status == cudaErrorMemoryAllocation) {
    return exhausted("CUDA: out of device memory asking for " + std::to_string(bytes >> 20) +
                     " MiB");
  }
  if (status != cudaSuccess) return cuda_error("cudaMalloc", status);
  // The memset is asynchronous, and streams of ours don't wait for the default one: they would
  // write first and be zeroed then.
  cudaError_t zeroed = cudaMemset(data, 0, static_cast<size_t>(bytes));
  if (zeroed == cudaSuccess) zeroed = cudaStreamSynchronize(nullptr);
  if (zeroed != cudaSuccess) {
    cudaFree(data);
    return cuda_error("cudaMemset", zeroed);
  }
  return data;
}

void cuda_free(void* data) {
  cudaFree(data);
}

Result<> cuda_pin(void* data, int64_t bytes) {
  const cudaError_t status =
      cudaHostRegister(data, static_cast<size_t>(bytes), cudaHostRegisterDefault);
  if (status == cudaErrorMemoryAllocation) {
    return exhausted("CUDA: " + std::to_string(bytes >> 20) + " MiB could not be pinned");
  }
  if (status != cudaSuccess) return cuda_error("cudaHostRegister", status);
  return {};
}

void cuda_unpin(void* data) {
  cudaHostUnregister(data);
}

}  // namespace weft
