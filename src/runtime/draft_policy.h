#pragma once

#include <array>
#include <cstdint>

#include "sched/speculation_counts.h"

namespace weft {

/// What a step was.
enum class StepKind : uint8_t {
  kPlain,   ///< nobody was to draft: on a GPU it overlaps with the step before
  kNone,    ///< drafts were wanted and none were found, which took time: such a step can't overlap
  kDrafted  ///< drafts were verified
};

/// Whether drafts pay at a batch size: what steps with them cost of a plain one, measured in steps
/// beside each other, against the tokens that they give. While they pay, a few steps go without now
/// and then; while they don't, a few have them: the longer it stays so, the fewer, and so seldom
/// that the time that such trials lost stays below a hundredth. Where drafts paid well in two
/// trials, or very well in one, the next comes late, or when they give too little to pay. Few
/// sequences begin with drafts, many without.
class DraftPolicy {
 public:
  DraftPolicy();
  /// Whether the next step, of `sequences` that decode, has drafts.
  bool wants_drafts(int64_t sequences);
  /// The same for a step with prompts too, which nobody measures.
  bool drafts_pay(int64_t sequences) { return batch(sequences).drafting; }
  /// First, for every step: whether the module is to follow the texts. Not where that took more
  /// than its drafts saved, until what was lost is a hundredth of the time, or only a fourth of
  /// the sequences is left.
  bool follows(int64_t sequences);
  /// What such a step, of any kind, took.
  struct Spent {
    double seconds = 0;
    double module = 0;   ///< of them, to follow the texts, but for rows of steps with drafts
    int64_t drafts = 0;  ///< tokens that the module's drafts gave
  };
  void account(int64_t sequences, const Spent& step);
  /// Seconds that drafts save a token, as far as it is known.
  double saved_a_token(int64_t sequences);
  /// What that step gave.
  struct Measured {
    StepKind kind = StepKind::kPlain;  ///< kPlain also where drafts wanted in vain cost nothing
    int64_t tokens = 0;
    double seconds = 0;
    bool typical = true;  ///< false: it took longer than others like it will
  };
  void measured(int64_t sequences, const Measured& step);

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
    Last<8> plain, none, drafted;  // seconds of the last steps
    Last<12> gains;                // of steps with drafts: tokens a sequence
    Last<16> found;                // of steps that wanted drafts: 1 where there were some
    // Seconds over those of a plain step, one a trial: the middle one counts, so that a neighbour
    // who takes the processor away for a trial decides nothing.
    Last<5> drafted_costs, none_costs;
    bool drafting = true;  // between trials
    int64_t pause = 64;    // steps between two trials
    int64_t until_trial = 8;
    int64_t since_trial = 0;
    int64_t trial_left = 0, most_left = 0;       // steps: typical ones, all
    double trial_seconds = 0, trial_tokens = 0;  // a sequence
    double plain_seconds = 0;                    // the last known median
    bool trial_drafts() const { return !drafting; }
    double gain() const;
    bool pays() const { return gain() >= 1; }
    int64_t steps_to_make_up() const;
  };
  void end_trial(Batch& b);
  Batch& batch(int64_t sequences);
  std::array<Batch, 16> batches_;
  double plain_seconds(int64_t sequences);
  double value_of_draft(int64_t sequences);
  /// Of the last steps that the module followed, or the second half of those behind a rest.
  struct Account {
    bool behind_rest = false;
    int64_t steps = 0, sequences = 0;
    double seconds = 0, lost = 0;
  };
  Account account_;
  bool rests_ = false;
  int64_t rests_at_ = 0;  // sequences
  int64_t few_ = 0;       // last steps of a fourth of those
  bool owes_ = false;     // it goes on for the sake of these
  double debt_ = 0;       // seconds lost, less a hundredth of the time
  double credit_ = 0;     // of such seconds, that a rest saves for what is tried behind it
};

/// Which prompts are worth the module's rows: those that take less than its drafts save in an
/// answer of the mean length. A few others, so seldom that what they lose is below a hundredth of
/// the time, and the first of all, from which it learns what rows take.
class PromptPolicy {
 public:
  enum class Follow : uint8_t { kUnknown, kYes, kTrial, kNo };
  /// A sequence with so many rows of its prompt to come, whose tokens take so much less each.
  Follow begin(int64_t rows, int64_t max_tokens, double saved_a_token);
  /// Rows of prompts that it followed.
  void followed(int64_t rows, double seconds);
  /// Every step.
  void account(int64_t tokens, double seconds);

 private:
  double rows_ = 0, row_seconds_ = 0;  // of late
  double answers_ = 0, tokens_ = 0;    // of late
  double since_trial_ = 0;             // seconds
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
