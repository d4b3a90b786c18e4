#pragma once

#include <array>
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
  /// On a GPU steps overlap while nobody drafts.
  Speculator(const SpeculationConfig& config, const StepLimits& limits, bool on_gpu = false)
      : config_(config), limits_(limits), on_gpu_(on_gpu) {}

  /// First, for every step: whether somebody is to draft in it. If so, all steps before have to be
  /// done before it is resolved.
  bool wants_drafts(const StepPlan& plan);
  /// Behind it: whether the module is to go over the step.
  bool module_follows(uint64_t step) const { return notes_[step % notes_.size()].follows; }
  /// On the CPU, of a resolved plan: prompts that the module's drafts would not make up for are
  /// left out, and the first tokens behind them, where nothing else is in the step.
  bool follows_texts(const StepPlan& plan, PackedStep::Sequences& sequences);
  /// When all steps before are done: puts slices where their sequences are by now and gives them
  /// their last known token and drafts. `mtp` may be null.
  /// With `later` drafts that nothing depends on but the ids of their rows may be unknown behind
  /// it: then settle() has to follow, and meanwhile there are as many as there may be, of token 0.
  void resolve(StepPlan& plan, PackedStep::Sequences& sequences, DraftModule* mtp, Arena& arena,
               bool later = false);
  bool is_open() const { return open_; }
  /// Asked before NgramMatcher from now on.
  void set_ngrams(NgramSource* ngrams) { ngrams_ = ngrams; }
  /// Waits for the drafts, which DraftState has then.
  void settle(DraftModule& mtp);
  /// When nobody is to draft and the step before, which is not done, has no drafts: where the
  /// sequences are is known, and their tokens come from the device.
  static void resolve_ahead(StepPlan& plan);
  /// With both methods on a GPU, while the step runs: prompts whose continuations behind drafts of
  /// the module are wanted soon. Others have none: their index would be waited for.
  void read_ahead(const StepPlan& plan, const PackedStep::Sequences& sequences);
  /// For tests: proposes in the place of the n-gram matcher; gets the request, how many tokens it
  /// has generated (the drafts so far among them) and room for drafts, and says how many it wrote.
  using Guess = std::function<int(const Request&, int64_t, std::span<int32_t>)>;
  void set_guess(Guess guess) { guess_ = std::move(guess); }
  /// For tests: decides in the place of the policy.
  using Whim = std::function<bool()>;
  void set_whim(Whim whim) { whim_ = std::move(whim); }

  /// When the step is done: completes SampledRow::speculation. What a step costs is what a GPU told
  /// of it, or else the time of this thread; the module took so much of that. Of prompts, which
  /// the last layer computes all rows of for its sake, so much more a second.
  void learn(const PackedStep& step, StepResult& result, double module_seconds = 0);
  void set_num_layers(size_t layers) { last_layer_ = 0.8 / static_cast<double>(layers); }

 private:
  /// What learn() has to know of a step; up to two are between their resolving and that.
  struct Note {
    bool drafting = true;
    bool only_decodes = false;  // its time says what drafts cost
    bool follows = true;        // the module goes over it
    bool trial = false;         // which it would not for what that saves
    int64_t sequences = 0;
    double begin = 0;  // in seconds of this thread
  };
  Note& note(uint64_t step) { return notes_[step % notes_.size()]; }
  bool may_settle_later() const;
  void choose_lengths(DraftRow& row);
  void share_drafts();
  const NgramMatcher& ngram_of(ExecutorSequence& sequence) const;
  NgramDraft continue_text(const DraftRow& row, std::span<int32_t> to) const;
  void propose_ngrams(DraftRow& row);

  SpeculationConfig config_;
  StepLimits limits_;
  bool on_gpu_;
  NgramSource* ngrams_ = nullptr;
  std::vector<DraftRow> rows_;  // of the step
  std::vector<Slice*> slices_;  // of rows_
  std::vector<LateRows> late_;  // that the MTP module sees before it drafts
  std::vector<int32_t> tokens_;
  bool open_ = false;  // drafts of rows_ are not known yet
  size_t turn_ = 0;
  bool module_follows_ = true;
  double last_layer_ = 0;
  DraftPolicy policy_;
  PromptPolicy prompts_;
  DraftEstimates estimates_;
  std::array<Note, 2> notes_;
  int64_t num_sequences_ = 0;  // of the step that is resolved
  Guess guess_;
  Whim whim_;
};

}  // namespace weft
