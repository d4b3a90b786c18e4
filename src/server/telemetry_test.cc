#include "server/telemetry.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>

#include "base/log.h"
#include "sched/executor_fake.h"
#include "server/json.h"

namespace weft {
namespace {

using Clock = std::chrono::steady_clock;

EngineStats stats_of(int running, int64_t prompt, int64_t generated) {
  EngineStats stats;
  stats.num_running = running;
  stats.prompt_tokens = prompt;
  stats.generated_tokens = generated;
  stats.blocks_free = 75;
  stats.blocks_used = running > 0 ? 25 : 0;
  stats.blocks_cached = running > 0 ? 0 : 25;
  stats.scheduler.looked_up_tokens = prompt;
  stats.scheduler.reused_tokens = prompt / 4;
  return stats;
}

TEST(StatsLog, SaysWhatPeopleGrepAndFallsSilentWhenIdle) {
  StatsLog log;
  Clock::time_point now;
  const auto tick = [&](const EngineStats& stats) {
    now += std::chrono::seconds(10);
    return log.tick(stats, now);
  };
  EXPECT_FALSE(tick(stats_of(0, 0, 0)));
  EXPECT_FALSE(tick(stats_of(0, 0, 0))) << "nothing has happened yet";
  EXPECT_EQ(tick(stats_of(2, 1000, 305)).value_or(""),
            "Engine 000: Avg prompt throughput: 100.0 tokens/s, Avg generation throughput: 30.5 "
            "tokens/s, Running: 2 reqs, Waiting: 0 reqs, KV cache usage: 25.0%, Prefix cache hit "
            "rate: 25.0%");
  EXPECT_TRUE(tick(stats_of(0, 1000, 400))) << "tokens came, though nobody runs any more";
  const auto closing = tick(stats_of(0, 1000, 400));
  ASSERT_TRUE(closing) << "one idle line";
  EXPECT_NE(closing->find("generation throughput: 0.0"), std::string::npos);
  EXPECT_FALSE(tick(stats_of(0, 1000, 400)));
  EXPECT_TRUE(tick(stats_of(1, 1000, 400)));
}

TEST(StatsLog, SaysHowDraftsFare) {
  StatsLog log;
  const Clock::time_point start;
  log.tick(stats_of(1, 10, 10), start);
  EngineStats stats = stats_of(1, 10, 20);
  stats.speculation.add(SpeculationStep{.emitted = 3, .proposed = {3, 1}, .accepted = {2, 0}});
  stats.speculation.add(SpeculationStep{.emitted = 2, .proposed = {4, 0}, .accepted = {1, 0}});
  const auto line = log.tick(stats, start + std::chrono::seconds(10));
  ASSERT_TRUE(line);
  EXPECT_NE(line->find(", Mean acceptance length: 2.50, Avg Draft acceptance rate: 37.5%"),
            std::string::npos)
      << *line;
}

const JsonValue& at(const JsonValue& value, std::string_view key) {
  const JsonValue* found = value.find(key);
  EXPECT_NE(found, nullptr) << key;
  static const JsonValue null;
  return found ? *found : null;
}

size_t size_of(const JsonValue& value) {
  return value.as<JsonArray>() ? value.as<JsonArray>()->size() : 9999;
}

double number(const JsonValue& value) {
  if (const int64_t* whole = value.as<int64_t>()) return static_cast<double>(*whole);
  return value.as<JsonReal>() ? value.as<JsonReal>()->value : -1;
}

TEST(LiveView, KeepsTenMinutesAndTwoHundredSteps) {
  LiveView view({.model_name = "a \"model\"", .block_size = 64, .num_blocks = 100});
  Clock::time_point now = Clock::now();
  for (int i = 0; i <= 700; ++i) {
    view.sample(stats_of(1, 100 * i, 10 * i), now);
    view.step({.step = static_cast<uint64_t>(i), .start = now, .end = now});
    now += std::chrono::seconds(1);
  }
  const auto parsed = parse_json(view.json(0, "ready"));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(*at(*parsed, "model").as<std::string>(), "a \"model\"");
  EXPECT_EQ(*at(*parsed, "state").as<std::string>(), "ready");
  const JsonObject& samples = *at(*parsed, "samples").as<JsonObject>();
  for (const auto& [name, column] : samples) {
    if (name != "period") {
      EXPECT_EQ(size_of(column), 600u) << name;
    }
  }
  EXPECT_EQ(samples.size(), 14u);
  const JsonValue& last = at(at(*parsed, "samples"), "prompt_tokens_per_s").as<JsonArray>()->back();
  EXPECT_NEAR(number(last), 100, 1e-6);
  EXPECT_NEAR(number(at(at(*parsed, "samples"), "reuse_rate").as<JsonArray>()->back()), 0.25, 1e-3);
  EXPECT_TRUE(at(at(*parsed, "samples"), "state_hit_rate").as<JsonArray>()->back().is_null());
  const JsonArray& steps = *at(*parsed, "steps").as<JsonArray>();
  EXPECT_EQ(steps.size(), 200u);
  EXPECT_EQ(number(at(steps.back(), "step")), 700);

  // From a moment on: only what is newer.
  const double since = number(at(at(*parsed, "samples"), "time").as<JsonArray>()->at(589));
  const auto newer = parse_json(view.json(since, "ready"));
  ASSERT_TRUE(newer.ok());
  EXPECT_EQ(size_of(at(at(*newer, "samples"), "time")), 10u);
  EXPECT_LE(size_of(at(*newer, "steps")), 11u);
}

TEST(LiveView, DraftsAreThereWhereThereAreDrafts) {
  LiveView view({.model_name = "m", .num_speculative_tokens = 3});
  EngineStats stats = stats_of(1, 0, 0);
  Clock::time_point now = Clock::now();
  view.sample(stats, now);
  view.sample(stats, now += std::chrono::seconds(1));
  stats.speculation.add(SpeculationStep{.emitted = 3, .proposed = {3, 1}, .accepted = {2, 0}});
  stats.speculation.add(SpeculationStep{.emitted = 2, .proposed = {3, 1}, .accepted = {1, 0}});
  view.sample(stats, now += std::chrono::seconds(1));
  const auto parsed = parse_json(view.json(0, "ready"));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  EXPECT_EQ(number(at(at(*parsed, "limits"), "speculative_tokens")), 3);
  const JsonArray& acceptance = *at(at(*parsed, "samples"), "draft_acceptance").as<JsonArray>();
  const JsonArray& length = *at(at(*parsed, "samples"), "accepted_length").as<JsonArray>();
  ASSERT_EQ(acceptance.size(), 2u);
  EXPECT_TRUE(acceptance[0].is_null());
  EXPECT_NEAR(number(acceptance[1]), .375, 1e-9);
  EXPECT_TRUE(length[0].is_null());
  EXPECT_NEAR(number(length[1]), 2.5, 1e-9);
  const JsonValue& drafts = at(at(*parsed, "totals"), "drafts");
  EXPECT_EQ(number(at(drafts, "sequence_steps")), 2);
  EXPECT_EQ(number(at(drafts, "emitted")), 5);
  EXPECT_EQ(number(at(at(drafts, "proposed"), "mtp")), 6);
  EXPECT_EQ(number(at(at(drafts, "proposed"), "ngram")), 2);
  EXPECT_EQ(number(at(at(drafts, "accepted"), "mtp")), 3);
  EXPECT_EQ(size_of(at(drafts, "accepted_at")), 2u);
}

TEST(LiveView, HeadsOfPromptsAreThereWhereTheySawLess) {
  LiveView view({.model_name = "m"});
  EngineStats stats = stats_of(1, 0, 0);
  view.sample(stats, Clock::now());
  EXPECT_EQ(view.json(0, "ready").find("heads"), std::string::npos);
  stats.scheduler.plans = {.full_heads = 2,
                           .streaming_heads = 5,
                           .block_heads = 1,
                           .computed_blocks = 30,
                           .causal_blocks = 80};
  stats.scheduler.layer_steps = 4;
  view.sample(stats, Clock::now());
  const auto parsed = parse_json(view.json(0, "ready"));
  ASSERT_TRUE(parsed.ok()) << parsed.error().message;
  const JsonValue& heads = at(at(*parsed, "totals"), "heads");
  EXPECT_EQ(number(at(heads, "streaming")), 5);
  EXPECT_EQ(number(at(heads, "computed_blocks")), 30);
  EXPECT_EQ(number(at(heads, "layer_steps")), 4);
}

/// Waits at most ten seconds.
template <class Condition>
bool eventually(const Condition& condition) {
  for (int i = 0; i < 1000; ++i) {
    if (condition()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return false;
}

/// A device that can hang.
class HangingExecutor : public FakeExecutor {
 public:
  using FakeExecutor::FakeExecutor;
  StepResult collect() override {
    while (hangs) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    return FakeExecutor::collect();
  }
  std::atomic<bool> hangs{false};
};

class Sink : public TokenSink {
 public:
  bool on_token(int32_t, const TokenLogprob*) override { return true; }
  void on_finish(FinishReason, const Usage&, const Error*) override { finished = true; }
  std::atomic<bool> finished{false};
};

TEST(Telemetry, WatchesAnEngineThatWorksHangsAndWorksAgain) {
  set_log_level(LogLevel::kOff);
  TelemetryConfig config;
  config.watchdog = {.base = 0.6, .factor = 10, .first_step = 0.01, .seconds_per_row = 0};
  auto telemetry = std::move(Telemetry::start(config)).value();
  auto device = std::make_unique<HangingExecutor>(
      FakeExecutorConfig{.block_size = 64, .num_blocks = 24, .num_state_slots = 8, .vocab = 40});
  HangingExecutor& gate = *device;
  EngineConfig engine_config;
  engine_config.on_step = [&telemetry](const StepRecord& record) { telemetry->step(record); };
  auto scheduler = Scheduler::create({.num_blocks = 24,
                                      .num_state_slots = 8,
                                      .max_batched_tokens = 256,
                                      .max_seqs = 6,
                                      .max_model_len = 400});
  Engine engine(engine_config, std::move(scheduler).value(), std::move(device));
  telemetry->attach(engine);
  Request request;
  request.prompt.assign(70, 3);
  request.sampling.max_tokens = 20;
  Sink first, second;
  ASSERT_TRUE(engine.submit(request, first).ok());
  EXPECT_TRUE(eventually([&] { return first.finished.load(); }));
  EXPECT_TRUE(telemetry->health().healthy);
  EXPECT_NE(telemetry->metrics_text().find("vllm:iteration_tokens_total_count"), std::string::npos);

  gate.hangs = true;
  ASSERT_TRUE(engine.submit(request, second).ok());
  EXPECT_TRUE(eventually([&] { return !telemetry->health().healthy; }));
  const auto live = parse_json(telemetry->live_json("a=1&since=0", "ready"));
  ASSERT_TRUE(live.ok());
  EXPECT_EQ(*at(*live, "state").as<std::string>(), "stalled");
  EXPECT_NE(telemetry->metrics_text().find("weft:healthy{engine=\"0\",model_name=\"\"} 0\n"),
            std::string::npos);

  gate.hangs = false;
  EXPECT_TRUE(eventually([&] { return telemetry->health().healthy; }));
  EXPECT_TRUE(eventually([&] { return second.finished.load(); }));
  telemetry->detach();
  engine.stop();
  EXPECT_NE(telemetry->metrics_text().find("vllm:prompt_tokens_total"), std::string::npos)
      << "the last figures stay";
  set_log_level(LogLevel::kInfo);
}

}  // namespace
}  // namespace weft
