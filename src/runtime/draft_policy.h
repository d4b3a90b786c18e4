#pragma once

#include <array>
#include <cstdint>

#include "sched/speculation_counts.h"

namespace weft {

/// Whether drafts pay at a batch size: what a step with them costs of one without, both measured in
/// steps beside each other, against the tokens that it gives. While they pay, a few steps go
/// without now and then; while they don't, a few have them: the longer it stays so, the fewer.
class DraftPolicy {
 public:
  /// Whether the next step, of `sequences` that decode, has drafts.
  bool wants_drafts(int64_t sequences);
  /// What that step gave, in seconds; of steps with drafts, whether there were any.
  void measured(int64_t sequences, bool drafted, int64_t tokens, double seconds);

 private:
  /// The last numbers of some.
  template <size_t N>
  struct Last {
    std::array<double, N> values{};
    int64_t count = 0;
    void add(double value) { values[static_cast<size_t>(count++) % N] = value; }
    double median() const;
    double mean() const;
  };
  struct Batch {
    Last<8> plain, drafted;  // seconds of the last steps
    Last<12> gains;          // of steps with drafts: tokens a sequence
    // Seconds with drafts over seconds without, one a trial: the middle one counts, so that a
    // neighbour who takes the CPU away for a trial decides nothing.
    Last<5> costs;
    bool drafting = true;  // between trials
    int64_t pause = 64;    // steps between two trials
    int64_t until_trial = 8;
    int64_t trial_left = 0;
    bool trial_drafts() const { return !drafting; }
  };
  void end_trial(Batch& b);
  Batch& batch(int64_t sequences);
  std::array<Batch, 16> batches_;
};

/// How often drafts are right, learned from what became of them, and how many are worth a row.
class DraftEstimates {
 public:
  /// Of one sequence, on top of what all have in common.
  struct Sequence {
    std::array<double, kNumDraftSources> rate = {-1, -1};  ///< -1: nothing known
  };

  /// Drafts of the module, at most `most`, with `sequences` in the step.
  int mtp_length(const Sequence& own, int most, int64_t sequences) const;
  /// Drafts from the text where so many tokens before them matched, behind `behind` of the module.
  int ngram_length(const Sequence& own, int matched, int behind, int most, int64_t sequences) const;
  /// A continuation of such a match is about as good as the module's drafts, which cost more.
  bool trusts_ngram(int matched) const;

  /// `proposed` drafts, by source, of which the first `accepted` were right.
  void learn(Sequence& own, const std::array<int, kNumDraftSources>& proposed, int matched,
             int accepted);

 private:
  struct Rate {
    double value = 0;
    int64_t count = 0;
    void add(bool right);
  };
  static constexpr size_t kLengths = 8;  // of matches: powers of two
  static size_t length_class(int matched);
  double mtp_rate(const Sequence& own) const;
  double ngram_rate(const Sequence& own, int matched) const;

  Rate mtp_{.value = 0.8};
  std::array<Rate, kLengths> ngram_{Rate{0.5}, {0.5}, {0.5}, {0.6}, {0.7}, {0.8}, {0.8}, {0.8}};
};

}  // namespace weft
