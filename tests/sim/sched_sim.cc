#include "sim/sched_sim.h"

#include <algorithm>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/check.h"
#include "sched/executor_fake.h"
#include "sched/scheduler.h"

namespace weft {

namespace {

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return static_cast<int64_t>(next() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool one_in(int64_t n) { return below(n) == 0; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return values.begin()[below(static_cast<int64_t>(values.size()))];
  }

 private:
  uint64_t state_;
};

// Indices of the event counters: named so that a report of zeros is a list of names.
enum Event {
  kSubmitted,
  kRefused,
  kFinishedStop,
  kFinishedLength,
  kNumericErrors,
  kLateStops,
  kDiscardedRows,
  kHits,
  kMisses,
  kStateHits,
  kStateLostTokens,
  kReusedTokens,
  kCheckpoints,
  kDenseCheckpoints,
  kBranchCheckpoints,
  kTakeOvers,
  kPreemptions,
  kPreemptedInFlight,
  kReplays,
  kSwapOuts,
  kSwapIns,
  kSwapDropped,
  kSwappedDrafts,
  kFinishedWaiting,
  kStalls,
  kBlockEvictions,
  kStateEvictions,
  kMixedSteps,
  kChunkCuts,
  kTwoInFlight,
  kAbortWaiting,
  kAbortPreempted,
  kAbortPrompt,
  kAbortDecode,
  kAbortInFlight,
  kAbortStranger,
  kPauseWaiting,
  kPausePrompt,
  kPauseDecode,
  kPauseInFlight,
  kDisplacedPaused,
  kEndedPaused,
  kPromptLogprobs,
  kFollowUps,
  kRepeats,
  kLayerSteps,
  kDraftsAccepted,
  kDraftsRejected,
  kDraftsOverlapped,
  kNumEvents
};
constexpr const char* kEventNames[kNumEvents] = {"submitted",
                                                 "refused",
                                                 "finished: stop",
                                                 "finished: length",
                                                 "numeric errors",
                                                 "late stops",
                                                 "discarded rows",
                                                 "prefix hits",
                                                 "prefix misses",
                                                 "state hits",
                                                 "tokens lost for want of a state",
                                                 "prefix tokens reused",
                                                 "checkpoints",
                                                 "dense checkpoints",
                                                 "branch checkpoints",
                                                 "checkpoints taken over",
                                                 "preemptions",
                                                 "preempted in flight",
                                                 "replays",
                                                 "swaps out",
                                                 "swaps in",
                                                 "swaps dropped",
                                                 "swapped behind drafts in flight",
                                                 "ended while waiting",
                                                 "stalls for blocks",
                                                 "block evictions",
                                                 "checkpoint evictions",
                                                 "mixed steps",
                                                 "prompt cuts",
                                                 "two steps in flight",
                                                 "aborts: waiting",
                                                 "aborts: preempted",
                                                 "aborts: in prompt",
                                                 "aborts: decoding",
                                                 "aborts: in flight",
                                                 "aborts: stranger",
                                                 "pauses: waiting",
                                                 "pauses: in prompt",
                                                 "pauses: decoding",
                                                 "pauses: in flight",
                                                 "displaced while paused",
                                                 "ended while paused",
                                                 "prompt logprobs",
                                                 "follow-ups",
                                                 "repeated prompts",
                                                 "layers of a prompt",
                                                 "drafts accepted",
                                                 "drafts rejected",
                                                 "planned behind drafts in flight"};

struct Live {
  std::shared_ptr<const Request> request;
  std::vector<int32_t> tokens;
  int64_t num_prompt_logprobs = 0;
  int64_t submitted_at = 0;
  bool paused = false;
};

/// One configuration with its requests, from empty to empty.
class Episode {
 public:
  Episode(uint64_t seed, int64_t audit_every, int64_t* events);
  /// Runs about `steps` steps and drains. Panics when anything is wrong.
  int64_t run(int64_t steps);
  int64_t now() const { return steps_; }

 private:
  void submit();
  std::vector<int32_t> make_prompt(std::string& salt);
  void check_reuse(const Request& request, int64_t cached_tokens) const;
  void abort_someone();
  void pause_or_resume();
  bool all_paused() const;
  void plan();
  void collect();
  void finish(const SequenceOutput& out, Live& live);
  void audit();

  Random random_;
  SchedulerConfig config_;
  FakeExecutorConfig device_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FakeExecutor> executor_;
  int64_t* events_;
  int64_t audit_every_;
  int64_t calls_ = 0;
  int64_t steps_ = 0;
  int64_t planned_work_ = 0;  // tokens of all requests alive, for the bound of the drain
  int32_t next_id_ = 0;
  int max_live_ = 0;
  int abort_in_ = 0;  // one abort in so many turns; 0: none
  int pause_in_ = 0;  // the same of pauses and ends of pauses
  bool fifo_ = true;  // one priority
  std::unordered_map<SeqId, Live> live_;
  std::unordered_map<uint64_t, int> prefixes_;  // salt and first tokens: how many prompts
  std::vector<SeqId> ids_;                      // of live_, any order
  std::vector<int32_t> last_prompt_;
  std::vector<int32_t> last_text_;  // prompt and answer of the last finished request
};

Episode::Episode(uint64_t seed, int64_t audit_every, int64_t* events)
    : random_(seed), events_(events), audit_every_(audit_every) {
  Random& r = random_;
  config_.block_size = r.pick({16, 32, 64, 64, 64, 128});
  config_.max_model_len = static_cast<int>(r.between(70, 420));
  const int needed = (config_.max_model_len + config_.block_size - 1) / config_.block_size;
  config_.num_blocks = static_cast<int>(r.between(std::max(1, needed - 1), 3 * needed + 4));
  config_.num_state_slots = r.one_in(3) ? 0 : static_cast<int>(r.between(1, 14));
  if (r.one_in(2)) {
    config_.num_swap_blocks = static_cast<int>(r.between(1, 3 * needed));
    config_.num_swap_slots = static_cast<int>(r.between(1, 4));
  }
  config_.max_seqs = static_cast<int>(r.between(1, 6));
  config_.max_batched_tokens = 63 + config_.max_seqs + static_cast<int>(r.below(200));
  config_.lone_batched_tokens = r.pick({0, 0, 200, 1000});
  config_.prefix_caching = !r.one_in(10);
  config_.reuse_generated = r.one_in(4);
  config_.checkpoint_every = r.pick({0, 64, 128, 2048});
  config_.dense_checkpoints = r.pick({0, 0, 2, 64});
  config_.overlap = !r.one_in(3);
  config_.max_drafts = r.pick({0, 1, 3, 8, 15});
  config_.hash_key = r.next();
  config_.hash_bits = r.pick({128, 128, 128, 1, 3, 6});
  if (r.one_in(3)) {  // what heads see is chosen a block of 128 at a time, or decided by a router
    config_.chunk = 128;
    config_.max_batched_tokens += 64;
    config_.reuse_generated = false;
    config_.plan_tokens = r.pick<int64_t>({0, 128, 256, kWholePrompt, kWholePrompt});
    config_.num_layers = 5;
    if (config_.plan_tokens > 0) config_.num_state_slots = 0;
    if (config_.plan_tokens == 0) config_.sparse_from = r.pick<int64_t>({0, 100, 300});
  }
  device_ = {.block_size = config_.block_size,
             .num_blocks = config_.num_blocks,
             .num_state_slots = config_.num_state_slots,
             .num_swap_blocks = config_.num_swap_blocks,
             .num_swap_slots = config_.num_swap_slots,
             .vocab = 40,
             .reuse_generated = config_.reuse_generated,
             .chunk = config_.chunk,
             .plan_tokens = config_.plan_tokens,
             .sparse_from = config_.sparse_from,
             .num_layers = config_.num_layers,
             .numeric_error_in = r.pick({0, 0, 300}),
             .right_drafts = r.pick({0, 3, 6, 8})};
  auto made = Scheduler::create(config_);
  scheduler_ = std::move(made).value();
  executor_ = std::make_unique<FakeExecutor>(device_);
  max_live_ = static_cast<int>(r.between(1, 14));
  abort_in_ = r.pick({0, 15, 100});
  pause_in_ = r.pick({0, 0, 10, 60});
  fifo_ = r.one_in(2);
}

std::vector<int32_t> Episode::make_prompt(std::string& salt) {
  // A prompt follows one of two texts for a while and then goes its own way; both lengths often
  // fall on or beside a boundary.
  Random& r = random_;
  if (!last_prompt_.empty() && r.one_in(8)) {
    ++events_[kRepeats];
    return last_prompt_;
  }
  if (!last_text_.empty() && r.one_in(4)) {
    ++events_[kFollowUps];
    std::vector<int32_t> prompt = last_text_;
    for (int64_t n = r.below(20); n >= 0; --n) prompt.push_back(static_cast<int32_t>(r.below(40)));
    return prompt;
  }
  const auto length = [&](int64_t most) {
    const int64_t n = r.one_in(2) ? 64 * r.between(0, 6) + r.between(-1, 1) : r.between(0, most);
    return std::clamp<int64_t>(n, 0, most);
  };
  const int64_t shared = length(config_.max_model_len - 2);
  const int64_t own = std::max<int64_t>(length(config_.max_model_len - shared + 4), 1);
  const int64_t text = r.below(2);
  std::vector<int32_t> prompt;
  for (int64_t i = 0; i < shared; ++i) {
    prompt.push_back(static_cast<int32_t>((i * 7 + i / 5 + text * 3) % 40));
  }
  for (int64_t i = 0; i < own; ++i) prompt.push_back(static_cast<int32_t>(r.below(40)));
  if (r.one_in(5)) salt = "tenant";
  return prompt;
}

/// Hashes of the salt and the first n tokens, for every n where reuse may begin.
template <class Visit>
void visit_prefixes(const Request& request, Visit visit) {
  uint64_t hash = request.cache_salt.size();
  for (size_t i = 0; i < request.prompt.size(); ++i) {
    hash = Random(hash ^ static_cast<uint64_t>(request.prompt[i])).next();
    if ((i + 1) % kChunk == 0) visit(static_cast<int64_t>(i + 1), hash);
  }
}

void Episode::submit() {
  Random& r = random_;
  auto request = std::make_shared<Request>();
  request->id = SeqId{next_id_++};
  request->prompt = make_prompt(request->cache_salt);
  request->priority = fifo_ ? 0 : static_cast<int>(r.below(3));
  SamplingParams& sampling = request->sampling;
  sampling.max_tokens = static_cast<int>(r.one_in(4) ? r.between(1, 3) : r.between(1, 120));
  sampling.min_tokens = static_cast<int>(r.one_in(4) ? r.below(20) : 0);
  sampling.seed = r.below(4);
  if (r.one_in(2)) sampling.stop_ids = {3, 17};
  if (r.one_in(2)) sampling.logprobs = 0;
  if (r.one_in(12)) sampling.prompt_logprobs = 0;
  const auto prompt_len = static_cast<int64_t>(request->prompt.size());
  const int64_t longest =
      std::min<int64_t>(prompt_len + sampling.max_tokens, config_.max_model_len);
  const bool fits = prompt_len < config_.max_model_len &&
                    longest - 1 <= int64_t{config_.num_blocks} * config_.block_size;
  const Result<void> added = scheduler_->add(request);
  CHECK(added.ok() == fits, "admission refused a request that fits, or the other way round");
  if (!fits) {
    ++events_[kRefused];
    return;
  }
  ++events_[kSubmitted];
  planned_work_ += longest;
  ids_.push_back(request->id);
  visit_prefixes(*request, [&](int64_t, uint64_t hash) { ++prefixes_[hash]; });
  live_[request->id] = {.request = request, .submitted_at = steps_};
}

/// Only what an earlier prompt of the same salt began with may have been reused.
void Episode::check_reuse(const Request& request, int64_t cached_tokens) const {
  if (config_.reuse_generated) return;
  visit_prefixes(request, [&](int64_t length, uint64_t hash) {
    CHECK(length != cached_tokens || prefixes_.at(hash) > 1, "reuse across cache salts");
  });
}

void Episode::abort_someone() {
  if (random_.one_in(20)) {
    CHECK(!scheduler_->abort(SeqId{next_id_ + 5}));
    ++events_[kAbortStranger];
    return;
  }
  if (ids_.empty()) return;
  const SeqId id = ids_[static_cast<size_t>(random_.below(static_cast<int64_t>(ids_.size())))];
  const Sequence* seq = scheduler_->find(id);
  CHECK(seq != nullptr);
  if (seq->state == SequenceState::kWaiting) {
    ++events_[seq->epoch > 0 ? kAbortPreempted : kAbortWaiting];
  } else {
    ++events_[seq->in_prompt() ? kAbortPrompt : kAbortDecode];
  }
  if (seq->pending > 0) ++events_[kAbortInFlight];
  CHECK(scheduler_->abort(id) && !scheduler_->abort(id));
  const Live& live = live_.at(id);
  const auto answer = FakeExecutor::answer(*live.request, device_, config_.max_model_len);
  CHECK(live.tokens.size() <= answer.tokens.size() &&
            std::equal(live.tokens.begin(), live.tokens.end(), answer.tokens.begin()),
        "the output before the abort differs from the request alone");
  live_.erase(id);
  ids_.erase(std::find(ids_.begin(), ids_.end(), id));
}

void Episode::pause_or_resume() {
  if (ids_.empty()) return;
  const SeqId id = ids_[static_cast<size_t>(random_.below(static_cast<int64_t>(ids_.size())))];
  const Sequence* seq = scheduler_->find(id);
  CHECK(seq != nullptr);
  if (seq->paused) {
    scheduler_->resume(id);
    live_.at(id).paused = false;
    return;
  }
  const bool waits = seq->state == SequenceState::kWaiting;
  ++events_[waits ? kPauseWaiting : seq->in_prompt() ? kPausePrompt : kPauseDecode];
  if (seq->pending > 0) ++events_[kPauseInFlight];
  scheduler_->pause(id);
  live_.at(id).paused = true;
}

bool Episode::all_paused() const {
  return std::all_of(ids_.begin(), ids_.end(),
                     [this](SeqId id) { return scheduler_->find(id)->paused; });
}

void Episode::plan() {
  const bool alone = scheduler_->num_in_flight() == 0;
  const StepPlan& plan = scheduler_->schedule();
  CHECK(!alone || !plan.slices.empty() || all_paused(), "stuck: nobody can run");
  if (plan.empty()) return;
  ++steps_;
  bool prompt = false;
  bool decode = false;
  for (const Slice& slice : plan.slices) {
    (slice.arithmetic == Arithmetic::kPrompt ? prompt : decode) = true;
    CHECK(!scheduler_->find(slice.seq)->paused, "a paused sequence runs");
    Live& live = live_.at(slice.seq);
    const auto end = slice.first + static_cast<int64_t>(slice.tokens.size());
    const auto prompt_len = static_cast<int64_t>(live.request->prompt.size());
    events_[kChunkCuts] += end < prompt_len;
    events_[kLayerSteps] += slice.layers.partial();
    events_[kDraftsOverlapped] += scheduler_->find(slice.seq)->pending_drafts > slice.max_drafts;
    events_[kReplays] += slice.first >= prompt_len && slice.tokens[0] != kDeviceToken &&
                         (slice.tokens.size() > 1 || !slice.sample);
  }
  events_[kMixedSteps] += prompt && decode;
  for (const SeqId id : plan.preempted) {
    events_[kPreemptedInFlight] += scheduler_->find(id)->pending > 0;
    events_[kDisplacedPaused] += scheduler_->find(id)->paused;
    const Sequence& victim = *scheduler_->find(id);
    events_[kSwappedDrafts] += victim.swapped.computed > 0 && victim.pending_drafts > 0;
  }
  executor_->launch(plan);
  events_[kTwoInFlight] += scheduler_->num_in_flight() == 2;
}

void Episode::collect() {
  for (SequenceOutput& out : scheduler_->apply(executor_->collect())) {
    Live& live = live_.at(out.seq);
    const SamplingParams& sampling = live.request->sampling;
    CHECK(out.prompt_done == (live.tokens.empty() && !out.tokens.empty()));
    CHECK(out.logprobs.size() == (sampling.logprobs >= 0 ? out.tokens.size() : 0));
    if (out.prompt_done && out.cached_tokens > 0) check_reuse(*live.request, out.cached_tokens);
    live.tokens.insert(live.tokens.end(), out.tokens.begin(), out.tokens.end());
    const SpeculationStep& drafts = out.speculation;
    CHECK(drafts.emitted == static_cast<int>(out.tokens.size()));
    CHECK(drafts.num_accepted() <= std::min(drafts.num_proposed(), drafts.emitted));
    events_[kDraftsAccepted] += drafts.num_accepted();
    events_[kDraftsRejected] += drafts.num_proposed() - drafts.num_accepted();
    if (!out.prompt_logprobs.empty()) {
      CHECK(out.prompt_logprobs_first == live.num_prompt_logprobs + 1);
      live.num_prompt_logprobs += static_cast<int64_t>(out.prompt_logprobs.size());
      events_[kPromptLogprobs] += static_cast<int64_t>(out.prompt_logprobs.size());
    }
    if (out.finish != FinishReason::kNone) finish(out, live);
  }
}

void Episode::finish(const SequenceOutput& out, Live& live) {
  const auto answer = FakeExecutor::answer(*live.request, device_, config_.max_model_len);
  CHECK(live.tokens == answer.tokens, "the output differs from the request alone");
  CHECK(out.finish == answer.finish, "the request ended for another reason than alone");
  const auto prompt_len = static_cast<int64_t>(live.request->prompt.size());
  if (live.request->sampling.prompt_logprobs >= 0 && out.finish != FinishReason::kError) {
    CHECK(live.num_prompt_logprobs == prompt_len - 1, "prompt logprobs are missing");
  }
  CHECK(scheduler_->find(out.seq) == nullptr);
  // Strict order of arrival bounds the age by the work that was there before.
  CHECK(!fifo_ || pause_in_ > 0 ||
            steps_ - live.submitted_at <= 64 + 4 * 15 * int64_t{config_.max_model_len},
        "a request waited too long");
  if (out.finish == FinishReason::kStop && scheduler_->num_in_flight() > 0) ++events_[kLateStops];
  events_[kEndedPaused] += live.paused;
  last_prompt_ = last_text_ = live.request->prompt;
  last_text_.insert(last_text_.end(), live.tokens.begin(), live.tokens.end());
  if (static_cast<int64_t>(last_text_.size()) + 2 > config_.max_model_len) last_text_.clear();
  ids_.erase(std::find(ids_.begin(), ids_.end(), out.seq));
  live_.erase(out.seq);
}

void Episode::audit() {
  if (++calls_ % audit_every_ != 0) return;
  const std::string wrong = scheduler_->audit();
  CHECK(wrong.empty(), wrong);
}

int64_t Episode::run(int64_t steps) {
  Random& r = random_;
  const int in_flight_limit = config_.overlap ? 2 : 1;
  int64_t drain_limit = -1;
  int64_t turns = 0;
  for (;;) {
    if (steps_ < steps) {
      const bool quiet = ++turns / 128 % 8 == 7;  // now and then everything drains
      if (!quiet && static_cast<int>(live_.size()) < max_live_ && r.one_in(3)) submit();
      if (abort_in_ > 0 && r.one_in(abort_in_)) abort_someone();
      if (pause_in_ > 0 && r.one_in(pause_in_)) pause_or_resume();
    } else {
      for (auto& [id, live] : live_) {
        scheduler_->resume(id);
        live.paused = false;
      }
      if (drain_limit < 0) drain_limit = steps_ + 64 + 4 * 15 * int64_t{config_.max_model_len};
      CHECK(steps_ <= drain_limit, "the drain does not end");
      if (live_.empty() && scheduler_->idle()) break;
    }
    const int in_flight = scheduler_->num_in_flight();
    const bool may_plan = in_flight < in_flight_limit;
    if (may_plan && (in_flight == 0 || !r.one_in(3))) {
      plan();
      if (scheduler_->num_in_flight() == in_flight && in_flight > 0) collect();
    } else {
      collect();
    }
    audit();
  }
  const PrefixCache& cache = scheduler_->cache();
  CHECK(cache.blocks().num_used() == 0 && cache.slots().num_used() == 0, "a leak");
  const SwapPool& swaps = scheduler_->swaps();
  CHECK(swaps.free_blocks() == swaps.num_blocks() && swaps.free_slots() == swaps.num_slots());
  const SchedulerStats s = scheduler_->stats();
  events_[kFinishedStop] += s.finished_stop;
  events_[kFinishedLength] += s.finished_length;
  events_[kNumericErrors] += s.numeric_errors;
  events_[kDiscardedRows] += s.discarded_rows;
  events_[kHits] += s.hits;
  events_[kMisses] += s.misses;
  events_[kStateHits] += s.state_hits;
  events_[kStateLostTokens] += s.state_lost_tokens;
  events_[kReusedTokens] += s.reused_tokens;
  events_[kCheckpoints] += s.checkpoints;
  events_[kDenseCheckpoints] += s.dense_checkpoints;
  events_[kBranchCheckpoints] += s.branch_checkpoints;
  events_[kTakeOvers] += s.take_overs;
  events_[kPreemptions] += s.preemptions;
  events_[kSwapOuts] += s.swap_outs;
  events_[kSwapIns] += s.swap_ins;
  events_[kSwapDropped] += s.swap_outs - s.swap_ins;
  events_[kFinishedWaiting] += s.finished_waiting;
  events_[kStalls] += s.stalls;
  events_[kBlockEvictions] += s.block_evictions;
  events_[kStateEvictions] += s.state_evictions;
  return steps_;
}

}  // namespace

std::string SimReport::text() const {
  std::string out = std::to_string(steps) + " steps in " + std::to_string(episodes) +
                    " episodes (configurations)\n";
  for (const auto& [name, count] : events) out += "  " + name + ": " + std::to_string(count) + "\n";
  if (!missing.empty()) out += "  never happened: " + missing + "\n";
  if (!failure.empty()) out += "FAILED: " + failure + "\n";
  return out;
}

SimReport simulate(const SimOptions& options) {
  SimReport report;
  int64_t events[kNumEvents] = {};
  Random seeds(options.seed);
  while (report.steps < options.steps && report.failure.empty()) {
    Episode episode(seeds.next(), options.audit_every, events);
    ++report.episodes;
    try {
      report.steps += episode.run(std::min<int64_t>(4000, options.steps - report.steps));
    } catch (const Panic& panic) {
      report.failure = "seed " + std::to_string(options.seed) + ", episode " +
                       std::to_string(report.episodes) + ", its step " +
                       std::to_string(episode.now()) + ": " + panic.what();
    }
  }
  for (int i = 0; i < kNumEvents; ++i) {
    report.events[kEventNames[i]] = events[i];
    if (events[i] == 0) {
      report.missing += (report.missing.empty() ? "" : ", ") + std::string(kEventNames[i]);
    }
  }
  return report;
}

}  // namespace weft
