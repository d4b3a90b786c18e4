#include "engine/engine.h"

#include <gtest/gtest.h>

#include <condition_variable>
#include <mutex>
#include <thread>

#include "base/check.h"
#include "base/log.h"
#include "sched/executor_fake.h"

namespace weft {
namespace {

constexpr int kMaxLen = 400;

SchedulerConfig scheduler_config() {
  return {.num_blocks = 24,
          .num_state_slots = 8,
          .max_batched_tokens = 256,
          .max_seqs = 6,
          .max_model_len = kMaxLen};
}

FakeExecutorConfig device_config() {
  return {.block_size = 64, .num_blocks = 24, .num_state_slots = 8, .vocab = 40};
}

Request make_request(uint64_t seed, int prompt_len, int max_tokens) {
  Request request;
  for (int i = 0; i < prompt_len; ++i) {
    request.prompt.push_back(static_cast<int32_t>((static_cast<int>(seed) % 3 + i * 7) % 40));
  }
  request.sampling.seed = seed;
  request.sampling.max_tokens = max_tokens;
  request.sampling.stop_ids = {5};
  return request;
}

/// Collects what comes; wait() returns when the request has ended.
class Collector : public TokenSink {
 public:
  void on_scheduled() override {
    ++scheduled;
    EXPECT_EQ(prompts_done, 0);
  }
  void on_prompt_done(int64_t) override { ++prompts_done; }
  bool on_token(int32_t token, const TokenLogprob*) override {
    tokens.push_back(token);
    return static_cast<int>(tokens.size()) != stop_after;
  }
  void on_finish(FinishReason why, const Usage& used, const Error* e) override {
    const std::lock_guard lock(mutex_);
    ++finishes;
    reason = why;
    usage = used;
    if (e) error = *e;
    done_.notify_all();
  }
  void wait() {
    std::unique_lock lock(mutex_);
    ASSERT_TRUE(done_.wait_for(lock, std::chrono::seconds(60), [this] { return finishes > 0; }));
  }

  int stop_after = -1;
  int scheduled = 0;
  int prompts_done = 0;
  int finishes = 0;
  std::vector<int32_t> tokens;
  FinishReason reason = FinishReason::kNone;
  Usage usage;
  Error error;

 private:
  std::mutex mutex_;
  std::condition_variable done_;
};

std::unique_ptr<Scheduler> make_scheduler(const SchedulerConfig& config = scheduler_config()) {
  return std::move(Scheduler::create(config)).value();
}

/// A device whose steps wait until they are allowed, and which can break.
class GatedExecutor : public FakeExecutor {
 public:
  using FakeExecutor::FakeExecutor;
  StepResult collect() override {
    std::unique_lock lock(mutex_);
    opened_.wait(lock, [this] { return open_; });
    CHECK(!broken_, "the device fell off the bus");
    return FakeExecutor::collect();
  }
  void open(bool broken) {
    const std::lock_guard lock(mutex_);
    open_ = true;
    broken_ = broken;
    opened_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable opened_;
  bool open_ = false;
  bool broken_ = false;
};

TEST(Engine, ConcurrentClientsGetWhatTheyWouldGetAlone) {
  Engine engine({}, make_scheduler(), std::make_unique<FakeExecutor>(device_config()));
  std::atomic<int> aborted{0};
  const auto client = [&](uint64_t base) {
    for (uint64_t i = 0; i < 40; ++i) {
      const uint64_t seed = base * 1000 + i;
      const Request request =
          make_request(seed, 1 + static_cast<int>(seed * 37 % 300), 1 + static_cast<int>(i) * 2);
      Collector sink;
      auto id = engine.submit(request, sink);
      ASSERT_TRUE(id.ok());
      if (i % 4 == 1) {
        engine.pause(*id);
        std::this_thread::yield();
        engine.resume(*id);
      }
      if (i % 4 == 3) engine.abort(*id);
      sink.wait();
      const auto answer = FakeExecutor::answer(request, device_config(), kMaxLen);
      EXPECT_EQ(sink.finishes, 1);
      if (sink.reason == FinishReason::kAbort) {
        ++aborted;
        ASSERT_LE(sink.tokens.size(), answer.tokens.size());
        EXPECT_TRUE(std::equal(sink.tokens.begin(), sink.tokens.end(), answer.tokens.begin()));
      } else {
        EXPECT_EQ(sink.tokens, answer.tokens);
        EXPECT_EQ(sink.reason, answer.finish);
        EXPECT_EQ(sink.scheduled, 1);
        EXPECT_EQ(sink.prompts_done, 1);
        EXPECT_EQ(sink.usage.generated_tokens, static_cast<int64_t>(answer.tokens.size()));
        EXPECT_EQ(sink.usage.prompt_tokens, static_cast<int64_t>(request.prompt.size()));
      }
    }
  };
  std::vector<std::thread> clients;
  for (uint64_t c = 0; c < 8; ++c) clients.emplace_back(client, c);
  for (std::thread& c : clients) c.join();
  EXPECT_TRUE(engine.drain(std::chrono::seconds(10)));
  engine.stop();
  EXPECT_GT(aborted, 0);
  EXPECT_GT(engine.steps_completed(), 100u);
  const EngineStats stats = engine.stats();
  EXPECT_GT(stats.scheduler.hits, 0);
  EXPECT_EQ(stats.blocks_used, 0);
  EXPECT_EQ(stats.slots_used, 0);
  EXPECT_FALSE(engine.busy());
}

TEST(Engine, StepRecordsAndTotalsAgreeWithTheAnswers) {
  std::vector<StepRecord> steps;
  EngineConfig config;
  config.on_step = [&steps](const StepRecord& record) { steps.push_back(record); };
  Engine engine(config, make_scheduler(), std::make_unique<FakeExecutor>(device_config()));
  Collector sinks[4];
  int64_t prompt = 0, generated = 0;
  for (uint64_t i = 0; i < 4; ++i) {
    Request request = make_request(i, 100 + 13 * static_cast<int>(i), 20);
    request.sampling.stop_ids.clear();
    request.cache_salt = std::to_string(i);
    prompt += static_cast<int64_t>(request.prompt.size());
    ASSERT_TRUE(engine.submit(request, sinks[i]).ok());
  }
  for (Collector& sink : sinks) {
    sink.wait();
    generated += sink.usage.generated_tokens;
  }
  engine.stop();
  const EngineStats stats = engine.stats();
  EXPECT_EQ(stats.prompt_tokens, prompt);
  EXPECT_EQ(stats.generated_tokens, generated);
  EXPECT_EQ(stats.scheduler.looked_up_tokens, prompt);
  EXPECT_EQ(stats.num_waiting, 0);
  int64_t prompt_rows = 0, decode_rows = 0;
  for (size_t i = 0; i < steps.size(); ++i) {
    EXPECT_LE(steps[i].start, steps[i].end);
    if (i > 0) {
      EXPECT_EQ(steps[i].step, steps[i - 1].step + 1);
      EXPECT_GE(steps[i].start, steps[i - 1].end) << "one step at a time has the device";
    }
    prompt_rows += steps[i].prompt_rows;
    decode_rows += steps[i].decode_rows;
  }
  EXPECT_EQ(prompt_rows, prompt);
  // The first token comes out of the prompt; the last one is never computed. A step launched
  // before the end was known may compute a row more.
  EXPECT_GE(decode_rows, generated - 4);
  EXPECT_LE(decode_rows, generated + 4);
}

TEST(Engine, MailOfALongStepCountsAsWaiting) {
  auto device = std::make_unique<GatedExecutor>(device_config());
  GatedExecutor& gate = *device;
  Engine engine({}, make_scheduler(), std::move(device));
  Collector sinks[5];
  for (Collector& sink : sinks) ASSERT_TRUE(engine.submit(make_request(1, 70, 3), sink).ok());
  EXPECT_EQ(engine.stats().num_running + engine.stats().num_waiting, 5);
  gate.open(/*broken=*/false);
  engine.stop();
}

TEST(Engine, SinkEndsItsRequestAtAStopString) {
  Engine engine({}, make_scheduler(), std::make_unique<FakeExecutor>(device_config()));
  Request request = make_request(1, 70, 200);
  request.sampling.stop_ids.clear();
  Collector sink;
  sink.stop_after = 3;
  ASSERT_TRUE(engine.submit(request, sink).ok());
  sink.wait();
  EXPECT_EQ(sink.reason, FinishReason::kStop);
  EXPECT_EQ(sink.tokens.size(), 3u);
  EXPECT_EQ(sink.usage.generated_tokens, 3);
}

TEST(Engine, RefusesWhatCanNeverFitWithItsReason) {
  Engine engine({}, make_scheduler(), std::make_unique<FakeExecutor>(device_config()));
  Collector sink;
  ASSERT_TRUE(engine.submit(make_request(1, kMaxLen, 5), sink).ok());
  sink.wait();
  EXPECT_EQ(sink.reason, FinishReason::kError);
  EXPECT_EQ(sink.error.kind, ErrorKind::kInvalidArgument);
  EXPECT_NE(sink.error.message.find("at most 399"), std::string::npos) << sink.error.message;
}

TEST(Engine, FullQueueRefusesAtOnceAndStopEndsEverybody) {
  auto device = std::make_unique<GatedExecutor>(device_config());
  GatedExecutor& gate = *device;
  Engine engine({.max_requests = 2}, make_scheduler(), std::move(device));
  Collector a, b, c;
  ASSERT_TRUE(engine.submit(make_request(1, 70, 100), a).ok());
  ASSERT_TRUE(engine.submit(make_request(2, 70, 100), b).ok());
  const auto refused = engine.submit(make_request(3, 70, 100), c);
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().kind, ErrorKind::kExhausted);
  EXPECT_FALSE(engine.drain(std::chrono::milliseconds(20))) << "the device hangs";
  EXPECT_TRUE(engine.busy());
  gate.open(/*broken=*/false);
  engine.stop();
  EXPECT_EQ(a.finishes, 1);
  EXPECT_EQ(b.finishes, 1);
  EXPECT_EQ(c.finishes, 0);
  const auto late = engine.submit(make_request(4, 70, 100), c);
  ASSERT_FALSE(late.ok());
  EXPECT_EQ(late.error().kind, ErrorKind::kUnavailable);
}

TEST(Engine, PausedRequestsRestUntilResumed) {
  auto device = std::make_unique<GatedExecutor>(device_config());
  GatedExecutor& gate = *device;
  Engine engine({}, make_scheduler(), std::move(device));
  Collector a;
  const Request request = make_request(3, 70, 100);
  const SeqId id = engine.submit(request, a).value();
  engine.pause(id);
  gate.open(/*broken=*/false);
  for (int i = 0; i < 10'000 && engine.busy(); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  EXPECT_FALSE(engine.busy());
  EXPECT_EQ(engine.num_requests(), 1);
  const uint64_t steps = engine.steps_completed();
  EXPECT_LE(steps, 2u);
  EXPECT_FALSE(engine.drain(std::chrono::milliseconds(20)));
  EXPECT_EQ(engine.steps_completed(), steps);
  engine.resume(id);
  a.wait();
  EXPECT_EQ(a.tokens, FakeExecutor::answer(request, device_config(), kMaxLen).tokens);
  engine.pause(id);  // it has ended
  EXPECT_TRUE(engine.drain(std::chrono::seconds(10)));
}

TEST(Engine, PanicFailsEveryRequestOnce) {
  set_log_level(LogLevel::kOff);
  auto device = std::make_unique<GatedExecutor>(device_config());
  GatedExecutor& gate = *device;
  Engine engine({}, make_scheduler(), std::move(device));
  Collector sinks[5];
  for (uint64_t i = 0; i < 5; ++i) {
    ASSERT_TRUE(engine.submit(make_request(i, 70, 100), sinks[i]).ok());
  }
  gate.open(/*broken=*/true);
  for (Collector& sink : sinks) {
    sink.wait();
    EXPECT_EQ(sink.finishes, 1);
    EXPECT_EQ(sink.reason, FinishReason::kError);
    EXPECT_NE(sink.error.message.find("fell off the bus"), std::string::npos);
  }
  EXPECT_TRUE(engine.failed());
  EXPECT_TRUE(engine.drain(std::chrono::seconds(5)));
  EXPECT_FALSE(engine.submit(make_request(9, 70, 1), sinks[0]).ok());
  engine.stop();
  set_log_level(LogLevel::kInfo);
}

TEST(Engine, NumericErrorEndsOnlyItsRequest) {
  FakeExecutorConfig device = device_config();
  device.numeric_error_in = 60;
  Engine engine({}, make_scheduler(), std::make_unique<FakeExecutor>(device));
  int errors = 0;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    Request request = make_request(seed, 100, 20);
    request.sampling.stop_ids.clear();
    Collector sink;
    ASSERT_TRUE(engine.submit(request, sink).ok());
    sink.wait();
    const auto answer = FakeExecutor::answer(request, device, kMaxLen);
    EXPECT_EQ(sink.reason, answer.finish);
    EXPECT_EQ(sink.tokens, answer.tokens);
    if (sink.reason != FinishReason::kError) continue;
    ++errors;
    EXPECT_NE(sink.error.message.find("NaN"), std::string::npos);
  }
  EXPECT_GT(errors, 0);
  EXPECT_LT(errors, 20);
}

}  // namespace
}  // namespace weft
