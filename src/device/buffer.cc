#include "device/buffer.h"

#include <sys/mman.h>

#include <string>
#include <utility>

#include "device/cuda.h"

namespace weft {
namespace {

constexpr int64_t kPage = 4096, kHugePage = int64_t{2} << 20;

int64_t mapped_bytes(int64_t bytes) {
  return (bytes + kHugePage - 1) / kHugePage * kHugePage;
}

int64_t pinned_bytes(int64_t bytes) {
  return (bytes + kPage - 1) / kPage * kPage;
}

/// Zeroed memory from a huge-page border on, in huge pages where the system gives them: pinning
/// takes a tenth of the time then.
Result<std::byte*> map_memory(int64_t bytes) {
  // Over-map by one huge page so that the buffer can start on a huge-page border.
  const int64_t length = mapped_bytes(bytes) + kHugePage;
  void* p = mmap(nullptr, static_cast<size_t>(length), PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (p == MAP_FAILED) {
    return exhausted("out of memory: " + std::to_string(bytes >> 20) + " MiB could not be mapped");
  }
  const auto address = reinterpret_cast<uintptr_t>(p);
  const uintptr_t aligned = (address + kHugePage - 1) / kHugePage * kHugePage;
  const uintptr_t end = aligned + static_cast<uintptr_t>(mapped_bytes(bytes));
  if (aligned > address) munmap(p, aligned - address);
  if (address + static_cast<uintptr_t>(length) > end) {
    munmap(reinterpret_cast<void*>(end), address + static_cast<uintptr_t>(length) - end);
  }
  auto* data = reinterpret_cast<std::byte*>(aligned);
  if (bytes >= kHugePage) madvise(data, static_cast<size_t>(mapped_bytes(bytes)), MADV_HUGEPAGE);
  return data;
}

}  // namespace

Result<Buffer> Buffer::allocate(DeviceKind kind, int64_t bytes) {
  CHECK(bytes >= 0);
  Buffer buffer;
  buffer.kind_ = kind;
  if (bytes == 0) return buffer;
  if (kind == DeviceKind::kCuda) {
    buffer.data_ = static_cast<std::byte*>(TRY(cuda_allocate(bytes)));
    buffer.bytes_ = bytes;
    return buffer;
  }
  buffer.data_ = TRY(map_memory(bytes));
  if (kind == DeviceKind::kPinned) {
    if (auto pinned = cuda_pin(buffer.data_, pinned_bytes(bytes)); !pinned.ok()) {
      munmap(std::exchange(buffer.data_, nullptr), static_cast<size_t>(mapped_bytes(bytes)));
      return std::move(pinned).error();
    }
  }
  buffer.bytes_ = bytes;
  return buffer;
}

Buffer::~Buffer() {
  if (data_ == nullptr) return;
  if (kind_ == DeviceKind::kCuda) {
    cuda_free(data_);
    return;
  }
  if (kind_ == DeviceKind::kPinned) cuda_unpin(data_);
  munmap(data_, static_cast<size_t>(mapped_bytes(bytes_)));
}

}  // namespace weft
