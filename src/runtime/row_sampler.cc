#include "runtime/row_sampler.h"

#include <algorithm>

#include "base/check.h"

namespace weft {
namespace {

/// True: the grammar allows nothing after `token`.
bool advance_grammar(ExecutorSequence& sequence, int32_t token) {
  GrammarMatcher& grammar = *sequence.grammar;
  const std::vector<int32_t>& stops = sequence.request->sampling.stop_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return false;
  CHECK(grammar.accept(token), "a token outside of its grammar was sampled");
  return grammar.exhausted();
}

}  // namespace

RowSampler::RowSampler(int64_t vocab_size, int64_t max_rows, int num_threads)
    : vocab_size_(vocab_size), sampler_(vocab_size, num_threads) {
  const auto rows = static_cast<size_t>(max_rows);
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

void RowSampler::sample(ThreadPool& pool, const PackedStep& step, std::span<const LogitRow> rows,
                        TensorView all_logits, StepResult& result) {
  sample_rows_.clear();
  logprob_rows_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const LogitRow& row = rows[i];
    const std::span<float> logits(all_logits.row<float>(static_cast<int64_t>(i)),
                                  static_cast<size_t>(vocab_size_));
    const SamplingParams& params = row.sequence->request->sampling;
    if (row.prompt_entry >= 0) {
      logprob_rows_.push_back({logits, row.target, params.prompt_logprobs});
      continue;
    }
    const int64_t num_generated =
        row.position - static_cast<int64_t>(row.sequence->request->prompt.size());
    CHECK(row.sequence->failed || num_generated == row.sequence->history.num_generated(),
          "a sequence samples out of order");
    sample_rows_.push_back({logits, &params, &row.sequence->history, row.position, num_generated,
                            row.sequence->grammar.get()});
  }
  sampler_.sample(pool, sample_rows_, std::span(sampled_).first(sample_rows_.size()));
  sampler_.logprobs(pool, logprob_rows_, std::span(logprobs_).first(logprob_rows_.size()));

  size_t sampled = 0, scored = 0;
  for (const LogitRow& row : rows) {
    if (row.prompt_entry >= 0) {
      accept_prompt(row, std::move(logprobs_[scored++]), result);
    } else {
      accept(step, row, std::move(sampled_[sampled++]), result);
    }
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
  if (one.numeric_error || sequence.failed) {
    out.numeric_error = true;
    sequence.failed = true;
    return;
  }
  sequence.history.append(one.token);
  out.tokens.push_back(one.token);
  if (sequence.grammar) out.ends = advance_grammar(sequence, one.token);
  if (step.results()[static_cast<size_t>(row.result)].logprobs) {
    out.logprobs.push_back(std::move(one.logprob));
  }
}

}  // namespace weft
