#include "sched/scheduler.h"

#include <algorithm>
#include <array>
#include <string>
#include <utility>

#include "base/align.h"
#include "base/check.h"
#include "cache/audit.h"

namespace weft {

namespace {

std::string number(int64_t value) {
  return std::to_string(value);
}

Error bad_field(const char* field, int64_t value, const std::string& allowed) {
  return invalid_argument(std::string(field) + " is " + number(value) + "; allowed: " + allowed);
}

CacheConfig cache_config(const SchedulerConfig& c) {
  return {.block_size = c.block_size,
          .num_blocks = c.num_blocks,
          .num_slots = c.num_state_slots,
          .boundary = std::max(c.block_size, c.chunk),
          .hash_key = c.hash_key,
          .hash_bits = c.hash_bits};
}

/// In the place of a window: no token has this id.
constexpr std::array<int32_t, 1> kSeesAllKeys = {-1};

}  // namespace

Result<std::unique_ptr<Scheduler>> Scheduler::create(const SchedulerConfig& c) {
  if (c.chunk < kChunk || c.chunk % kChunk != 0) {
    return bad_field("chunk", c.chunk, "multiples of " + number(kChunk));
  }
  const bool fits_chunk =
      c.block_size > 0 && (c.chunk % c.block_size == 0 || c.block_size % c.chunk == 0);
  if (!fits_chunk) {
    return bad_field("block_size", c.block_size, "a divisor or a multiple of " + number(c.chunk));
  }
  if (c.num_blocks < 1) return bad_field("num_blocks", c.num_blocks, "1 or more");
  if (c.num_state_slots < 0) return bad_field("num_state_slots", c.num_state_slots, "0 or more");
  if (c.num_swap_blocks < 0) return bad_field("num_swap_blocks", c.num_swap_blocks, "0 or more");
  if (c.num_swap_slots < 0) return bad_field("num_swap_slots", c.num_swap_slots, "0 or more");
  if (c.max_seqs < 1) return bad_field("max_seqs", c.max_seqs, "1 or more");
  if (c.max_batched_tokens < c.chunk - 1 + c.max_seqs) {
    return bad_field("max_batched_tokens", c.max_batched_tokens,
                     "at least max_seqs + " + number(c.chunk - 1) +
                         ", so that a prompt advances while all others decode");
  }
  if (c.lone_batched_tokens < 0) {
    return bad_field("lone_batched_tokens", c.lone_batched_tokens, "0 or more");
  }
  if (c.max_model_len < 2) return bad_field("max_model_len", c.max_model_len, "2 or more");
  if (c.checkpoint_every < 0 || c.checkpoint_every % kChunk != 0) {
    return bad_field("checkpoint_every", c.checkpoint_every, "multiples of " + number(kChunk));
  }
  if (c.image_tokens > 0 && c.image_pages < least_image_pages(c.image_tokens)) {
    return bad_field("image_pages", c.image_pages,
                     "at least " + number(least_image_pages(c.image_tokens)) +
                         ", so that a chunk with two images can be computed");
  }
  if (c.max_drafts < 0 || c.max_drafts > kMaxDrafts) {
    return bad_field("max_drafts", c.max_drafts, "0 to " + number(kMaxDrafts));
  }
  if (c.dense_checkpoints < 0) {
    return bad_field("dense_checkpoints", c.dense_checkpoints, "0 or more");
  }
  if (c.plan_tokens < 0 || (c.plan_tokens != kWholePrompt && c.plan_tokens % c.chunk != 0)) {
    return bad_field("plan_tokens", c.plan_tokens, "multiples of " + number(c.chunk));
  }
  if (c.sparse_from < 0 || (c.sparse_from > 0 && c.plan_tokens > 0)) {
    return bad_field("sparse_from", c.sparse_from, "0 or more, and 0 with plan_tokens");
  }
  if (c.plan_tokens > 0 && c.num_layers < 1) {
    return bad_field("num_layers", c.num_layers, "1 or more with plan_tokens");
  }
  if (c.plan_tokens > 0 && (c.num_state_slots > 0 || c.image_tokens > 0)) {
    return invalid_argument("plan_tokens: not with recurrent layers or images");
  }
  if (c.chunk > kChunk && c.reuse_generated) {
    return invalid_argument("reuse_generated: generated tokens see what prompts may not");
  }
  return std::unique_ptr<Scheduler>(new Scheduler(c));
}

Scheduler::Scheduler(const SchedulerConfig& config)
    : config_(config),
      stride_(std::max(config.block_size, config.chunk)),
      cache_(cache_config(config)),
      images_(config.image_pages),
      swaps_(config.num_swap_blocks, config.num_swap_slots) {
  running_.reserve(static_cast<size_t>(config.max_seqs));
}

void Scheduler::StepRecord::clear() {
  slices.clear();
  checkpoints.clear();
  release_blocks.clear();
  release_slots.clear();
  exclusive_blocks = 0;
}

Result<void> Scheduler::add(std::shared_ptr<const Request> request) {
  CHECK(request && request->id.valid());
  CHECK(!sequences_.contains(request->id), "sequence ids are unique");
  const auto prompt_len = static_cast<int64_t>(request->prompt.size());
  const int max_tokens = request->sampling.max_tokens;
  if (prompt_len < 1) return invalid_argument("the prompt is empty; allowed: 1 token or more");
  if (max_tokens < 1) return bad_field("max_tokens", max_tokens, "1 or more");
  if (prompt_len >= config_.max_model_len) {
    return invalid_argument("the prompt has " + number(prompt_len) + " tokens; allowed: at most " +
                            number(config_.max_model_len - 1) +
                            " (max_model_len less one generated token)");
  }
  TRY(check_images(*request));
  // Rope's table has max_model_len rows, and a video may stand behind its index.
  const int64_t longest = config_.max_model_len - std::max(request->rope_delta, 0);
  if (prompt_len >= longest) {
    return invalid_argument("the positions of the prompt's videos go to " +
                            number(prompt_len + request->rope_delta - 1) + "; allowed: at most " +
                            number(config_.max_model_len - 2) + " (max_model_len)");
  }
  const int64_t max_len = std::min<int64_t>(prompt_len + max_tokens, longest);
  // The last token is never computed, only given out.
  const int64_t blocks = divide_up(max_len - 1, config_.block_size);
  if (blocks > config_.num_blocks) {
    return exhausted("the request needs a KV cache of " + number(max_len - 1) +
                     " tokens (prompt + max_tokens); the cache holds " +
                     number(int64_t{config_.num_blocks} * config_.block_size));
  }
  auto seq = std::make_unique<Sequence>();
  seq->tokens.reserve(static_cast<size_t>(prompt_len + std::min(max_tokens, Sequence::kTokenRoom)));
  seq->tokens = request->prompt;
  seq->prompt_len = prompt_len;
  seq->max_len = max_len;
  seq->arrival = next_arrival_++;
  seq->request = std::move(request);
  waiting_.insert(seq.get());
  sequences_.emplace(seq->id(), std::move(seq));
  return {};
}

bool Scheduler::abort(SeqId id) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end()) return false;
  ++stats_.aborted;
  end(*it->second, FinishReason::kAbort);
  check_counters();
  return true;
}

void Scheduler::pause(SeqId id) {
  set_paused(id, true);
}

void Scheduler::resume(SeqId id) {
  set_paused(id, false);
}

void Scheduler::set_paused(SeqId id, bool paused) {
  const auto it = sequences_.find(id);
  if (it == sequences_.end() || it->second->paused == paused) return;
  Sequence& seq = *it->second;
  const bool waits = seq.state == SequenceState::kWaiting;
  if (waits) queue_of(seq).erase(&seq);
  seq.paused = paused;
  if (waits) queue_of(seq).insert(&seq);
  num_paused_ = paused ? num_paused_ + 1 : num_paused_ - 1;
}

const Sequence* Scheduler::find(SeqId id) const {
  const auto it = sequences_.find(id);
  return it == sequences_.end() ? nullptr : it->second.get();
}

SchedulerStats Scheduler::stats() const {
  SchedulerStats stats = stats_;
  stats.block_evictions = cache_.block_evictions();
  stats.state_evictions = cache_.state_evictions();
  return stats;
}

void Scheduler::extend_hashes(Sequence& seq) {
  const size_t size = static_cast<size_t>(config_.block_size);
  const size_t limit =
      config_.reuse_generated ? seq.tokens.size() : static_cast<size_t>(seq.prompt_len);
  if (seq.hashes.empty()) {
    // What a router decided by is part of what every block is: a hit never mixes decisions.
    const auto window = static_cast<size_t>(window_of(seq));
    const std::span<const int32_t> decided = seq.prompt_len < config_.sparse_from
                                                 ? std::span<const int32_t>(kSeesAllKeys)
                                                 : std::span(seq.tokens).first(window);
    seq.hashes.push_back(cache_.index().root(seq.request->cache_salt, decided));
  }
  for (size_t i = seq.hashes.size() - 1; (i + 1) * size <= limit; ++i) {
    const std::span<const int32_t> tokens(seq.tokens.data() + i * size, size);
    const Hash128 images = block_images(seq, static_cast<int64_t>(i));
    if (!seq.request->images.empty()) seq.images.push_back(images);
    seq.hashes.push_back(cache_.index().block_hash(seq.hashes[i], tokens, images));
  }
}

Scheduler::StepRecord* Scheduler::fence_of(uint64_t step) {
  for (StepRecord& record : in_flight_) {
    if (record.step == step) return &record;
  }
  return nullptr;
}

void Scheduler::release_block(BlockId block, StepRecord* fence) {
  if (fence) {
    if (cache_.blocks().refs(block) == 1) {
      ++fenced_blocks_;
      ++fence->exclusive_blocks;
    }
    fence->release_blocks.push_back(block);
    return;
  }
  cache_.unref_block(block);
  --block_refs_;
}

void Scheduler::release_slot(SlotId slot, StepRecord* fence) {
  if (!slot.valid()) return;
  if (fence) {
    fence->release_slots.push_back(slot);
    return;
  }
  cache_.unref_slot(slot);
  --slot_refs_;
}

void Scheduler::release_resources(Sequence& seq) {
  StepRecord* fence = fence_of(seq.last_step);
  // Deepest first: of equally old blocks the ends of prefixes are evicted before their beginnings.
  for (size_t i = seq.blocks.size(); i-- > 0;) release_block(seq.blocks[i], fence);
  release_slot(seq.source, fence);
  release_slot(seq.live, fence);
  leave_layers(seq);
  seq.blocks.clear();
  seq.source = seq.live = {};
}

void Scheduler::check_counters() const {
  CHECK(counters_agree(cache_, block_refs_, slot_refs_), "a block or a state slot leaked");
  CHECK(running_.size() + waiting_.size() + parked_.size() == sequences_.size());
}

std::string Scheduler::audit() const {
  std::vector<int> blocks(static_cast<size_t>(config_.num_blocks), 0);
  std::vector<int> slots(static_cast<size_t>(config_.num_state_slots), 0);
  const auto own_slot = [&](SlotId slot) {
    if (slot.valid()) ++slots[static_cast<size_t>(slot.value)];
  };
  std::vector<int> swapped(static_cast<size_t>(config_.num_swap_blocks), 0);
  std::vector<int> swapped_states(static_cast<size_t>(config_.num_swap_slots), 0);
  std::unordered_map<SeqId, int> pending, drafts;
  size_t num_paused = 0;
  for (const StepRecord& record : in_flight_) {
    for (const BlockId b : record.release_blocks) ++blocks[static_cast<size_t>(b.value)];
    for (const SlotId s : record.release_slots) own_slot(s);
    for (const Planned& p : record.slices) {
      pending[p.seq] += p.sample;
      drafts[p.seq] += p.drafts;
    }
  }
  for (const auto& [id, seq] : sequences_) {
    const std::string name = "sequence " + number(id.value);
    for (const BlockId b : seq->blocks) ++blocks[static_cast<size_t>(b.value)];
    const SwapHold& hold = seq->swapped.hold;
    for (const int32_t b : hold.blocks) ++swapped[static_cast<size_t>(b)];
    if (hold.slot >= 0) ++swapped_states[static_cast<size_t>(hold.slot)];
    if (hold.empty() != (seq->swapped.computed == 0)) return name + " holds swap space for nothing";
    if (!hold.empty() && seq->state == SequenceState::kRunning) {
      return name + " runs, but holds swap space";
    }
    own_slot(seq->live);
    own_slot(seq->source);
    const auto capacity = static_cast<int64_t>(seq->blocks.size()) * config_.block_size;
    const bool runs = seq->state == SequenceState::kRunning;
    const int64_t reach = std::min(seq->num_computed + (runs ? seq->pending_drafts : 0),
                                   std::max(seq->max_len - 1, seq->num_computed));
    if (capacity < reach) return name + " has computed more than its blocks hold";
    if (seq->num_computed > seq->known()) return name + " has computed tokens it does not know";
    if (seq->pending != pending[id]) return name + " waits for samples that nobody computes";
    if (seq->pending_drafts != drafts[id]) return name + " waits for drafts that nobody verifies";
    const bool running = seq->state == SequenceState::kRunning;
    if (!running && (seq->num_computed > 0 || !seq->blocks.empty() || seq->live.valid())) {
      return name + " waits, but holds blocks or state";
    }
    if (running && cache_.recurrent() != seq->live.valid()) return name + " lacks its state slot";
    if (waiting_.contains(seq.get()) != (!running && !seq->paused) ||
        parked_.contains(seq.get()) != (!running && seq->paused)) {
      return name + " is in the wrong queue";
    }
    num_paused += seq->paused;
  }
  if (num_paused != num_paused_) return "paused sequences are counted wrongly";
  if (!std::is_sorted(running_.begin(), running_.end(), Earlier())) return "running out of order";
  const auto held_once = [](const std::vector<int>& counts, int free) {
    return std::count(counts.begin(), counts.end(), 0) == free &&
           std::all_of(counts.begin(), counts.end(), [](int n) { return n <= 1; });
  };
  if (!held_once(swapped, swaps_.free_blocks()) ||
      !held_once(swapped_states, swaps_.free_slots())) {
    return "swap space is lost or owned twice";
  }
  if (!images_.sound()) return "a page of image features is lost or owned twice";
  return weft::audit(cache_, blocks, slots);
}

}  // namespace weft
