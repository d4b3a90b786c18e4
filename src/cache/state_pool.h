#pragma once

#include <cstdint>
#include <vector>

#include "base/ids.h"

namespace weft {

/// Why a checkpoint was taken, which decides what it is worth.
enum class CheckpointKind : uint8_t {
  kDense,    ///< taken because a slot was idle; worth the gap to the checkpoint before it
  kPlanned,  ///< end of a prompt, long-prompt interval, end of a turn: worth its whole prefix
  kProven,   ///< a branch point, or hit before: several prompts share it; worth four times that
};

/// A recurrent state that a later request can continue from.
struct StateCheckpoint {
  BlockId block;         ///< the KV block whose end it describes
  int64_t position = 0;  ///< tokens consumed
  SlotId parent;         ///< the nearest shallower checkpoint of the same prefix; invalid: none
  CheckpointKind kind = CheckpointKind::kDense;
};

/// Bookkeeping of recurrent-state slots. A slot is free, used (a sequence or a step in flight holds
/// it) and/or a cached checkpoint; a cached slot without holders is evictable. Saving a state never
/// copies it: the live slot itself becomes the checkpoint and the sequence goes on in a fresh one.
/// Eviction takes the smallest worth (recompute tokens saved) / (age in uses), O(num_slots).
class StatePool {
 public:
  explicit StatePool(int num_slots);

  int num_slots() const { return static_cast<int>(slots_.size()); }
  int num_free() const { return static_cast<int>(free_.size()); }
  int num_evictable() const { return num_evictable_; }
  int num_used() const { return num_slots() - num_free() - num_evictable_; }
  int available() const { return num_free() + num_evictable_; }
  int64_t total_refs() const { return total_refs_; }
  int num_cached() const { return num_cached_; }
  int refs(SlotId id) const { return slot(id).refs; }
  bool cached(SlotId id) const { return slot(id).cached; }
  const StateCheckpoint& checkpoint(SlotId id) const { return slot(id).checkpoint; }

  struct Allocation {
    SlotId slot;      ///< invalid: none can be had
    BlockId evicted;  ///< the block that lost its checkpoint; invalid: a free slot was taken
  };
  /// A slot for a sequence to run in, with one holder: a free one, else the least worthy
  /// checkpoint's.
  Allocation allocate();
  /// The same for the sake of a new checkpoint at `position`: displaces only one worth less than
  /// that, and for a dense one only a dense one.
  Allocation allocate_for_checkpoint(CheckpointKind kind, int64_t position);

  void ref(SlotId id);
  void unref(SlotId id);
  /// A held slot becomes a checkpoint (it may stay held).
  void cache(SlotId id, const StateCheckpoint& checkpoint);
  /// It stops being one; checkpoints behind it now count from its parent. Free when nobody holds
  /// it.
  void uncache(SlotId id);
  /// A hit: most recently used, and kProven from now on.
  void touch(SlotId id);
  /// Raises its kind to at least `kind`.
  void raise(SlotId id, CheckpointKind kind);

  /// True when the lists and the counters agree. O(num_slots).
  bool consistent() const;

 private:
  struct Slot {
    int refs = 0;
    bool cached = false;
    uint64_t last_use = 0;
    StateCheckpoint checkpoint;
  };
  Slot& slot(SlotId id);
  const Slot& slot(SlotId id) const;
  double worth(const StateCheckpoint& checkpoint, uint64_t last_use) const;
  Allocation take(bool dense_only, double below);

  std::vector<Slot> slots_;
  std::vector<int> free_;
  uint64_t clock_ = 0;  // counts uses (a checkpoint made, hit or refused), not time
  int num_evictable_ = 0;
  int num_cached_ = 0;
  int64_t total_refs_ = 0;
};

}  // namespace weft
