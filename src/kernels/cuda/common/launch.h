#pragma once

// Host side of a launch: error checks, the stream, attributes. Included by .cu files alone.

#include <cuda_runtime.h>

#include <string>

#include "base/check.h"
#include "device/stream.h"

namespace weft::cuda {

/// A CUDA call that can fail only by our fault (or that of a broken GPU).
inline void check(cudaError_t status, const char* what) {
  CHECK(status == cudaSuccess, std::string("CUDA: ") + what + ": " + cudaGetErrorString(status));
}

inline cudaStream_t native(const Stream& stream) {
  return static_cast<cudaStream_t>(stream.native());
}

/// Multiprocessors of the GPU.
inline int num_processors() {
  static const int count = [] {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "processors");
    return value;
  }();
  return count;
}

/// How a kernel is launched. With `overlap` the kernel may begin while its predecessor on the
/// stream drains (programmatic dependent launch): it must call wait_for_predecessor() (ptx.h)
/// before it touches anything that earlier kernels write or read.
struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  unsigned cluster = 1;  ///< blocks of a cluster along x
  bool overlap = false;
};

/// Launches `kernel`; shared memory above 48 KiB is asked for. The arguments must have exactly the
/// kernel's parameter types.
template <class... P>
void launch(Stream& stream, const LaunchShape& shape, void (*kernel)(P...), const P&... args) {
  if (shape.shared_bytes > 48 * 1024) {
    check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                               cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shape.shared_bytes)),
          "shared memory of a kernel");
  }
  cudaLaunchAttribute attributes[2];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = shape.cluster;
    attributes[count].val.clusterDim.y = 1;
    attributes[count++].val.clusterDim.z = 1;
  }
  if (shape.overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = native(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  check(cudaLaunchKernelEx(&config, kernel, args...), "launch");
}

}  // namespace weft::cuda
