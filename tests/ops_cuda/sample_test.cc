// sample, reset_counts, feed_tokens: CUDA against the CPU's sampler (runtime/sampler.h).

#include "tests/ops_cuda/sample_support.h"

namespace weft {
namespace {

std::vector<Case> random_cases(int64_t vocab, uint32_t seed, int count) {
  Cases cases(vocab, seed);
  std::vector<Case> out;
  for (int i = 0; i < count; ++i) out.push_back(cases.next());
  return out;
}

class SampleTest : public ::testing::Test {
 protected:
  CudaTestStream stream_{int64_t{1} << 20};
};

TEST_F(SampleTest, Small) {
  for (const int64_t vocab : {1, 2, 31, 33, 100, 1003}) {
    Batch(random_cases(vocab, static_cast<uint32_t>(vocab), 24), vocab % 3).expect_cpu(stream_);
    if (HasFailure()) return;
  }
}

TEST_F(SampleTest, RandomRequests) {
  for (const int64_t vocab : {1, 3, 32, 511, 4095, 4096, 4097, 32000, 151936, 151937, 248320}) {
    const int count = vocab > 100000 ? 96 : 256;
    Batch(random_cases(vocab, static_cast<uint32_t>(7 * vocab), count)).expect_cpu(stream_);
    if (HasFailure()) return;
  }
}

TEST_F(SampleTest, GreatestVocabulary) {
  Batch(random_cases(cuda::kMaxSampledVocabulary, 5, 12)).expect_cpu(stream_);
}

/// The same row with many draws: every filter, 64 positions each.
TEST_F(SampleTest, Draws) {
  for (const int64_t vocab : {50, 151936}) {
    Cases cases(vocab, 3);
    for (const float step : {0.0f, 1.0f}) {
      const std::vector<float> logits = cases.logits(3, step);
      std::vector<Case> rows;
      for (int i = 0; i < 64 * 8; ++i) {
        Case c;
        c.logits = logits;
        c.params.seed = 1234567890123456789u;
        c.position = i / 8;
        if ((i & 1) != 0) c.params.top_p = 0.8f;
        if ((i & 2) != 0) c.params.top_k = 40;
        if ((i & 4) != 0) c.params.min_p = 0.02f;
        rows.push_back(std::move(c));
      }
      // In pieces: 512 rows of the large vocabulary are much for a test.
      for (size_t at = 0; at < rows.size(); at += 128) {
        const auto begin = rows.begin() + static_cast<ptrdiff_t>(at);
        Batch(std::vector<Case>(begin, begin + 128)).expect_cpu(stream_);
      }
      if (HasFailure()) return;
    }
  }
}

TEST_F(SampleTest, SmallTies) {
  for (const int64_t vocab : {5, 700, 20000}) {
    std::vector<Case> rows;
    for (int i = 0; i < 60; ++i) {
      Case c;
      // All alike; two values; signed zeros.
      c.logits.assign(static_cast<size_t>(vocab), i % 3 == 2 ? -0.0f : 2.5f);
      for (size_t id = 0; id < c.logits.size(); ++id) {
        if (i % 3 == 1 && id % 3 == 1) c.logits[id] = 3.0f;
        if (i % 3 == 2 && id % 2 == 1) c.logits[id] = 0.0f;
      }
      c.params.temperature = i % 4 == 0 ? 0.0f : 1.0f;
      c.params.top_k = i % 5 == 0 ? static_cast<int>(vocab / 2) : 0;
      c.params.top_p = i % 2 == 0 ? 0.5f : 1.0f;
      c.params.logprobs = i % 7 == 0 ? 20 : -1;
      c.params.seed = static_cast<uint64_t>(i);
      c.position = i;
      rows.push_back(std::move(c));
    }
    Batch(std::move(rows)).expect_cpu(stream_);
    if (HasFailure()) return;
  }
}

TEST_F(SampleTest, SmallBrokenRows) {
  for (const int64_t vocab : {1, 40, 9000}) {
    std::vector<Case> rows;
    for (int i = 0; i < 24; ++i) {
      Case c = Cases(vocab, static_cast<uint32_t>(i)).next();
      c.params.banned_ids.clear();
      c.params.temperature = i % 2 == 0 ? 0.0f : 1.0f;
      const auto at = static_cast<size_t>((vocab - 1) * (i % 4) / 3);
      switch (i % 6) {
        case 0: c.logits[at] = kNan; break;
        case 1: c.logits[at] = -kNan; break;
        case 2: c.logits[at] = kInf; break;
        case 3: std::fill(c.logits.begin(), c.logits.end(), -kInf); break;
        case 4:  // nothing is left
          for (int32_t id = 0; id < vocab; ++id) c.params.banned_ids.push_back(id);
          break;
        default: std::fill(c.logits.begin(), c.logits.end(), -kInf); c.logits[at] = -3e38f;
      }
      rows.push_back(std::move(c));
    }
    Batch(std::move(rows)).expect_cpu(stream_);
    if (HasFailure()) return;
  }
}

/// Far apart logits, extreme temperatures: weights that vanish, a difference that overflows.
TEST_F(SampleTest, SmallExtremes) {
  std::vector<Case> rows;
  for (const float temperature : {1e-6f, 1e-3f, 1.0f, 100.0f, 2e30f}) {
    for (const float scale : {1e-30f, 1.0f, 1e5f, 3e37f}) {
      for (const float top_p : {1.0f, 0.7f}) {
        Case c;
        c.logits = Cases(777, 11).logits(scale);
        c.params.temperature = temperature;
        c.params.top_p = top_p;
        c.params.logprobs = 3;
        c.position = std::ssize(rows);
        rows.push_back(std::move(c));
      }
    }
  }
  Batch(std::move(rows)).expect_cpu(stream_);
}

/// A row alone, at another place, in another slot, of another stride: the same bits.
TEST_F(SampleTest, SmallRowsAreIndependent) {
  for (const int64_t vocab : {1001, 20011}) {
    const std::vector<Case> cases = random_cases(vocab, 77, 20);
    Batch all(cases);
    all.run(stream_);
    const std::vector<SampleResult> together = all.results();
    const std::vector<Answer> answers = all.answers();
    std::vector<Case> reversed(cases.rbegin(), cases.rend());
    std::vector<int32_t> slots;
    for (int32_t i = 0; i < 20; ++i) slots.push_back((i * 7 + 3) % 20);
    Batch other(reversed, 3, slots);
    other.run(stream_);
    const std::vector<SampleResult> backwards = other.results();
    for (size_t i = 0; i < cases.size(); ++i) {
      Batch one({cases[i]}, 5);
      one.run(stream_);
      const std::vector<SampleResult> alone = one.results();
      EXPECT_EQ(std::memcmp(&together[i], &alone[0], sizeof(SampleResult)), 0);
      EXPECT_EQ(std::memcmp(&together[i], &backwards[19 - i], sizeof(SampleResult)), 0);
      EXPECT_EQ(answers[i].top_ids, one.answers()[0].top_ids);
      EXPECT_EQ(answers[i].top_logprobs, one.answers()[0].top_logprobs);
    }
  }
}

TEST_F(SampleTest, SmallPaddingRowsAreLeftAlone) {
  const std::vector<Case> cases = random_cases(300, 8, 6);
  Batch batch(cases);
  for (const size_t i : {0, 3, 5}) batch.specs()[i].slot = -1;
  batch.run(stream_);
  const auto results = batch.results();
  const auto last = batch.last_tokens();
  for (size_t i = 0; i < cases.size(); ++i) {
    const bool padding = i == 0 || i == 3 || i == 5;
    std::vector<std::byte> poison(sizeof(SampleResult), std::byte{0xFF});
    EXPECT_EQ(std::memcmp(&results[i], poison.data(), poison.size()) == 0, padding);
    if (padding) {
      EXPECT_EQ(last[i], -1);
    } else {
      EXPECT_EQ(results[i].token, cpu_answer(cases[i]).result.token);
    }
  }
}

/// The kernel of batches that are greedy alone, and its padding rows.
TEST_F(SampleTest, SmallOnlyGreedy) {
  for (const int64_t vocab : {1, 33, 4099, 20001, 151936}) {
    Cases random(vocab, 4);
    std::vector<Case> cases;
    for (int i = 0; i < 8; ++i) {
      Case c;
      c.logits = random.logits(2, i % 2 == 0 ? 0.0f : 1.0f);
      c.params.temperature = 0;
      if (i == 3) c.logits.back() = kNan;
      if (i == 4) c.logits.front() = kInf;
      if (i == 5) std::fill(c.logits.begin(), c.logits.end(), -kInf);
      cases.push_back(std::move(c));
    }
    for (const int64_t padding : {0, 1}) {
      Batch batch(cases, padding);
      for (const SampleSpec& spec : batch.specs()) ASSERT_TRUE(is_plainly_greedy(spec));
      batch.expect_cpu(stream_, true);
      Batch mixed(cases, padding);
      mixed.run(stream_);
      const auto one = batch.results(), other = mixed.results();
      EXPECT_EQ(std::memcmp(one.data(), other.data(), one.size() * sizeof(SampleResult)), 0);
    }
    Batch padded(cases);
    padded.specs()[1].slot = -1;
    padded.run(stream_, true);
    EXPECT_EQ(padded.results()[1].token, -1);
    EXPECT_EQ(padded.results()[1].num_top, -1);  // poison
    EXPECT_EQ(padded.results()[0].token, cpu_answer(cases[0]).result.token);
  }
}

/// Long nuclei of flat and of peaked rows: cuts among thousands of ids.
TEST_F(SampleTest, LongNuclei) {
  const int64_t vocab = 151936;
  Cases random(vocab, 12);
  std::vector<Case> cases;
  for (int i = 0; i < 96; ++i) {
    Case c;
    const float scales[] = {0.02f, 0.5f, 1, 2, 3};
    c.logits = random.logits(scales[i % 5], i % 3 == 0 ? 0.25f : 0.0f);
    if (i % 2 == 0) {  // a few ids have most of the weight
      for (int j = 0; j < 6; ++j) {
        const float peaks[] = {9, 12, 15};
        c.logits[static_cast<size_t>(random.below(vocab))] = peaks[i % 3] + 0.1f * j;
      }
    }
    const float top_ps[] = {0.5f, 0.9f, 0.99f, 0.9999f};
    c.params.top_p = top_ps[i / 5 % 4];
    if (i % 7 == 0) c.params.min_p = 1e-5f;
    if (i % 11 == 0) c.params.top_k = 5000;
    c.position = i;
    cases.push_back(std::move(c));
  }
  Batch(std::move(cases)).expect_cpu(stream_);
}

TEST_F(SampleTest, SmallNoRows) {
  DeviceTensor last(DType::kI32, {1}), logits(DType::kF32, {0, 50});
  cuda::sample(stream_, {.logits = logits.view, .last_token = last.view});
  cuda::feed_tokens(stream_, {.feed = TensorView(last.view.data, DType::kI32, {0}),
                              .last_token = last.view,
                              .ids = TensorView(last.view.data, DType::kI32, {0})});
  stream_.sync();
}

/// A sampled token is counted; a target, an error and other ids are not.
TEST_F(SampleTest, SmallCounts) {
  Case c;
  c.logits = {0, 5, 1, 2};
  c.params.temperature = 0;
  c.params.presence_penalty = 0.5f;
  c.prompt = {3, 3, 1};
  c.generated = {1, 2, 2};
  Case broken = c, target = c;
  broken.logits[2] = kNan;
  target.target = 2;
  Batch batch({c, broken, target});
  batch.specs()[2].counts_slot = 2;
  batch.run(stream_);
  const std::vector<uint32_t> counts = batch.counts();
  const std::vector<uint32_t> before = {0, kCountedInPrompt + 1, 2, kCountedInPrompt};
  std::vector<uint32_t> after = before;
  ++after[1];
  EXPECT_EQ(std::vector<uint32_t>(counts.begin(), counts.begin() + 4), after);
  EXPECT_EQ(std::vector<uint32_t>(counts.begin() + 4, counts.begin() + 8), before);
  EXPECT_EQ(std::vector<uint32_t>(counts.begin() + 8, counts.end()), before);
  EXPECT_EQ(batch.last_tokens(), (std::vector<int32_t>{1, 0, -1}));
}

/// Rows of a sequence with drafts share its counts, see the drafts before them, and count nothing.
TEST_F(SampleTest, SmallDraftsAreCountedBeside) {
  for (const int64_t vocab : {60, 4099, 151936}) {
    Cases cases(vocab, 17);
    for (int round = 0; round < 8; ++round) {
      Case c;
      c.logits = cases.logits(1, round % 2 == 0 ? 0.25f : 0);
      c.params.temperature = round % 4 < 2 ? 0 : 0.8f;
      c.params.seed = static_cast<uint64_t>(round);
      c.params.logprobs = 3;
      c.params.repetition_penalty = 1.4f;
      c.params.frequency_penalty = 0.6f;
      c.params.presence_penalty = 0.3f;
      c.prompt = {1, 5, 5};
      c.generated = {7, 5, 9};
      std::vector<int32_t> by_logit(static_cast<size_t>(vocab));
      for (size_t i = 0; i < by_logit.size(); ++i) by_logit[i] = static_cast<int32_t>(i);
      std::partial_sort(
          by_logit.begin(), by_logit.begin() + 3, by_logit.end(), [&](int32_t a, int32_t b) {
            return c.logits[static_cast<size_t>(a)] > c.logits[static_cast<size_t>(b)];
          });
      const std::vector<int32_t> drafts = {by_logit[0], by_logit[1], by_logit[0], by_logit[2], 7};
      c.params.stop_ids = drafts;  // a list on the device; the rule for stop ids is kPlain
      const size_t rows = drafts.size() + 1;
      Batch batch(std::vector<Case>(rows, c), 0, std::vector<int32_t>(rows, 0));
      for (size_t i = 0; i < rows; ++i) {
        SampleSpec& spec = batch.specs()[i];
        spec.drafts = {spec.stop_ids.begin, static_cast<int32_t>(i)};
        spec.stop_ids = {};
        spec.counts_later = 1;
      }
      batch.run(stream_);
      const std::vector<Answer> got = batch.answers();
      for (size_t i = 0; i < rows; ++i) {
        SCOPED_TRACE("row " + std::to_string(i) + " of " + std::to_string(vocab));
        Case alone = c;
        alone.generated.insert(alone.generated.end(), drafts.begin(),
                               drafts.begin() + static_cast<ptrdiff_t>(i));
        Batch::expect_near(got[i], cpu_answer(alone));
      }
      const std::vector<uint32_t> counts = batch.counts();
      EXPECT_EQ(counts[5], kCountedInPrompt + 1);
      EXPECT_EQ(counts[7], 1u);
      EXPECT_EQ(counts[9], 1u);
    }
  }
}

TEST_F(SampleTest, SmallResetCounts) {
  const int64_t vocab = 70000;
  DeviceTensor counts(DType::kI32, {3, vocab});
  counts.poison();
  std::vector<int32_t> prompt, generated;
  std::vector<uint32_t> want(static_cast<size_t>(vocab));
  for (int32_t i = 0; i < 1000; ++i) {
    prompt.push_back((i * 7919) % 69999);
    generated.push_back(i % 13 * 5000);
    want[static_cast<size_t>(prompt.back())] |= kCountedInPrompt;
    ++want[static_cast<size_t>(generated.back())];
  }
  const DeviceTensor prompt_d(prompt), generated_d(generated);
  cuda::reset_counts(
      stream_,
      {.counts = counts.view, .slot = 1, .prompt = prompt_d.view, .generated = generated_d.view});
  stream_.sync();
  const std::vector<uint32_t> got = download<uint32_t>(counts);
  EXPECT_TRUE(std::equal(want.begin(), want.end(), got.begin() + vocab));
  EXPECT_EQ(std::count(got.begin(), got.begin() + vocab, ~0u), vocab);
  EXPECT_EQ(std::count(got.begin() + 2 * vocab, got.end(), ~0u), vocab);
  const DeviceTensor more(std::vector<int32_t>{0, 5000, 0});
  cuda::reset_counts(stream_,
                     {.counts = counts.view, .slot = 1, .generated = more.view, .keep = true});
  stream_.sync();
  const std::vector<uint32_t> added = download<uint32_t>(counts);
  want[0] += 2;
  want[5000] += 1;
  EXPECT_TRUE(std::equal(want.begin(), want.end(), added.begin() + vocab));
  cuda::reset_counts(stream_, {.counts = counts.view, .slot = 2});
  stream_.sync();
  const std::vector<uint32_t> cleared = download<uint32_t>(counts);
  EXPECT_EQ(std::count(cleared.begin() + 2 * vocab, cleared.end(), 0u), vocab);
}

TEST_F(SampleTest, SmallFeedTokens) {
  std::vector<int32_t> feed, ids, want;
  const std::vector<int32_t> last = {100, 200, 300};
  for (int32_t i = 0; i < 700; ++i) {
    feed.push_back(i % 5 - 2);
    ids.push_back(i);
    want.push_back(feed.back() >= 0 ? last[static_cast<size_t>(feed.back())] : i);
  }
  const DeviceTensor feed_d(feed), last_d(last), ids_d(ids);
  cuda::feed_tokens(stream_, {.feed = feed_d.view, .last_token = last_d.view, .ids = ids_d.view});
  stream_.sync();
  EXPECT_EQ(download<int32_t>(ids_d), want);
}

TEST_F(SampleTest, SmallAcceptDrafts) {
  std::mt19937 rng(5);
  const auto below = [&rng](uint32_t n) { return static_cast<int32_t>(rng() % n); };
  // Segments of 0 to 16 rows, and of 31 and 32 (a warp has one) of which all are right; padding
  // behind them.
  std::vector<int32_t> cu_q = {0}, ids, tokens, next, counts, last_rows;
  std::vector<SampleSpec> specs;
  for (int segment = 0; segment < 70; ++segment) {
    const int32_t rows = segment % 19 + (segment % 19 > 16 ? 14 : 0);
    const int32_t first = cu_q.back();
    int32_t count = rows > 0 ? 1 : 0;
    bool open = true;
    std::vector<DraftCheck> checks;
    for (int32_t i = 0; i < rows; ++i) {
      ids.push_back(below(100));
      tokens.push_back(below(100));
      checks.push_back(static_cast<DraftCheck>(segment % 3 == 0 || rows > 16 ? 0 : below(3)));
      specs.push_back({.draft_check = checks.back()});
    }
    for (int32_t i = 0; i < rows; ++i) {
      const auto at = static_cast<size_t>(first + i);
      if (i + 1 < rows && (below(8) > 0 || rows > 16)) tokens[at] = ids[at + 1];
      next.push_back(tokens[at]);
      if (i + 1 == rows) continue;
      const DraftCheck check = checks[static_cast<size_t>(i)];
      if (check == DraftCheck::kTake) next.back() = ids[at + 1];
      open = open && check != DraftCheck::kReject && next.back() == ids[at + 1];
      count += open ? 1 : 0;
    }
    cu_q.push_back(first + rows);
    counts.push_back(count);
    last_rows.push_back(rows > 0 ? first + count - 1 : 0);
  }
  for (int i = 0; i < 40; ++i) {
    ids.push_back(7);
    tokens.push_back(-1);
    next.push_back(0);
    specs.emplace_back();
  }
  const DeviceTensor cu_q_d(cu_q), ids_d(ids), tokens_d(tokens);
  const DeviceTensor specs_d = upload_structs(specs);
  const DeviceTensor next_d(std::vector<int32_t>(ids.size(), -1));
  const DeviceTensor counts_d(std::vector<int32_t>(counts.size(), -1));
  const DeviceTensor last_d(std::vector<int32_t>(counts.size(), -1));
  cuda::accept_drafts(stream_, {.cu_q = cu_q_d.view,
                                .ids = ids_d.view,
                                .tokens = tokens_d.view.ptr<int32_t>(),
                                .specs = static_cast<const SampleSpec*>(specs_d.view.data),
                                .next_ids = next_d.view,
                                .counts = counts_d.view,
                                .last_rows = last_d.view});
  stream_.sync();
  EXPECT_EQ(download<int32_t>(next_d), next);
  EXPECT_EQ(download<int32_t>(counts_d), counts);
  EXPECT_EQ(download<int32_t>(last_d), last_rows);
}

}  // namespace
}  // namespace weft
