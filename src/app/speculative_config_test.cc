#include "app/speculative_config.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

using enum SpeculationMethod;

ParsedSpeculation parse(const std::vector<std::string>& objects) {
  Result<ParsedSpeculation> parsed = parse_speculative_config(objects);
  EXPECT_TRUE(parsed.ok()) << (parsed.ok() ? "" : parsed.error().message);
  return parsed.ok() ? *parsed : ParsedSpeculation{};
}

SpeculationConfig options(const std::string& object) {
  return parse({object}).config;
}

std::string refusal(const std::string& object) {
  const Result<ParsedSpeculation> parsed = parse_speculative_config({object});
  EXPECT_FALSE(parsed.ok()) << object;
  return parsed.ok() ? "" : parsed.error().message;
}

TEST(SpeculativeConfig, NothingIsOff) {
  EXPECT_EQ(parse({}).config.method, kNone);
  EXPECT_EQ(parse({"{}"}).config.method, kNone);
}

TEST(SpeculativeConfig, DefaultsAreFastDeploys) {
  const SpeculationConfig ngram = options(R"({"method":"ngram"})");
  EXPECT_EQ(ngram.method, kNgram);
  EXPECT_EQ(ngram.num_speculative_tokens, 1);
  EXPECT_EQ(ngram.min_ngram_size, 2);
  EXPECT_EQ(ngram.max_ngram_size, 5);
  EXPECT_EQ(ngram.accept, AcceptPolicy::kNormal);
  EXPECT_TRUE(ngram.adaptive);
}

TEST(SpeculativeConfig, MtpOfVllmMakesAsManyStepsAsTokens) {
  const SpeculationConfig mtp = options(R"({"method":"mtp","num_speculative_tokens":3})");
  EXPECT_EQ(mtp.method, kMtp);
  EXPECT_EQ(mtp.num_speculative_tokens, 3);
  EXPECT_EQ(mtp.num_mtp_steps, 3);
  for (const char* name : {"qwen3_next_mtp", "qwen3_5_mtp", "ernie_mtp"}) {
    EXPECT_EQ(options(std::string(R"({"method":")") + name + R"("})").method, kMtp) << name;
  }
}

TEST(SpeculativeConfig, HybridInBothSpellings) {
  for (const char* text :
       {R"({"method":"hybrid_mtp_ngram","num_speculative_tokens":5,"num_model_steps":3})",
        R"({"method":"mtp","mtp_strategy":"with_ngram","num_speculative_tokens":5,
            "num_model_steps":3})"}) {
    const SpeculationConfig o = options(text);
    EXPECT_EQ(o.method, kHybrid);
    EXPECT_EQ(o.num_speculative_tokens, 5);
    EXPECT_EQ(o.num_mtp_steps, 3);
  }
  EXPECT_EQ(options(R"({"method":"hybrid_mtp_ngram","num_speculative_tokens":4})").num_mtp_steps,
            1);
  // Without room for n-gram drafts it is plain MTP.
  const SpeculationConfig full =
      options(R"({"method":"hybrid_mtp_ngram","num_speculative_tokens":2,"num_model_steps":2})");
  EXPECT_EQ(full.method, kMtp);
  EXPECT_EQ(full.num_speculative_tokens, 2);
}

TEST(SpeculativeConfig, MoreStepsRaiseTheTokensWithAWarning) {
  const ParsedSpeculation parsed =
      parse({R"({"method":"mtp","num_speculative_tokens":2,"num_model_steps":4})"});
  EXPECT_EQ(parsed.config.num_speculative_tokens, 4);
  ASSERT_EQ(parsed.warnings.size(), 1U);
  EXPECT_NE(parsed.warnings[0].find("raised from 2 to 4"), std::string::npos);
  EXPECT_TRUE(parse({R"({"method":"mtp","num_model_steps":4})"}).warnings.empty());
  const ParsedSpeculation fewer =
      parse({R"({"method":"mtp","num_speculative_tokens":4,"num_model_steps":2})"});
  EXPECT_EQ(fewer.config.num_speculative_tokens, 2);
  EXPECT_EQ(fewer.warnings.size(), 1U);
}

TEST(SpeculativeConfig, LossyVerificationIsNamed) {
  const ParsedSpeculation parsed = parse(
      {R"({"method":"mtp","verify_strategy":"topp","max_candidate_len":3,"verify_window":4})"});
  EXPECT_EQ(parsed.config.verify, VerifyStrategy::kTopP);
  EXPECT_EQ(parsed.config.max_candidates, 3);
  EXPECT_EQ(parsed.config.verify_window, 4);
  ASSERT_EQ(parsed.warnings.size(), 1U);
  EXPECT_NE(parsed.warnings[0].find("LOSSY"), std::string::npos);
  EXPECT_EQ(short_name(parsed.config), "mtp-1-topp-lossy");
}

TEST(SpeculativeConfig, SpellingsOfVllmForNgram) {
  const SpeculationConfig o = options(
      R"({"model":"[ngram]","num_speculative_tokens":4,"prompt_lookup_max":3,"prompt_lookup_min":1})");
  EXPECT_EQ(o.method, kNgram);
  EXPECT_EQ(o.min_ngram_size, 1);
  EXPECT_EQ(o.max_ngram_size, 3);
  EXPECT_EQ(options(R"({"method":"ngram_match"})").method, kNgram);
  EXPECT_EQ(options(R"({"method":"ngram","prompt_lookup_max":1})").min_ngram_size, 1);
  EXPECT_EQ(options(R"({"method":"ngram","prompt_lookup_min":8})").max_ngram_size, 8);
  EXPECT_NE(refusal(R"({"method":"ngram","prompt_lookup_max":3,"max_ngram_size":3})")
                .find("two names of one thing"),
            std::string::npos);
}

TEST(SpeculativeConfig, NaiveAndNoTokensAreOff) {
  EXPECT_FALSE(options(R"({"method":"naive"})").on());
  EXPECT_FALSE(options(R"({"method":"mtp","num_speculative_tokens":0})").on());
}

TEST(SpeculativeConfig, LaterObjectsGoOverEarlierOnes) {
  const SpeculationConfig o = parse({R"({"method":"mtp","num_speculative_tokens":3})",
                                     R"({"num_speculative_tokens":2})", R"({"adaptive":false})"})
                                  .config;
  EXPECT_EQ(o.num_speculative_tokens, 2);
  EXPECT_FALSE(o.adaptive);
}

TEST(SpeculativeConfig, WordsForTestsAndBenchmarks) {
  EXPECT_EQ(options(R"({"method":"mtp","accept_policy":"accept_all"})").accept,
            AcceptPolicy::kAcceptAll);
  EXPECT_EQ(options(R"({"method":"mtp","accept_policy":"reject_all"})").accept,
            AcceptPolicy::kRejectAll);
  const SpeculationConfig o =
      options(R"({"method":"mtp","benchmark_mode":true,"acceptance_rate":0.75})");
  EXPECT_EQ(o.accept, AcceptPolicy::kSimulated);
  EXPECT_EQ(o.simulated_acceptance, .75);
  // FastDeploy's benchmark_mode alone accepts nothing.
  EXPECT_EQ(options(R"({"method":"mtp","benchmark_mode":true})").simulated_acceptance, 0);
}

TEST(SpeculativeConfig, AnUnknownKeyIsNamedWithTheAllowedOnes) {
  const std::string message = refusal(R"({"method":"mtp","num_spec_tokens":3})");
  EXPECT_NE(message.find("'num_spec_tokens'"), std::string::npos) << message;
  EXPECT_NE(message.find("num_speculative_tokens"), std::string::npos) << message;
  EXPECT_NE(message.find("min_ngram_size"), std::string::npos) << message;
}

TEST(SpeculativeConfig, EveryKeyRefusesWhatItCannotMean) {
  const std::pair<const char*, const char*> kWrong[] = {
      {"method", R"({"method":"eagle"})"},
      {"method", R"({"method":1})"},
      {"method", R"({"num_speculative_tokens":2})"},
      {"num_speculative_tokens", R"({"method":"mtp","num_speculative_tokens":16})"},
      {"num_speculative_tokens", R"({"method":"mtp","num_speculative_tokens":-1})"},
      {"num_speculative_tokens", R"({"method":"mtp","num_speculative_tokens":2.5})"},
      {"num_speculative_tokens", R"({"method":"mtp","num_speculative_tokens":"2"})"},
      {"num_speculative_tokens",
       R"({"method":"mtp","num_speculative_tokens":18446744073709551615})"},
      {"num_model_steps", R"({"method":"mtp","num_model_steps":0})"},
      {"mtp_strategy", R"({"method":"mtp","mtp_strategy":"both"})"},
      {"mtp_strategy", R"({"method":"ngram","mtp_strategy":"with_ngram"})"},
      {"min_ngram_size", R"({"method":"ngram","min_ngram_size":0})"},
      {"min_ngram_size", R"({"method":"ngram","min_ngram_size":4,"max_ngram_size":3})"},
      {"max_ngram_size", R"({"method":"ngram","max_ngram_size":65})"},
      {"verify_strategy", R"({"method":"mtp","verify_strategy":"exact"})"},
      {"accept_policy", R"({"method":"mtp","accept_policy":"some"})"},
      {"verify_strategy", R"({"method":"mtp","verify_strategy":"greedy"})"},
      {"verify_strategy",
       R"({"method":"mtp","verify_strategy":"topp","accept_policy":"accept_all"})"},
      {"verify_strategy", R"({"method":"mtp","verify_strategy":"topp","benchmark_mode":true})"},
      {"max_candidate_len", R"({"method":"mtp","max_candidate_len":6})"},
      {"max_candidate_len", R"({"method":"mtp","verify_strategy":"topp","max_candidate_len":0})"},
      {"verify_window", R"({"method":"mtp","verify_window":1})"},
      {"accept_policy", R"({"method":"mtp","benchmark_mode":true,"accept_policy":"normal"})"},
      {"adaptive", R"({"method":"mtp","adaptive":1})"},
      {"benchmark_mode", R"({"method":"mtp","benchmark_mode":"yes"})"},
      {"disable_by_batch_size", R"({"method":"mtp","disable_by_batch_size":0})"},
      {"acceptance_rate", R"({"method":"mtp","acceptance_rate":0.5})"},
      {"acceptance_rate", R"({"method":"mtp","benchmark_mode":true,"acceptance_rate":1.5})"},
      {"model", R"({"method":"mtp","model":"org/draft"})"},
      {"quantization", R"({"method":"mtp","quantization":"wint8"})"},
      {"draft_tensor_parallel_size", R"({"method":"mtp","draft_tensor_parallel_size":2})"},
      {"enable_draft_logprob", R"({"method":"mtp","enable_draft_logprob":true})"},
  };
  for (const auto& [key, text] : kWrong) {
    const std::string message = refusal(text);
    EXPECT_NE(message.find("--speculative-config: " + std::string(key) + ": "), std::string::npos)
        << text << ": " << message;
    EXPECT_NE(message.find("allowed: "), std::string::npos) << message;
  }
  EXPECT_NE(refusal("[1]").find("not a JSON object"), std::string::npos);
  EXPECT_NE(refusal("mtp").find("not a JSON object"), std::string::npos);
}

TEST(SpeculativeConfig, ShortNames) {
  EXPECT_EQ(short_name(SpeculationConfig{}), "none");
  EXPECT_EQ(short_name(options(R"({"method":"mtp","num_speculative_tokens":3})")), "mtp-3");
  EXPECT_EQ(short_name(options(R"({"method":"ngram","num_speculative_tokens":5})")), "ngram-5");
  EXPECT_EQ(short_name(options(R"({"method":"hybrid_mtp_ngram","num_speculative_tokens":6,
                                   "num_model_steps":3})")),
            "hybrid-3-6");
}

TEST(SpeculativeConfig, ValuesThatAskForWhatIsAnyway) {
  EXPECT_TRUE(options(R"({"method":"mtp","draft_tensor_parallel_size":1,"model":null,
                          "quantization":"none","enable_draft_logprob":false,
                          "prefill_one_step_stop":false,"verify_strategy":"target_match","num_gpu_block_expand_ratio":1})")
                  .on());
}

}  // namespace
}  // namespace weft
