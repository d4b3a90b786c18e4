#include "runtime/draft_policy.h"

#include <algorithm>
#include <bit>
#include <numeric>

namespace weft {
namespace {

constexpr int64_t kFirstTrial = 4, kTrial = 3;  // steps
constexpr int64_t kLongestTrial = 12;           // with steps that are not typical
constexpr int64_t kFewSequences = 4;
constexpr int64_t kPause = 64, kLongestPause = 256;  // steps
constexpr double kPaysWell = 1.25, kPaysWellAtOnce = 1.5;
constexpr int64_t kPauseOfWell = 1024;    // steps
constexpr double kTrialShare = 0.01;      // of the time that trials may lose
constexpr int64_t kLongestMakeUp = 4096;  // steps
constexpr int64_t kAccount = 128;         // steps
constexpr double kMostLost = 0.01;        // of the time
constexpr double kGuessedSaving = 0.3;    // of a token's time
constexpr double kUnknownSaving = 1;      // seconds
constexpr double kGuessedAnswer = 64;     // tokens
constexpr double kMemory = 1.0 / 32, kOwnMemory = 1.0 / 8;
constexpr double kTrusted = 0.9;  // a rate, of at least so many drafts:
constexpr int64_t kTrustedCount = 8;

/// The chance of a draft to be given out from which on its row is worth its time: in a small step
/// it is nearly free, because the weights are read anyway.
double least_chance(int64_t sequences) {
  if (sequences <= 2) return 0.12;
  if (sequences <= 4) return 0.25;
  return sequences <= 8 ? 0.4 : 0.5;
}

}  // namespace

template <size_t N>
double DraftPolicy::Last<N>::median() const {
  const auto n = static_cast<ptrdiff_t>(std::min<int64_t>(count, N));
  std::array<double, N> sorted = values;
  std::nth_element(sorted.begin(), sorted.begin() + n / 2, sorted.begin() + n);
  return sorted[static_cast<size_t>(n / 2)];
}

template <size_t N>
double DraftPolicy::Last<N>::mean() const {
  const auto n = static_cast<ptrdiff_t>(std::min<int64_t>(count, N));
  return std::accumulate(values.begin(), values.begin() + n, 0.0) / static_cast<double>(n);
}

DraftPolicy::DraftPolicy() {
  for (int64_t many = 2 * kFewSequences; many < int64_t{1} << batches_.size(); many *= 2) {
    batch(many).drafting = false;
    batch(many).until_trial = 16;
  }
}

DraftPolicy::Batch& DraftPolicy::batch(int64_t sequences) {
  const auto index = static_cast<size_t>(std::bit_width(static_cast<uint64_t>(sequences)));
  return batches_[std::min(index, batches_.size() - 1)];
}

bool DraftPolicy::wants_drafts(int64_t sequences) {
  Batch& b = batch(sequences);
  if (b.trial_left == 0 && b.until_trial <= 0) {
    b.trial_left = b.drafted_costs.count + b.none_costs.count == 0 ? kFirstTrial : kTrial;
    b.most_left = kLongestTrial;
    b.trial_seconds = b.trial_tokens = 0;
    if (b.trial_drafts()) {
      b.drafted = b.none = {};
    } else {
      b.plain = {};
    }
  }
  return b.trial_left > 0 ? b.trial_drafts() : b.drafting;
}

bool DraftPolicy::follows(int64_t sequences) {
  few_ = 4 * sequences > rests_at_ ? 0 : few_ + 1;
  rests_ |= owes_ && debt_ > 0 && few_ == 0;
  if (!rests_) return true;
  if (debt_ > -credit_ && few_ < kAccount / 2) return false;
  owes_ = debt_ > 0;
  rests_ = false;
  account_ = {.behind_rest = true};
  // The module knows nothing of the texts yet.
  for (Batch& b : batches_) {
    b.trial_left = 0;
    b.until_trial = std::min(b.until_trial, kAccount / 2);
  }
  return true;
}

/// Of a plain step, or of one of the nearest size that is known; 0 where none is.
double DraftPolicy::plain_seconds(int64_t sequences) {
  const auto size = std::ssize(batches_), at = &batch(sequences) - batches_.data();
  for (ptrdiff_t away = 0; away < size; ++away) {
    for (const ptrdiff_t i : {at - away, at + away}) {
      if (i < 0 || i >= size) continue;
      if (const double seconds = batches_[static_cast<size_t>(i)].plain_seconds; seconds > 0) {
        return seconds;
      }
    }
  }
  return 0;
}

/// Seconds that a right draft saves, less what verifying it and its like took.
double DraftPolicy::value_of_draft(int64_t sequences) {
  const Batch& b = batch(sequences);
  const double token = plain_seconds(sequences) / static_cast<double>(sequences);
  if (b.drafted_costs.count == 0 || b.gains.count == 0 || b.gains.mean() <= 1) return token;
  return token * (b.gains.mean() - b.drafted_costs.median()) / (b.gains.mean() - 1);
}

double DraftPolicy::saved_a_token(int64_t sequences) {
  const double token = plain_seconds(sequences) / static_cast<double>(sequences);
  if (token == 0) return kUnknownSaving;
  const double gain = batch(sequences).gain();
  return gain == 0 ? kGuessedSaving * token : token * std::max(1 - 1 / gain, 0.0);
}

void DraftPolicy::account(int64_t sequences, const Spent& step) {
  double lost = step.module;
  if (step.drafts > 0) lost -= static_cast<double>(step.drafts) * value_of_draft(sequences);
  debt_ = std::max(debt_ + lost - kMostLost * step.seconds, -credit_);
  if (rests_) return;
  Account& a = account_;
  a.sequences += sequences;
  if (++a.steps > kAccount / 2 || !a.behind_rest) {
    a.seconds += step.seconds;
    a.lost += lost;
  }
  const int64_t least = a.sequences > 2 * kFewSequences * a.steps ? kAccount / 4 : kAccount / 2;
  const double steps = static_cast<double>(a.steps) / kAccount;
  const bool clear = a.behind_rest ? !owes_ && debt_ > 0
                                   : a.steps >= least && a.lost * steps > kMostLost * a.seconds;
  if (a.steps < kAccount && !clear) return;
  rests_ = clear || a.lost > kMostLost * a.seconds;
  if (rests_) rests_at_ = a.sequences / a.steps;
  credit_ = !rests_ ? 0 : a.behind_rest ? credit_ : 2 * a.lost;
  a = {};
}

void DraftPolicy::measured(int64_t sequences, const Measured& step) {
  Batch& b = batch(sequences);
  const double gain = static_cast<double>(step.tokens) / static_cast<double>(sequences);
  const bool drafting = step.kind != StepKind::kPlain;
  if (step.typical) {
    (step.kind == StepKind::kPlain  ? b.plain
     : step.kind == StepKind::kNone ? b.none
                                    : b.drafted)
        .add(step.seconds);
  }
  if (step.kind == StepKind::kDrafted) b.gains.add(gain);
  if (!drafting && step.typical) b.plain_seconds = b.plain.median();
  if (drafting) b.found.add(step.kind == StepKind::kDrafted ? 1 : 0);
  if (b.trial_left == 0) {
    // Where nothing is found to draft there is nothing to try.
    if (drafting == b.drafting) {
      --b.until_trial;
      ++b.since_trial;
    }
    if (b.drafting && b.since_trial >= kPause && b.drafted_costs.count > 0 && !b.pays()) {
      b.until_trial = 0;
    }
    return;
  }
  b.trial_seconds += step.seconds;
  b.trial_tokens += gain;
  if (drafting != b.trial_drafts()) return;
  b.trial_left -= step.typical ? 1 : 0;
  if (b.trial_left == 0 || --b.most_left == 0) {
    b.trial_left = 0;
    end_trial(b);
  }
}

/// Tokens a second with drafts wanted, of those without; 0 where it isn't known.
double DraftPolicy::Batch::gain() const {
  const double share = found.count == 0 ? 0 : found.mean();
  double seconds = 0, tokens = 0;
  if (drafted_costs.count > 0 && gains.count > 0) {
    seconds += share * drafted_costs.median();
    tokens += share * gains.mean();
  }
  if (none_costs.count > 0 && share < 1) {
    seconds += (1 - share) * none_costs.median();
    tokens += 1 - share;
  }
  return seconds > 0 ? tokens / seconds : 0;
}

/// So many of the other steps make what this trial lost a hundredth of the time.
int64_t DraftPolicy::Batch::steps_to_make_up() const {
  const double other = drafting ? drafted.median() / std::max(gains.mean(), 1.0) : plain.median();
  if (!(other > 0)) return 0;
  const double lost = (trial_seconds - trial_tokens * other) / other;  // in steps of a token
  return static_cast<int64_t>(
      std::clamp(lost / kTrialShare, 0.0, static_cast<double>(kLongestMakeUp)));
}

void DraftPolicy::end_trial(Batch& b) {
  if (b.plain.count > 0) {
    if (b.drafted.count > 0) b.drafted_costs.add(b.drafted.median() / b.plain.median());
    if (b.none.count > 0) b.none_costs.add(b.none.median() / b.plain.median());
  }
  const bool pays = b.pays();
  const bool lost = pays == b.drafting;
  // What won again is doubted ever more seldom.
  const double enough = b.drafted_costs.count > 1 ? kPaysWell : kPaysWellAtOnce;
  const bool well = lost && b.drafting && b.gain() >= enough;
  b.pause = !lost ? kPause : well ? kPauseOfWell : std::min(2 * b.pause, kLongestPause);
  b.since_trial = 0;
  b.drafting = pays;
  b.until_trial = std::max(b.pause, lost ? b.steps_to_make_up() : 0);
}

PromptPolicy::Follow PromptPolicy::begin(int64_t rows, int64_t max_tokens, double saved_a_token) {
  const double mean = answers_ > 0 ? tokens_ / answers_ : kGuessedAnswer;
  answers_ = (1 - kMemory) * answers_ + 1;
  tokens_ *= 1 - kMemory;
  if (rows_ == 0) return Follow::kTrial;
  const double lost = row_seconds_ / rows_ * static_cast<double>(rows) -
                      std::min(mean, static_cast<double>(max_tokens)) * saved_a_token;
  if (lost <= 0) return Follow::kYes;
  if (lost > kMostLost * since_trial_) return Follow::kNo;
  since_trial_ = 0;
  return Follow::kTrial;
}

void PromptPolicy::followed(int64_t rows, double seconds) {
  rows_ += static_cast<double>(rows) - kMemory * rows_;
  row_seconds_ += seconds - kMemory * row_seconds_;
}

void PromptPolicy::account(int64_t tokens, double seconds) {
  tokens_ += static_cast<double>(tokens);
  since_trial_ += seconds;
}

void DraftEstimates::Rate::add(bool right) {
  ++count;
  value += ((right ? 1.0 : 0.0) - value) * std::max(kMemory, 1.0 / static_cast<double>(count + 4));
}

size_t DraftEstimates::length_class(int matched) {
  const auto width = static_cast<size_t>(std::bit_width(static_cast<unsigned>(matched)));
  return std::min(width, kLengths - 1);
}

double DraftEstimates::mtp_rate(const Sequence& own) const {
  return own.rate[0] < 0 ? mtp_.value : (mtp_.value + own.rate[0]) / 2;
}

double DraftEstimates::ngram_rate(const Sequence& own, int matched) const {
  const double rate = ngram_[length_class(matched)].value;
  return own.rate[1] < 0 ? rate : (rate + own.rate[1]) / 2;
}

int DraftEstimates::mtp_length(const Sequence& own, int most, int64_t sequences) const {
  const double least = 2 * least_chance(sequences);  // a pass of the module beside the row
  const double rate = mtp_rate(own);
  double chance = rate;
  int length = std::min(most, 1);  // one is always tried
  for (; length < most && (chance *= rate) >= least; ++length) {
  }
  return length;
}

int DraftEstimates::ngram_length(const Sequence& own, int matched, int behind, int most,
                                 int64_t sequences) const {
  const double least = least_chance(sequences), before = mtp_rate(own);
  double chance = 1;
  for (int i = 0; i < behind; ++i) chance *= before;
  int length = 0;
  while (length < most) {
    chance *= ngram_rate(own, matched + behind + length);
    if (chance < least && behind + length > 0) break;
    ++length;
  }
  return length;
}

bool DraftEstimates::trusts_ngram(int matched) const {
  const Rate& rate = ngram_[length_class(matched)];
  return rate.count >= kTrustedCount && rate.value >= kTrusted;
}

void DraftEstimates::learn(Sequence& own, const std::array<int, kNumDraftSources>& proposed,
                           int matched, int accepted) {
  const int all = proposed[0] + proposed[1];
  for (int i = 0; i < all && i <= accepted; ++i) {
    const bool right = i < accepted;
    const size_t source = i < proposed[0] ? 0 : 1;
    Rate& rate = source == 0 ? mtp_ : ngram_[length_class(matched + i)];
    if (own.rate[source] < 0) own.rate[source] = rate.value;
    own.rate[source] += ((right ? 1.0 : 0.0) - own.rate[source]) * kOwnMemory;
    rate.add(right);
  }
}

}  // namespace weft
