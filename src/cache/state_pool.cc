#include "cache/state_pool.h"

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

double StatePool::value(const Slot& s) const {
  int64_t saved = s.checkpoint.position;
  if (s.checkpoint.kind == CheckpointKind::kDense && s.checkpoint.parent.valid()) {
    saved -= slot(s.checkpoint.parent).checkpoint.position;
  }
  return static_cast<double>(saved) / static_cast<double>(clock_ - s.last_use + 1);
}

StatePool::Allocation StatePool::allocate(bool dense_only) {
  Allocation result;
  if (free_.empty()) {
    double worst = 0;
    for (int i = 0; i < num_slots(); ++i) {
      const Slot& s = slots_[static_cast<size_t>(i)];
      if (!s.cached || s.refs > 0) continue;
      if (dense_only && s.checkpoint.kind != CheckpointKind::kDense) continue;
      const double v = value(s);
      if (!result.slot.valid() || v < worst) {
        result.slot.value = i;
        worst = v;
      }
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
  s.checkpoint.kind = CheckpointKind::kPlanned;
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
