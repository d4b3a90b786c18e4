#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "runtime/draft_policy.h"
#include "runtime/draft_state.h"

namespace weft {

/// A plan that outlives the launch, with memory of its own, and whose slices can be made exact.
class OwnedPlan {
 public:
  void copy(const StepPlan& plan);
  StepPlan plan;

 private:
  std::vector<int32_t> ints_;
  std::vector<BlockId> blocks_;
};

/// Speculation: decides before a step what its sequences verify, and learns from what became of it.
/// Lives on the thread that knows the tokens: on the CPU the one that runs the steps, for a GPU the
/// one that launches them.
class Speculator {
 public:
  /// Without `with_penalties` sequences with penalties get no drafts.
  Speculator(const SpeculationConfig& config, const StepLimits& limits, bool with_penalties = true)
      : config_(config), limits_(limits), with_penalties_(with_penalties) {}

  /// When all steps before are done: puts slices where their sequences are by now and gives them
  /// their last known token and drafts. `mtp` may be null.
  void resolve(StepPlan& plan, PackedStep::Sequences& sequences, DraftModule* mtp, Arena& arena);
  /// For tests: proposes in the place of the n-gram matcher; gets the request, how many tokens it
  /// has generated (the drafts so far among them) and room for drafts, and says how many it wrote.
  using Guess = std::function<int(const Request&, int64_t, std::span<int32_t>)>;
  void set_guess(Guess guess) { guess_ = std::move(guess); }

  /// When the step is done: completes SampledRow::speculation. What a step costs is what a GPU told
  /// of it, or else the time of this thread.
  void learn(const PackedStep& step, StepResult& result);

 private:
  void choose_lengths(DraftRow& row);
  void share_drafts();
  const NgramMatcher& ngram_of(ExecutorSequence& sequence) const;
  void propose_ngrams(DraftRow& row);

  SpeculationConfig config_;
  StepLimits limits_;
  bool with_penalties_;
  std::vector<DraftRow> rows_;  // of the step
  std::vector<Slice*> slices_;  // of rows_
  std::vector<LateRows> late_;  // that the MTP module sees before it drafts
  std::vector<int32_t> tokens_;
  size_t turn_ = 0;
  DraftPolicy policy_;
  DraftEstimates estimates_;
  bool drafting_ = true;
  bool only_decodes_ = false;  // the step that runs: its time says what drafts cost
  int64_t num_sequences_ = 0;
  double begin_ = 0;  // of that step, in seconds of this thread
  Guess guess_;
};

}  // namespace weft
