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
  int64_t per_slot = 0;   ///< all recurrent layers, one state slot with its kept rows
  int64_t per_kept_row =
      0;  ///< all recurrent layers, the inputs of one row (nn/step.h, KeptInputs)
};

/// Values of one row that a recurrent layer goes through, [q | k | v | b | a], and padding.
int64_t kept_width(const GdnShape& shape);
CacheBytes cache_bytes(std::span<const CacheSpec> specs, const OpTable& ops, int64_t kept_rows = 0);

/// Owns the memory of all layers' caches. Which block belongs to whom is the scheduler's business.
class KvStore {
 public:
  /// Zeroed memory of the device of `ops`. A GPU's slots may have room for `kept_rows` rows behind
  /// their windows (kernels/gdn_slots.h).
  static Result<KvStore> create(std::span<const CacheSpec> specs, const OpTable& ops,
                                int64_t num_blocks, int64_t num_slots, int64_t kept_rows = 0);

  const LayerCache& layer(LayerId id) const { return layers_[static_cast<size_t>(id.value)]; }
  int64_t num_blocks() const { return num_blocks_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t bytes() const { return buffer_.bytes(); }

  /// Copies whole blocks, all layers and planes, in the order of the stream.
  void copy_block(Stream& stream, BlockId from, BlockId to);

  /// Takes host memory for so many blocks and states of displaced sequences, all layers and planes;
  /// with caches on a GPU it is pinned.
  Result<void> reserve_swap(int64_t num_blocks, int64_t num_slots);
  int64_t swap_bytes() const { return swap_.bytes(); }
  /// Copies a block, or the states in a slot, to entry `host` of that memory, or back, in the order
  /// of the stream.
  void swap_block(Stream& stream, BlockId block, int64_t host, bool out);
  void swap_slot(Stream& stream, int64_t slot, int64_t host, bool out);

 private:
  Buffer buffer_;
  DeviceKind device_ = DeviceKind::kCpu;
  std::vector<LayerCache> layers_;
  int64_t num_blocks_ = 0, num_slots_ = 0;

  template <class Visit>
  void visit_block(int64_t block, Visit&& visit) const;
  template <class Visit>
  void visit_slot(int64_t slot, Visit&& visit) const;
  Buffer swap_;  // [swap_blocks_][block of all layers], [swap_slots_][states of all layers]
  int64_t swap_blocks_ = 0, swap_slots_ = 0;
  int64_t swap_block_bytes_ = 0, swap_slot_bytes_ = 0;
};

}  // namespace weft
