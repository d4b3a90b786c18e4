#include "runtime/executor_local.h"

#include <gtest/gtest.h>

#include <random>

#include "runtime/toy_model.h"

namespace weft {
namespace {

constexpr int64_t kNumBlocks = 40, kNumSlots = 12;
const int32_t kDevice[] = {kDeviceToken};

/// A model, its cache and an executor; and a plan under construction.
class LocalExecutorTest : public testing::Test {
 protected:
  LocalExecutorTest() {
    limits_.max_rows = 256;
    limits_.max_seqs = 8;
    limits_.max_model_len = 512;
    limits_.vocab_size = ToyModel::kVocab;
    limits_.block_size = ToyModel::kBlockSize;
    limits_.num_blocks = kNumBlocks;
    limits_.num_slots = kNumSlots;
    limits_.recurrent = true;
    limits_.multimodal = true;
    executor_ = LocalExecutor::create(model_, kv_, stream_, ref_ops(), limits_).value();
  }

  std::shared_ptr<Request> make_request(int prompt_len, uint32_t seed) {
    auto request = std::make_shared<Request>();
    request->id = SeqId{next_id_++};
    std::mt19937 rng(seed);
    for (int i = 0; i < prompt_len; ++i) {
      request->prompt.push_back(static_cast<int32_t>(rng() % ToyModel::kPanic));
    }
    request->sampling.seed = seed;
    request->sampling.max_tokens = 100;
    return request;
  }

  /// Sequence i owns blocks [10 i, 10 i + 10) and slots 3 i .. 3 i + 2, in a stirred order.
  std::vector<BlockId> blocks(int owner) {
    std::vector<BlockId> out;
    for (int i = 0; i < 10; ++i) out.push_back({10 * owner + i * 7 % 10});
    return out;
  }

  void prompt_slice(const Request& r, int owner, int64_t first, int64_t end, bool sample) {
    add(r, owner, first,
        std::span(r.prompt).subspan(static_cast<size_t>(first), static_cast<size_t>(end - first)),
        Arithmetic::kPrompt, sample);
  }
  void decode_slice(const Request& r, int owner, int64_t first, std::span<const int32_t> tokens) {
    add(r, owner, first, tokens, Arithmetic::kDecode, true);
  }
  void add(const Request& r, int owner, int64_t first, std::span<const int32_t> tokens,
           Arithmetic arithmetic, bool sample) {
    tables_.push_back(blocks(owner));
    const SlotId slot{3 * owner};
    plan_.slices.push_back(
        {r.id, first, tokens, arithmetic, sample, {}, first > 0 ? slot : SlotId{}, slot});
  }
  void launch() {
    plan_.step = next_step_++;
    for (size_t i = 0; i < tables_.size(); ++i) plan_.slices[i].blocks = tables_[i];
    executor_->launch(plan_);
    plan_ = {};
    // The spans need not outlive launch().
    for (auto& table : tables_) std::fill(table.begin(), table.end(), BlockId{});
    tables_.clear();
  }
  StepResult collect() {
    StepResult result = executor_->collect();
    EXPECT_EQ(result.step, next_collect_++);
    return result;
  }

  struct Answer {
    std::vector<int32_t> tokens;
    std::vector<TokenLogprob> logprobs;
  };
  /// By the definition of the toy model and the sampler alone.
  Answer answer(const Request& request, int count) {
    Answer out;
    Sampler sampler(ToyModel::kVocab, 1);
    ThreadPool pool(1);
    TokenHistory history(request, ToyModel::kVocab, 1000);
    std::vector<int32_t> tokens = request.prompt;
    for (int i = 0; i < count; ++i) {
      float hidden[ToyModel::kHidden];
      std::vector<float> logits(ToyModel::kVocab);
      ToyModel::expected_hidden(request, tokens, hidden);
      ToyModel::row_logits(hidden, i == 0, logits.data());
      const SampleRow row{logits, &request.sampling, &history, static_cast<int64_t>(tokens.size()),
                          i};
      SampledToken sampled;
      sampler.sample(pool, {&row, 1}, {&sampled, 1});
      history.append(sampled.token);
      tokens.push_back(sampled.token);
      out.tokens.push_back(sampled.token);
      out.logprobs.push_back(sampled.logprob);
    }
    return out;
  }

  StepLimits limits_;
  ToyModel model_;
  KvStore kv_ = KvStore::create(model_.cache_specs(), ref_ops(), kNumBlocks, kNumSlots).value();
  ThreadPool pool_{2};
  Arena scratch_;
  Stream stream_{pool_, scratch_};
  std::unique_ptr<LocalExecutor> executor_;
  StepPlan plan_;
  std::vector<std::vector<BlockId>> tables_;
  int32_t next_id_ = 0;
  uint64_t next_step_ = 1, next_collect_ = 1;
};

TEST_F(LocalExecutorTest, OverlappedStepsGiveWhatTheDefinitionGives) {
  const auto a = make_request(100, 1), b = make_request(64, 2), c = make_request(3, 3);
  b->sampling.temperature = 0;
  b->sampling.logprobs = 4;
  b->rope_delta = 5;
  c->sampling.repetition_penalty = 1.3f;
  c->sampling.frequency_penalty = 0.2f;
  c->sampling.logprobs = 0;
  const std::vector<std::shared_ptr<Request>> all = {a, b, c};
  std::vector<Answer> got(3);
  const auto take = [&](const StepResult& result) {
    for (const SampledRow& row : result.rows) {
      EXPECT_FALSE(row.numeric_error);
      Answer& answer = got[static_cast<size_t>(row.seq.value)];
      answer.tokens.insert(answer.tokens.end(), row.tokens.begin(), row.tokens.end());
      answer.logprobs.insert(answer.logprobs.end(), row.logprobs.begin(), row.logprobs.end());
    }
  };

  plan_.admitted = {a, b};
  prompt_slice(*a, 0, 0, 64, false);
  prompt_slice(*b, 1, 0, 64, true);
  launch();
  plan_.admitted = {c};
  decode_slice(*b, 1, 64, kDevice);
  prompt_slice(*a, 0, 64, 100, true);
  prompt_slice(*c, 2, 0, 3, true);
  launch();
  for (int i = 0; i < 20; ++i) {
    take(collect());
    decode_slice(*c, 2, 3 + i, kDevice);
    decode_slice(*a, 0, 100 + i, kDevice);
    decode_slice(*b, 1, 65 + i, kDevice);
    launch();
  }
  take(collect());
  take(collect());
  for (size_t i = 0; i < 3; ++i) {
    const Answer want = answer(*all[i], static_cast<int>(got[i].tokens.size()));
    EXPECT_GE(want.tokens.size(), 21u);
    EXPECT_EQ(got[i].tokens, want.tokens);
    if (all[i]->sampling.logprobs < 0) {
      EXPECT_TRUE(got[i].logprobs.empty());
      continue;
    }
    ASSERT_EQ(got[i].logprobs.size(), want.tokens.size());
    for (size_t j = 0; j < want.tokens.size(); ++j) {
      EXPECT_EQ(got[i].logprobs[j].logprob, want.logprobs[j].logprob);
      ASSERT_EQ(got[i].logprobs[j].top.size(), static_cast<size_t>(all[i]->sampling.logprobs));
    }
  }
}

TEST_F(LocalExecutorTest, PreemptionReplaysAndGoesOn) {
  const auto a = make_request(20, 7);
  a->sampling.frequency_penalty = 0.5f;
  const Answer want = answer(*a, 6);
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 20, true);
  launch();
  decode_slice(*a, 0, 20, kDevice);
  launch();
  std::vector<int32_t> tokens = collect().rows[0].tokens;
  tokens.push_back(collect().rows[0].tokens[0]);
  plan_.preempted = {a->id};
  launch();
  EXPECT_TRUE(collect().rows.empty());
  // Elsewhere, with what was generated.
  prompt_slice(*a, 2, 0, 20, false);
  decode_slice(*a, 2, 20, tokens);
  launch();
  for (int i = 0; i < 3; ++i) {
    decode_slice(*a, 2, 22 + i, kDevice);
    launch();
    tokens.push_back(collect().rows[0].tokens[0]);
  }
  tokens.push_back(collect().rows[0].tokens[0]);
  EXPECT_EQ(tokens, want.tokens);
}

TEST_F(LocalExecutorTest, TokensOfAnotherExecutorAreTakenOver) {
  const auto a = make_request(20, 7);
  a->sampling.frequency_penalty = 0.5f;
  const Answer want = answer(*a, 6);
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 20, false);
  decode_slice(*a, 0, 20, std::span(want.tokens).first(5));
  launch();
  EXPECT_EQ(collect().rows[0].tokens[0], want.tokens[5]);
}

TEST_F(LocalExecutorTest, PromptLogprobsInPieces) {
  const auto a = make_request(150, 9);  // more rows than kLogitRows
  a->sampling.prompt_logprobs = 2;
  a->sampling.logprobs = 1;
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 64, false);
  prompt_slice(*a, 0, 64, 150, true);
  launch();
  const StepResult result = collect();
  ASSERT_EQ(result.rows.size(), 2u);
  std::vector<TokenLogprob> got = result.rows[0].prompt_logprobs;
  EXPECT_EQ(got.size(), 64u);
  got.insert(got.end(), result.rows[1].prompt_logprobs.begin(),
             result.rows[1].prompt_logprobs.end());
  ASSERT_EQ(got.size(), 149u);
  EXPECT_TRUE(result.rows[0].tokens.empty());
  EXPECT_EQ(result.rows[1].tokens, answer(*a, 1).tokens);
  for (size_t i = 0; i < got.size(); ++i) {
    float hidden[ToyModel::kHidden];
    std::vector<float> logits(ToyModel::kVocab);
    ToyModel::expected_hidden(*a, {a->prompt.begin(), a->prompt.begin() + 1 + static_cast<long>(i)},
                              hidden);
    ToyModel::row_logits(hidden, true, logits.data());
    double sum = 0;
    for (const float v : logits) sum += std::exp(static_cast<double>(v));
    EXPECT_NEAR(got[i].logprob, logits[static_cast<size_t>(a->prompt[i + 1])] - std::log(sum),
                1e-5);
    ASSERT_EQ(got[i].top.size(), 2u);
    EXPECT_EQ(got[i].top[0].token, std::max_element(logits.begin(), logits.end()) - logits.begin());
  }
}

TEST_F(LocalExecutorTest, NumericErrorEndsItsSequenceAlone) {
  const auto a = make_request(20, 1), b = make_request(20, 2), c = make_request(80, 3);
  a->prompt[5] = ToyModel::kPoison;
  c->prompt[5] = ToyModel::kPoison;
  c->sampling.prompt_logprobs = 0;
  plan_.admitted = {a, b, c};
  prompt_slice(*a, 0, 0, 20, true);
  prompt_slice(*b, 1, 0, 20, true);
  prompt_slice(*c, 2, 0, 64, false);
  launch();
  // Planned before the error was known.
  decode_slice(*a, 0, 20, kDevice);
  decode_slice(*b, 1, 20, kDevice);
  launch();
  std::vector<int32_t> tokens;
  for (int step = 0; step < 2; ++step) {
    const StepResult result = collect();
    EXPECT_TRUE(result.rows[0].numeric_error);
    EXPECT_TRUE(result.rows[0].tokens.empty());
    EXPECT_FALSE(result.rows[1].numeric_error);
    tokens.push_back(result.rows[1].tokens[0]);
    if (step == 0) {
      EXPECT_TRUE(result.rows[2].numeric_error);
    }
  }
  EXPECT_EQ(tokens, answer(*b, 2).tokens);
  plan_.retired = {a->id, c->id};
  decode_slice(*b, 1, 21, kDevice);
  launch();
  EXPECT_EQ(collect().rows[0].tokens[0], answer(*b, 3).tokens[2]);
}

TEST_F(LocalExecutorTest, BlockCopiesComeBeforeTheSlices) {
  const auto a = make_request(17, 4);
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 17, true);
  launch();
  const int32_t first = collect().rows[0].tokens[0];
  const auto from = blocks(0), to = blocks(3);
  plan_.copies = {{from[0], to[0]}, {from[1], to[1]}};
  decode_slice(*a, 3, 17, kDevice);
  plan_.slices[0].state_read = SlotId{0};
  launch();
  EXPECT_EQ(collect().rows[0].tokens[0], answer(*a, 2).tokens[1]);
  EXPECT_EQ(first, answer(*a, 1).tokens[0]);
}

TEST_F(LocalExecutorTest, PanicOfAStepComesOutOfCollect) {
  const auto a = make_request(20, 1);
  a->prompt[3] = ToyModel::kPanic;
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 20, true);
  launch();
  launch();
  EXPECT_THROW(executor_->collect(), Panic);
  EXPECT_THROW(executor_->collect(), Panic);
}

TEST_F(LocalExecutorTest, AReplayedTokenThatWasNotSampledPanics) {
  const auto a = make_request(20, 1);
  plan_.admitted = {a};
  prompt_slice(*a, 0, 0, 20, true);
  launch();
  const int32_t wrong[] = {(collect().rows[0].tokens[0] + 1) % ToyModel::kPanic};
  decode_slice(*a, 0, 20, wrong);
  launch();
  EXPECT_THROW(executor_->collect(), Panic);
}

TEST_F(LocalExecutorTest, AtMostTwoStepsInFlight) {
  launch();
  launch();
  EXPECT_THROW(executor_->launch({}), Panic);
  collect();
  collect();
  EXPECT_THROW(executor_->collect(), Panic);
}

}  // namespace
}  // namespace weft
