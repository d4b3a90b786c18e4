#pragma once

// Rows for the GPU's sampler and for that of the CPU, which is the oracle.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>

#include "runtime/sampler.h"
#include "tests/ops_cuda/support.h"

namespace weft {

inline constexpr float kInf = std::numeric_limits<float>::infinity();
inline constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
inline constexpr int64_t kMaxTop = 20;

/// What the CPU's sampler sees of a grammar.
struct Constraint {
  bool binds = true;
  bool may_end = false;
  std::vector<uint32_t> mask;
};
/// One row, as the CPU's sampler takes it.
struct Case {
  std::vector<float> logits;
  SamplingParams params;
  std::vector<int32_t> prompt, generated;
  std::optional<Constraint> constraint;
  int64_t position = 0;
  int32_t target = -1;
};

/// What both samplers say.
struct Answer {
  SampleResult result{};
  std::vector<int32_t> top_ids;
  std::vector<float> top_logprobs;
};

Answer cpu_answer(const Case& c);

/// Rows on the device. Slot i of last_token belongs to row i unless `slots` says otherwise.
class Batch {
 public:
  explicit Batch(std::vector<Case> cases, int64_t padding = 0, std::vector<int32_t> slots = {})
      : cases_(std::move(cases)), slots_(std::move(slots)) {
    rows_ = static_cast<int64_t>(cases_.size());
    vocab_ = static_cast<int64_t>(cases_.front().logits.size());
    const int64_t stride = vocab_ + padding;
    std::vector<float> logits(static_cast<size_t>(rows_ * stride), kNan);
    for (size_t i = 0; i < cases_.size(); ++i) {
      if (slots_.size() <= i) slots_.push_back(static_cast<int32_t>(i));
      std::copy(cases_[i].logits.begin(), cases_[i].logits.end(),
                logits.begin() + static_cast<ptrdiff_t>(i) * stride);
      add(cases_[i]);
    }
    num_slots_ = *std::max_element(slots_.begin(), slots_.end()) + 1;
    logits_ = DeviceTensor(DType::kF32, {rows_, stride}, logits);
    logits_view_ = logits_.view;
    logits_view_.shape[1] = vocab_;
    specs_d_ = upload_structs(specs_);
    biases_d_ = upload_structs(biases_);
    ids_d_ = DeviceTensor(ids_);
    masks_d_ = upload_structs(masks_);
    masks_d_.view = TensorView(masks_d_.view.data, DType::kI32, {num_masks_, mask_words()});
    counts_d_ = DeviceTensor(DType::kI32, {std::max<int64_t>(num_slots_, 1), vocab_});
    counts_d_.poison();
    last_token_ = DeviceTensor(DType::kI32, {num_slots_});
    last_token_.poison();
    results_ = DeviceTensor(DType::kI32, {rows_ * 4});
    results_.poison();
    top_ids_ = DeviceTensor(DType::kI32, {rows_, kMaxTop});
    top_ids_.poison();
    top_logprobs_ = DeviceTensor(DType::kF32, {rows_, kMaxTop});
    top_logprobs_.poison();
  }

  /// The specs of rows may still be changed before run().
  std::vector<SampleSpec>& specs() { return specs_; }

  void run(CudaTestStream& stream, bool only_greedy = false) {
    specs_d_ = upload_structs(specs_);
    for (size_t i = 0; i < cases_.size(); ++i) {
      if (specs_[i].counts_slot < 0) continue;
      const DeviceTensor prompt(cases_[i].prompt), generated(cases_[i].generated);
      cuda::reset_counts(stream, {.counts = counts_d_.view,
                                  .slot = specs_[i].counts_slot,
                                  .prompt = prompt.view,
                                  .generated = generated.view});
      stream.sync();
    }
    cuda::sample(stream, {.logits = logits_view_,
                          .specs = static_cast<const SampleSpec*>(specs_d_.view.data),
                          .biases = static_cast<const TokenBias*>(biases_d_.view.data),
                          .ids = static_cast<const int32_t*>(ids_d_.view.data),
                          .masks = num_masks_ > 0 ? masks_d_.view : TensorView(),
                          .counts = counts_d_.view,
                          .last_token = last_token_.view,
                          .results = static_cast<SampleResult*>(results_.view.data),
                          .top_ids = top_ids_.view,
                          .top_logprobs = top_logprobs_.view,
                          .only_greedy = only_greedy});
    stream.sync();
  }

  std::vector<Answer> answers() const {
    const auto results = download<SampleResult>(results_);
    const auto ids = download<int32_t>(top_ids_);
    const auto logprobs = download<float>(top_logprobs_);
    std::vector<Answer> out;
    for (size_t i = 0; i < cases_.size(); ++i) {
      Answer answer{.result = results[i]};
      const auto begin = static_cast<ptrdiff_t>(i) * kMaxTop;
      const auto count = std::clamp<ptrdiff_t>(results[i].num_top, 0, kMaxTop);
      answer.top_ids.assign(ids.begin() + begin, ids.begin() + begin + count);
      answer.top_logprobs.assign(logprobs.begin() + begin, logprobs.begin() + begin + count);
      out.push_back(std::move(answer));
    }
    return out;
  }
  std::vector<int32_t> last_tokens() const { return download<int32_t>(last_token_); }
  std::vector<uint32_t> counts() const { return download<uint32_t>(counts_d_); }
  std::vector<SampleResult> results() const { return download<SampleResult>(results_); }

  /// Runs, and every row must be what the CPU's sampler makes of it.
  void expect_cpu(CudaTestStream& stream, bool only_greedy = false) {
    run(stream, only_greedy);
    const std::vector<Answer> got = answers();
    const std::vector<int32_t> last = last_tokens();
    for (size_t i = 0; i < cases_.size(); ++i) {
      SCOPED_TRACE("row " + std::to_string(i) + " of " + std::to_string(vocab_));
      expect_near(got[i], cpu_answer(cases_[i]));
      if (cases_[i].target < 0) {
        EXPECT_EQ(last[static_cast<size_t>(slots_[i])],
                  got[i].result.numeric_error != 0 ? 0 : got[i].result.token);
      }
    }
  }

  static void expect_near(const Answer& got, const Answer& want) {
    EXPECT_EQ(got.result.token, want.result.token);
    EXPECT_EQ(got.result.numeric_error, want.result.numeric_error);
    const auto near = [](float a, float b) {
      return a == b || std::abs(a - b) <= 4e-7f * std::max(1.0f, std::abs(b));
    };
    EXPECT_PRED2(near, got.result.logprob, want.result.logprob);
    ASSERT_EQ(got.result.num_top, want.result.num_top);
    EXPECT_EQ(got.top_ids, want.top_ids);
    for (size_t j = 0; j < want.top_logprobs.size(); ++j) {
      EXPECT_PRED2(near, got.top_logprobs[j], want.top_logprobs[j]);
    }
  }

 private:
  int64_t mask_words() const { return (vocab_ + 31) / 32; }

  ListRange add_ids(const std::vector<int32_t>& ids) {
    const ListRange range{static_cast<int32_t>(ids_.size()), static_cast<int32_t>(ids.size())};
    ids_.insert(ids_.end(), ids.begin(), ids.end());
    return range;
  }

  void add(const Case& c) {
    const SamplingParams& p = c.params;
    SampleSpec spec;
    const size_t row = specs_.size();
    spec.slot = slots_[row];
    spec.target = c.target;
    spec.num_top = p.logprobs;
    spec.counts_slot = uses_penalties(p) && c.target < 0 ? slots_[row] : -1;
    if (static_cast<int64_t>(c.generated.size()) < p.min_tokens) spec.stop_rule = StopRule::kMasked;
    if (c.constraint && c.constraint->binds) {
      spec.mask_row = static_cast<int32_t>(num_masks_++);
      masks_.insert(masks_.end(), c.constraint->mask.begin(), c.constraint->mask.end());
      if (!c.constraint->may_end) spec.stop_rule = StopRule::kMasked;
      if (spec.stop_rule == StopRule::kPlain) spec.stop_rule = StopRule::kFreed;
    } else if (c.constraint) {
      spec.stop_rule = StopRule::kMasked;
    }
    spec.temperature = p.temperature;
    spec.top_k = p.top_k;
    spec.top_p = p.top_p;
    spec.min_p = p.min_p;
    spec.repetition_penalty = p.repetition_penalty;
    spec.frequency_penalty = p.frequency_penalty;
    spec.presence_penalty = p.presence_penalty;
    spec.seed = p.seed;
    spec.position = c.position;
    spec.biases = {static_cast<int32_t>(biases_.size()), static_cast<int32_t>(p.logit_bias.size())};
    for (const auto& [id, bias] : p.logit_bias) biases_.push_back({id, bias});
    spec.banned_ids = add_ids(p.banned_ids);
    spec.allowed_ids = add_ids(p.allowed_ids);
    spec.stop_ids = add_ids(p.stop_ids);
    specs_.push_back(spec);
  }

  std::vector<Case> cases_;
  std::vector<int32_t> slots_;
  int64_t rows_ = 0, vocab_ = 0, num_masks_ = 0, num_slots_ = 0;
  std::vector<SampleSpec> specs_;
  std::vector<TokenBias> biases_;
  std::vector<int32_t> ids_;
  std::vector<uint32_t> masks_;
  TensorView logits_view_;
  DeviceTensor logits_, specs_d_, biases_d_, ids_d_, masks_d_, counts_d_, last_token_, results_,
      top_ids_, top_logprobs_;
};

/// Random requests over a vocabulary; the logits have ties where `step` > 0.
class Cases {
 public:
  Cases(int64_t vocab, uint32_t seed) : vocab_(vocab), rng_(seed) {}

  std::vector<float> logits(float scale, float step = 0) {
    std::normal_distribution<float> normal(0, scale);
    std::vector<float> x(static_cast<size_t>(vocab_));
    for (float& v : x) {
      v = normal(rng_);
      if (step > 0) v = step * std::round(v / step);
    }
    return x;
  }

  Case next() {
    Case c;
    const float scales[] = {0.01f, 0.5f, 2, 2, 5, 20}, steps[] = {0, 0, 0, 1, 0.25f, 8};
    c.logits = logits(scales[below(6)], steps[below(6)]);
    if (below(8) == 0) sprinkle(c.logits, -kInf, vocab_ / 2);
    SamplingParams& p = c.params;
    p.seed = uint64_t{rng_()} << 32 | rng_();
    c.position = below(3) == 0 ? below(int64_t{1} << 50) : below(100000);
    const float temperatures[] = {0, 1, 0.7f, 0.01f, 1.9f, 50};
    p.temperature = temperatures[below(6)];
    const int64_t top_ks[] = {0, 0, 1, 5, 50, vocab_ - 1, vocab_, vocab_ / 2};
    p.top_k = static_cast<int>(top_ks[below(8)]);
    const float top_ps[] = {1, 1, 0.9f, 0.95f, 0.5f, 1e-6f, 0.9999f};
    p.top_p = top_ps[below(7)];
    const float min_ps[] = {0, 0, 0, 0.05f, 1, 1e-4f};
    p.min_p = min_ps[below(6)];
    const int logprobs[] = {-1, -1, 0, 1, 5, 20};
    p.logprobs = logprobs[below(6)];
    if (below(3) == 0) penalise(c);
    if (below(4) == 0) {
      for (int64_t n = below(6); n >= 0; --n) {
        p.logit_bias.emplace_back(any_id(), static_cast<float>(below(40)) - 20);
      }
    }
    if (below(6) == 0) p.logit_bias.emplace_back(any_id(), -kInf);
    if (below(4) == 0) p.banned_ids = ids(1 + below(4));
    if (below(5) == 0) p.allowed_ids = ids(1 + below(40));
    if (below(3) == 0) p.stop_ids = ids(1 + below(4));
    if (below(4) == 0) p.min_tokens = 3;
    if (below(4) == 0) constrain(c);
    if (below(8) == 0) {
      c.target = static_cast<int32_t>(below(vocab_));
      p.logprobs = std::max(p.logprobs, 0);
    }
    return c;
  }

  int64_t below(int64_t n) { return static_cast<int64_t>(rng_() % static_cast<uint64_t>(n)); }

 private:
  /// Sometimes one that is no id of the vocabulary.
  int32_t any_id() {
    return static_cast<int32_t>(below(10) == 0 ? vocab_ + below(5000) : below(vocab_));
  }
  std::vector<int32_t> ids(int64_t count) {
    std::vector<int32_t> out;
    for (int64_t i = 0; i < count; ++i) out.push_back(any_id());
    return out;
  }
  void sprinkle(std::vector<float>& x, float value, int64_t count) {
    for (int64_t i = 0; i < count; ++i) x[static_cast<size_t>(below(vocab_))] = value;
  }
  void penalise(Case& c) {
    const float repetitions[] = {1, 1.3f, 0.8f};
    c.params.repetition_penalty = repetitions[below(3)];
    c.params.frequency_penalty = static_cast<float>(below(40)) / 10 - 2;
    c.params.presence_penalty = below(2) == 0 ? 0.5f : -0.1f;
    for (int64_t n = below(50); n > 0; --n) c.prompt.push_back(static_cast<int32_t>(below(vocab_)));
    for (int64_t n = below(50); n > 0; --n) {
      c.generated.push_back(static_cast<int32_t>(below(std::min<int64_t>(vocab_, 30))));
    }
  }
  void constrain(Case& c) {
    Constraint constraint;
    constraint.binds = below(4) != 0;
    constraint.may_end = below(2) == 0;
    constraint.mask.resize(static_cast<size_t>((vocab_ + 31) / 32));
    const bool sparse = below(2) == 0;
    for (uint32_t& word : constraint.mask) {
      word = static_cast<uint32_t>(rng_());
      if (sparse && below(8) != 0) word = 0;
    }
    c.constraint = std::move(constraint);
  }

  int64_t vocab_;
  std::mt19937_64 rng_;
};

}  // namespace weft
