#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <random>

#include "sched/executor_fake.h"
#include "sched/scheduler.h"

// Images in prompts, on the symbolic device: it panics when a slice's image tokens would be looked
// up in the features of another image, or a block computed behind another image is reused.

namespace weft {
namespace {

constexpr int kImageTokens = 100;

std::shared_ptr<const ImagePatches> image(uint8_t content, int64_t tokens) {
  auto out = std::make_shared<ImagePatches>();
  out->digest[0] = content;
  out->num_tokens = tokens;
  return out;
}

class Images : public testing::Test {
 protected:
  Images() { start({}); }

  void start(SchedulerConfig config) {
    config.num_blocks = config.num_blocks > 0 ? config.num_blocks : 64;
    config.max_model_len = 2000;
    config.image_tokens = kImageTokens;
    config.image_pages = std::max(config.image_pages, least_image_pages(kImageTokens));
    config_ = config;
    scheduler_ = Scheduler::create(config).value();
    device_ = {.num_blocks = config.num_blocks, .num_state_slots = config.num_state_slots};
    executor_ = std::make_unique<FakeExecutor>(device_);
  }

  /// Text and images by turns; a positive piece is text of that length, a negative one image -n.
  std::shared_ptr<Request> request(std::vector<int> pieces, std::map<int, int64_t> tokens = {}) {
    auto out = std::make_shared<Request>();
    out->id = SeqId{next_id_++};
    out->sampling.max_tokens = 5;
    for (const int piece : pieces) {
      if (piece >= 0) {
        for (int i = 0; i < piece; ++i) out->prompt.push_back(i % 900);
        continue;
      }
      const auto size = tokens.find(-piece);
      const auto content =
          image(static_cast<uint8_t>(-piece), size == tokens.end() ? 70 : size->second);
      out->images.push_back({std::ssize(out->prompt), content});
      out->prompt.insert(out->prompt.end(), static_cast<size_t>(content->num_tokens), 999);
    }
    out->positions.resize(out->prompt.size());
    return out;
  }

  void add(const std::shared_ptr<Request>& r) {
    ASSERT_TRUE(scheduler_->add(r).ok());
    live_[r->id] = r;
  }

  /// Plans and runs one step; the number of images encoded in it.
  size_t step() {
    const StepPlan& plan = scheduler_->schedule();
    const size_t encoded = plan.encodings.size();
    EXPECT_EQ(scheduler_->audit(), "");
    if (plan.empty()) return 0;
    executor_->launch(plan);
    for (const SequenceOutput& out : scheduler_->apply(executor_->collect())) {
      auto& tokens = tokens_[out.seq];
      tokens.insert(tokens.end(), out.tokens.begin(), out.tokens.end());
      if (out.prompt_done) cached_[out.seq] = out.cached_tokens;
    }
    EXPECT_EQ(scheduler_->audit(), "");
    return encoded;
  }

  /// Until nothing is left; every answer is that of the request alone.
  void run() {
    for (int steps = 0; !scheduler_->idle(); ++steps) {
      ASSERT_LT(steps, 3000) << "no progress";
      step();
    }
    for (const auto& [id, r] : live_) {
      EXPECT_EQ(tokens_[id], FakeExecutor::answer(*r, device_, config_.max_model_len).tokens);
    }
    live_.clear();
  }

  SchedulerStats stats() const { return scheduler_->stats(); }

  SchedulerConfig config_;
  FakeExecutorConfig device_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<FakeExecutor> executor_;
  std::map<SeqId, std::shared_ptr<Request>> live_;
  std::map<SeqId, std::vector<int32_t>> tokens_;
  std::map<SeqId, int64_t> cached_;
  int32_t next_id_ = 0;
};

TEST_F(Images, TheSameTextBehindAnotherImageIsAnotherPrefix) {
  const auto a = request({30, -1, 200});
  add(a);
  run();
  const auto b = request({30, -2, 200}), again = request({30, -1, 200});
  add(b);
  add(again);
  run();
  EXPECT_EQ(cached_[b->id], 0);
  EXPECT_EQ(cached_[again->id], 256);
  EXPECT_EQ(stats().images_encoded, 2) << "a hit behind the image needs no features";
}

TEST_F(Images, APrefixHitMayEndInsideAnImage) {
  const auto a = request({30, -1, 200});
  add(a);
  run();
  auto b = request({30, -1, 3});  // 103 tokens: one block, which ends inside the image
  add(b);
  run();
  EXPECT_EQ(cached_[b->id], 64);
  EXPECT_EQ(stats().images_encoded, 1);
  EXPECT_EQ(stats().image_hits, 1);
}

TEST_F(Images, TheOrderOfImagesWithoutTextBetweenMatters) {
  const auto a = request({-1, -2, 10}, {{1, 40}, {2, 24}});
  const auto b = request({-2, -1, 10}, {{1, 40}, {2, 24}});
  add(a);
  run();
  add(b);
  run();
  EXPECT_EQ(cached_[b->id], 0);
}

TEST_F(Images, AStepEncodesNoMoreThanItsBudget) {
  const auto a = request({10, -1, -2, -3, 5});  // 70 tokens each, 100 a step
  add(a);
  EXPECT_EQ(step(), 1u);
  EXPECT_EQ(step(), 1u);
  EXPECT_EQ(step(), 1u);
  run();
  EXPECT_EQ(stats().images_encoded, 3);
}

TEST_F(Images, WhoDecodesGoesOnWhileOthersWaitForTheirImages) {
  start({.overlap = false});
  const auto talker = request({20});
  talker->sampling.max_tokens = 30;
  add(talker);
  step();
  add(request({10, -1, -2, -3, -4, 40}));  // four steps of encoding
  for (size_t said = 1; said < 8; ++said) {
    EXPECT_EQ(tokens_[talker->id].size(), said);
    step();
  }
  EXPECT_EQ(stats().images_encoded, 4);
  run();
}

TEST_F(Images, SequencesShareAnEncodedImage) {
  for (int i = 0; i < 4; ++i) add(request({i, -1, 50 + i}));
  EXPECT_EQ(step(), 1u);
  run();
  EXPECT_EQ(stats().images_encoded, 1);
}

TEST_F(Images, ScopesOfTheCacheShareNoImage) {
  const auto a = request({5, -1, 5}), b = request({5, -1, 5});
  b->cache_salt = "other";
  add(a);
  add(b);
  run();
  EXPECT_EQ(stats().images_encoded, 2);
}

TEST_F(Images, TinyImagesFillAChunk) {
  std::vector<int> pieces = {1};
  std::map<int, int64_t> tokens;
  for (int i = 1; i <= 200; ++i) {
    pieces.push_back(-i);
    tokens[i] = 1;
  }
  add(request(pieces, tokens));
  add(request({-201, -202, -203, -204}, {{201, 100}, {202, 100}, {203, 100}, {204, 100}}));
  run();
  EXPECT_EQ(stats().images_encoded, 204);
}

TEST_F(Images, PreemptedPromptsFindTheirImagesAgain) {
  start({.num_blocks = 9, .max_seqs = 4});
  for (int i = 0; i < 4; ++i) {
    auto r = request({i, -1 - i % 2, 60});
    r->sampling.max_tokens = 120;
    add(r);
  }
  run();
  EXPECT_GT(stats().preemptions, 0);
}

TEST_F(Images, NumericErrorsForgetTheImage) {
  const auto a = request({10, -1, 5}), b = request({10, -1, 7});
  executor_->set_sample_hook(
      [&](SeqId id, int64_t, int32_t token) { return id == a->id ? -1 : token; });
  add(a);
  while (!scheduler_->idle()) step();
  live_.clear();
  add(b);
  run();
  EXPECT_EQ(stats().images_encoded, 2);
}

TEST_F(Images, RefusesWhatCanNeverBe) {
  const auto big = request({5, -1}, {{1, 101}});
  EXPECT_EQ(scheduler_->add(big).error().message, "an image has 101 tokens; allowed: at most 100");
  SchedulerConfig none = config_;
  none.image_tokens = 0;
  auto blind = Scheduler::create(none).value();
  EXPECT_EQ(blind->add(request({5, -1})).error().message, "this model takes no images");
  SchedulerConfig few = config_;
  few.image_pages = 10;
  EXPECT_NE(Scheduler::create(few).error().message.find("image_pages is 10"), std::string::npos);
}

TEST_F(Images, APositiveDeltaShortensTheAnswer) {
  const auto a = request({1000, -1, 10});
  a->sampling.max_tokens = 5000;
  a->rope_delta = 915;  // a video's
  add(a);
  while (!scheduler_->idle()) step();
  EXPECT_EQ(tokens_[a->id].size(), 5u);
  live_.clear();
}

TEST_F(Images, RandomMixesGiveWhatEachGivesAlone) {
  for (const uint32_t seed : {1u, 2u, 3u}) {
    std::mt19937 rng(seed);
    start({.num_blocks = 24,
           .num_state_slots = seed == 2 ? 12 : 0,
           .max_batched_tokens = 160,
           .max_seqs = 5,
           .overlap = false});
    for (int i = 0; i < 60; ++i) {
      std::vector<int> pieces;
      for (uint32_t n = 1 + rng() % 4; n > 0; --n) {
        pieces.push_back(rng() % 2 == 0 ? static_cast<int>(rng() % 150)
                                        : -static_cast<int>(1 + rng() % 6));
      }
      pieces.push_back(1);
      std::map<int, int64_t> tokens;
      for (int k = 1; k <= 6; ++k) tokens[k] = 17 * k % 101;
      const auto r = request(pieces, tokens);
      r->sampling.max_tokens = static_cast<int>(1 + rng() % 40);
      r->priority = static_cast<int>(rng() % 2);
      add(r);
      for (uint32_t n = rng() % 4; n > 0; --n) step();
    }
    run();
    EXPECT_GT(stats().image_hits, 0);
    EXPECT_GT(stats().hits, 0);
  }
}

}  // namespace
}  // namespace weft
