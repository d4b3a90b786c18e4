#include "app/bench_serve.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "app/bench_serve_data.h"
#include "app/bench_serve_report.h"
#include "app/model_location.h"
#include "base/temp_dir.h"

namespace weft {
namespace {

using nlohmann::json;

TEST(Percentile, IsNumpysLinearInterpolation) {
  // numpy.percentile([15, 20, 35, 40, 50], p)
  const std::vector<double> v = {50, 15, 40, 20, 35};
  EXPECT_DOUBLE_EQ(percentile(v, 0), 15);
  EXPECT_DOUBLE_EQ(percentile(v, 40), 29);
  EXPECT_DOUBLE_EQ(percentile(v, 50), 35);
  EXPECT_DOUBLE_EQ(percentile(v, 99), 49.6);
  EXPECT_DOUBLE_EQ(percentile(v, 100), 50);
  EXPECT_DOUBLE_EQ(percentile({7}, 99), 7);
  EXPECT_DOUBLE_EQ(percentile({}, 50), 0);
}

/// Three answers and a failure, by hand: starts 10, 10.5, 12 s.
std::vector<RequestOutcome> four_outcomes() {
  RequestOutcome a{.success = true, .start_time = 10, .ttft = 0.1, .itl = {0.2, 0.2}};
  a.latency = 0.5, a.prompt_len = 5, a.output_len = 3;
  RequestOutcome b{.success = true, .start_time = 10.5, .ttft = 0.3, .itl = {0.1, 0.1, 0.1, 0.1}};
  b.latency = 0.7, b.prompt_len = 7, b.output_len = 9;  // two tokens a frame
  RequestOutcome c{.success = true, .start_time = 12, .ttft = 0.2};
  c.latency = 0.2, c.prompt_len = 1, c.output_len = 1, c.queue_time = 0.4;
  RequestOutcome d{.success = false, .start_time = 10, .latency = 3, .prompt_len = 100};
  d.error = "HTTP 429: full";
  return {a, b, c, d};
}

TEST(ServeMetrics, AreThoseWorkedOutByHand) {
  const ServeMetrics m =
      compute_metrics(four_outcomes(), 4, {50, 99}, parse_goodput({"ttft:200", "tpot:60"}).value());
  EXPECT_EQ(m.completed, 3);
  EXPECT_EQ(m.failed, 1);
  EXPECT_EQ(m.total_input, 13);
  EXPECT_EQ(m.total_output, 13);
  EXPECT_DOUBLE_EQ(m.request_throughput, 0.75);
  EXPECT_DOUBLE_EQ(m.output_throughput, 3.25);
  EXPECT_DOUBLE_EQ(m.total_token_throughput, 6.5);
  // TPOT of a: 0.4 / 2 = 200 ms, of b: 0.4 / 8 = 50 ms; c has none and keeps the limit. TTFT of b
  // is too long, TPOT of a: only c is good.
  EXPECT_DOUBLE_EQ(m.request_goodput, 0.25);
  EXPECT_DOUBLE_EQ(m.tpot.mean, 125);
  EXPECT_DOUBLE_EQ(m.tpot.std, 75);
  EXPECT_DOUBLE_EQ(m.ttft.mean, 200);
  EXPECT_DOUBLE_EQ(m.ttft.median, 200);
  EXPECT_NEAR(m.ttft.std, 1000 * std::sqrt(0.02 / 3), 1e-9);
  EXPECT_NEAR(m.ttft.percentiles.at(1).second, 298, 1e-9);  // 200 + 0.98 * 100
  EXPECT_NEAR(m.itl.mean, 1000 * 0.8 / 6, 1e-9);
  EXPECT_DOUBLE_EQ(m.e2el.median, 500);
  EXPECT_NEAR(m.e2el_with_queue.mean, 600, 1e-9);
  // Frames: a at 0.1 0.3 0.5, b at 0.8 0.9 1.0 1.1 1.2 (of the first second or the next), c at 2.2.
  EXPECT_GE(m.max_output_tokens_per_s, 5);
  EXPECT_LE(m.max_output_tokens_per_s, 6);
  EXPECT_EQ(m.max_concurrent_requests, 1);  // a ends as b begins
}

TEST(ServeMetrics, OfNothingAreZero) {
  const ServeMetrics m = compute_metrics({}, 0, {99}, {});
  EXPECT_EQ(m.completed, 0);
  EXPECT_EQ(m.request_throughput, 0);
  EXPECT_EQ(m.itl.percentiles.at(0).second, 0);
}

TEST(ServeMetrics, ConcurrencyCountsOverlaps) {
  std::vector<RequestOutcome> all;
  for (const double start : {0.0, 0.1, 0.2, 5.0}) {
    all.push_back({.success = true, .start_time = start, .ttft = 0.1});
    all.back().latency = 0.15;
  }
  EXPECT_EQ(compute_metrics(all, 6, {}, {}).max_concurrent_requests, 2);
}

TEST(BenchServeFlags, WordsAreCheckedByName) {
  EXPECT_NE(parse_goodput({"itl:3"}).error().message.find("--goodput: 'itl:3'"), std::string::npos);
  EXPECT_FALSE(parse_goodput({"ttft"}).ok());
  EXPECT_FALSE(parse_goodput({"ttft:-1"}).ok());
  EXPECT_FALSE(parse_goodput({"ttft:1s"}).ok());
  EXPECT_EQ(parse_percentiles("25,50,99.9").value(), (std::vector<double>{25, 50, 99.9}));
  EXPECT_FALSE(parse_percentiles("").ok());
  EXPECT_FALSE(parse_percentiles("101").ok());
  EXPECT_FALSE(parse_percentiles("50,,9").ok());
  EXPECT_FALSE(parse_metric_names("ttft,tpt").ok());
  EXPECT_EQ(parse_metric_names("ttft,e2el").value().size(), 2u);
}

TEST(Arrivals, KeepTheRateAndTheShape) {
  BenchServeOptions o;
  for (const double t : arrival_times(o, 10)) EXPECT_EQ(t, 0);
  o.request_rate = 50;
  const size_t n = 5000;
  for (const double shape : {0.25, 1.0, 4.0}) {
    o.burstiness = shape;
    const std::vector<double> due = arrival_times(o, n);
    EXPECT_TRUE(std::is_sorted(due.begin(), due.end()));
    EXPECT_NEAR(due.back(), 100, 1e-9);  // n / rate
    double squares = 0;
    for (size_t i = 1; i < n; ++i) {
      squares += std::pow(due[i] - due[i - 1] - 0.02, 2);
    }
    // Gamma intervals of mean 1/rate: the variance is mean^2 / shape.
    EXPECT_NEAR(squares / (n - 1) * shape / 0.0004, 1, 0.2) << shape;
  }
  o.burstiness = std::numeric_limits<double>::infinity();
  EXPECT_NEAR(arrival_times(o, 3)[1], 0.04, 1e-12);
  o = {.ramp_up_strategy = "linear", .ramp_up_start_rps = 1, .ramp_up_end_rps = 100};
  o.burstiness = std::numeric_limits<double>::infinity();
  const std::vector<double> ramp = arrival_times(o, 100);
  EXPECT_NEAR(ramp[0], 1, 1e-9);
  EXPECT_NEAR(ramp[99] - ramp[98], 0.01, 1e-9);
}

TEST(BenchPrompts, RandomOnesHaveTheirLengthAndPrefix) {
  const Tokenizer tokenizer = Tokenizer::load(demo_model_directory().value()).value();
  BenchServeOptions o;
  o.num_prompts = 50, o.random_input_len = 40, o.random_output_len = 16;
  o.random_range_ratio = 0.5, o.random_prefix_len = 30;
  const auto prompts = make_bench_prompts(o, &tokenizer, nullptr).value();
  ASSERT_EQ(prompts.size(), 50u);
  std::set<std::string> texts;
  int exact = 0;
  for (const BenchPrompt& p : prompts) {
    texts.insert(p.text);
    EXPECT_EQ(p.prompt_len, static_cast<int64_t>(tokenizer.encode(p.text, false).value().size()));
    EXPECT_EQ(p.text.substr(0, 20), prompts[0].text.substr(0, 20));
    EXPECT_TRUE(p.output_len >= 8 && p.output_len <= 24) << p.output_len;
    exact += p.prompt_len >= 50 && p.prompt_len <= 90;
  }
  EXPECT_EQ(texts.size(), 50u);
  EXPECT_GE(exact, 45);
  EXPECT_EQ(make_bench_prompts(o, &tokenizer, nullptr).value()[7].text, prompts[7].text);
  o.seed = 1;
  EXPECT_NE(make_bench_prompts(o, &tokenizer, nullptr).value()[7].text, prompts[7].text);
}

TEST(BenchPrompts, AreWordsWithoutATokenizer) {
  BenchServeOptions o;
  o.num_prompts = 3, o.random_input_len = 12;
  const auto prompts = make_bench_prompts(o, nullptr, nullptr).value();
  EXPECT_EQ(std::count(prompts[0].text.begin(), prompts[0].text.end(), ' '), 11);
  EXPECT_EQ(prompts[0].prompt_len, 12);
}

TEST(BenchPrompts, OfFiles) {
  const TempDir dir;
  BenchServeOptions o;
  o.dataset_name = "custom", o.dataset_path = dir.file("a.jsonl"), o.num_prompts = 5;
  std::ofstream(o.dataset_path) << "{\"prompt\": \"one two\", \"output_tokens\": 3}\n\n"
                                << "{\"prompt\": \"three\", \"output_tokens\": 4}\n";
  o.disable_shuffle = true;
  auto prompts = make_bench_prompts(o, nullptr, nullptr).value();
  ASSERT_EQ(prompts.size(), 5u);  // some are sent again
  EXPECT_EQ(prompts[0].text, "one two");
  EXPECT_EQ(prompts[0].output_len, 256);
  o.no_oversample = true, o.custom_output_len = -1;
  prompts = make_bench_prompts(o, nullptr, nullptr).value();
  ASSERT_EQ(prompts.size(), 2u);
  EXPECT_EQ(prompts[1].output_len, 4);
  std::ofstream(o.dataset_path, std::ios::app) << "{\"text\": 1}\n";
  EXPECT_NE(make_bench_prompts(o, nullptr, nullptr).error().message.find("a.jsonl:4"),
            std::string::npos);
  o.dataset_name = "sharegpt";
  std::ofstream(o.dataset_path)
      << R"([{"conversations": [{"value": "a b c d"}, {"value": "e f g h i"}]},
    {"conversations": [{"value": "too short"}, {"value": "e f g h i"}]}, {"x": 1}])";
  prompts = make_bench_prompts(o, nullptr, nullptr).value();
  ASSERT_EQ(prompts.size(), 1u);
  EXPECT_EQ(prompts[0].output_len, 5);
  o.dataset_path = "";
  EXPECT_FALSE(make_bench_prompts(o, nullptr, nullptr).ok());
}

TEST(ServeReport, HasVllmsLinesAndKeys) {
  BenchServeOptions o;
  o.num_prompts = 4, o.max_concurrency = 2, o.request_rate = 2, o.metadata = {"tp = 1"};
  o.percentile_metrics = "ttft,tpot,itl,e2el", o.metric_percentiles = "50,99.9";
  const auto outcomes = four_outcomes();
  const ServeMetrics m = compute_metrics(outcomes, 4, {50, 99.9}, {{"ttft", 200}});
  ServeReport report{.options = o,
                     .metrics = m,
                     .outcomes = outcomes,
                     .model_id = "org/m",
                     .date = "20260101-000000",
                     .has_goodput = true};
  const std::string block = result_block(report);
  for (const char* line :
       {"============ Serving Benchmark Result ============\n",
        "Successful requests:                     3         \n",
        "Failed requests:                         1         \n",
        "Maximum request concurrency:             2         \n",
        "Request rate configured (RPS):           2.00      \n",
        "Benchmark duration (s):                  4.00      \n",
        "Request throughput (req/s):              0.75      \n",
        "Request goodput (req/s):                 0.50      \n",
        "---------------Time to First Token----------------\n",
        "-----Time per Output Token (excl. 1st token)------\n",
        "Mean TTFT (ms):                          200.00    \n", "P99.9 E2EL (ms):"}) {
    EXPECT_NE(block.find(line), std::string::npos) << line << "\n" << block;
  }
  const json out = json::parse(result_json(report));
  for (const char* key : {"date",
                          "endpoint_type",
                          "backend",
                          "label",
                          "model_id",
                          "tokenizer_id",
                          "num_prompts",
                          "request_rate",
                          "burstiness",
                          "max_concurrency",
                          "duration",
                          "completed",
                          "failed",
                          "total_input_tokens",
                          "total_output_tokens",
                          "request_throughput",
                          "request_goodput",
                          "output_throughput",
                          "total_token_throughput",
                          "mean_ttft_ms",
                          "median_tpot_ms",
                          "std_itl_ms",
                          "p50_ttft_ms",
                          "p99.9_e2el_ms",
                          "max_output_tokens_per_s",
                          "max_concurrent_requests",
                          "rtfx"}) {
    EXPECT_TRUE(out.contains(key)) << key;
  }
  EXPECT_EQ(out["tp"], "1");
  EXPECT_FALSE(out.contains("ttfts"));
  EXPECT_FALSE(out.contains("spec_decode_num_drafts"));
  EXPECT_EQ(result_path(report), "openai-2.0qps-concurrency2-m-20260101-000000.json");
  o.save_detailed = true, o.result_dir = "d", o.result_filename = "f.json";
  const json detailed = json::parse(result_json(report));
  EXPECT_EQ(detailed["errors"][3], "HTTP 429: full");
  EXPECT_EQ(detailed["output_lens"], json({3, 9, 1, 0}));
  EXPECT_EQ(detailed["itls"][1].size(), 4u);
  EXPECT_EQ(result_path(report), "d/f.json");
}

TEST(ServeReport, TellsWhatTheServerHasDraftedMeanwhile) {
  const auto page = [](int drafts, int proposed, int accepted, int first, int second) {
    const std::string labels = R"({engine="0",model_name="a } 7"})";
    const std::string at = R"({engine="0",position=")";
    const auto total = [](const char* what) {
      return "vllm:spec_decode_num_" + std::string(what) + "_total";
    };
    return "# TYPE x counter\n" + total("drafts") + labels + " " + std::to_string(drafts) + "\n" +
           total("draft_tokens") + labels + " " + std::to_string(proposed) + ".0 1700000000\n" +
           total("accepted_tokens") + " " + std::to_string(accepted) + "\n" +
           total("accepted_tokens_per_pos") + at + "0\"} " + std::to_string(first) + "\n" +
           total("accepted_tokens_per_pos") + at + "1\"} " + std::to_string(second) +
           "\nvllm:spec_decode_num_drafts_created 17\nbroken{\nworse\n";
  };
  EXPECT_FALSE(read_draft_counts("vllm:num_requests_running 3\n"));
  const auto before = read_draft_counts(page(10, 20, 10, 7, 3));
  ASSERT_TRUE(before);
  EXPECT_FALSE(drafts_between(before, before));
  EXPECT_FALSE(drafts_between(before, std::nullopt));
  BenchServeOptions o;
  const auto outcomes = four_outcomes();
  const ServeMetrics m = compute_metrics(outcomes, 4, {99}, {});
  const ServeReport report{
      .options = o,
      .metrics = m,
      .outcomes = outcomes,
      .drafts = drafts_between(before, read_draft_counts(page(18, 36, 22, 15, 7)))};
  const json out = json::parse(result_json(report));
  EXPECT_EQ(out["spec_decode_acceptance_rate"], 75.0);
  EXPECT_EQ(out["spec_decode_acceptance_length"], 2.5);
  EXPECT_EQ(out["spec_decode_num_drafts"], 8);
  EXPECT_EQ(out["spec_decode_draft_tokens"], 16);
  EXPECT_EQ(out["spec_decode_accepted_tokens"], 12);
  EXPECT_EQ(out["spec_decode_per_position_acceptance_rates"], json({1.0, 0.5}));
  const std::string block = result_block(report);
  for (const char* line : {"---------------Speculative Decoding---------------\n",
                           "Acceptance rate (%):                     75.00     \n",
                           "Acceptance length:                       2.50      \n",
                           "Drafts:                                  8         \n",
                           "  Position 1:                            50.00     \n"}) {
    EXPECT_NE(block.find(line), std::string::npos) << line << "\n" << block;
  }
}

}  // namespace
}  // namespace weft
