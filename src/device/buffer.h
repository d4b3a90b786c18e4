#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

#include "base/result.h"

namespace weft {

enum class DeviceKind : uint8_t {
  kCpu,
  kCuda,
  kPinned,  ///< host memory that a GPU reads and writes at full speed
};

/// Owned memory of a device, aligned to 64 bytes at least. Host buffers of 2 MiB and more ask for
/// transparent huge pages; pages are zero, and those of the CPU become resident when first touched.
class Buffer {
 public:
  Buffer() = default;
  /// Error (kExhausted) when the device can't give that many bytes.
  static Result<Buffer> allocate(DeviceKind kind, int64_t bytes);
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    std::swap(kind_, other.kind_);
    return *this;
  }
  ~Buffer();

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
  DeviceKind kind_ = DeviceKind::kCpu;
};

/// A bump allocator over a Buffer for the temporaries of a step. Planned at load; running over is
/// a bug (CHECK), never an allocation.
class Arena {
 public:
  Arena() = default;
  explicit Arena(Buffer buffer) : buffer_(std::move(buffer)) {}

  /// `bytes` of memory aligned to 64 bytes, uninitialised.
  void* take(int64_t bytes) {
    const int64_t begin = used_;
    used_ += (bytes + 63) / 64 * 64;
    CHECK(used_ <= buffer_.bytes(), "the step arena is too small");
    peak_ = used_ > peak_ ? used_ : peak_;
    return buffer_.data() + begin;
  }
  int64_t mark() const { return used_; }
  void rewind(int64_t mark) { used_ = mark; }
  int64_t peak() const { return peak_; }
  int64_t capacity() const { return buffer_.bytes(); }

 private:
  Buffer buffer_;
  int64_t used_ = 0;
  int64_t peak_ = 0;
};

/// Rewinds an arena when it leaves scope.
class ArenaScope {
 public:
  explicit ArenaScope(Arena& arena) : arena_(arena), mark_(arena.mark()) {}
  ~ArenaScope() { arena_.rewind(mark_); }
  ArenaScope(const ArenaScope&) = delete;
  ArenaScope& operator=(const ArenaScope&) = delete;

 private:
  Arena& arena_;
  int64_t mark_;
};

}  // namespace weft
