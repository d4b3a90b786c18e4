#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/safetensors.h"

namespace weft {

class ThreadPool;

/// The weights of a model directory: one model.safetensors, or the shards that
/// model.safetensors.index.json names. Headers are checked at open; data is read on demand. All
/// methods are thread-safe.
class Checkpoint {
 public:
  /// Opens every shard of `dir`. Errors name the file and the tensor: a shard or tensor that the
  /// index names and that is absent, a tensor in two shards, a shard name that is not a plain file
  /// name, everything that SafetensorsFile::open refuses.
  static Result<Checkpoint> open(const std::string& dir);

  const std::string& dir() const { return dir_; }
  /// The tensor of that name, or nullptr.
  const TensorInfo* find(std::string_view name) const;
  /// All names, sorted.
  std::vector<std::string_view> names() const;
  const std::vector<SafetensorsFile>& shards() const { return shards_; }
  /// Sum of the tensors' bytes.
  uint64_t total_bytes() const { return total_bytes_; }

  /// Copies the whole tensor into `dst`, whose size must be the tensor's. kNotFound for an unknown
  /// name, kDataLoss for a file that was truncated or changed since it was opened.
  Result<> read(std::string_view name, std::span<std::byte> dst) const;
  /// Copies bytes [offset, offset + dst.size()) of the tensor.
  Result<> read_range(std::string_view name, uint64_t offset, std::span<std::byte> dst) const;
  /// The whole tensor in a new buffer.
  Result<std::vector<std::byte>> load(std::string_view name) const;

  struct ReadRequest {
    std::string_view name;
    std::span<std::byte> dst;  ///< as large as the tensor
  };
  /// Reads many tensors with all threads of `pool`, in file order, large tensors in pieces.
  /// `progress(bytes_done)` is called from the workers, never by two at once; it may be empty.
  /// The first error stops the rest.
  Result<> read_all(std::span<const ReadRequest> requests, ThreadPool& pool,
                    const std::function<void(uint64_t bytes_done)>& progress) const;

 private:
  struct Entry {
    std::string_view name;  // into the shard's header
    uint32_t shard = 0;
    uint32_t tensor = 0;
  };

  Checkpoint(std::string dir, std::vector<SafetensorsFile> shards);
  Result<> build_entries();
  const Entry* find_entry(std::string_view name) const;
  const TensorInfo& info(const Entry& entry) const;

  std::string dir_;
  std::vector<SafetensorsFile> shards_;
  std::vector<Entry> entries_;  // sorted by name
  uint64_t total_bytes_ = 0;
};

}  // namespace weft
