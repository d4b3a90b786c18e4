#include "device/buffer.h"

#include <sys/mman.h>

#include <string>

#include "device/cuda.h"

namespace weft {
namespace {

constexpr int64_t kHugePage = int64_t{2} << 20;

int64_t mapped_bytes(int64_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

}  // namespace

Result<Buffer> Buffer::allocate(DeviceKind kind, int64_t bytes) {
  CHECK(bytes >= 0);
  Buffer buffer;
  buffer.kind_ = kind;
  if (bytes == 0) return buffer;
  if (kind == DeviceKind::kCuda) {
    buffer.data_ = static_cast<std::byte*>(TRY(cuda_allocate(bytes)));
  } else if (kind == DeviceKind::kPinned) {
    buffer.data_ = static_cast<std::byte*>(TRY(cuda_allocate_pinned(bytes)));
  } else {
    // Over-map by one huge page so that the buffer can start on a huge-page border.
    const int64_t length = mapped_bytes(bytes) + kHugePage;
    void* p = mmap(nullptr, static_cast<size_t>(length), PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED) {
      return exhausted("out of memory: " + std::to_string(bytes >> 20) +
                       " MiB could not be mapped");
    }
    const auto address = reinterpret_cast<uintptr_t>(p);
    const uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
    const uintptr_t end = aligned + static_cast<uintptr_t>(mapped_bytes(bytes));
    if (aligned > address) munmap(p, aligned - address);
    if (address + static_cast<uintptr_t>(length) > end) {
      munmap(reinterpret_cast<void*>(end), address + static_cast<uintptr_t>(length) - end);
    }
    buffer.data_ = reinterpret_cast<std::byte*>(aligned);
    if (bytes >= kHugePage)
      madvise(buffer.data_, static_cast<size_t>(mapped_bytes(bytes)), MADV_HUGEPAGE);
  }
  buffer.bytes_ = bytes;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (kind_ == DeviceKind::kCuda) {
    cuda_free(data_);
  } else if (kind_ == DeviceKind::kPinned) {
    cuda_free_pinned(data_);
  } else {
    munmap(data_, static_cast<size_t>(mapped_bytes(bytes_)));
  }
}

}  // namespace weft
