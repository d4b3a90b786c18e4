#include "runtime/speculator.h"

#include <algorithm>

#include "base/check.h"
#include "base/thread_pool.h"

namespace weft {

void OwnedPlan::copy(const StepPlan& from) {
  plan = from;
  size_t num_ints = 0, num_blocks = 0;
  for (const Slice& slice : from.slices) {
    num_ints += slice.tokens.size();
    num_blocks += slice.blocks.size();
  }
  for (const ImageEncoding& encoding : from.encodings) num_ints += encoding.pages.size();
  for (const ImageUse& use : from.image_uses) num_ints += use.pages.size();
  ints_.clear();
  blocks_.clear();
  ints_.reserve(num_ints);
  blocks_.reserve(num_blocks);
  const auto keep = [](auto& span, auto& memory) {
    const auto at = static_cast<ptrdiff_t>(memory.size());
    memory.insert(memory.end(), span.begin(), span.end());
    span = {memory.begin() + at, memory.end()};
  };
  for (Slice& slice : plan.slices) {
    keep(slice.tokens, ints_);
    keep(slice.blocks, blocks_);
  }
  for (ImageEncoding& encoding : plan.encodings) keep(encoding.pages, ints_);
  for (ImageUse& use : plan.image_uses) keep(use.pages, ints_);
}

namespace {

constexpr uint64_t kColdSteps = 4;   // take longer than others like them
constexpr int64_t kLongAnswer = 64;  // tokens, behind which the module follows in any case

}  // namespace

bool Speculator::wants_drafts(const StepPlan& plan) {
  const auto decodes = [](const Slice& slice) {
    return slice.arithmetic == Arithmetic::kDecode && slice.tokens.size() == 1;
  };
  const int64_t decoding = std::count_if(plan.slices.begin(), plan.slices.end(), decodes);
  Note& now = note(plan.step);
  now = {.begin = busy_seconds()};
  now.sequences = std::ssize(plan.slices);
  now.only_decodes = decoding > 0 && decoding == now.sequences && plan.encodings.empty();
  now.drafting = std::any_of(plan.slices.begin(), plan.slices.end(),
                             [](const Slice& slice) { return slice.max_drafts > 0; });
  const int64_t most = config_.disable_by_batch_size;
  now.drafting &= most == 0 || decoding <= most;
  if (config_.uses_mtp() && config_.adaptive && now.sequences > 0) {
    if (!whim_) {
      module_follows_ = policy_.follows(now.sequences);
    } else if (plan.step % 16 == 0) {
      module_follows_ = whim_();
    }
  }
  now.follows = module_follows_;
  if (!now.drafting || !config_.adaptive) return now.drafting;
  if (!module_follows_ && !config_.uses_ngram()) {
    now.drafting = false;
  } else if (whim_) {
    now.drafting = whim_();
  } else if (now.only_decodes) {
    now.drafting = policy_.wants_drafts(now.sequences);
  } else {
    now.drafting = policy_.drafts_pay(decoding);
  }
  return now.drafting;
}

bool Speculator::follows_texts(const StepPlan& plan, PackedStep::Sequences& sequences) {
  using Follow = PromptPolicy::Follow;
  Note& now = note(plan.step);
  if (!now.follows || !config_.adaptive || whim_ || plan.slices.empty()) return now.follows;
  now.follows = false;
  now.trial = true;
  for (const Slice& slice : plan.slices) {
    ExecutorSequence& sequence = *sequences.at(slice.seq);
    const int64_t prompt = std::ssize(sequence.request->prompt);
    Follow& follow = draft_state(sequence).follow;
    if (follow == Follow::kUnknown) {
      follow = prompts_.begin(std::max<int64_t>(prompt - slice.first, 0),
                              sequence.request->sampling.max_tokens,
                              policy_.saved_a_token(now.sequences));
    }
    now.follows |= follow != Follow::kNo || slice.first >= prompt + kLongAnswer;
    now.trial &= follow == Follow::kTrial;
  }
  return now.follows;
}

void Speculator::resolve_ahead(StepPlan& plan) {
  for (Slice& slice : plan.slices) slice.max_drafts = 0;
}

void Speculator::resolve(StepPlan& plan, PackedStep::Sequences& sequences, DraftModule* mtp,
                         Arena& arena, bool later) {
  rows_.clear();
  slices_.clear();
  late_.clear();
  const Note& now = note(plan.step);
  num_sequences_ = now.sequences;
  const bool catch_up = now.drafting || (mtp != nullptr && mtp->must_catch_up(now.only_decodes));
  for (const SeqId id : plan.preempted) {
    const auto it = sequences.find(id);
    if (it != sequences.end() && it->second->drafts) it->second->drafts->forget_late();
  }
  for (Slice& slice : plan.slices) {
    const bool from_device = slice.tokens[0] == kDeviceToken;
    const int drafts = std::exchange(slice.max_drafts, 0);
    const auto it = sequences.find(slice.seq);
    if (it == sequences.end()) {
      CHECK(!from_device && drafts == 0, "drafts for an unknown sequence");
      continue;  // it is admitted by this very plan
    }
    ExecutorSequence& sequence = *it->second;
    if (sequence.drafts && sequence.drafts->is_late(catch_up)) {
      late_.push_back({&sequence, slice.blocks});
    }
    if (!from_device && drafts == 0) continue;
    const int64_t first = sequence.last_index();
    if (sequence.failed || first >= slice.limit) {
      slice.tokens = {};  // it has ended; the scheduler learns it before this result
      continue;
    }
    CHECK(first >= slice.first && (from_device || first == slice.first), "a slice out of place");
    slice.first = first;
    const int64_t room = now.drafting ? std::min<int64_t>(drafts, slice.limit - first - 1) : 0;
    rows_.push_back({.sequence = &sequence,
                     .first = first,
                     .blocks = slice.blocks,
                     .most = static_cast<int>(std::max<int64_t>(room, 0))});
    slices_.push_back(&slice);
  }
  if (ngrams_ != nullptr && now.drafting && !guess_) ngrams_->catch_up(rows_);
  for (DraftRow& row : rows_) choose_lengths(row);
  share_drafts();
  if (mtp != nullptr) {
    mtp->put_off(!now.drafting);
    mtp->catch_up(arena, late_);
    mtp->propose(arena, rows_);
    open_ = later && may_settle_later();
    if (!open_) mtp->take();
  }
  tokens_.clear();
  tokens_.reserve(rows_.size() + static_cast<size_t>(limits_.max_draft_rows));
  for (size_t i = 0; i < rows_.size(); ++i) {
    DraftRow& row = rows_[i];
    auto& proposed = row.sequence->drafts->proposed;
    proposed[static_cast<size_t>(DraftSource::kMtp)] = row.count;
    if (config_.uses_ngram()) propose_ngrams(row);
    proposed[static_cast<size_t>(DraftSource::kNgram)] = row.count - proposed[0];
    const size_t begin = tokens_.size();
    const TokenHistory& history = row.sequence->history;
    tokens_.push_back(history.generated(history.num_generated() - 1));
    tokens_.insert(tokens_.end(), row.drafts.begin(), row.drafts.begin() + row.count);
    slices_[i]->tokens = std::span(tokens_).subspan(begin);
    slices_[i]->max_drafts = row.count;
    row.sequence->drafts->drafts = row.drafts;
  }
}

/// Penalties, masks and continuations by n-grams depend on the drafts before them.
bool Speculator::may_settle_later() const {
  const auto drafts = [](const DraftRow& row) { return row.count > 0; };
  const auto depends = [](const DraftRow& row) {
    return row.count > 0 &&
           (row.sequence->grammar || uses_penalties(row.sequence->request->sampling));
  };
  return !config_.uses_ngram() && std::any_of(rows_.begin(), rows_.end(), drafts) &&
         std::none_of(rows_.begin(), rows_.end(), depends);
}

void Speculator::settle(DraftModule& mtp) {
  mtp.take();
  open_ = false;
  for (const DraftRow& row : rows_) {
    DraftState& state = *row.sequence->drafts;
    state.proposed[static_cast<size_t>(DraftSource::kMtp)] = row.count;
    state.drafts = row.drafts;
  }
}

/// How many drafts the row wants, and from whom the first ones.
void Speculator::choose_lengths(DraftRow& row) {
  const DraftEstimates::Sequence& own = draft_state(*row.sequence).estimates;
  const bool text = config_.uses_ngram(), module = config_.uses_mtp();
  if (module) row.wanted = text ? std::min(row.most, config_.num_mtp_steps) : row.most;
  if (!config_.adaptive || row.most == 0 || (text && guess_)) return;
  if (text) {
    const int matched = continue_text(row, {}).matched;
    if (!module || estimates_.trusts_ngram(matched)) {
      row.wanted = 0;
      row.most =
          matched == 0 ? 0 : estimates_.ngram_length(own, matched, 0, row.most, num_sequences_);
      return;
    }
  }
  row.wanted = estimates_.mtp_length(own, row.wanted, num_sequences_);
  if (!text) row.most = row.wanted;
}

/// Where all want more than a step can verify, everybody gets as many; the rest goes round.
void Speculator::share_drafts() {
  int64_t left = limits_.max_draft_rows;
  int64_t wanted = 0;
  for (const DraftRow& row : rows_) wanted += row.most;
  if (wanted <= left) return;
  const size_t count = rows_.size(), start = turn_++ % count;
  std::vector<int> given(count, 0);
  for (bool more = true; more && left > 0;) {
    more = false;
    for (size_t k = 0; k < count && left > 0; ++k) {
      const size_t i = (start + k) % count;
      if (given[i] == rows_[i].most) continue;
      ++given[i];
      --left;
      more = true;
    }
  }
  for (size_t i = 0; i < count; ++i) {
    rows_[i].most = given[i];
    rows_[i].wanted = std::min(rows_[i].wanted, given[i]);
  }
}

/// The index of its text, up to the last token.
const NgramMatcher& Speculator::ngram_of(ExecutorSequence& sequence) const {
  const TokenHistory& history = sequence.history;
  const std::vector<int32_t>& prompt = sequence.request->prompt;
  std::unique_ptr<NgramMatcher>& ngram = sequence.drafts->ngram;
  if (!ngram) {
    const int64_t expected = std::ssize(prompt) + sequence.request->sampling.max_tokens;
    ngram = std::make_unique<NgramMatcher>(config_.min_ngram_size, config_.max_ngram_size,
                                           std::min(expected, limits_.max_model_len));
    ngram->append(prompt);
  }
  while (ngram->num_tokens() < std::ssize(prompt) + history.num_generated()) {
    const int32_t token = history.generated(ngram->num_tokens() - std::ssize(prompt));
    ngram->append(std::span(&token, 1));
  }
  return *ngram;
}

void Speculator::read_ahead(const StepPlan& plan, const PackedStep::Sequences& sequences) {
  if (config_.adaptive && !policy_.drafts_pay(std::ssize(plan.slices))) return;
  for (const Slice& slice : plan.slices) {
    if (slice.sample && slice.arithmetic == Arithmetic::kPrompt) {
      draft_state(*sequences.at(slice.seq));
      ngram_of(*sequences.at(slice.seq));
    }
  }
}

/// What follows the text and the drafts that the row has.
NgramDraft Speculator::continue_text(const DraftRow& row, std::span<int32_t> to) const {
  const auto found = ngrams_ != nullptr && row.count == 0 ? ngrams_->find(*row.sequence)
                                                          : std::optional<NgramSource::Found>();
  if (!found) {
    const bool waits = ngrams_ != nullptr && row.count > 0 && !row.sequence->drafts->ngram;
    if (waits && config_.adaptive) return {};
    const auto drafts = std::span(row.drafts).first(static_cast<size_t>(row.count));
    return ngram_of(*row.sequence).propose(drafts, to);
  }
  if (found->matched == 0) return {};
  std::copy_n(found->drafts.begin(), to.size(), to.begin());
  return {static_cast<int>(to.size()), found->matched};
}

/// Drafts from the text behind those that the row has.
void Speculator::propose_ngrams(DraftRow& row) {
  const TokenHistory& history = row.sequence->history;
  const auto count = static_cast<size_t>(row.count), most = static_cast<size_t>(row.most);
  if (count >= most) return;
  const std::span<int32_t> drafts = std::span(row.drafts).first(most);
  if (guess_) {
    row.count +=
        guess_(*row.sequence->request, history.num_generated() + row.count, drafts.subspan(count));
    return;
  }
  const NgramDraft found = continue_text(row, drafts.subspan(count));
  if (found.num_tokens == 0) return;
  DraftState& state = *row.sequence->drafts;
  state.matched = std::max(found.matched - row.count, 0);
  row.count += config_.adaptive ? estimates_.ngram_length(state.estimates, state.matched, row.count,
                                                          found.num_tokens, num_sequences_)
                                : found.num_tokens;
}

void Speculator::learn(const PackedStep& step, StepResult& result, double module_seconds) {
  const std::span<const ResultRow> rows = step.results();
  int64_t tokens = 0, of_module = 0;
  bool drafted = false;  // not so where the text never repeats itself
  for (size_t i = 0; i < rows.size(); ++i) {
    drafted |= rows[i].num_drafts > 0;
    SampledRow& out = result.rows[i];
    tokens += std::ssize(out.tokens);
    if (rows[i].num_drafts == 0 || out.tokens.empty()) continue;
    DraftState& state = *rows[i].sequence->drafts;
    const int proposed = state.proposed[0] + state.proposed[1];
    if (proposed == 0) continue;  // all were cut
    out.speculation.proposed = state.proposed;
    int accepted = static_cast<int>(out.tokens.size()) - 1;
    // The last token is the target's own, but where a right draft ends the answer: an EOS.
    const bool draft_is_last = accepted < proposed && config_.accept == AcceptPolicy::kNormal &&
                               state.drafts[static_cast<size_t>(accepted)] == out.tokens.back();
    if (draft_is_last) ++accepted;
    estimates_.learn(state.estimates, state.proposed, state.matched, accepted);
    for (size_t source = 0; source < kNumDraftSources; ++source) {
      const int n = std::min(accepted, state.proposed[source]);
      out.speculation.accepted[source] = n;
      if (source == static_cast<size_t>(DraftSource::kMtp)) of_module += n;
      accepted -= n;
    }
  }
  const Note& then = note(step.step());
  const bool idle_counts = then.only_decodes || result.device_idle_us < result.device_us;
  const double seconds = result.device_us > 0
                             ? ((idle_counts ? result.device_idle_us : 0) + result.device_us) * 1e-6
                             : busy_seconds() - then.begin;
  if (then.sequences > 0 && config_.uses_mtp() && step.step() > kColdSteps) {
    // What a step with drafts costs has the module's rows in it.
    const StepBatch& batch = step.batch();
    const double prompts = static_cast<double>(batch.prompt_rows) /
                           static_cast<double>(std::max<int64_t>(batch.num_rows(), 1));
    const double of_prompts = then.follows ? seconds * prompts * last_layer_ : 0;
    const double module = module_seconds * (drafted ? prompts : 1.0) + of_prompts;
    if (then.follows && batch.prompt_rows > 0) {
      prompts_.followed(batch.prompt_rows, module_seconds * prompts + of_prompts);
    }
    prompts_.account(tokens, seconds);
    policy_.account(then.sequences,
                    {.seconds = seconds, .module = then.trial ? 0 : module, .drafts = of_module});
  }
  if (!then.only_decodes) return;
  const bool in_vain = on_gpu_ && then.drafting;
  policy_.measured(then.sequences, {.kind = drafted   ? StepKind::kDrafted
                                            : in_vain ? StepKind::kNone
                                                      : StepKind::kPlain,
                                    .tokens = tokens,
                                    .seconds = seconds,
                                    .typical = !result.device_new_shape});
}

}  // namespace weft
