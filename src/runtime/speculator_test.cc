#include "runtime/speculator.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

/// Runs `steps` steps of `sequences` that decode and says in how many of them drafts were wanted.
/// A plain step takes 1 ms and gives a token each; one with drafts takes and gives what is said.
struct World {
  double drafted_ms = 1;
  int64_t drafted_tokens = 1;
  int64_t sequences = 1;
  int64_t found_in = 1;  // of so many steps that want drafts one has some
  double none_ms = 1;    // the others

  int64_t run(DraftPolicy& policy, int64_t steps) {
    int64_t drafted = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const bool drafts = policy.wants_drafts(sequences);
      const bool found = drafts && drafted++ % found_in == 0;
      const double ms = found ? drafted_ms : drafts ? none_ms : 1;
      const int64_t given = found ? drafted_tokens : sequences;
      seconds += 1e-3 * ms;
      tokens += given;
      const StepKind kind = found    ? StepKind::kDrafted
                            : drafts ? StepKind::kNone
                                     : StepKind::kPlain;
      policy.measured(sequences, {.kind = kind, .tokens = given, .seconds = 1e-3 * ms});
    }
    return drafted;
  }
  /// Of the tokens a second that plain steps give.
  double throughput() const {
    return static_cast<double>(tokens) / (seconds * 1e3 * static_cast<double>(sequences));
  }
  double seconds = 0;
  int64_t tokens = 0;
};

TEST(DraftPolicy, GoesOnWithWhatPays) {
  DraftPolicy policy;
  World world{.drafted_ms = 1.5, .drafted_tokens = 3};
  EXPECT_GE(world.run(policy, 1000), 990);
  EXPECT_LT(world.run(policy, 2000), 2000) << "costs are measured anew";
}

TEST(DraftPolicy, NoticesThatTheyPayNoMore) {
  DraftPolicy policy;
  World{.drafted_ms = 1.5, .drafted_tokens = 3}.run(policy, 200);
  World now{.drafted_ms = 1.5, .drafted_tokens = 1};
  EXPECT_LE(now.run(policy, 200), 80);
}

TEST(DraftPolicy, LosesLittleWhereDraftsDoNotPay) {
  DraftPolicy policy;
  World world{.drafted_ms = 1.5, .drafted_tokens = 1};
  world.run(policy, 100);
  // 1.5 times the time in at most 1 of 33 steps.
  EXPECT_LE(world.run(policy, 3300), 66);
}

TEST(DraftPolicy, FindsOutThatTheyPayNow) {
  DraftPolicy policy;
  World{.drafted_ms = 2, .drafted_tokens = 1}.run(policy, 200);
  World now{.drafted_ms = 1.2, .drafted_tokens = 4};
  now.run(policy, 5000);
  EXPECT_GE(now.run(policy, 1000), 950);
}

TEST(DraftPolicy, TellsBatchesApart) {
  DraftPolicy policy;
  World alone{.drafted_ms = 1.2, .drafted_tokens = 3, .sequences = 1};
  World many{.drafted_ms = 3, .drafted_tokens = 70, .sequences = 64};
  for (int i = 0; i < 20; ++i) {
    alone.run(policy, 50);
    many.run(policy, 50);
  }
  EXPECT_GE(alone.run(policy, 500), 470);
  EXPECT_LE(many.run(policy, 500), 30);
}

TEST(DraftPolicy, TrialsTakeAHundredthOfTheTime) {
  for (const double cost : {1.05, 1.5, 2.5, 8.0}) {
    DraftPolicy policy;
    World world{.drafted_ms = cost, .drafted_tokens = 64, .sequences = 64};
    world.run(policy, 100);
    world.seconds = 0;
    world.tokens = 0;
    EXPECT_LE(world.run(policy, 20000), 1000);
    EXPECT_GE(world.throughput(), 0.985) << cost;
  }
}

TEST(DraftPolicy, StepsThatFindNothingCostWhatTheyTake) {
  // One in eight has drafts, which pay; waiting for all of them does not.
  DraftPolicy policy;
  World world{
      .drafted_ms = 1.3, .drafted_tokens = 24, .sequences = 16, .found_in = 8, .none_ms = 1.2};
  world.run(policy, 500);
  world.seconds = 0;
  world.tokens = 0;
  EXPECT_LE(world.run(policy, 10000), 500);
  EXPECT_GE(world.throughput(), 0.985);
  // Here it does.
  DraftPolicy other;
  World cheap{
      .drafted_ms = 1.3, .drafted_tokens = 48, .sequences = 16, .found_in = 2, .none_ms = 1.05};
  cheap.run(other, 500);
  EXPECT_GE(cheap.run(other, 1000), 900);
  // Nothing is ever found.
  DraftPolicy never;
  World none{.found_in = int64_t{1} << 40, .none_ms = 1.2};
  none.run(never, 200);
  EXPECT_LE(none.run(never, 10000), 300);
}

TEST(DraftPolicy, NewShapesDecideNothing) {
  // The first steps with drafts are captured, which takes long, and pay afterwards.
  DraftPolicy policy;
  int64_t drafted = 0;
  for (int i = 0; i < 1000; ++i) {
    const bool drafts = policy.wants_drafts(16);
    const bool fresh = drafts && drafted++ < 8;
    policy.measured(16, {.kind = drafts ? StepKind::kDrafted : StepKind::kPlain,
                         .tokens = drafts ? 32 : 16,
                         .seconds = fresh    ? 9e-3
                                    : drafts ? 1.3e-3
                                             : 1e-3,
                         .typical = !fresh});
  }
  EXPECT_GE(drafted, 900);
}

TEST(DraftPolicy, ManySequencesBeginWithoutDrafts) {
  DraftPolicy policy;
  EXPECT_TRUE(policy.wants_drafts(1));
  EXPECT_TRUE(policy.wants_drafts(4));
  EXPECT_FALSE(policy.wants_drafts(16));
  EXPECT_FALSE(policy.drafts_pay(256));
}

TEST(DraftPolicy, TheModuleRestsWhereItTakesMoreThanItSaves) {
  DraftPolicy policy;
  double seconds = 0;
  // Steps that it follows of those of some sequences, in which following takes a tenth of the time.
  const auto followed = [&](int64_t steps, int64_t sequences, int64_t right) {
    int64_t out = 0;
    for (int64_t i = 0; i < steps; ++i) {
      const bool follows = policy.follows(sequences);
      const bool drafts = follows && policy.wants_drafts(sequences);
      const double module = follows && !drafts ? 1e-4 : 0;
      const double took = drafts ? 1.3e-3 : 1e-3 + module;
      out += follows ? 1 : 0;
      seconds += took;
      policy.measured(sequences, {.kind = drafts ? StepKind::kDrafted : StepKind::kPlain,
                                  .tokens = sequences + (drafts ? right : 0),
                                  .seconds = took});
      policy.account(sequences, {.seconds = took, .module = module, .drafts = drafts ? right : 0});
    }
    return out;
  };
  EXPECT_LE(followed(1000, 16, 1), 200);
  seconds = 0;
  EXPECT_GE(followed(100000, 16, 1), 2000) << "it is tried again";
  EXPECT_LE(seconds, 100 * 1.02) << "and costs hardly more than a hundredth";
  // Alone it pays, and there it soon goes on.
  EXPECT_GE(followed(80, 1, 0), 10);
  EXPECT_LE(followed(100, 16, 1), 40);
  EXPECT_GE(followed(1000, 1, 2), 900);
  followed(1000, 16, 1);
  EXPECT_LE(followed(1000, 16, 1), 200);
  // Now it pays for 16, too.
  followed(2500, 16, 32);
  EXPECT_EQ(followed(1000, 16, 32), 1000);
}

TEST(PromptPolicy, FollowsPromptsWhoseAnswersMakeUpForTheirRows) {
  using Follow = PromptPolicy::Follow;
  PromptPolicy policy;
  EXPECT_EQ(policy.begin(5000, 100, 1e-3), Follow::kTrial) << "nothing is known yet";
  policy.followed(1000, 10e-3);
  policy.account(20, 0.1);
  // Answers of 20 tokens, which drafts make 20 ms shorter: 2,000 rows.
  EXPECT_EQ(policy.begin(1900, 100, 1e-3), Follow::kYes);
  policy.account(20, 0.1);
  EXPECT_EQ(policy.begin(5000, 100, 1e-3), Follow::kNo);
  policy.account(20, 0.1);
  EXPECT_EQ(policy.begin(1900, 10, 1e-3), Follow::kNo) << "the request asks for fewer";
  policy.account(20, 0.1);
  EXPECT_EQ(policy.begin(900, 100, 0), Follow::kNo) << "drafts save nothing";
  int64_t trials = 0;
  for (int i = 0; i < 1000; ++i) {
    policy.account(20, 0.1);
    trials += policy.begin(5000, 100, 1e-3) == Follow::kTrial ? 1 : 0;
  }
  EXPECT_NEAR(static_cast<double>(trials), 100 / 3.0, 2) << "30 ms each of 100 s";
}

TEST(Speculator, AStepAheadHasNoDrafts) {
  const int32_t device[] = {kDeviceToken};
  StepPlan plan;
  plan.slices.push_back({.seq = SeqId{1}, .first = 9, .tokens = device, .max_drafts = 3});
  Speculator::resolve_ahead(plan);
  EXPECT_EQ(plan.slices[0].max_drafts, 0);
  EXPECT_EQ(plan.slices[0].first, 9);
  EXPECT_EQ(plan.slices[0].tokens[0], kDeviceToken);
}

TEST(StateSlotMap, AcceptedStatesChangePlaces) {
  StepLimits limits;
  limits.num_slots = 3;
  limits.max_draft_rows = 4;
  limits.max_seqs = 2;
  limits.recurrent = true;
  StateSlotMap map(limits);
  EXPECT_EQ(limits.all_slots(), 5);
  EXPECT_EQ(map.of(SlotId{1}), 1);
  EXPECT_EQ(map.of(SlotId{}), -1);
  EXPECT_EQ(map.spare(0), 3);
  map.exchange(SlotId{1}, 0);
  EXPECT_EQ(map.of(SlotId{1}), 3);
  EXPECT_EQ(map.spare(0), 1);
  map.exchange(SlotId{2}, 0);
  EXPECT_EQ(map.of(SlotId{2}), 1);
  EXPECT_EQ(map.spare(0), 2);
}

/// Three drafts a row, which it knows when it is asked for them: 40, 41 and 42, of sequence 2 the
/// first alone.
struct LateModule : DraftModule {
  void propose(Arena&, std::span<DraftRow> rows) override {
    asked = rows;
    for (DraftRow& row : rows) row.count = row.wanted;
  }
  void take() override {
    ++takes;
    for (DraftRow& row : asked) {
      row.count = row.sequence->request->id == SeqId{2} ? 1 : row.wanted;
      for (int i = 0; i < row.count; ++i) row.drafts[static_cast<size_t>(i)] = 40 + i;
    }
  }
  std::span<DraftRow> asked;
  int takes = 0;
};

/// A step of two sequences that have generated a token each, resolved with late drafts.
struct LateDrafts {
  explicit LateDrafts(SpeculationConfig config, const SamplingParams& second = {},
                      NgramSource* ngrams = nullptr)
      : speculator(config, limits, /*on_gpu=*/true) {
    speculator.set_ngrams(ngrams);
    for (const int32_t id : {1, 2}) {
      Request request;
      request.id = SeqId{id};
      request.prompt = {7, 8};
      if (id == 2) request.sampling = second;
      request.sampling.max_tokens = 100;
      auto sequence =
          std::make_unique<ExecutorSequence>(std::make_shared<const Request>(request), limits);
      sequence->history.append(9);
      sequences.emplace(request.id, std::move(sequence));
      plan.slices.push_back({.seq = request.id,
                             .first = 2,
                             .tokens = token,
                             .arithmetic = Arithmetic::kDecode,
                             .sample = true,
                             .max_drafts = 3,
                             .limit = 50});
    }
    speculator.wants_drafts(plan);
    Arena arena;
    speculator.resolve(plan, sequences, &module, arena, /*later=*/true);
  }
  std::vector<int32_t> tokens(size_t slice) const {
    const std::span<const int32_t> all = plan.slices[slice].tokens;
    return {all.begin(), all.end()};
  }
  const DraftState& state(int32_t id) const { return *sequences.at(SeqId{id})->drafts; }

  StepLimits limits{
      .max_rows = 64, .max_seqs = 4, .max_model_len = 100, .vocab_size = 64, .max_draft_rows = 16};
  std::vector<int32_t> token = {kDeviceToken};
  StepPlan plan;
  PackedStep::Sequences sequences;
  LateModule module;
  Speculator speculator;
};

SpeculationConfig three_drafts(SpeculationMethod method) {
  SpeculationConfig config;
  config.method = method;
  config.num_speculative_tokens = config.num_mtp_steps = 3;
  config.adaptive = false;
  return config;
}

TEST(Speculator, OnTheCpuOnlyPromptsThatArePaidForAreFollowed) {
  for (const bool adaptive : {true, false}) {
    SpeculationConfig config = three_drafts(SpeculationMethod::kMtp);
    config.adaptive = adaptive;
    LateDrafts late(config);
    EXPECT_TRUE(late.speculator.follows_texts(late.plan, late.sequences));
    for (auto& [id, sequence] : late.sequences) {
      draft_state(*sequence).follow = PromptPolicy::Follow::kNo;
    }
    EXPECT_EQ(late.speculator.follows_texts(late.plan, late.sequences), !adaptive);
    late.speculator.wants_drafts(late.plan);
    late.plan.slices[1].first = 65;
    EXPECT_EQ(late.speculator.follows_texts(late.plan, late.sequences), !adaptive);
    late.speculator.wants_drafts(late.plan);
    late.plan.slices[1].first = 66;
    EXPECT_TRUE(late.speculator.follows_texts(late.plan, late.sequences)) << "a long answer";
  }
}

TEST(Speculator, LargeBatchesMayBeLeftAlone) {
  SpeculationConfig config = three_drafts(SpeculationMethod::kMtp);
  config.disable_by_batch_size = 2;
  EXPECT_EQ(LateDrafts(config).tokens(0).size(), 4U);
  config.disable_by_batch_size = 1;
  EXPECT_EQ(LateDrafts(config).tokens(0).size(), 1U);
}

TEST(Speculator, DraftsMayBeKnownBehindThePlan) {
  LateDrafts late(three_drafts(SpeculationMethod::kMtp));
  EXPECT_TRUE(late.speculator.is_open());
  EXPECT_EQ(late.module.takes, 0);
  EXPECT_EQ(late.tokens(0), (std::vector<int32_t>{9, 0, 0, 0}));
  EXPECT_EQ(late.tokens(1), (std::vector<int32_t>{9, 0, 0, 0}));
  late.speculator.settle(late.module);
  EXPECT_FALSE(late.speculator.is_open());
  EXPECT_EQ(late.state(1).proposed[0], 3);
  EXPECT_EQ(late.state(1).drafts[2], 42);
  EXPECT_EQ(late.state(2).proposed[0], 1);
  EXPECT_EQ(late.state(2).drafts[0], 40);
}

TEST(Speculator, PenaltiesAndNgramsWaitForDrafts) {
  SamplingParams penalty;
  penalty.presence_penalty = 1;
  LateDrafts penalised(three_drafts(SpeculationMethod::kMtp), penalty);
  LateDrafts hybrid(three_drafts(SpeculationMethod::kHybrid));
  for (const LateDrafts* known : {&penalised, &hybrid}) {
    EXPECT_FALSE(known->speculator.is_open());
    EXPECT_EQ(known->module.takes, 1);
    EXPECT_EQ(known->tokens(0), (std::vector<int32_t>{9, 40, 41, 42}));
    EXPECT_EQ(known->tokens(1), (std::vector<int32_t>{9, 40}));
  }
}

/// Knows sequence 1, whose text repeats nothing.
struct KnownNgrams : NgramSource {
  void catch_up(std::span<const DraftRow> rows) override {
    for (const DraftRow& row : rows) asked += row.most;
  }
  std::optional<Found> find(const ExecutorSequence& sequence) const override {
    if (sequence.request->id != SeqId{1}) return std::nullopt;
    return Found{.matched = matched, .drafts = drafts};
  }
  std::vector<int32_t> drafts = {50, 51, 52};
  int matched = 4;
  int asked = 0;
};

TEST(Speculator, NgramsMayComeFromElsewhere) {
  for (const bool adaptive : {false, true}) {
    SpeculationConfig config = three_drafts(SpeculationMethod::kNgram);
    config.adaptive = adaptive;
    config.min_ngram_size = 1;
    KnownNgrams ngrams;
    LateDrafts late(config, {}, &ngrams);
    EXPECT_EQ(ngrams.asked, 6);
    EXPECT_EQ(late.tokens(0)[1], 50);
    EXPECT_EQ(late.tokens(1), (std::vector<int32_t>{9, 40}));  // its matcher finds nothing behind
    EXPECT_EQ(late.state(1).matched, 4);
    EXPECT_EQ(late.state(1).ngram, nullptr);
    EXPECT_NE(late.state(2).ngram, nullptr);
    ngrams.matched = 0;
    EXPECT_EQ(LateDrafts(config, {}, &ngrams).tokens(0).size(), 1u);
  }
}

TEST(Speculator, NgramsBehindTheModuleAreTheMatchers) {
  SpeculationConfig config = three_drafts(SpeculationMethod::kHybrid);
  config.num_mtp_steps = 1;
  KnownNgrams ngrams;
  LateDrafts late(config, {}, &ngrams);
  EXPECT_EQ(late.tokens(0), (std::vector<int32_t>{9, 40}));
}

TEST(OwnedPlan, OutlivesWhatItWasMadeOf) {
  OwnedPlan owned;
  {
    std::vector<int32_t> tokens = {5, 6, 7}, more = {8}, pages = {3, 4};
    std::vector<BlockId> blocks = {{2}, {9}};
    StepPlan plan;
    plan.step = 4;
    plan.slices.push_back({.seq = SeqId{1}, .tokens = tokens, .blocks = blocks});
    plan.slices.push_back({.seq = SeqId{2}, .tokens = more, .blocks = blocks});
    plan.image_uses.push_back({SeqId{1}, 0, pages});
    owned.copy(plan);
    std::fill(tokens.begin(), tokens.end(), -9);
    std::fill(pages.begin(), pages.end(), -9);
    blocks.assign(2, BlockId{});
  }
  const StepPlan& plan = owned.plan;
  EXPECT_EQ(plan.step, 4u);
  EXPECT_EQ(std::vector(plan.slices[0].tokens.begin(), plan.slices[0].tokens.end()),
            (std::vector<int32_t>{5, 6, 7}));
  EXPECT_EQ(plan.slices[1].tokens[0], 8);
  EXPECT_EQ(plan.slices[1].blocks[1], BlockId{9});
  EXPECT_EQ(plan.image_uses[0].pages[1], 4);
}

}  // namespace
}  // namespace weft
