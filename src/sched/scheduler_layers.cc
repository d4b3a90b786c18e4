// Prompts whose router decides by more tokens than a step holds: they are computed layer by layer,
// a range of layers a step, and others have their turn between two ranges (docs/scheduler.md).
#include <algorithm>

#include "base/check.h"
#include "sched/scheduler.h"

namespace weft {

/// Prompt tokens, from the first, by which a router decides what the heads of the prompt see.
int64_t Scheduler::window_of(const Sequence& seq) const {
  return std::min(seq.prompt_len, config_.plan_tokens);
}

/// Nothing of it is there yet, the decision least of all: blocks that are reused bring theirs.
bool Scheduler::undecided(const Sequence& seq) const {
  return config_.plan_tokens > 0 && seq.num_computed == 0;
}

/// Whether the window is more than a step can hold beside those who decode.
bool Scheduler::needs_layers(const Sequence& seq) const {
  return undecided(seq) && window_of(seq) > config_.max_batched_tokens - config_.max_seqs;
}

/// Gives a sequence that has just been admitted the blocks of its window and its turn.
void Scheduler::begin_layers(Sequence& seq) {
  CHECK(layered_ == nullptr);
  layered_ = &seq;
  layers_done_ = 0;
  give_blocks(seq, window_of(seq));
}

/// The next layers of the prompt in turn, as many as make a step of the usual size; the whole plan.
void Scheduler::emit_layers() {
  CHECK(layered_ != nullptr && plan_.slices.empty());
  Sequence& seq = *layered_;
  const int64_t window = window_of(seq);
  const int64_t count =
      std::max<int64_t>(1, int64_t{config_.max_batched_tokens} * config_.num_layers / window);
  const int begin = layers_done_;
  layers_done_ = static_cast<int>(std::min<int64_t>(config_.num_layers, begin + count));
  const bool last = layers_done_ == config_.num_layers;
  emit_slice(seq, window, 0, {.begin = begin, .end = layers_done_, .last = last});
  if (last) layered_ = nullptr;
}

/// `seq` lost its blocks or ended.
void Scheduler::leave_layers(const Sequence& seq) {
  if (layered_ == &seq) layered_ = nullptr;
}

}  // namespace weft
