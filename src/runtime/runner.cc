#include "runtime/runner.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "runtime/prefault.h"

namespace weft {
namespace {

int64_t piece_rows(const StepLimits& limits) {
  return std::min(kLogitRows, limits.max_rows);
}

}  // namespace

Runner::Runner(const Parts& parts, const StepLimits& limits)
    : parts_(parts),
      vocab_size_(limits.vocab_size),
      sampler_(limits.vocab_size, parts.stream.pool().num_threads()) {
  const auto rows = static_cast<size_t>(piece_rows(limits));
  sample_rows_.reserve(rows);
  logprob_rows_.reserve(rows);
  sampled_.resize(rows);
  logprobs_.resize(rows);
}

int64_t Runner::logit_bytes(const StepLimits& limits, int64_t hidden_size, int num_threads) {
  return piece_rows(limits) * (limits.vocab_size + hidden_size) * 4 +
         Sampler::scratch_bytes(limits.vocab_size, num_threads);
}

Result<Runner> Runner::create(const Model& model, KvStore& kv, Stream& stream, const OpTable& ops,
                              const StepLimits& limits) {
  Runner runner({model, kv, stream, ops}, limits);
  runner.arena_ =
      Arena(TRY(Buffer::allocate(DeviceKind::kCpu, model.arena_bytes(limits.max_rows))));
  const int64_t rows = piece_rows(limits), hidden = model.spec().hidden;
  runner.logit_buffer_ =
      TRY(Buffer::allocate(DeviceKind::kCpu, rows * (limits.vocab_size + hidden) * 4));
  float* at = reinterpret_cast<float*>(runner.logit_buffer_.data());
  runner.logits_ = TensorView(at, DType::kF32, {rows, limits.vocab_size});
  runner.gathered_ = TensorView(at + rows * limits.vocab_size, DType::kF32, {rows, hidden});
  ThreadPool& pool = stream.pool();
  prefault(pool, runner.arena_);
  prefault(pool, stream.scratch());
  prefault(pool, runner.logit_buffer_.data(), runner.logit_buffer_.bytes());
  return runner;
}

/// Resolves kDeviceToken, and takes note of tokens that are replayed from elsewhere.
void Runner::feed(PackedStep& step) {
  for (const FedTokens& fed : step.fed_tokens()) {
    ExecutorSequence& sequence = *fed.sequence;
    if (sequence.failed) continue;  // whatever the row computes is thrown away
    int32_t* ids = step.ids() + fed.row;
    if (fed.from_device) {
      CHECK(fed.generated < sequence.history.num_generated(), "no token was sampled yet");
      *ids = sequence.history.generated(fed.generated);
      continue;
    }
    for (int64_t i = 0; i < fed.count; ++i) {
      const int64_t index = fed.generated + i;
      if (index == sequence.history.num_generated()) sequence.history.append(ids[i]);
      CHECK(index < sequence.history.num_generated() && ids[i] == sequence.history.generated(index),
            "a replayed token is not the one that was sampled");
    }
  }
}

/// True: the grammar allows nothing after `token`.
bool Runner::advance_grammar(ExecutorSequence& sequence, int32_t token) {
  GrammarMatcher& grammar = *sequence.grammar;
  const std::vector<int32_t>& stops = sequence.request->sampling.stop_ids;
  if (std::find(stops.begin(), stops.end(), token) != stops.end()) return false;
  CHECK(grammar.accept(token), "a token outside of its grammar was sampled");
  return grammar.exhausted();
}

void Runner::run(PackedStep& step, StepResult& result) {
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
  for (const BlockCopy& copy : step.copies())
    parts_.kv.copy_block(parts_.stream, copy.from, copy.to);
  if (step.batch().num_rows() == 0) return;
  feed(step);

  const ArenaScope scope(arena_);
  StepContext context{parts_.stream, parts_.ops, arena_, step.batch(), parts_.kv};
  const TensorView hidden = parts_.model.hidden(context);
  const std::span<const LogitRow> rows = step.logit_rows();
  const int64_t num_prompt = step.num_prompt_logit_rows(), count = std::ssize(rows);
  for (int64_t begin = 0; begin < count; begin += logits_.dim(0)) {
    const int64_t end = std::min(count, begin + logits_.dim(0));
    const auto piece = rows.subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin));
    const TensorView gathered = gathered_.rows(0, end - begin);
    for (int64_t i = 0; i < end - begin; ++i) {
      std::memcpy(gathered.row<float>(i), hidden.row<float>(piece[static_cast<size_t>(i)].row),
                  static_cast<size_t>(gathered.dim(1)) * sizeof(float));
    }
    parts_.model.logits(context, gathered, std::clamp<int64_t>(num_prompt - begin, 0, end - begin),
                        logits_.rows(0, end - begin));
    sample_piece(step, piece, result);
  }
}

void Runner::sample_piece(const PackedStep& step, std::span<const LogitRow> rows,
                          StepResult& result) {
  sample_rows_.clear();
  logprob_rows_.clear();
  for (size_t i = 0; i < rows.size(); ++i) {
    const LogitRow& row = rows[i];
    const std::span<float> logits(logits_.row<float>(static_cast<int64_t>(i)),
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
  ThreadPool& pool = parts_.stream.pool();
  sampler_.sample(pool, sample_rows_, std::span(sampled_).first(sample_rows_.size()));
  sampler_.logprobs(pool, logprob_rows_, std::span(logprobs_).first(logprob_rows_.size()));

  size_t sampled = 0, scored = 0;
  for (const LogitRow& row : rows) {
    SampledRow& out = result.rows[static_cast<size_t>(row.result)];
    if (row.prompt_entry >= 0) {
      LogprobResult& one = logprobs_[scored++];
      out.numeric_error |= one.numeric_error;
      row.sequence->failed |= one.numeric_error;
      out.prompt_logprobs[static_cast<size_t>(row.prompt_entry)] = std::move(one.logprob);
      continue;
    }
    SampledToken& one = sampled_[sampled++];
    if (one.numeric_error || row.sequence->failed) {
      out.numeric_error = true;
      row.sequence->failed = true;
      continue;
    }
    row.sequence->history.append(one.token);
    out.tokens.push_back(one.token);
    if (row.sequence->grammar) out.ends = advance_grammar(*row.sequence, one.token);
    if (step.results()[static_cast<size_t>(row.result)].logprobs) {
      out.logprobs.push_back(std::move(one.logprob));
    }
  }
}

}  // namespace weft
