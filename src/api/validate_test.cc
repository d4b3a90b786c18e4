#include "api/validate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

namespace weft {
namespace {

const ModelLimits kLimits{.vocab_size = 100, .max_model_len = 64};

Result<SamplingParams> validate(const SamplingRequest& request,
                                const GenerationDefaults& defaults = {}) {
  return validate_sampling(request, defaults, kLimits, /*prompt_len=*/10, /*default_seed=*/7);
}

TEST(ValidateSampling, WhatDoesNotFitHasTheCodeClientsLookFor) {
  SamplingRequest request;
  request.max_tokens = 55;  // beside 10 of a prompt, of 64
  EXPECT_EQ(validate(request).error().code, "context_length_exceeded");
  const auto full = validate_sampling({}, {}, kLimits, /*prompt_len=*/64, /*default_seed=*/7);
  EXPECT_EQ(full.error().code, "context_length_exceeded");
  request.max_tokens = 0;
  EXPECT_EQ(validate(request).error().code, "");
}

TEST(ValidateSampling, FallsBackToTheCheckpointThenToTheDefaults) {
  SamplingRequest request;
  const SamplingParams plain = validate(request).value();
  EXPECT_EQ(plain.temperature, 1.0f);
  EXPECT_EQ(plain.max_tokens, 54);
  EXPECT_EQ(plain.seed, 7u);
  EXPECT_EQ(plain.logprobs, -1);
  GenerationDefaults defaults;
  defaults.temperature = 0.6;
  defaults.top_p = 0.9;
  defaults.top_k = 20;
  defaults.eos_ids = {3, 4};
  request.top_p = 0.5;
  const SamplingParams mixed = validate(request, defaults).value();
  EXPECT_EQ(mixed.temperature, 0.6f);
  EXPECT_EQ(mixed.top_p, 0.5f);
  EXPECT_EQ(mixed.top_k, 20);
  EXPECT_EQ(mixed.stop_ids, (std::vector<int32_t>{3, 4}));
  request.ignore_eos = true;
  EXPECT_TRUE(validate(request, defaults).value().stop_ids.empty());
}

TEST(ValidateSampling, RefusesEachFieldByName) {
  const double nan = std::nan(""), inf = std::numeric_limits<double>::infinity();
  struct Case {
    const char* field;
    std::function<void(SamplingRequest&)> set;
  };
  const Case cases[] = {
      {"temperature", [](SamplingRequest& r) { r.temperature = -0.1; }},
      {"temperature", [=](SamplingRequest& r) { r.temperature = nan; }},
      {"temperature", [=](SamplingRequest& r) { r.temperature = inf; }},
      {"top_k", [](SamplingRequest& r) { r.top_k = -2; }},
      {"top_p", [](SamplingRequest& r) { r.top_p = 0.0; }},
      {"top_p", [](SamplingRequest& r) { r.top_p = 1.0000001; }},
      {"min_p", [](SamplingRequest& r) { r.min_p = 1.5; }},
      {"repetition_penalty", [](SamplingRequest& r) { r.repetition_penalty = 0.0; }},
      {"repetition_penalty", [](SamplingRequest& r) { r.repetition_penalty = 0.00999; }},
      {"repetition_penalty", [](SamplingRequest& r) { r.repetition_penalty = 1e-45; }},
      {"presence_penalty", [](SamplingRequest& r) { r.presence_penalty = 2.5; }},
      {"frequency_penalty", [](SamplingRequest& r) { r.frequency_penalty = -1e30; }},
      {"max_tokens", [](SamplingRequest& r) { r.max_tokens = 0; }},
      {"max_tokens", [](SamplingRequest& r) { r.max_tokens = 55; }},
      {"max_tokens",
       [](SamplingRequest& r) { r.max_tokens = std::numeric_limits<int64_t>::max(); }},
      {"min_tokens", [](SamplingRequest& r) { r.min_tokens = -1; }},
      {"min_tokens",
       [](SamplingRequest& r) {
         r.max_tokens = 5;
         r.min_tokens = 6;
       }},
      {"stop", [](SamplingRequest& r) { r.stop = {""}; }},
      {"stop", [](SamplingRequest& r) { r.stop = std::vector<std::string>(17, "x"); }},
      {"stop_token_ids", [](SamplingRequest& r) { r.stop_token_ids = {100}; }},
      {"logit_bias",
       [](SamplingRequest& r) {
         r.logit_bias = {{-1, 0.0}};
       }},
      {"logit_bias",
       [](SamplingRequest& r) {
         r.logit_bias = {{1, 101.0}};
       }},
      {"allowed_token_ids", [](SamplingRequest& r) { r.allowed_token_ids = {int64_t{1} << 40}; }},
      {"bad_token_ids", [](SamplingRequest& r) { r.bad_token_ids = {-5}; }},
      {"logprobs", [](SamplingRequest& r) { r.logprobs = 21; }},
      {"logprobs", [](SamplingRequest& r) { r.logprobs = -1; }},
      {"prompt_logprobs", [](SamplingRequest& r) { r.prompt_logprobs = 1000000000; }},
  };
  for (const Case& c : cases) {
    SamplingRequest request;
    c.set(request);
    const auto result = validate(request);
    ASSERT_FALSE(result.ok()) << c.field;
    EXPECT_EQ(result.error().message.rfind(std::string(c.field) + ":", 0), 0u)
        << result.error().message;
  }
}

TEST(ValidateSampling, RefusesPromptsThatLeaveNoRoom) {
  EXPECT_FALSE(validate_sampling({}, {}, kLimits, 64, 0).ok());
  EXPECT_FALSE(validate_sampling({}, {}, kLimits, 0, 0).ok());
  EXPECT_EQ(validate_sampling({}, {}, kLimits, 63, 0).value().max_tokens, 1);
  EXPECT_FALSE(validate_prompt_ids({}, kLimits).ok());
  EXPECT_FALSE(validate_prompt_ids({100}, kLimits).ok());
  EXPECT_EQ(validate_prompt_ids({99, 0}, kLimits).value(), (std::vector<int32_t>{99, 0}));
}

}  // namespace
}  // namespace weft
