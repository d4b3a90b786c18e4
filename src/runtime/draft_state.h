#pragma once

#include <array>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "runtime/draft_policy.h"
#include "runtime/step_upload.h"
#include "sched/ngram_matcher.h"
#include "sched/speculation.h"

namespace weft {

/// What drafting knows of one sequence.
struct DraftState {
  explicit DraftState(const Request& request) : sampling(request.sampling) {
    sampling.logprobs = -1;
    sampling.min_tokens = 0;  // a draft that ends the text too early is rejected, and rare
  }

  SamplingParams sampling;  ///< of drafts: the request's, so that a draft falls as the token will
  std::unique_ptr<NgramMatcher> ngram;  ///< of the prompt and the generated tokens
  /// The MTP module's output that predicts the token after the one at `hidden_at`, which is the
  /// last known one.
  std::vector<float> hidden;
  int64_t hidden_at = -1;
  /// On a GPU that output is a row of what the module kept of the last step that it followed.
  int64_t hidden_row = -1;
  uint64_t hidden_step = 0;
  int64_t draft_row = -1;  ///< on a GPU, of those that the module drafts for
  /// The module has seen the text from here on, a multiple of a block, up to `seen_to` (-1: it has
  /// not seen the last step). On the CPU it looks no further back, on a GPU the module has seen
  /// half of it before it drafts.
  int64_t seen_from = 0, seen_to = -1;
  /// Whether the module is to follow the text: decided before its first step.
  PromptPolicy::Follow follow = PromptPolicy::Follow::kUnknown;
  /// Rows that the module has not seen yet: hidden states of the tokens from position `late_first`
  /// on, one behind the other, and the tokens after them.
  std::vector<float> late_hidden;
  std::vector<int32_t> late_tokens;
  int64_t late_first = 0;
  /// On a GPU: tokens behind rows whose hidden states are among those that the module put aside.
  struct LateRow {
    int64_t position = 0;  ///< of the row
    int32_t token = 0;     ///< behind it
    int32_t hidden = 0;
  };
  std::vector<LateRow> late_rows;
  uint64_t late_round = 0;  ///< that they were put aside in
  void forget_late() {
    late_hidden.clear();
    late_tokens.clear();
    late_rows.clear();
  }
  /// There are such rows, and it is `time` to make up for them, or there are too many.
  bool is_late(bool time) const {
    return !late_rows.empty()
               ? time
               : !late_tokens.empty() && (time || std::ssize(late_tokens) >= kMostLate);
  }
  static constexpr int64_t kMostLate = 64;

  std::array<int, kNumDraftSources> proposed{};  ///< in the step that runs
  std::array<int32_t, kMaxDrafts> drafts{};      ///< those
  int matched = 0;  ///< tokens before those from the text that matched, less those of the module
  DraftEstimates::Sequence estimates;
};

/// The sequence's, which begins where it is first asked for.
DraftState& draft_state(ExecutorSequence& sequence);

/// Which blocks the MTP module has written: where it does not follow a step, what is written then
/// is remembered, so that no drafts look at keys that it has not made, also not of prefixes that a
/// sequence takes over from others.
class SeenBlocks {
 public:
  explicit SeenBlocks(const StepLimits& limits)
      : limits_(limits), seen_(static_cast<size_t>(limits.num_blocks)) {}
  /// For every step.
  void begin(const StepPlan& plan, PackedStep::Sequences& sequences, bool follows);

 private:
  void see(const Slice& slice, DraftState& state, bool follows);
  StepLimits limits_;
  std::vector<bool> seen_, swapped_;  // blocks, and entries of the swap space
};

/// A sequence with rows that the MTP module has not seen.
struct LateRows {
  ExecutorSequence* sequence = nullptr;
  std::span<const BlockId> blocks;
};

/// A sequence that wants drafts, and what it got.
struct DraftRow {
  ExecutorSequence* sequence = nullptr;
  int64_t first = 0;                ///< position of its last known token, not computed yet
  std::span<const BlockId> blocks;  ///< covers first + wanted
  int wanted = 0;                   ///< of the MTP module
  int most = 0;                     ///< of all sources
  int count = 0;
  std::array<int32_t, kMaxDrafts> drafts{};
};

/// The multi-token prediction module, as the speculator sees it.
class DraftModule {
 public:
  virtual ~DraftModule() = default;
  /// While nobody drafts, rows may be taken note of instead of being computed.
  virtual void put_off(bool) {}
  /// Whether what was put off has to be made up for before the next step, though nobody drafts.
  virtual bool must_catch_up(bool only_decodes) const { return !only_decodes; }
  /// Makes up for it.
  virtual void catch_up(Arena&, std::span<const LateRows>) {}
  /// Up to `wanted` drafts a row; none for a sequence that the module has not followed to its end.
  /// What `count` says may be more than take() will leave, and `drafts` may be empty until then.
  virtual void propose(Arena& arena, std::span<DraftRow> rows) = 0;
  /// Waits for the drafts of the same rows.
  virtual void take() {}
};

/// Who knows the n-gram continuations of texts without NgramMatcher: the same.
class NgramSource {
 public:
  struct Found {
    int matched = 0;                  ///< NgramDraft::matched
    std::span<const int32_t> drafts;  ///< where that is not 0: as many as may be asked for
  };
  virtual ~NgramSource() = default;
  /// Before find(): of those of the rows that want drafts.
  virtual void catch_up(std::span<const DraftRow> rows) = 0;
  /// Behind the whole text; nothing for a sequence that is left to NgramMatcher.
  virtual std::optional<Found> find(const ExecutorSequence& sequence) const = 0;
};

/// What the module reads behind a step: every row's next token, and the runs of image features.
class NextTokens {
 public:
  /// Writes the token behind each row of the step to `next` [rows of its batch]; 0 where there is
  /// none. The runs stay until the next call.
  std::span<const ImageRun> shift(PackedStep& step, const StepResult& result, int32_t* next);

 private:
  std::vector<ImageRun> runs_;
};

}  // namespace weft
