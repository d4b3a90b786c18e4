#include "runtime/row_sampler.h"

#include <algorithm>

#include "base/check.h"
#include "base/philox.h"

namespace weft {
namespace {

/// False: the grammar can't go on with `token`. `ends`: it allows nothing after it.
bool advance_grammar(ExecutorSequence& sequence, int32_t token, bool& ends) {
  GrammarMatcher& grammar = *sequence.grammar;
  if (is_stop(sequence.request->sampling, token)) return true;
  if (!grammar.accept(token)) return false;
  ends = grammar.exhausted();
  return true;
}

}  // namespace

RowSampler::RowSampler(int64_t vocab_size, int64_t max_rows, int num_threads,
                       const SpeculationConfig& speculation)
    : vocab_size_(vocab_size),
      sampler_(vocab_size, num_threads),
      rule_{speculation.accept, speculation.simulated_acceptance} {
  if (speculation.verify == VerifyStrategy::kTopP) {
    rule_.max_candidates = speculation.max_candidates;
    rule_.verify_window = speculation.verify_window;
  }
  const auto rows = static_cast<size_t>(max_rows);
  depth_.reserve(rows);
  wave_.reserve(rows);
  sample_rows_.reserve(rows);
  logprob_rows_.reserve(rows);
  sampled_.resize(rows);
  logprobs_.resize(rows);
}

void RowSampler::replay(PackedStep& step, const FedTokens& fed) {
  TokenHistory& history = fed.sequence->history;
  const int32_t* ids = step.ids() + fed.row;
  for (int64_t i = 0; i < fed.count; ++i) {
    const int64_t index = fed.generated + i;
    if (index == history.num_generated()) history.append(ids[i]);
    CHECK(index < history.num_generated() && ids[i] == history.generated(index),
          "a replayed token is not the one that was sampled");
  }
}

void RowSampler::feed(PackedStep& step) {
  for (const FedTokens& fed : step.fed_tokens()) {
    const ExecutorSequence& sequence = *fed.sequence;
    if (sequence.failed) continue;  // whatever the row computes is thrown away
    if (!fed.from_device) {
      replay(step, fed);
      continue;
    }
    CHECK(fed.generated < sequence.history.num_generated(), "no token was sampled yet");
    step.ids()[fed.row] = sequence.history.generated(fed.generated);
  }
}

void RowSampler::begin(const PackedStep& step, StepResult& result) {
  result.step = step.step();
  result.rows.clear();
  result.rows.reserve(step.results().size());
  for (const ResultRow& row : step.results()) {
    SampledRow& out = result.rows.emplace_back();
    out.seq = row.seq;
    out.numeric_error = row.sequence->failed;
    if (row.num_prompt_logprobs > 0) {
      out.prompt_logprobs.resize(static_cast<size_t>(row.num_prompt_logprobs));
    }
  }
}

/// A coin for the draft at `position`, of a stream that no token is drawn from.
bool simulated_hit(const LogitRow& row, int64_t position, double rate) {
  const auto bits =
      philox4x32(row.sequence->request->sampling.seed, static_cast<uint64_t>(position), 0x64726166);
  return static_cast<double>(bits[0]) * 0x1.0p-32 < rate;
}

bool DraftRule::counts(const LogitRow& row, const StepResult& result) const {
  if (row.draft < 0) return true;
  const SampledRow& out = result.rows[static_cast<size_t>(row.result)];
  const ExecutorSequence& sequence = *row.sequence;
  if (policy == AcceptPolicy::kRejectAll || out.numeric_error || out.ends) return false;
  const int64_t before = row.position - std::ssize(sequence.request->prompt);
  if (sequence.history.num_generated() != before) return false;
  if (out.tokens.back() != row.draft) return false;
  if (is_stop(sequence.request->sampling, row.draft)) return false;
  return policy != AcceptPolicy::kSimulated || simulated_hit(row, row.position - 1, acceptance);
}

bool DraftRule::takes_draft(const LogitRow& row) const {
  if (row.next_draft < 0 || row.sequence->failed) return false;
  const bool takes =
      policy == AcceptPolicy::kAcceptAll ||
      (policy == AcceptPolicy::kSimulated && simulated_hit(row, row.position, acceptance));
  if (!takes || !row.sequence->grammar || !row.sequence->grammar->binds()) return takes;
  const std::span<const uint32_t> mask = row.sequence->grammar->mask();
  const auto id = static_cast<size_t>(row.next_draft);
  return id / 32 < mask.size() && ((mask[id / 32] >> (id % 32)) & 1) != 0;
}

DraftCheck DraftRule::check(const LogitRow& row) const {
  switch (policy) {
    case AcceptPolicy::kNormal: return DraftCheck::kCompare;
    case AcceptPolicy::kAcceptAll: return DraftCheck::kTake;
    case AcceptPolicy::kRejectAll: return DraftCheck::kReject;
    case AcceptPolicy::kSimulated: break;
  }
  return simulated_hit(row, row.position, acceptance) ? DraftCheck::kTake : DraftCheck::kReject;
}

void RowSampler::sample(ThreadPool& pool, const PackedStep& step, std::span<const LogitRow> rows,
                        TensorView all_logits, StepResult& result) {
  const auto logits_of = [&](size_t i) {
    return std::span<float>(all_logits.row<float>(static_cast<int64_t>(i)),
                            static_cast<size_t>(vocab_size_));
  };
  logprob_rows_.clear();
  depth_.clear();
  int deepest = 0;
  for (size_t i = 0; i < rows.size(); ++i) {
    const LogitRow& row = rows[i];
    const bool follows = row.draft >= 0 && i > 0 && rows[i - 1].result == row.result;
    depth_.push_back(follows ? depth_[i - 1] + 1 : 0);
    deepest = std::max(deepest, depth_[i]);
    if (row.prompt_entry < 0) continue;
    const int num_top = row.sequence->request->sampling.prompt_logprobs;
    logprob_rows_.push_back({logits_of(i), row.target, num_top});
  }
  sampler_.logprobs(pool, logprob_rows_, std::span(logprobs_).first(logprob_rows_.size()));
  size_t scored = 0;
  for (const LogitRow& row : rows) {
    if (row.prompt_entry >= 0) accept_prompt(row, std::move(logprobs_[scored++]), result);
  }

  if (rule_.max_candidates > 0) rate_drafts(rows, all_logits);
  for (int depth = 0; depth <= deepest; ++depth) {
    sample_rows_.clear();
    wave_.clear();
    for (size_t i = 0; i < rows.size(); ++i) {
      const LogitRow& row = rows[i];
      if (row.prompt_entry >= 0 || depth_[i] != depth || !rule_.counts(row, result)) continue;
      const int64_t num_generated = row.position - std::ssize(row.sequence->request->prompt);
      CHECK(row.sequence->failed || num_generated == row.sequence->history.num_generated(),
            "a sequence samples out of order");
      sample_rows_.push_back({logits_of(i), &row.sequence->request->sampling,
                              &row.sequence->history, row.position, num_generated,
                              row.sequence->grammar.get()});
      if (rule_.max_candidates > 0 && row.next_draft >= 0) {
        SampleRow& out = sample_rows_.back();
        out.draft = row.next_draft;
        out.max_candidates = rule_.max_candidates;
        out.takes_second = i + 1 < rows.size() && rows[i + 1].result == row.result &&
                           right_[i + 1] >= rule_.verify_window;
      }
      wave_.push_back(&row);
    }
    const std::span<SampledToken> out = std::span(sampled_).first(wave_.size());
    sampler_.sample(pool, sample_rows_, out);
    for (size_t i = 0; i < wave_.size(); ++i) {
      if (rule_.takes_draft(*wave_[i])) out[i].token = wave_[i]->next_draft;
      accept(step, *wave_[i], std::move(out[i]), result);
    }
  }
}

/// Where nothing but the logits says what comes first: of each row, how many drafts from its next
/// one on are the first of the rows that they are verified by.
void RowSampler::rate_drafts(std::span<const LogitRow> rows, const TensorView& logits) {
  right_.assign(rows.size(), 0);
  for (size_t i = rows.size(); i-- > 0;) {
    const LogitRow& row = rows[i];
    if (row.next_draft < 0 || row.prompt_entry >= 0) continue;
    const SamplingParams& params = row.sequence->request->sampling;
    const bool plain = !row.sequence->grammar && !uses_penalties(params) &&
                       params.logit_bias.empty() && params.banned_ids.empty() &&
                       params.allowed_ids.empty();
    const float* const x = logits.row<float>(static_cast<int64_t>(i));
    if (!plain || std::max_element(x, x + vocab_size_) - x != row.next_draft) continue;
    const bool more = i + 1 < rows.size() && rows[i + 1].result == row.result;
    right_[i] = 1 + (more ? right_[i + 1] : 0);
  }
}

void RowSampler::accept_prompt(const LogitRow& row, LogprobResult one, StepResult& result) {
  SampledRow& out = result.rows[static_cast<size_t>(row.result)];
  out.numeric_error |= one.numeric_error;
  row.sequence->failed |= one.numeric_error;
  out.prompt_logprobs[static_cast<size_t>(row.prompt_entry)] = std::move(one.logprob);
}

void RowSampler::accept(const PackedStep& step, const LogitRow& row, SampledToken one,
                        StepResult& result) {
  SampledRow& out = result.rows[static_cast<size_t>(row.result)];
  ExecutorSequence& sequence = *row.sequence;
  // A grammar that does not take a token of its own mask has met the bound of its work: that ends
  // its request, and no other.
  if (one.numeric_error || sequence.failed ||
      (sequence.grammar && !advance_grammar(sequence, one.token, out.ends))) {
    out.numeric_error = true;
    sequence.failed = true;
    return;
  }
  sequence.history.append(one.token);
  out.tokens.push_back(one.token);
  if (step.results()[static_cast<size_t>(row.result)].logprobs) {
    out.logprobs.push_back(std::move(one.logprob));
  }
}

}  // namespace weft
