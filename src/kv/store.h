#pragma once

#include <span>
#include <vector>

#include "base/ids.h"
#include "device/buffer.h"
#include "kernels/op_table.h"
#include "kv/spec.h"

namespace weft {

/// Bytes that a model's caches take.
struct CacheBytes {
  int64_t per_block = 0;  ///< all paged layers, one block of block_size tokens
  int64_t per_slot = 0;   ///< all recurrent layers, one state slot
  int64_t per_kept_row =
      0;  ///< all recurrent layers, the inputs of one row (nn/step.h, KeptInputs)
};

/// Values of one row that a recurrent layer goes through, [q | k | v | b | a], and padding.
int64_t kept_width(const GdnShape& shape);
CacheBytes cache_bytes(std::span<const CacheSpec> specs, const OpTable& ops);

/// Owns the memory of all layers' caches. Which block belongs to whom is the scheduler's business.
class KvStore {
 public:
  /// Zeroed memory of the device of `ops`.
  static Result<KvStore> create(std::span<const CacheSpec> specs, const OpTable& ops,
                                int64_t num_blocks, int64_t num_slots);

  const LayerCache& layer(LayerId id) const { return layers_[static_cast<size_t>(id.value)]; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t bytes() const { return buffer_.bytes(); }

  /// Copies whole blocks, all layers and planes, in the order of the stream.
  void copy_block(Stream& stream, BlockId from, BlockId to);

 private:
  Buffer buffer_;
  std::vector<LayerCache> layers_;
  int64_t num_blocks_ = 0, num_slots_ = 0;
};

}  // namespace weft
