#include "server/metrics.h"

#include <gtest/gtest.h>

#include <map>
#include <set>
#include <sstream>
#include <thread>

#include "server/exposition.h"

namespace weft {
namespace {

using std::chrono::milliseconds;

/// A strict reader of the text format: family -> type, and sample with labels -> value.
struct Scrape {
  std::map<std::string, std::string> types;
  std::map<std::string, double> samples;

  explicit Scrape(const std::string& text) {
    EXPECT_EQ(text.back(), '\n');
    std::istringstream lines(text);
    std::string line, family;
    while (std::getline(lines, line)) {
      std::istringstream words(line);
      std::string first, kind, name;
      words >> first;
      if (first == "#") {
        words >> kind >> name;
        if (kind == "TYPE") {
          EXPECT_EQ(name, family) << "HELP comes first";
          EXPECT_TRUE(types.emplace(name, "").second) << name << " is there twice";
          words >> types[name];
        } else {
          EXPECT_EQ(kind, "HELP");
          family = name;
        }
        continue;
      }
      const size_t space = line.rfind(' ');
      const std::string key = line.substr(0, space);
      EXPECT_EQ(key.substr(0, family.size()), family) << line;
      EXPECT_EQ(key.back(), '}') << line;
      EXPECT_TRUE(samples.emplace(key, std::stod(line.substr(space + 1))).second) << key;
    }
  }
  double operator[](const std::string& key) const {
    const auto at = samples.find(key);
    EXPECT_NE(at, samples.end()) << key;
    return at == samples.end() ? -1 : at->second;
  }
};

const std::string kLabels = R"(engine="0",model_name="demo")";

MetricsInfo info() {
  return {.model_name = "demo", .block_size = 64, .num_blocks = 100, .num_state_slots = 8};
}

RequestRecord record(const std::string& reason) {
  RequestRecord r;
  r.arrival = RequestRecord::Clock::now();
  r.scheduled = r.arrival + milliseconds(10);
  r.first_token = r.arrival + milliseconds(110);
  r.last_token = r.arrival + milliseconds(510);
  r.finished = r.arrival + milliseconds(512);
  r.prompt_tokens = 50;
  r.generated_tokens = 5;
  r.max_tokens = 100;
  r.finish_reason = reason;
  return r;
}

TEST(Metrics, NamesThatDashboardsAndRoutersReadAreThere) {
  Metrics metrics(info());
  const Scrape scrape(metrics.render({}, true));
  // notes: vLLM's Grafana board, production-stack's engine_stats, GAIE's protocol.
  const std::map<std::string, std::string> expected = {
      {"vllm:num_requests_running", "gauge"},
      {"vllm:num_requests_waiting", "gauge"},
      {"weft:num_requests_paused", "gauge"},
      {"vllm:kv_cache_usage_perc", "gauge"},
      {"vllm:gpu_cache_usage_perc", "gauge"},
      {"vllm:prompt_tokens_total", "counter"},
      {"vllm:generation_tokens_total", "counter"},
      {"vllm:num_preemptions_total", "counter"},
      {"weft:swaps_out_total", "counter"},
      {"weft:swaps_in_total", "counter"},
      {"vllm:request_success_total", "counter"},
      {"vllm:prefix_cache_queries_total", "counter"},
      {"vllm:prefix_cache_hits_total", "counter"},
      {"vllm:gpu_prefix_cache_queries_total", "counter"},
      {"vllm:gpu_prefix_cache_hits_total", "counter"},
      {"vllm:time_to_first_token_seconds", "histogram"},
      {"vllm:inter_token_latency_seconds", "histogram"},
      {"vllm:time_per_output_token_seconds", "histogram"},
      {"vllm:request_time_per_output_token_seconds", "histogram"},
      {"vllm:e2e_request_latency_seconds", "histogram"},
      {"vllm:request_queue_time_seconds", "histogram"},
      {"vllm:request_inference_time_seconds", "histogram"},
      {"vllm:request_prefill_time_seconds", "histogram"},
      {"vllm:request_decode_time_seconds", "histogram"},
      {"vllm:request_prompt_tokens", "histogram"},
      {"vllm:request_generation_tokens", "histogram"},
      {"vllm:request_max_num_generation_tokens", "histogram"},
      {"vllm:request_prefill_kv_computed_tokens", "histogram"},
      {"vllm:request_params_n", "histogram"},
      {"vllm:request_params_max_tokens", "histogram"},
      {"vllm:iteration_tokens_total", "histogram"},
      {"vllm:cache_config_info", "gauge"},
      {"process_cpu_seconds_total", "counter"},
      {"process_resident_memory_bytes", "gauge"},
      {"process_virtual_memory_bytes", "gauge"},
      {"process_open_fds", "gauge"},
      {"process_max_fds", "gauge"},
      {"process_start_time_seconds", "gauge"},
  };
  for (const auto& [name, type] : expected) EXPECT_EQ(scrape.types.at(name), type) << name;
  for (const auto& [key, value] : scrape.samples) {
    EXPECT_NE(key.find("{" + kLabels), std::string::npos) << key;
  }
}

TEST(Metrics, FinishedRequestsFillTheirHistograms) {
  Metrics metrics(info());
  for (int i = 0; i < 3; ++i) metrics.first_token(record("stop"));
  const Scrape running(metrics.render({}, true));  // long before they end
  EXPECT_EQ(running["vllm:time_to_first_token_seconds_count{" + kLabels + "}"], 3);
  EXPECT_EQ(running["vllm:e2e_request_latency_seconds_count{" + kLabels + "}"], 0);
  metrics.finished(record("stop"));
  metrics.finished(record("tool_calls"));
  metrics.finished(record("length"));
  RequestRecord waiting = record("abort");  // gone before a step took it up
  waiting.scheduled = waiting.first_token = waiting.last_token = {};
  waiting.generated_tokens = 0;
  metrics.finished(waiting);
  const Scrape s(metrics.render({}, true));
  const auto success = [&](const std::string& reason) {
    return s["vllm:request_success_total{" + kLabels + ",finished_reason=\"" + reason + "\"}"];
  };
  EXPECT_EQ(success("stop"), 2);
  EXPECT_EQ(success("length"), 1);
  EXPECT_EQ(success("abort"), 1);
  EXPECT_EQ(success("error"), 0);
  const auto of = [&](const std::string& name) { return s["vllm:" + name + "{" + kLabels + "}"]; };
  EXPECT_EQ(of("time_to_first_token_seconds_count"), 3);
  EXPECT_NEAR(of("time_to_first_token_seconds_sum"), 0.33, 1e-9);
  EXPECT_EQ(of("e2e_request_latency_seconds_count"), 4);
  EXPECT_NEAR(of("request_queue_time_seconds_sum"), 0.03, 1e-9);
  EXPECT_NEAR(of("request_prefill_time_seconds_sum"), 0.3, 1e-9);
  EXPECT_NEAR(of("request_decode_time_seconds_sum"), 1.2, 1e-9);
  EXPECT_NEAR(of("request_inference_time_seconds_sum"), 1.5, 1e-9);
  EXPECT_NEAR(of("request_time_per_output_token_seconds_sum"), 0.3, 1e-9);
  EXPECT_EQ(of("request_prompt_tokens_sum"), 200);
  EXPECT_EQ(of("request_prefill_kv_computed_tokens_count"), 3);
  EXPECT_EQ(of("request_prefill_kv_computed_tokens_sum"), 150);
}

TEST(Metrics, TheLongestOfTheChoicesOfAPromptCountsOnce) {
  Metrics metrics(info());
  RequestRecord choice = record("stop");
  choice.n = 3;
  metrics.finished(choice);
  metrics.finished(choice);
  choice.most_generated = 9;
  metrics.finished(choice);
  const Scrape s(metrics.render({}, true));
  const auto of = [&](const std::string& name) { return s["vllm:" + name + "{" + kLabels + "}"]; };
  EXPECT_EQ(of("request_max_num_generation_tokens_count"), 1);
  EXPECT_EQ(of("request_max_num_generation_tokens_sum"), 9);
  EXPECT_EQ(of("request_params_n_count"), 1);
  EXPECT_EQ(of("request_params_n_sum"), 3);
  EXPECT_EQ(of("request_generation_tokens_count"), 3);
}

TEST(Metrics, EngineFiguresAreShares) {
  EngineStats stats;
  stats.num_running = 3;
  stats.num_waiting = 4;
  stats.blocks_free = 70;
  stats.blocks_cached = 20;
  stats.blocks_used = 10;
  stats.slots_used = 2;
  stats.scheduler.looked_up_tokens = 1000;
  stats.scheduler.kv_hit_tokens = 640;
  stats.scheduler.reused_tokens = 512;
  stats.scheduler.plans = {.full_heads = 3,
                           .streaming_heads = 4,
                           .block_heads = 5,
                           .computed_blocks = 60,
                           .causal_blocks = 100};
  stats.scheduler.state_lost_tokens = 128;
  stats.scheduler.state_hits = 2;
  Metrics metrics(info());
  const Scrape s(metrics.render(stats, false));
  EXPECT_EQ(s["vllm:num_requests_waiting{" + kLabels + "}"], 4);
  EXPECT_NEAR(s["vllm:kv_cache_usage_perc{" + kLabels + "}"], 0.1, 1e-9)
      << "cached blocks are free";
  EXPECT_EQ(s["vllm:prefix_cache_queries_total{" + kLabels + "}"], 1000);
  EXPECT_EQ(s["vllm:prefix_cache_hits_total{" + kLabels + "}"], 512);
  EXPECT_EQ(s["weft:kv_hit_tokens_total{" + kLabels + "}"], 640);
  EXPECT_EQ(s["weft:state_hits_total{" + kLabels + "}"], 2);
  EXPECT_EQ(s["weft:prefill_heads_total{" + kLabels + ",kind=\"streaming\"}"], 4);
  EXPECT_EQ(s["weft:prefill_computed_blocks_total{" + kLabels + "}"], 60);
  EXPECT_EQ(s["weft:prefill_causal_blocks_total{" + kLabels + "}"], 100);
  EXPECT_EQ(s["weft:state_slots_used{" + kLabels + "}"], 2);
  EXPECT_EQ(s["weft:state_slots{" + kLabels + "}"], 8);
  EXPECT_EQ(s["weft:healthy{" + kLabels + "}"], 0);
}

TEST(Metrics, DraftsAreCountedUnderVllmsNames) {
  EngineStats stats;
  stats.speculation.add(SpeculationStep{.emitted = 1});
  stats.speculation.add(SpeculationStep{.emitted = 3, .proposed = {2, 1}, .accepted = {2, 0}});
  stats.speculation.add(SpeculationStep{.emitted = 2, .proposed = {2, 1}, .accepted = {1, 0}});
  MetricsInfo drafting = info();
  drafting.num_speculative_tokens = 3;
  const Scrape s(Metrics(drafting).render(stats, true));
  const std::string common = "{" + kLabels;
  EXPECT_EQ(s["vllm:spec_decode_num_drafts_total" + common + "}"], 2);
  EXPECT_EQ(s["vllm:spec_decode_num_draft_tokens_total" + common + "}"], 6);
  EXPECT_EQ(s["vllm:spec_decode_num_accepted_tokens_total" + common + "}"], 3);
  const std::string per_position = "vllm:spec_decode_num_accepted_tokens_per_pos_total" + common;
  EXPECT_EQ(s[per_position + ",position=\"0\"}"], 2);
  EXPECT_EQ(s[per_position + ",position=\"1\"}"], 1);
  EXPECT_EQ(s[per_position + ",position=\"2\"}"], 0);
  EXPECT_EQ(s["weft:draft_tokens_total" + common + ",source=\"mtp\"}"], 4);
  EXPECT_EQ(s["weft:draft_tokens_total" + common + ",source=\"ngram\"}"], 2);
  EXPECT_EQ(s["weft:accepted_draft_tokens_total" + common + ",source=\"ngram\"}"], 0);
  EXPECT_EQ(s["weft:generation_steps_total" + common + "}"], 3);
  EXPECT_EQ(s.types.at("vllm:spec_decode_num_drafts_total"), "counter");
  // A server that does not draft has none of them.
  EXPECT_EQ(Metrics(info()).render(stats, true).find("spec_decode"), std::string::npos);
}

TEST(Metrics, HistogramBucketsAreCumulativeAndABoundBelongsBelow) {
  const double bounds[] = {1, 2, 5};
  Histogram histogram(bounds);
  for (const double v : {0.5, 1.0, 1.5, 2.0, 5.0, 5.1, 100.0}) histogram.observe(v);
  Exposition out("");
  out.histogram("h", histogram, "help");
  EXPECT_EQ(out.take(),
            "# HELP h help\n# TYPE h histogram\nh_bucket{le=\"1\"} 2\nh_bucket{le=\"2\"} 4\n"
            "h_bucket{le=\"5\"} 5\nh_bucket{le=\"+Inf\"} 7\nh_sum{} 115.1\nh_count{} 7\n");
}

TEST(Metrics, FineBucketsBelow300ms) {
  Metrics metrics(info());
  const Scrape s(metrics.render({}, true));
  int fine = 0;
  for (const auto& [key, value] : s.samples) {
    const std::string begin = "vllm:time_to_first_token_seconds_bucket{" + kLabels + ",le=\"";
    if (key.substr(0, begin.size()) != begin || key.find("Inf") != std::string::npos) continue;
    fine += std::stod(key.substr(begin.size())) < 0.3;
  }
  EXPECT_GE(fine, 12);
}

TEST(Metrics, LabelsAreEscapedAndBounded) {
  EXPECT_EQ(prometheus_label("a", "x\"y\\z\nw"), R"(a="x\"y\\z\nw")");
  Metrics metrics({.model_name = "a\"b\nc"});
  for (int i = 0; i < 5000; ++i) metrics.http_answered("/r" + std::to_string(i), 200);
  metrics.http_answered("/r0", 200);
  const Scrape s(metrics.render({}, true));
  EXPECT_LT(s.samples.size(), 1500u);
  const std::string model = R"({engine="0",model_name="a\"b\nc",route=")";
  EXPECT_EQ(s["weft:http_requests_total" + model + "/r0\",status=\"200\"}"], 2);
  EXPECT_GT(s["weft:http_requests_total" + model + "other\",status=\"200\"}"], 4000);
}

TEST(Metrics, CountsFromManyThreadsAreWhole) {
  Metrics metrics(info());
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&metrics] {
      for (int i = 0; i < 5000; ++i) {
        metrics.token_gap(0.25);
        metrics.stream_opened();
        if (i % 100 == 0) metrics.finished(record("stop"));
        if (i % 1000 == 0) metrics.render({}, true);
        metrics.stream_closed();
      }
    });
  }
  for (std::thread& t : threads) t.join();
  const Scrape s(metrics.render({}, true));
  EXPECT_EQ(s["vllm:inter_token_latency_seconds_count{" + kLabels + "}"], 20000);
  EXPECT_EQ(s["vllm:inter_token_latency_seconds_sum{" + kLabels + "}"], 5000);
  EXPECT_EQ(s["weft:open_streams{" + kLabels + "}"], 0);
}

}  // namespace
}  // namespace weft
