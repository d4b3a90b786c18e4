#include "cache/state_pool.h"

#include <algorithm>
#include <limits>

#include "base/check.h"

namespace weft {

StatePool::StatePool(int num_slots) : slots_(static_cast<size_t>(num_slots)) {
  free_.reserve(slots_.size());
  for (int i = num_slots; i-- > 0;) free_.push_back(i);
}

StatePool::Slot& StatePool::slot(SlotId id) {
  CHECK(id.value >= 0 && id.value < num_slots());
  return slots_[static_cast<size_t>(id.value)];
}

const StatePool::Slot& StatePool::slot(SlotId id) const {
  CHECK(id.value >= 0 && id.value < num_slots());
  return slots_[static_cast<size_t>(id.value)];
}

double StatePool::worth(const StateCheckpoint& checkpoint, uint64_t last_use) const {
  int64_t saved = checkpoint.position;
  if (checkpoint.kind == CheckpointKind::kProven) saved *= 4;
  if (checkpoint.kind == CheckpointKind::kDense && checkpoint.parent.valid()) {
    saved -= slot(checkpoint.parent).checkpoint.position;
  }
  return static_cast<double>(saved) / static_cast<double>(clock_ - last_use + 1);
}

StatePool::Allocation StatePool::allocate() {
  return take(/*dense_only=*/false, std::numeric_limits<double>::infinity());
}

StatePool::Allocation StatePool::allocate_for_checkpoint(CheckpointKind kind, int64_t position) {
  const bool dense = kind == CheckpointKind::kDense;
  const Allocation got = take(dense, worth({.position = position, .kind = kind}, clock_));
  // A wish refused counts as a use: what nobody hits must not win for ever.
  if (!got.slot.valid() && !dense) ++clock_;
  return got;
}

StatePool::Allocation StatePool::take(bool dense_only, double below) {
  Allocation result;
  if (free_.empty()) {
    double least = below;
    for (int i = 0; i < num_slots(); ++i) {
      const Slot& s = slots_[static_cast<size_t>(i)];
      if (!s.cached || s.refs > 0) continue;
      if (dense_only && s.checkpoint.kind != CheckpointKind::kDense) continue;
      const double w = worth(s.checkpoint, s.last_use);
      if (w >= least) continue;
      result.slot.value = i;
      least = w;
    }
    if (!result.slot.valid()) return result;
    result.evicted = slot(result.slot).checkpoint.block;
    uncache(result.slot);
  }
  result.slot.value = free_.back();
  free_.pop_back();
  slot(result.slot).refs = 1;
  ++total_refs_;
  return result;
}

void StatePool::ref(SlotId id) {
  Slot& s = slot(id);
  CHECK(s.refs > 0 || s.cached, "a free slot has no state to share");
  if (s.refs == 0) --num_evictable_;
  ++s.refs;
  ++total_refs_;
}

void StatePool::unref(SlotId id) {
  Slot& s = slot(id);
  CHECK(s.refs > 0, "slot released twice");
  --total_refs_;
  if (--s.refs > 0) return;
  if (s.cached) {
    ++num_evictable_;
  } else {
    free_.push_back(id.value);
  }
}

void StatePool::cache(SlotId id, const StateCheckpoint& checkpoint) {
  Slot& s = slot(id);
  CHECK(s.refs > 0 && !s.cached, "only a held slot becomes a checkpoint, once");
  s.cached = true;
  s.checkpoint = checkpoint;
  s.last_use = ++clock_;
  ++num_cached_;
}

void StatePool::uncache(SlotId id) {
  Slot& s = slot(id);
  CHECK(s.cached);
  for (Slot& other : slots_) {
    if (other.cached && other.checkpoint.parent == id) {
      other.checkpoint.parent = s.checkpoint.parent;
    }
  }
  s.cached = false;
  s.checkpoint = {};
  --num_cached_;
  if (s.refs == 0) {
    --num_evictable_;
    free_.push_back(id.value);
  }
}

void StatePool::touch(SlotId id) {
  Slot& s = slot(id);
  CHECK(s.cached);
  s.last_use = ++clock_;
  s.checkpoint.kind = CheckpointKind::kProven;
}

void StatePool::raise(SlotId id, CheckpointKind kind) {
  Slot& s = slot(id);
  CHECK(s.cached);
  s.checkpoint.kind = std::max(s.checkpoint.kind, kind);
}

bool StatePool::consistent() const {
  std::vector<int> seen(slots_.size(), 0);
  for (const int i : free_) ++seen[static_cast<size_t>(i)];
  int evictable = 0;
  int cached = 0;
  int64_t refs = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const Slot& s = slots_[i];
    if (seen[i] != (s.refs == 0 && !s.cached ? 1 : 0)) return false;
    if (s.cached && s.checkpoint.parent.valid()) {
      const Slot& parent = slot(s.checkpoint.parent);
      if (!parent.cached || parent.checkpoint.position >= s.checkpoint.position) return false;
    }
    evictable += s.cached && s.refs == 0;
    cached += s.cached;
    refs += s.refs;
  }
  return evictable == num_evictable_ && cached == num_cached_ && refs == total_refs_;
}

}  // namespace weft
