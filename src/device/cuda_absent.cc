#include "device/cuda.h"

namespace weft {
namespace {

Error absent() {
  return unsupported("this weft was built without CUDA (build it with `make build CUDA=1`)");
}

}  // namespace

bool cuda_is_built() {
  return false;
}
Result<std::vector<CudaDeviceInfo>> cuda_devices() {
  return absent();
}
Result<std::string> cuda_runtime_version() {
  return absent();
}
Result<std::string> cuda_driver_version() {
  return absent();
}
Result<void*> cuda_allocate(int64_t) {
  return absent();
}
void cuda_free(void*) {}
Result<> cuda_pin(void*, int64_t) {
  return absent();
}
void cuda_unpin(void*) {}

}  // namespace weft
