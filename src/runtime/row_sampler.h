#pragma once

#include <span>
#include <vector>

#include "kernels/sample_args.h"
#include "runtime/sampler.h"
#include "runtime/step_upload.h"

namespace weft {

/// Which drafts of a step become tokens.
struct DraftRule {
  AcceptPolicy policy = AcceptPolicy::kNormal;
  double acceptance = 0;                      ///< of kSimulated
  int max_candidates = 0, verify_window = 0;  ///< of VerifyStrategy::kTopP; 0: another one

  /// The draft that this row is for was accepted, and nothing before it ended the text. All rows
  /// before it are in `result`.
  bool counts(const LogitRow& row, const StepResult& result) const;
  /// Whether the next draft replaces what was sampled.
  bool takes_draft(const LogitRow& row) const;
  /// What a device can know of both.
  DraftCheck check(const LogitRow& row) const;
};

/// What lies between a step's rows and its sequences: tokens that are fed back before the step, and
/// logits that become tokens and log-probabilities of the result after it.
class RowSampler {
 public:
  /// Rows of logits of one call of sample(), at most.
  RowSampler(int64_t vocab_size, int64_t max_rows, int num_threads,
             const SpeculationConfig& speculation = {});

  /// Resolves kDeviceToken, and takes note of tokens that are replayed from elsewhere.
  static void feed(PackedStep& step);
  /// The latter alone.
  static void replay(PackedStep& step, const FedTokens& fed);
  /// What was made of one row, into `result`, the history and the grammar of its sequence.
  static void accept(const PackedStep& step, const LogitRow& row, SampledToken one,
                     StepResult& result);
  static void accept_prompt(const LogitRow& row, LogprobResult one, StepResult& result);
  /// One row of `result` for each of the step, without tokens yet.
  static void begin(const PackedStep& step, StepResult& result);
  /// rows[i] belongs to logits[i] (host memory, overwritten); rows are some of step.logit_rows().
  /// Rows of drafts are sampled one after the other, each only if the one before became its draft:
  /// penalties and the grammar stand then where they stand in plain decoding.
  void sample(ThreadPool& pool, const PackedStep& step, std::span<const LogitRow> rows,
              TensorView logits, StepResult& result);

 private:
  void rate_drafts(std::span<const LogitRow> rows, const TensorView& logits);

  int64_t vocab_size_;
  Sampler sampler_;
  DraftRule rule_;
  std::vector<int> depth_;  // drafts before a row
  std::vector<int> right_;  // VerifyStrategy::kTopP: drafts from a row's next on that come first
  std::vector<const LogitRow*> wave_;  // rows that are sampled together
  // One entry a row.
  std::vector<SampleRow> sample_rows_;
  std::vector<LogprobRow> logprob_rows_;
  std::vector<SampledToken> sampled_;
  std::vector<LogprobResult> logprobs_;
};

}  // namespace weft
