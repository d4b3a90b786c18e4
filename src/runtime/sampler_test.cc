#include "runtime/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>
#include <set>

#include "base/philox.h"
#include "runtime/logits_math.h"

namespace weft {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> random_logits(int64_t vocab, uint32_t seed, float scale = 2.0f) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> x(static_cast<size_t>(vocab));
  for (float& v : x) v = normal(rng);
  return x;
}

/// What a request looks like to the sampler.
struct Case {
  SamplingParams params;
  std::vector<int32_t> prompt, generated;
};

SampledToken sample_one(Sampler& sampler, ThreadPool& pool, std::vector<float> logits,
                        const Case& c, int64_t position = 100) {
  Request request;
  request.prompt = c.prompt;
  request.sampling = c.params;
  request.sampling.max_tokens = 1000;
  TokenHistory history(request, static_cast<int64_t>(logits.size()), 1000);
  for (const int32_t t : c.generated) history.append(t);
  const SampleRow row{logits, &c.params, &history, position,
                      static_cast<int64_t>(c.generated.size())};
  SampledToken out;
  sampler.sample(pool, {&row, 1}, {&out, 1});
  return out;
}

/// The literal definition, in double: probabilities of every id after all parameters.
std::vector<double> oracle(const std::vector<float>& logits, const Case& c) {
  const SamplingParams& p = c.params;
  const size_t n = logits.size();
  std::vector<double> x(logits.begin(), logits.end());
  if (!p.allowed_ids.empty()) {
    std::vector<bool> allowed(n);
    for (const int32_t id : p.allowed_ids) allowed[static_cast<size_t>(id)] = true;
    for (size_t i = 0; i < n; ++i) {
      if (!allowed[i]) x[i] = -kInf;
    }
  }
  for (const int32_t id : p.banned_ids) x[static_cast<size_t>(id)] = -kInf;
  for (const auto& [id, bias] : p.logit_bias) x[static_cast<size_t>(id)] += bias;
  if (static_cast<int>(c.generated.size()) < p.min_tokens) {
    for (const int32_t id : p.stop_ids) x[static_cast<size_t>(id)] = -kInf;
  }
  std::map<int32_t, int> counts;
  std::set<int32_t> seen(c.prompt.begin(), c.prompt.end());
  for (const int32_t id : c.generated) {
    ++counts[id];
    seen.insert(id);
  }
  for (const int32_t id : seen) {
    double& v = x[static_cast<size_t>(id)];
    v = v > 0 ? v / p.repetition_penalty : v * p.repetition_penalty;
  }
  for (const auto& [id, count] : counts) {
    x[static_cast<size_t>(id)] -= p.frequency_penalty * count + p.presence_penalty;
  }
  std::vector<size_t> order(n);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] > x[b]; });
  std::vector<double> w(n, 0.0);
  if (p.temperature == 0) {
    w[order[0]] = 1;
    return w;
  }
  const size_t k = p.top_k > 0 ? std::min(n, static_cast<size_t>(p.top_k)) : n;
  for (size_t r = 0; r < k; ++r)
    w[order[r]] = std::exp((x[order[r]] - x[order[0]]) / p.temperature);
  const double total = std::accumulate(w.begin(), w.end(), 0.0);
  double before = 0;
  for (size_t r = 0; r < n; ++r) {
    const double here = w[order[r]];
    if (r > 0 && before >= p.top_p * total) w[order[r]] = 0;
    before += here;
  }
  for (double& v : w) {
    if (v < p.min_p) v = 0;
  }
  const double kept = std::accumulate(w.begin(), w.end(), 0.0);
  for (double& v : w) v /= kept;
  return w;
}

/// The oracle's token for the documented uniform number; nullopt where u is too near a border for
/// float weights to decide alike.
std::optional<int32_t> oracle_draw(const std::vector<double>& probs, uint64_t seed,
                                   int64_t position) {
  const auto bits = philox4x32(seed, static_cast<uint64_t>(position), 0);
  const double u = static_cast<double>((uint64_t{bits[0]} << 32 | bits[1]) >> 11) * 0x1.0p-53;
  double cumulative = 0;
  for (size_t i = 0; i < probs.size(); ++i) {
    if (probs[i] == 0) continue;
    cumulative += probs[i];
    if (std::abs(cumulative - u) < 1e-6) return std::nullopt;
    if (cumulative > u) return static_cast<int32_t>(i);
  }
  return std::nullopt;
}

class SamplerTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
};

TEST(LogitsMath, ExpIsWithinTwoUlp) {
  double worst = 0;
  for (int i = 0; i <= 870000; ++i) {
    const float x = -1e-4f * static_cast<float>(i);
    const double want = std::exp(static_cast<double>(x));
    if (x < -87.0f) continue;
    worst = std::max(worst, std::abs(softmax_weight(x, 0, 1) - want) / want);
  }
  EXPECT_LT(worst, 2 * 0x1.0p-23);
  EXPECT_EQ(softmax_weight(0, 0, 1), 1.0f);
  EXPECT_EQ(softmax_weight(5, 5, 1e-30f), 1.0f);
  EXPECT_EQ(softmax_weight(-87.1f, 0, 1), 0.0f);
  EXPECT_EQ(softmax_weight(-kInf, 0, 1), 0.0f);
  EXPECT_EQ(softmax_weight(1, 2, 1e-38f), 0.0f);
}

TEST(LogitsMath, ScanFindsEveryInvalidPlace) {
  for (const int64_t n : {1, 7, 8, 9, 63, 130}) {
    for (int64_t at = 0; at < n; ++at) {
      std::vector<float> x(static_cast<size_t>(n), -3.0f);
      EXPECT_FALSE(scan_logits(x.data(), n).invalid);
      x[static_cast<size_t>(at)] = -kInf;
      EXPECT_FALSE(scan_logits(x.data(), n).invalid);
      x[static_cast<size_t>(at)] = kNan;
      EXPECT_TRUE(scan_logits(x.data(), n).invalid) << n << " " << at;
      x[static_cast<size_t>(at)] = kInf;
      EXPECT_TRUE(scan_logits(x.data(), n).invalid) << n << " " << at;
      x[static_cast<size_t>(at)] = 7;
      EXPECT_EQ(scan_logits(x.data(), n).max, 7.0f);
    }
  }
}

TEST_F(SamplerTest, GreedyTakesTheLowestIdOfTheGreatestLogit) {
  for (const int64_t vocab : {1, 5, 64, 5000, 20000}) {
    Sampler sampler(vocab, 2);
    Case c;
    c.params.temperature = 0;
    auto x = random_logits(vocab, 3);
    const auto last = static_cast<size_t>(vocab - 1), middle = static_cast<size_t>(vocab / 2);
    x[last] = x[middle] = 50;
    EXPECT_EQ(sample_one(sampler, pool_, x, c).token, static_cast<int32_t>(middle)) << vocab;
    x[middle] = 49;
    EXPECT_EQ(sample_one(sampler, pool_, x, c).token, static_cast<int32_t>(vocab == 1 ? 0 : last));
  }
}

TEST_F(SamplerTest, MatchesTheLiteralOracle) {
  std::mt19937 rng(7);
  const auto chance = [&](int one_in) { return rng() % static_cast<uint32_t>(one_in) == 0; };
  int compared = 0, skipped = 0;
  for (int round = 0; round < 1500; ++round) {
    const int vocab = std::array{7, 60, 200, 4096, 9001}[rng() % 5];
    Sampler sampler(vocab, 2);
    const auto id = [&] { return static_cast<int32_t>(rng() % static_cast<uint32_t>(vocab)); };
    auto x = random_logits(vocab, rng(), chance(4) ? 0.2f : 3.0f);
    if (chance(3)) {  // many exact ties
      for (float& v : x) v = std::round(v);
    }
    if (chance(5)) x[static_cast<size_t>(id())] = -kInf;
    Case c;
    SamplingParams& p = c.params;
    p.temperature = chance(6) ? 0.0f : 0.3f + static_cast<float>(rng() % 100) / 60.0f;
    if (chance(3)) p.top_k = 1 + static_cast<int>(rng() % 50);
    if (chance(20)) p.top_k = vocab + 5;
    if (chance(3)) p.top_p = 0.05f + static_cast<float>(rng() % 95) / 100.0f;
    if (chance(3)) p.min_p = static_cast<float>(rng() % 100) / 200.0f;
    if (chance(4)) p.repetition_penalty = 0.5f + static_cast<float>(rng() % 10) / 5.0f;
    if (chance(4)) p.presence_penalty = static_cast<float>(rng() % 40) / 10.0f - 2;
    if (chance(4)) p.frequency_penalty = static_cast<float>(rng() % 40) / 10.0f - 2;
    for (int i = 0; i < 6; ++i) {
      c.prompt.push_back(id());
      c.generated.push_back(chance(2) ? c.prompt[0] : id());
    }
    if (chance(4)) p.logit_bias = {{id(), 3.0f}, {id(), -100.0f}, {c.prompt[0], 1.0f}};
    if (chance(4)) p.banned_ids = {id(), id()};
    if (chance(4)) {
      p.stop_ids = {id(), id()};
      p.min_tokens = static_cast<int>(rng() % 12);
    }
    if (chance(5)) p.allowed_ids = {id(), id(), id(), id(), c.prompt[1], c.prompt[1]};
    p.seed = rng();
    const auto probs = oracle(x, c);
    if (std::isnan(probs[0])) continue;  // nothing left to sample
    const int64_t position = 100 + round;
    const SampledToken got = sample_one(sampler, pool_, x, c, position);
    ASSERT_FALSE(got.numeric_error) << round;
    const auto want = p.temperature == 0
                          ? std::optional<int32_t>(static_cast<int32_t>(
                                std::max_element(probs.begin(), probs.end()) - probs.begin()))
                          : oracle_draw(probs, p.seed, position);
    if (!want) {
      ++skipped;
      continue;
    }
    ++compared;
    ASSERT_EQ(got.token, *want) << "round " << round << " vocab " << vocab << " top_k " << p.top_k
                                << " top_p " << p.top_p << " min_p " << p.min_p;
  }
  EXPECT_GT(compared, 1300);
  EXPECT_LT(skipped, 100);
}

/// Pearson's chi-square of 60,000 draws against the exact probabilities; ids expected less than 8
/// times are pooled. The bound is the 1 - 1e-6 quantile (Wilson-Hilferty).
void expect_distribution(Sampler& sampler, ThreadPool& pool, const std::vector<float>& x,
                         const Case& base) {
  constexpr int kDraws = 60000;
  const auto probs = oracle(x, base);
  std::vector<int> counts(x.size());
  for (int i = 0; i < kDraws; ++i) {
    Case c = base;
    // Both the seed and the position vary: neither may repeat the other's draws.
    c.params.seed = static_cast<uint64_t>(i / 50);
    const SampledToken got = sample_one(sampler, pool, x, c, i % 50);
    ASSERT_FALSE(got.numeric_error);
    ++counts[static_cast<size_t>(got.token)];
  }
  double chi = 0, pooled_want = 0;
  int pooled = 0, degrees = -1;
  for (size_t i = 0; i < x.size(); ++i) {
    const double want = probs[i] * kDraws;
    if (probs[i] == 0) {
      ASSERT_EQ(counts[i], 0) << i;
    } else if (want < 8) {
      pooled_want += want;
      pooled += counts[i];
    } else {
      chi += (counts[i] - want) * (counts[i] - want) / want;
      ++degrees;
    }
  }
  if (pooled_want > 8) {
    chi += (pooled - pooled_want) * (pooled - pooled_want) / pooled_want;
    ++degrees;
  }
  if (degrees < 1) return;
  const double d = degrees, z = 4.75, h = 2 / (9 * d);
  EXPECT_LT(chi, d * std::pow(1 - h + z * std::sqrt(h), 3)) << degrees << " degrees";
}

TEST_F(SamplerTest, LossyVerificationTakesWhatMayBeDrawn) {
  constexpr int64_t kVocab = 300;
  Sampler sampler(kVocab, 2);
  std::mt19937 rng(5);
  int taken = 0, kept_out = 0;
  for (uint32_t i = 0; i < 4000; ++i) {
    const std::vector<float> logits = random_logits(kVocab, i);
    std::vector<int32_t> order(kVocab);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
    });
    Case c;
    c.params.temperature = i % 5 == 0 ? 0.0f : 0.7f;
    if (i % 3 == 0) c.params.top_k = i % 12 == 0 ? kVocab : static_cast<int>(1 + rng() % 9);
    if (i % 2 == 0) c.params.top_p = 0.05f + 0.1f * static_cast<float>(rng() % 10);
    if (i % 7 == 0) c.params.min_p = 0.2f;
    if (i % 11 == 0) c.params.allowed_ids = {order[0], order[3], order[2], order[7]};
    c.params.seed = i;
    const SampledToken plain = sample_one(sampler, pool_, logits, c);
    std::vector<float> x = logits;
    SampleRow row{x, &c.params, nullptr, 100, 0};
    const size_t rank = rng() % 8;
    row.draft = order[rank];
    row.max_candidates = static_cast<int>(1 + rng() % 6);
    SampledToken out;
    sampler.sample(pool_, {&row, 1}, {&out, 1});
    const std::vector<double> probs = oracle(logits, c);
    const auto may = [&](int32_t id) { return probs[static_cast<size_t>(id)] > 0; };
    const auto allowed = [&](int32_t id) {
      const auto& ids = c.params.allowed_ids;
      return ids.empty() || std::find(ids.begin(), ids.end(), id) != ids.end();
    };
    const auto before =
        std::count_if(order.begin(), order.begin() + static_cast<ptrdiff_t>(rank), allowed);
    const bool candidate = may(row.draft) && before < row.max_candidates;
    ASSERT_EQ(out.token, candidate ? row.draft : plain.token) << i;
    ++(candidate ? taken : kept_out);
    x = logits;
    row.takes_second = true;
    sampler.sample(pool_, {&row, 1}, {&out, 1});
    const bool second = allowed(row.draft) && before == 1;
    ASSERT_EQ(out.token, candidate || second ? row.draft : plain.token) << i;
  }
  EXPECT_GT(taken, 500);
  EXPECT_GT(kept_out, 500);
}

TEST_F(SamplerTest, DrawsFollowTheDistribution) {
  const auto x = random_logits(300, 11, 1.5f);
  Sampler sampler(300, 1);
  ThreadPool pool(1);
  Case c;
  expect_distribution(sampler, pool, x, c);
  c.params.temperature = 0.5f;
  c.params.top_p = 0.8f;
  expect_distribution(sampler, pool, x, c);
  c.params = {};
  c.params.top_k = 20;
  c.params.temperature = 2.0f;
  expect_distribution(sampler, pool, x, c);
  c.params = {};
  c.params.min_p = 0.1f;
  expect_distribution(sampler, pool, x, c);
}

TEST_F(SamplerTest, DrawDependsOnSeedAndPositionAlone) {
  constexpr int64_t kVocab = 10000;
  Sampler sampler(kVocab, 2), narrow(kVocab, 1);
  ThreadPool one(1);
  std::vector<std::vector<float>> logits;
  std::vector<SamplingParams> params(9);
  for (uint32_t i = 0; i < 9; ++i) {
    logits.push_back(random_logits(kVocab, i));
    params[i].seed = i * 1000003;
    params[i].logprobs = 3;
    if (i % 3 == 1) params[i].top_p = 0.7f;
    if (i % 3 == 2) params[i].top_k = 40;
  }
  // Alone, on one thread.
  std::vector<SampledToken> alone;
  for (size_t i = 0; i < 9; ++i) {
    alone.push_back(sample_one(narrow, one, logits[i], {params[i], {}, {}}, 17));
  }
  // Together in two orders, on two threads, and alone on two threads.
  for (const bool reverse : {false, true}) {
    auto copies = logits;
    std::vector<SampleRow> rows;
    for (size_t i = 0; i < 9; ++i) {
      const size_t r = reverse ? 8 - i : i;
      rows.push_back({copies[r], &params[r], nullptr, 17, 0});
    }
    std::vector<SampledToken> out(9);
    sampler.sample(pool_, rows, out);
    for (size_t i = 0; i < 9; ++i) {
      const SampledToken& want = alone[reverse ? 8 - i : i];
      EXPECT_EQ(out[i].token, want.token);
      EXPECT_EQ(out[i].logprob.logprob, want.logprob.logprob);
      ASSERT_EQ(out[i].logprob.top.size(), 3u);
      for (size_t j = 0; j < 3; ++j) {
        EXPECT_EQ(out[i].logprob.top[j].token, want.logprob.top[j].token);
        EXPECT_EQ(out[i].logprob.top[j].logprob, want.logprob.top[j].logprob);
      }
    }
  }
  std::set<int32_t> tokens;
  for (int64_t position = 0; position < 40; ++position) {
    const Case c{params[0], {}, {}};
    const int32_t token = sample_one(sampler, pool_, logits[0], c, position).token;
    EXPECT_EQ(sample_one(narrow, one, logits[0], c, position).token, token);
    tokens.insert(token);
  }
  EXPECT_GT(tokens.size(), 10u);
}

TEST_F(SamplerTest, LogprobsAreOfTheRawDistribution) {
  constexpr int64_t kVocab = 151936;
  Sampler sampler(kVocab, 2);
  auto x = random_logits(kVocab, 5);
  x[77] = x[99] = 30.0f;  // a tie: the lower id comes first
  x[1000] = 29.0f;
  double sum = 0;
  for (const float v : x) sum += std::exp(static_cast<double>(v) - 30);
  const double log_z = 30 + std::log(sum);
  Case c;
  c.params.temperature = 0;
  c.params.logprobs = 20;
  c.params.banned_ids = {77, 99};  // must not show in the logprobs
  const SampledToken got = sample_one(sampler, pool_, x, c);
  EXPECT_EQ(got.token, 1000);
  EXPECT_NEAR(got.logprob.logprob, 29 - log_z, 1e-5);
  ASSERT_EQ(got.logprob.top.size(), 20u);
  EXPECT_EQ(got.logprob.top[0].token, 77);
  EXPECT_EQ(got.logprob.top[1].token, 99);
  EXPECT_EQ(got.logprob.top[2].token, 1000);
  for (size_t i = 0; i < 20; ++i) {
    const TopLogprob& top = got.logprob.top[i];
    EXPECT_NEAR(top.logprob, x[static_cast<size_t>(top.token)] - log_z, 1e-5);
    if (i > 0) {
      EXPECT_LE(top.logprob, got.logprob.top[i - 1].logprob);
    }
  }
  auto sorted = x;
  std::nth_element(sorted.begin(), sorted.begin() + 19, sorted.end(), std::greater<>());
  EXPECT_EQ(x[static_cast<size_t>(got.logprob.top[19].token)], sorted[19]);

  const LogprobRow row{x, 123, 2};
  LogprobResult result;
  sampler.logprobs(pool_, {&row, 1}, {&result, 1});
  EXPECT_NEAR(result.logprob.logprob, x[123] - log_z, 1e-5);
  ASSERT_EQ(result.logprob.top.size(), 2u);
  EXPECT_EQ(result.logprob.top[1].token, 99);
}

TEST_F(SamplerTest, BadRowEndsOnlyItself) {
  constexpr int64_t kVocab = 6000;
  Sampler sampler(kVocab, 2);
  for (const float bad : {kNan, -kNan, kInf}) {
    for (const bool greedy : {true, false}) {
      auto good = random_logits(kVocab, 1), spoilt = good, good2 = good;
      spoilt[5555] = bad;
      SamplingParams params;
      params.temperature = greedy ? 0 : 1;
      params.logprobs = 1;
      std::vector<SampleRow> rows = {{good, &params, nullptr, 3, 0},
                                     {spoilt, &params, nullptr, 3, 0},
                                     {good2, &params, nullptr, 3, 0}};
      std::vector<SampledToken> out(3);
      sampler.sample(pool_, rows, out);
      EXPECT_TRUE(out[1].numeric_error);
      EXPECT_EQ(out[1].token, -1);
      EXPECT_FALSE(out[0].numeric_error);
      EXPECT_GE(out[0].token, 0);
      EXPECT_EQ(out[0].token, out[2].token);
    }
  }
}

TEST_F(SamplerTest, NothingLeftToSampleIsAnError) {
  Sampler sampler(50, 2);
  Case c;
  EXPECT_TRUE(sample_one(sampler, pool_, std::vector<float>(50, -kInf), c).numeric_error);
  for (const float temperature : {0.0f, 1.0f}) {
    c.params = {};
    c.params.temperature = temperature;
    c.params.allowed_ids = {4, 5};
    c.params.banned_ids = {5, 4};
    EXPECT_TRUE(sample_one(sampler, pool_, random_logits(50, 1), c).numeric_error);
    c.params.allowed_ids = {4, 6};
    EXPECT_EQ(sample_one(sampler, pool_, random_logits(50, 1), c).token, 6);
    c.params.allowed_ids = {};
    for (int32_t i = 0; i < 50; ++i) c.params.banned_ids.push_back(i);
    EXPECT_TRUE(sample_one(sampler, pool_, random_logits(50, 1), c).numeric_error);
    // The last id that is not banned.
    std::erase(c.params.banned_ids, 31);
    EXPECT_EQ(sample_one(sampler, pool_, random_logits(50, 1), c).token, 31);
  }
}

TEST_F(SamplerTest, ExtremeParametersAndLogits) {
  constexpr int64_t kVocab = 9000;
  Sampler sampler(kVocab, 2);
  auto x = random_logits(kVocab, 9);
  x[4242] = 40;
  Case c;
  c.params.temperature = 1e-38f;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 4242);
  c.params.temperature = 1e38f;  // uniform
  EXPECT_FALSE(sample_one(sampler, pool_, x, c).numeric_error);
  c.params.top_p = 1e-7f;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 4242);
  c.params = {};
  c.params.min_p = 1;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 4242);
  c.params = {};
  c.params.top_k = 1;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 4242);
  // Huge but finite logits, all equal ones, and a row of which one id has all the weight.
  const float lowest = std::numeric_limits<float>::lowest();
  std::vector<float> huge(kVocab, lowest);
  huge[8999] = -lowest;
  c.params = {};
  EXPECT_EQ(sample_one(sampler, pool_, huge, c).token, 8999);
  c.params.top_p = 0.9f;
  EXPECT_EQ(sample_one(sampler, pool_, huge, c).token, 8999);
  const std::vector<float> flat(kVocab, 1.0f);
  c.params.top_p = 0.5f;
  std::set<int32_t> tokens;
  for (int64_t position = 0; position < 200; ++position) {
    tokens.insert(sample_one(sampler, pool_, flat, c, position).token);
  }
  EXPECT_LT(*tokens.rbegin(), kVocab / 2);  // ties are ranked by id
  EXPECT_GT(*tokens.rbegin(), kVocab / 3);
}

TEST_F(SamplerTest, PenaltiesFollowTheHistory) {
  Sampler sampler(10, 2);
  std::vector<float> x = {0, 1, 1.2f, 1.1f, -0.5f, -9, -9, -9, -9, -9};
  Case c;
  c.params.temperature = 0;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 2);
  c.prompt = {2};
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 2);
  c.params.presence_penalty = 0.15f;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 2) << "presence is of generated tokens";
  c.params.repetition_penalty = 1.5f;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 3) << "repetition is of the prompt too";
  c.params.repetition_penalty = 1;
  c.generated = {2};
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 3);
  c.params.presence_penalty = 0;
  c.params.frequency_penalty = 0.06f;
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 2);
  c.generated = {2, 2};
  EXPECT_EQ(sample_one(sampler, pool_, x, c).token, 3);
}

}  // namespace
}  // namespace weft
