// Planning of one step: who catches up by how much (docs/scheduler.md).
#include <algorithm>
#include <utility>

#include "base/align.h"
#include "base/check.h"
#include "sched/scheduler.h"

namespace weft {

namespace {

constexpr int32_t kDeviceTokenRow[1] = {kDeviceToken};

int64_t round_down(int64_t a, int64_t b) {
  return a / b * b;
}

}  // namespace

const StepPlan& Scheduler::schedule() {
  CHECK(in_flight_.size() < (config_.overlap ? 2u : 1u), "too many steps in flight");
  plan_.step = building_.step = next_step_;
  plan_.admitted.clear();
  plan_.slices.clear();
  plan_.preempted.clear();
  plan_.copies.clear();
  plan_.block_swaps.clear();
  plan_.state_swaps.clear();
  plan_.retired.clear();
  plan_.encodings.clear();
  plan_.image_uses.clear();
  std::swap(plan_.retired, retired_);
  images_.release_all();
  image_budget_ = config_.image_tokens;
  const bool alone = running_.size() + waiting_.size() + parked_.size() == 1;
  budget_ = std::max(config_.max_batched_tokens, alone ? config_.lone_batched_tokens : 0);
  reserved_ = std::count_if(running_.begin(), running_.end(),
                            [this](const Sequence* seq) { return decodes_next(*seq); });
  cursor_ = 0;
  stalled_ = false;
  // Layers of a long prompt and everybody else take turns.
  if (layers_can_run() && !layers_last_) {
    emit_layers();
    launch_planned();
    return plan_;
  }
  bool open = true;  // false: the first of the waiting can't start, so nobody behind it may
  while (budget_ > 0) {
    Sequence* run = cursor_ < running_.size() ? running_[cursor_] : nullptr;
    Sequence* wait = open && !stalled_ && !waiting_.empty() ? *waiting_.begin() : nullptr;
    if (run && (!wait || run->priority() <= wait->priority())) {
      ++cursor_;
      plan_running(*run);
    } else if (wait) {
      open = admit(*wait);
    } else {
      break;
    }
  }
  if (layers_can_run() && plan_.slices.empty()) emit_layers();
  launch_planned();
  return plan_;
}

/// Keeps what the plan is for until its result comes.
void Scheduler::launch_planned() {
  layers_last_ = !plan_.slices.empty() && plan_.slices[0].layers.partial();
  if (!plan_.empty()) {
    ++next_step_;
    ++stats_.steps;
    in_flight_.push_back(std::move(building_));
    if (spare_records_.empty()) spare_records_.emplace_back();
    building_ = std::move(spare_records_.back());
    spare_records_.pop_back();
    building_.clear();
  }
  check_counters();
}

bool Scheduler::decodes_next(const Sequence& seq) const {
  return !seq.paused && !seq.in_prompt() && !seq.complete() && seq.num_computed < seq.known();
}

/// Where the next slices of `seq` may end within the budget: its computed count when nothing can
/// or need be done now. A prompt is cut only at absolute multiples of kChunk.
int64_t Scheduler::affordable_end(const Sequence& seq) const {
  if (seq.complete() || seq.paused) return seq.num_computed;
  if (undecided(seq)) {  // all of its window or nothing
    const int64_t window = window_of(seq);
    return &seq != layered_ && window <= budget_ - reserved_ ? window : 0;
  }
  const int64_t end = std::min(seq.known(), seq.num_computed + budget_ - reserved_);
  if (end >= seq.prompt_len) return std::max(end, seq.num_computed);
  return std::max(round_down(end, config_.chunk), seq.num_computed);
}

void Scheduler::plan_running(Sequence& seq) {
  if (decodes_next(seq)) --reserved_;
  const int64_t end = take_images(seq, affordable_end(seq));
  if (end <= seq.num_computed || waits_for_checkpoint(seq)) return;
  // Where drafts are in flight the slice may lie so much further on.
  const int64_t reach = std::min(end + seq.pending_drafts, std::max(end, seq.max_len - 1));
  const int64_t blocks =
      divide_up(reach, config_.block_size) - static_cast<int64_t>(seq.blocks.size());
  if (!make_room(blocks)) {
    // It keeps what it has: everybody more urgent may still take it away, and goes on.
    stalled_ = true;
    ++stats_.stalls;
    return;
  }
  emit(seq, end, allowed_drafts(seq, end));
}

/// A checkpoint of a recurrent state lies where the text may be already, drafts of a step in flight
/// willing: the state is at one position alone, so that has to be known first.
bool Scheduler::waits_for_checkpoint(const Sequence& seq) const {
  if (seq.pending_drafts == 0 || !config_.reuse_generated || !config_.prefix_caching) return false;
  if (!cache_.recurrent()) return false;
  const int64_t site = next_site(seq, seq.num_computed).position;
  return site != 0 && site <= seq.num_computed + 1 + seq.pending_drafts;
}

/// How many drafts may be verified behind a slice of `seq` up to `end`, within the sequence's
/// length and with blocks that are free: nobody is displaced for a draft.
int Scheduler::allowed_drafts(const Sequence& seq, int64_t end) const {
  const bool decodes = !seq.in_prompt() && end == seq.known() && end == seq.num_computed + 1;
  if (config_.max_drafts == 0 || !decodes) return 0;
  // Drafts in flight may be wrong: then there is room for others. The slice's limit holds else.
  const int64_t last = std::max(end, seq.max_len - 1);
  const int64_t reach = std::min(end + seq.pending_drafts, last);
  int64_t drafts = std::min<int64_t>(config_.max_drafts, last - end);
  const auto owned = static_cast<int64_t>(seq.blocks.size());
  const int64_t needed = std::max(owned, divide_up(reach, config_.block_size));
  const int64_t spare = std::max<int64_t>(cache_.blocks().available() - (needed - owned), 0);
  const int64_t room = (needed + spare) * config_.block_size;
  if (room < last) drafts = std::min(drafts, room - reach);
  if (config_.reuse_generated && config_.prefix_caching && cache_.recurrent()) {
    // The state of a checkpoint is that of a slice's end, where no draft may be rejected.
    const int64_t site = next_site(seq, seq.num_computed).position;
    if (site != 0) drafts = std::min(drafts, site - 1 - reach);
  }
  return static_cast<int>(std::max<int64_t>(drafts, 0));
}

/// Who may be displaced now: a paused sequence, which has no turn, else the least urgent running
/// one whose turn has not come. All of those are less urgent than the one whose turn it is, and
/// than a waiting one by priority strictly.
Sequence* Scheduler::victim() const {
  if (num_paused_ > parked_.size()) {
    return *std::find_if(running_.rbegin(), running_.rend(),
                         [](const Sequence* seq) { return seq->paused; });
  }
  return running_.size() > cursor_ ? running_.back() : nullptr;
}

bool Scheduler::make_seat() {
  while (running_.size() >= static_cast<size_t>(config_.max_seqs)) {
    if (!victim()) return false;
    preempt(*victim());
  }
  return true;
}

bool Scheduler::make_room(int64_t blocks_needed) {
  while (cache_.blocks().available() < blocks_needed) {
    // Blocks of a victim in flight come only when its step has been applied.
    if (cache_.blocks().available() + fenced_blocks_ >= blocks_needed) return false;
    if (!victim()) return false;
    preempt(*victim());
  }
  return true;
}

void Scheduler::preempt(Sequence& victim) {
  CHECK(victim.last_step != plan_.step);
  if (decodes_next(victim)) --reserved_;
  const auto place = std::lower_bound(running_.begin(), running_.end(), &victim, Earlier());
  CHECK(place != running_.end() && *place == &victim);
  if (static_cast<size_t>(place - running_.begin()) < cursor_) --cursor_;
  running_.erase(place);
  swap_out(victim);
  release_resources(victim);
  victim.num_computed = 0;
  victim.branch_point = 0;
  victim.state = SequenceState::kWaiting;
  victim.preempted_in = plan_.step;
  ++victim.epoch;
  queue_of(victim).insert(&victim);
  plan_.preempted.push_back(victim.id());
  ++stats_.preemptions;
}

PrefixHit Scheduler::look_up(Sequence& seq) {
  // Prompt logprobs need the logits of every prompt token, so those requests reuse nothing.
  if (!config_.prefix_caching || seq.request->sampling.prompt_logprobs >= 0) return {};
  extend_hashes(seq);
  // The last known token is always computed: its logits give the next one.
  const int64_t limit = round_down(seq.known() - 1, stride_) / config_.block_size;
  return cache_.lookup(seq.prefix(), static_cast<int>(limit));
}

/// Starts a waiting sequence if the whole of it fits now; false: not in this step.
bool Scheduler::admit(Sequence& seq) {
  if (seq.pending > 0 || seq.preempted_in == plan_.step) return false;
  if (config_.prefix_caching) extend_hashes(seq);
  PrefixHit hit = look_up(seq);
  seq.num_computed = int64_t{hit.blocks} * config_.block_size;
  const bool swapped = seq.swapped.computed > seq.num_computed;
  if (swapped) {
    hit = hit_of_swapped(seq, hit);
    seq.num_computed = seq.swapped.computed;
  }
  // Who gets no turn does not keep others from theirs.
  if (needs_layers(seq) && layered_ != nullptr && layered_->paused) preempt(*layered_);
  const bool layers = needs_layers(seq) && layered_ == nullptr;
  const int64_t end = layers ? 0 : take_images(seq, affordable_end(seq));
  if ((end <= seq.num_computed && !layers) || !make_seat()) {
    seq.num_computed = 0;
    return false;
  }
  hold_prefix(seq, hit);
  const int64_t blocks = divide_up(seq.known(), config_.block_size) - hit.blocks;
  if (!make_room(blocks) || !give_slot(seq, hit.state)) {
    release_resources(seq);
    seq.num_computed = 0;
    return false;
  }
  if (swapped) {
    swap_in(seq);
  } else {
    count_hit(seq, hit);
  }
  drop_swapped(seq);
  enter(seq);
  if (layers) {
    begin_layers(seq);
  } else {
    emit(seq, end);
  }
  return true;
}

void Scheduler::hold_prefix(Sequence& seq, const PrefixHit& hit) {
  const std::span<const BlockId> matched = cache_.matched();
  for (int i = 0; i < hit.kv_blocks; ++i) {
    const BlockId block = matched[static_cast<size_t>(i)];
    if (i < hit.blocks) {
      cache_.ref_block(block);
      ++block_refs_;
      seq.blocks.push_back(block);
    } else {
      cache_.touch_block(block);
    }
  }
  seq.num_registered = hit.blocks;
  seq.twin = 0;
  if (hit.state.valid()) {
    cache_.ref_slot(hit.state);
    ++slot_refs_;
    seq.source = hit.state;
  }
}

bool Scheduler::give_slot(Sequence& seq, SlotId checkpoint) {
  if (!cache_.recurrent()) return true;
  seq.live = cache_.allocate_slot();
  if (!seq.live.valid() && checkpoint.valid() && cache_.slots().refs(checkpoint) == 1) {
    cache_.take_over(checkpoint);
    seq.live = std::exchange(seq.source, {});
    ++stats_.take_overs;
    return true;
  }
  while (!seq.live.valid()) {
    // Slots that a step in flight still names come back soon: don't displace anybody for them.
    for (const StepRecord& record : in_flight_) {
      if (!record.release_slots.empty()) return false;
    }
    if (!victim()) return false;
    preempt(*victim());
    seq.live = cache_.allocate_slot();
  }
  ++slot_refs_;
  return true;
}

void Scheduler::count_hit(Sequence& seq, const PrefixHit& hit) {
  const int64_t kv_tokens = int64_t{hit.kv_blocks} * config_.block_size;
  ++(hit.blocks > 0 ? stats_.hits : stats_.misses);
  stats_.looked_up_tokens += seq.known();
  stats_.kv_hit_tokens += kv_tokens;
  stats_.reused_tokens += seq.num_computed;
  stats_.state_lost_tokens += kv_tokens - seq.num_computed;
  if (hit.state.valid()) {
    ++stats_.state_hits;
    if (cache_.slots().cached(hit.state)) cache_.touch_slot(hit.state);
  }
  // Another prompt shares more than any checkpoint covers: the next one shall find one here.
  if (kv_tokens > seq.num_computed) seq.branch_point = kv_tokens;
  if (seq.cached_tokens < 0) seq.cached_tokens = seq.num_computed;
}

void Scheduler::enter(Sequence& seq) {
  waiting_.erase(&seq);
  seq.state = SequenceState::kRunning;
  const auto place = std::upper_bound(running_.begin(), running_.end(), &seq, Earlier());
  CHECK(static_cast<size_t>(place - running_.begin()) <= cursor_);
  running_.insert(place, &seq);
  ++cursor_;
  if (!seq.introduced) {
    seq.introduced = true;
    plan_.admitted.push_back(seq.request);
  }
}

/// The first position behind `after` where a checkpoint is wanted.
Scheduler::CheckpointSite Scheduler::next_site(const Sequence& seq, int64_t after) const {
  CheckpointSite site;
  const auto propose = [&](int64_t position, CheckpointKind kind) {
    if (position <= after) return;
    if (site.position != 0 && position > site.position) return;
    if (position == site.position && kind < site.kind) return;
    site = {position, kind};
  };
  const auto next_multiple = [&](int64_t step) { return round_down(after, step) + step; };
  const int64_t last = round_down(seq.prompt_len, stride_);
  if (config_.dense_checkpoints > 0 && next_multiple(stride_) <= last) {
    // At most dense_checkpoints of them: a branch anywhere then costs one gap to recompute.
    const int64_t gap =
        stride_ * divide_up(seq.prompt_len, int64_t{stride_} * config_.dense_checkpoints);
    if (next_multiple(gap) <= last) propose(next_multiple(gap), CheckpointKind::kDense);
  }
  if (config_.checkpoint_every > 0) {
    const int64_t every = divide_up(config_.checkpoint_every, stride_) * stride_;
    if (next_multiple(every) <= last) propose(next_multiple(every), CheckpointKind::kPlanned);
  }
  if (last > 0) propose(last, CheckpointKind::kPlanned);
  propose(seq.branch_point, CheckpointKind::kProven);
  if (config_.reuse_generated && after >= last) {
    propose(next_multiple(stride_), CheckpointKind::kDense);
  }
  return site;
}

/// A fresh slot to go on in after a checkpoint, unless a waiting sequence needs it more.
SlotId Scheduler::checkpoint_slot(const CheckpointSite& site) {
  const auto seats = static_cast<size_t>(config_.max_seqs) - running_.size();
  const auto wanted = static_cast<int>(std::min(waiting_.size(), seats));
  const bool dense = site.kind == CheckpointKind::kDense;
  // A dense one also leaves slots for the planned ones that may lie behind it in this prompt.
  const int keep = dense ? wanted + 3 : std::min(wanted, 1);
  if (cache_.slots().available() <= keep) return {};
  const SlotId slot = cache_.allocate_slot_for_checkpoint(site.kind, site.position);
  if (slot.valid()) ++slot_refs_;
  return slot;
}

/// Gives `seq` blocks up to `end` and for drafts, and emits its slices, cut where the arithmetic
/// changes and where a checkpoint is taken.
void Scheduler::emit(Sequence& seq, int64_t end, int drafts) {
  give_blocks(seq, std::min(end + seq.pending_drafts + drafts, std::max(end, seq.max_len - 1)));
  const bool checkpoints = cache_.recurrent() && config_.prefix_caching;
  while (seq.num_computed < end) {
    int64_t stop = seq.in_prompt() ? std::min(end, seq.prompt_len) : end;
    CheckpointSite site;
    SlotId fresh;
    if (checkpoints) {
      site = next_site(seq, seq.num_computed);
      while (site.position != 0 && site.position <= stop) {
        const auto block = static_cast<int>(site.position / config_.block_size) - 1;
        if (!cache_.has_checkpoint(seq.prefix(), block)) fresh = checkpoint_slot(site);
        if (fresh.valid()) {
          stop = site.position;
          break;
        }
        site = next_site(seq, site.position);
      }
    }
    emit_slice(seq, stop, stop == end ? drafts : 0);
    if (!fresh.valid()) continue;
    building_.checkpoints.push_back({seq.id(), stop, seq.live, site.kind});
    seq.source = std::exchange(seq.live, fresh);
  }
}

void Scheduler::give_blocks(Sequence& seq, int64_t end) {
  while (static_cast<int64_t>(seq.blocks.size()) * config_.block_size < end) {
    seq.blocks.push_back(cache_.allocate_block());
    ++block_refs_;
  }
}

/// Of a prompt that is computed layer by layer `layers`: only the last of them compute its tokens.
void Scheduler::emit_slice(Sequence& seq, int64_t end, int drafts, const LayerRange& layers) {
  const int64_t first = seq.num_computed;
  const bool done = !layers.partial() || layers.last;
  const bool decides = undecided(seq);
  const bool prompt = seq.in_prompt();
  Slice slice{.seq = seq.id(), .first = first};
  if (first < static_cast<int64_t>(seq.tokens.size())) {
    slice.tokens = std::span<const int32_t>(seq.tokens)
                       .subspan(static_cast<size_t>(first), static_cast<size_t>(end - first));
  } else {
    CHECK(seq.pending == 1 && end == first + 1);
    slice.tokens = kDeviceTokenRow;
  }
  slice.arithmetic = prompt ? Arithmetic::kPrompt : Arithmetic::kDecode;
  slice.decides = decides;
  slice.layers = layers;
  CHECK(!decides || end == window_of(seq));
  stats_.layer_steps += layers.partial();
  slice.sample = done && end == seq.known();
  slice.max_drafts = drafts;
  slice.limit = std::min(end + seq.pending_drafts + drafts, std::max(end, seq.max_len - 1));
  slice.blocks = seq.blocks;
  if (seq.source.valid()) {
    slice.state_read = seq.source;
    building_.release_slots.push_back(std::exchange(seq.source, {}));
  } else if (first > 0) {
    slice.state_read = seq.live;
  }
  slice.state_write = seq.live;
  building_.slices.push_back(
      {.seq = seq.id(),
       .epoch = seq.epoch,
       .first = first,
       .end = done ? end : first,
       .sample = slice.sample,
       .drafts = drafts,
       .prompt_logprobs = done && prompt && seq.request->sampling.prompt_logprobs >= 0});
  if (prompt) use_images(seq, first, end);
  seq.last_step = plan_.step;
  plan_.slices.push_back(slice);
  if (!done) return;
  seq.num_computed = end;
  seq.pending += slice.sample;
  seq.pending_drafts += drafts;
  budget_ -= end - first;
  stats_.computed_tokens += end - first;
}

}  // namespace weft
