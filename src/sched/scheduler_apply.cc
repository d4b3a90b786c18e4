// Applying the result of a step: what it cached, what it sampled, who ended.
#include <algorithm>
#include <utility>

#include "base/check.h"
#include "sched/scheduler.h"

namespace weft {

std::span<SequenceOutput> Scheduler::apply(StepResult result) {
  CHECK(!in_flight_.empty() && in_flight_.front().step == result.step,
        "results come in the order of the plans");
  StepRecord record = std::move(in_flight_.front());
  in_flight_.erase(in_flight_.begin());
  outputs_.clear();
  stats_.plans.add(result.plans);
  for (const SampledRow& row : result.rows) {
    if (!row.numeric_error) continue;
    const auto it = sequences_.find(row.seq);
    if (it != sequences_.end()) it->second->failed = true;
  }
  for (const Planned& slice : record.slices) register_slice(slice);
  for (const Checkpointing& point : record.checkpoints) register_checkpoint(point);
  size_t next_row = 0;
  for (const Planned& slice : record.slices) {
    if (!slice.has_row()) continue;
    CHECK(next_row < result.rows.size() && result.rows[next_row].seq == slice.seq,
          "the executor left out a row");
    accept(slice, result.rows[next_row++]);
  }
  CHECK(next_row == result.rows.size(), "the executor made up a row");
  // The fence: only now does nothing in flight name these.
  for (const BlockId block : record.release_blocks) release_block(block, nullptr);
  fenced_blocks_ -= record.exclusive_blocks;
  for (const SlotId slot : record.release_slots) release_slot(slot, nullptr);
  spare_records_.push_back(std::move(record));
  check_counters();
  return outputs_;
}

void Scheduler::register_slice(const Planned& slice) {
  const auto it = sequences_.find(slice.seq);
  if (!config_.prefix_caching || it == sequences_.end()) return;
  Sequence& seq = *it->second;
  if (seq.failed || seq.epoch != slice.epoch) return;
  if (config_.reuse_generated) extend_hashes(seq);
  // The last rows of a prompt are no whole chunk: with lists of blocks, which are chosen a chunk at
  // a time, a longer prompt would have computed them otherwise.
  const int64_t prompt =
      config_.chunk > kChunk ? seq.prompt_len / config_.chunk * config_.chunk : seq.prompt_len;
  // Drafts of a step before may have brought a decode slice further than its plan says; it has
  // computed what the host knows by now, whatever becomes of its own drafts.
  const int64_t end = slice.sample ? static_cast<int64_t>(seq.tokens.size()) : slice.end;
  const int64_t limit = config_.reuse_generated ? end : std::min(end, prompt);
  for (; int64_t{seq.num_registered + 1} * config_.block_size <= limit; ++seq.num_registered) {
    // When another block has the content already, this one stays private.
    const auto index = static_cast<size_t>(seq.num_registered);
    cache_.register_block(seq.prefix(), seq.num_registered, seq.blocks[index], seq.twin);
  }
}

void Scheduler::register_checkpoint(const Checkpointing& point) {
  const auto it = sequences_.find(point.seq);
  if (it == sequences_.end()) return;
  Sequence& seq = *it->second;
  // A sequence preempted since has left its state behind: the fence still holds the slot.
  if (seq.failed) return;
  if (config_.reuse_generated) extend_hashes(seq);
  if (!cache_.register_checkpoint(seq.prefix(), point.position, point.slot, point.kind)) return;
  ++stats_.checkpoints;
  if (point.kind == CheckpointKind::kDense) ++stats_.dense_checkpoints;
  if (point.kind == CheckpointKind::kProven) ++stats_.branch_checkpoints;
}

SequenceOutput& Scheduler::output_of(Sequence& seq) {
  if (outputs_.empty() || outputs_.back().seq != seq.id()) {
    outputs_.emplace_back();
    outputs_.back().seq = seq.id();
    outputs_.back().cached_tokens = seq.cached_tokens;
  }
  return outputs_.back();
}

void Scheduler::accept(const Planned& slice, SampledRow& row) {
  const auto it = sequences_.find(slice.seq);
  if (it == sequences_.end()) {
    ++stats_.discarded_rows;
    return;
  }
  Sequence& seq = *it->second;
  SequenceOutput& out = output_of(seq);
  if (slice.prompt_logprobs && !row.numeric_error) take_prompt_logprobs(seq, slice, row, out);
  if (slice.sample) {
    const size_t count = row.tokens.size();
    CHECK(row.numeric_error || count > 0, "a row without a token");
    CHECK(count <= 1 + static_cast<size_t>(slice.drafts), "more tokens than drafts and one");
    --seq.pending;
    seq.pending_drafts -= slice.drafts;
    // Of the accepted drafts the keys, values and states are there.
    const int64_t accepted = count > 1 ? static_cast<int64_t>(count) - 1 : 0;
    if (seq.epoch == slice.epoch) seq.num_computed += accepted;
    if (seq.swapped.computed > 0 && seq.swapped.epoch == slice.epoch) {
      seq.swapped.computed += accepted;
    }
    out.speculation = row.speculation;
    out.speculation.emitted = static_cast<int>(count);
    stats_.drafted_tokens += row.speculation.num_proposed();
    if (take_tokens(seq, row, out)) return;
  }
  if (!row.numeric_error) return;
  ++stats_.numeric_errors;
  // Whoever wrote the NaN, nobody shall continue from this prefix.
  if (config_.prefix_caching) cache_.forget_prefix(seq.prefix());
  forget_images(seq);
  end(seq, FinishReason::kError);
  out.finish = FinishReason::kError;
}

/// True: they end the sequence, which is gone.
bool Scheduler::take_tokens(Sequence& seq, SampledRow& row, SequenceOutput& out) {
  const size_t count = row.tokens.size();
  out.prompt_done |= count > 0 && seq.num_generated() == 0;
  for (size_t i = 0; i < count; ++i) {
    if (i < row.logprobs.size()) out.logprobs.push_back(std::move(row.logprobs[i]));
    if (append_token(seq, row.tokens[i], row.ends && i + 1 == count, out)) {
      out.speculation.cut(static_cast<int>(i) + 1);
      return true;
    }
  }
  return false;
}

/// True: it ends the sequence, which is gone.
bool Scheduler::append_token(Sequence& seq, int32_t token, bool ends, SequenceOutput& out) {
  const SamplingParams& sampling = seq.request->sampling;
  const bool may_stop = seq.num_generated() >= sampling.min_tokens;
  seq.append(token);
  out.tokens.push_back(token);
  const std::vector<int32_t>& stops = sampling.stop_ids;
  if (ends || (may_stop && std::find(stops.begin(), stops.end(), token) != stops.end())) {
    ++stats_.finished_stop;
    out.finish = FinishReason::kStop;
  } else if (static_cast<int64_t>(seq.tokens.size()) >= seq.max_len) {
    ++stats_.finished_length;
    out.finish = FinishReason::kLength;
  } else {
    return false;
  }
  end(seq, out.finish);
  return true;
}

void Scheduler::take_prompt_logprobs(Sequence& seq, const Planned& slice, SampledRow& row,
                                     SequenceOutput& out) {
  // Entry i is about the token at first + 1 + i; a replay after preemption repeats some.
  const int64_t first = slice.first + 1;
  const int64_t begin = std::max(first, seq.prompt_logprobs_end);
  const int64_t end = first + static_cast<int64_t>(row.prompt_logprobs.size());
  CHECK(end <= seq.prompt_len);
  if (begin >= end) return;
  if (out.prompt_logprobs.empty()) out.prompt_logprobs_first = begin;
  out.prompt_logprobs.insert(out.prompt_logprobs.end(),
                             std::make_move_iterator(row.prompt_logprobs.begin() + (begin - first)),
                             std::make_move_iterator(row.prompt_logprobs.end()));
  seq.prompt_logprobs_end = end;
}

/// Destroys `seq`; what it holds is released behind the last step that names it.
void Scheduler::end(Sequence& seq, FinishReason reason) {
  const bool sound = reason != FinishReason::kError;
  if (sound && config_.reuse_generated && config_.prefix_caching && cache_.recurrent()) {
    // End of turn: the deepest checkpoint is where the next turn goes on.
    extend_hashes(seq);
    const PrefixHit hit = cache_.lookup(seq.prefix(), static_cast<int>(seq.hashes.size()) - 1);
    if (hit.state.valid()) cache_.raise_slot(hit.state, CheckpointKind::kPlanned);
  }
  release_resources(seq);
  drop_swapped(seq);
  if (seq.state == SequenceState::kWaiting) {
    stats_.finished_waiting += reason != FinishReason::kAbort;
    queue_of(seq).erase(&seq);
  } else {
    const auto place = std::lower_bound(running_.begin(), running_.end(), &seq, Earlier());
    CHECK(place != running_.end() && *place == &seq);
    running_.erase(place);
  }
  num_paused_ -= seq.paused;
  if (seq.introduced) retired_.push_back(seq.id());
  sequences_.erase(seq.id());
}

}  // namespace weft
