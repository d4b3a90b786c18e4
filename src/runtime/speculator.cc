#include "runtime/speculator.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/check.h"

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

void DraftPolicy::Rate::add(int64_t new_tokens, double new_seconds) {
  const size_t at = static_cast<size_t>(steps++) % kKept;
  tokens[at] = static_cast<double>(new_tokens);
  seconds[at] = new_seconds;
}

double DraftPolicy::Rate::per_second() const {
  const size_t count = std::min(static_cast<size_t>(steps), kKept);
  std::array<double, kKept> sorted = seconds;
  std::nth_element(sorted.begin(), sorted.begin() + count / 2, sorted.begin() + count);
  const double sum = std::accumulate(tokens.begin(), tokens.begin() + count, 0.0);
  return sum / (static_cast<double>(count) * sorted[count / 2]);
}

DraftPolicy::Batch& DraftPolicy::batch(int64_t sequences) {
  const auto index = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(sequences)));
  return batches_[std::min(index, batches_.size() - 1)];
}

bool DraftPolicy::wants_drafts(int64_t sequences) {
  constexpr int64_t kFirst = 8, kTrial = 2, kLongestPause = 1024;
  constexpr int64_t kFirstPlain = 4;
  constexpr double kMargin = 0.97;
  Batch& b = batch(sequences);
  if (b.drafted.steps < kFirst) return true;
  if (b.plain.steps < kFirstPlain) return false;
  const bool pays = b.drafted.per_second() >= kMargin * b.plain.per_second();
  if (b.trials == 0 && ++b.steps >= b.pause) {
    b.trials = kTrial;
    b.tries_drafts = !pays;
    b.steps = 0;
    // What lost again is tried ever more seldom.
    b.pause = pays ? 64 : std::min(2 * b.pause, kLongestPause);
  }
  return b.trials > 0 ? b.tries_drafts : pays;
}

void DraftPolicy::measured(int64_t sequences, bool drafted, int64_t tokens, double seconds) {
  Batch& b = batch(sequences);
  (drafted ? b.drafted : b.plain).add(tokens, seconds);
  if (b.trials > 0 && drafted == b.tries_drafts) --b.trials;
}

void Speculator::resolve(StepPlan& plan, PackedStep::Sequences& sequences, MtpDrafter* mtp,
                         Arena& arena) {
  rows_.clear();
  slices_.clear();
  begin_ = std::chrono::steady_clock::now();
  num_sequences_ = std::ssize(plan.slices);
  only_decodes_ = num_sequences_ > 0 && plan.encodings.empty() &&
                  std::all_of(plan.slices.begin(), plan.slices.end(), [](const Slice& slice) {
                    return slice.arithmetic == Arithmetic::kDecode && slice.tokens.size() == 1;
                  });
  // Beside a prompt a few rows more cost little.
  drafting_ = !config_.adaptive || !only_decodes_ || policy_.wants_drafts(num_sequences_);
  for (Slice& slice : plan.slices) {
    const bool from_device = slice.tokens[0] == kDeviceToken;
    const int drafts = std::exchange(slice.max_drafts, 0);
    if (!from_device && drafts == 0) continue;
    const auto it = sequences.find(slice.seq);
    CHECK(it != sequences.end(), "drafts for an unknown sequence");
    ExecutorSequence& sequence = *it->second;
    const auto prompt_len = std::ssize(sequence.request->prompt);
    const int64_t first = prompt_len + sequence.history.num_generated() - 1;
    if (sequence.failed || first >= slice.limit) {
      slice.tokens = {};  // it has ended; the scheduler learns it before this result
      continue;
    }
    CHECK(first >= slice.first && (from_device || first == slice.first), "a slice out of place");
    slice.first = first;
    if (!sequence.drafts) {
      sequence.drafts = std::make_unique<DraftState>(*sequence.request);
    }
    int64_t room = drafting_ ? std::min<int64_t>(drafts, slice.limit - first - 1) : 0;
    if (config_.adaptive) room = std::min<int64_t>(room, sequence.drafts->most);
    rows_.push_back({.sequence = &sequence,
                     .first = first,
                     .blocks = slice.blocks,
                     .wanted = static_cast<int>(std::max<int64_t>(room, 0))});
    slices_.push_back(&slice);
  }
  share_drafts();
  for (DraftRow& row : rows_) {
    const int most = row.wanted;
    if (config_.method == SpeculationMethod::kNgram) row.wanted = 0;
    if (config_.method == SpeculationMethod::kHybrid) {
      row.wanted = std::min(most, config_.num_mtp_steps);
    }
    row.most = most;
  }
  if (mtp != nullptr) mtp->propose(arena, rows_);
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

/// Where all want more than a step can verify, everybody gets as many; the rest goes round.
void Speculator::share_drafts() {
  int64_t left = limits_.max_draft_rows;
  int64_t wanted = 0;
  for (const DraftRow& row : rows_) wanted += row.wanted;
  if (wanted <= left) return;
  const size_t count = rows_.size(), start = turn_++ % count;
  std::vector<int> given(count, 0);
  for (bool more = true; more && left > 0;) {
    more = false;
    for (size_t k = 0; k < count && left > 0; ++k) {
      const size_t i = (start + k) % count;
      if (given[i] == rows_[i].wanted) continue;
      ++given[i];
      --left;
      more = true;
    }
  }
  for (size_t i = 0; i < count; ++i) rows_[i].wanted = given[i];
}

/// Drafts from the text behind those that the row has.
void Speculator::propose_ngrams(DraftRow& row) {
  const TokenHistory& history = row.sequence->history;
  const std::vector<int32_t>& prompt = row.sequence->request->prompt;
  const auto count = static_cast<size_t>(row.count), most = static_cast<size_t>(row.most);
  if (count >= most) return;
  const std::span<int32_t> drafts = std::span(row.drafts).first(most);
  if (guess_) {
    row.count +=
        guess_(*row.sequence->request, history.num_generated() + row.count, drafts.subspan(count));
    return;
  }
  std::unique_ptr<NgramMatcher>& ngram = row.sequence->drafts->ngram;
  if (!ngram) {
    const int64_t expected = std::ssize(prompt) + row.sequence->request->sampling.max_tokens;
    ngram = std::make_unique<NgramMatcher>(config_.min_ngram_size, config_.max_ngram_size,
                                           std::min(expected, limits_.max_model_len));
    ngram->append(prompt);
  }
  while (ngram->num_tokens() < std::ssize(prompt) + history.num_generated()) {
    const int32_t token = history.generated(ngram->num_tokens() - std::ssize(prompt));
    ngram->append(std::span(&token, 1));
  }
  row.count += ngram->propose(drafts.first(count), drafts.subspan(count)).num_tokens;
}

void Speculator::learn(const PackedStep& step, StepResult& result) {
  const std::span<const ResultRow> rows = step.results();
  int64_t tokens = 0;
  bool drafted = false;  // not so where the text never repeats itself
  for (size_t i = 0; i < rows.size(); ++i) {
    drafted |= rows[i].num_drafts > 0;
    SampledRow& out = result.rows[i];
    tokens += std::ssize(out.tokens);
    if (rows[i].num_drafts == 0 || out.tokens.empty()) continue;
    DraftState& state = *rows[i].sequence->drafts;
    out.speculation.proposed = state.proposed;
    int accepted = static_cast<int>(out.tokens.size()) - 1;
    // The last token is the target's own, but where a right draft ends the answer: an EOS.
    const bool draft_is_last = accepted < rows[i].num_drafts &&
                               config_.accept == AcceptPolicy::kNormal &&
                               state.drafts[static_cast<size_t>(accepted)] == out.tokens.back();
    if (draft_is_last) ++accepted;
    adapt(state, rows[i].num_drafts, accepted);
    for (size_t source = 0; source < kNumDraftSources; ++source) {
      const int n = std::min(accepted, state.proposed[source]);
      out.speculation.accepted[source] = n;
      accepted -= n;
    }
  }
  if (!only_decodes_) return;
  const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - begin_;
  policy_.measured(num_sequences_, drafted, tokens, taken.count());
}

/// Two more where all were right, else as many as were right and one.
void Speculator::adapt(DraftState& state, int proposed, int accepted) const {
  const int most = accepted == proposed ? std::max(state.most, proposed) + 2 : accepted + 1;
  state.most = std::clamp(most, 1, config_.num_speculative_tokens);
}

}  // namespace weft
