#include <cstdio>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

// The families of golden_test on a GPU, in bf16: logits close to transformers' float32, and greedy
// continuations equal to them but where transformers' own choice is closer than bf16 can tell
// (those are listed). Needs a GPU; CI compiles it.

namespace weft::testing {
namespace {

constexpr double kCloseCall = 0.005;  // of the largest |logit|: top-2 margins below are not judged
constexpr double kCloseRouting = 0.01;  // of an expert's probability: likewise

class GoldenGpu : public ::testing::TestWithParam<const char*> {
 protected:
  std::string dir() const { return oracle_dir() + "/models/" + GetParam(); }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  std::unique_ptr<Driver> load(const OpTable* ops, WeightFormat format, KvFormat kv) const {
    auto driver = Driver::load(dir(), {.ops = ops, .format = format, .kv_format = kv});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
  std::unique_ptr<Driver> gpu(WeightFormat format = WeightFormat::kBf16) const {
    return load(cuda_ops(), format, KvFormat::kBf16);
  }

  /// For each position the closest choice of an expert in any layer, in float32: the last chosen
  /// probability less the first one left out, as a part of the former. 1 without routers.
  std::vector<double> routing_margins(std::span<const int32_t> prompt) {
    static std::vector<double> margins;
    margins.assign(prompt.size(), 1.0);
    OpTable ops = ref_ops();
    ops.moe_route = [](Stream& stream, const MoeRouteArgs& args) {
      ref_ops().moe_route(stream, args);
      const int64_t experts = args.logits.dim(1), rows = args.logits.dim(0);
      for (int64_t t = 0; t < rows; ++t) {
        std::vector<float> sorted(args.logits.row<float>(t), args.logits.row<float>(t) + experts);
        std::sort(sorted.rbegin(), sorted.rend());
        const auto k = static_cast<size_t>(args.rule.top_k);
        // exp(b) / exp(a) of the two logits: softmax has one denominator.
        const double margin = 1.0 - std::exp(double{sorted[k]} - sorted[k - 1]);
        margins[static_cast<size_t>(t)] = std::min(margins[static_cast<size_t>(t)], margin);
      }
    };
    load(&ops, WeightFormat::kF32, KvFormat::kF32)->prefill(prompt, 0);
    return margins;
  }

  /// Compares a greedy continuation of `prompt` with the golden one up to the first close call of
  /// float32 arithmetic (the reference ops).
  void check_greedy(std::span<const int32_t> prompt, const std::vector<int32_t>& expected) {
    const auto driver = gpu();
    ASSERT_TRUE(driver);
    const auto got = driver->greedy(driver->prefill(prompt, 0, 1), expected.size());
    const auto first = std::mismatch(got.begin(), got.end(), expected.begin()).first;
    if (first == got.end()) return;
    const auto at = static_cast<size_t>(first - got.begin());
    const auto exact = load(&ref_ops(), WeightFormat::kF32, KvFormat::kF32);
    std::vector<float> logits = exact->prefill(prompt, 0, 1);
    for (size_t i = 0; i < at; ++i) logits = exact->decode(expected[i]);
    std::sort(logits.begin(), logits.end());
    const double scale = std::max(std::fabs(logits.front()), std::fabs(logits.back()));
    const double margin = (logits.back() - logits[logits.size() - 2]) / scale;
    std::printf("%s: token %zu of %zu differs, golden margin %.3f %% of max |logit|\n", GetParam(),
                at, expected.size(), 100 * margin);
    EXPECT_LT(margin, kCloseCall);
  }
};

TEST_P(GoldenGpu, LogitsOfEveryPosition) {
  const auto driver = gpu();
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto expected = golden<float>(file(), "logits");
  const auto logits = driver->prefill(std::span(ids).first(33), 0);
  const double l2 = difference(logits, std::span(expected).first(logits.size())).relative_l2();
  std::printf("%s: relative L2 %.4f\n", GetParam(), l2);
  if (l2 <= kBf16Tolerance) return;
  // Where float32's choice of experts is too close to call, another expert is no error.
  const std::vector<double> margins = routing_margins(std::span(ids).first(33));
  const size_t vocab = logits.size() / 33;
  std::vector<float> judged, judged_expected;
  for (size_t i = 0; i < 33; ++i) {
    const auto ours = std::span(logits).subspan(i * vocab, vocab);
    const auto theirs = std::span(expected).subspan(i * vocab, vocab);
    if (margins[i] < kCloseRouting) {
      std::printf("  position %zu: expert chosen by %.2f %%, relative L2 %.4f\n", i,
                  100 * margins[i], difference(ours, theirs).relative_l2());
      continue;
    }
    judged.insert(judged.end(), ours.begin(), ours.end());
    judged_expected.insert(judged_expected.end(), theirs.begin(), theirs.end());
  }
  EXPECT_LE(difference(judged, judged_expected).relative_l2(), kBf16Tolerance);
}

TEST_P(GoldenGpu, LongPromptInOnePieceAndInChunks) {
  const auto driver = gpu();
  ASSERT_TRUE(driver);
  if (!file().find("long_ids")) return;
  const auto ids = golden<int32_t>(file(), "long_ids");
  const auto expected = golden<float>(file(), "long_last4_logits");
  std::vector<float> whole;
  for (const int64_t chunk : {0, 64, 128, 192}) {
    driver->reset();
    const auto logits = driver->prefill(ids, chunk, 4);
    EXPECT_LE(difference(logits, expected).relative_l2(), kBf16Tolerance) << "chunk " << chunk;
    if (chunk == 0) whole = logits;
    EXPECT_EQ(logits, whole) << "chunk " << chunk;
  }
}

TEST_P(GoldenGpu, ChunksKeepTheBitsOfEveryFormat) {
  if (!file().find("long_ids")) return;
  const auto ids = golden<int32_t>(file(), "long_ids");
  for (const WeightFormat format :
       {WeightFormat::kInt8, WeightFormat::kInt4, WeightFormat::kFp8Block}) {
    const auto driver = gpu(format);
    ASSERT_TRUE(driver);
    const auto whole = driver->prefill(ids, 0, 4);
    driver->reset();
    const auto all = driver->prefill(ids, 0);  // all rows are asked of the last layer
    EXPECT_EQ(whole, std::vector(all.end() - std::ssize(whole), all.end()));
    for (const int64_t chunk : {64, 128, 192}) {
      driver->reset();
      EXPECT_EQ(driver->prefill(ids, chunk, 4), whole)
          << weight_format_name(format) << ", chunk " << chunk << " of " << ids.size();
    }
  }
}

TEST_P(GoldenGpu, GreedyContinuation) {
  const auto ids = golden<int32_t>(file(), "input_ids");
  const size_t length = file().find("long_ids") ? 33 : ids.size();
  check_greedy(std::span(ids).first(length), golden<int32_t>(file(), "greedy"));
}

/// Codes equal those of the reference, so that only the rounding of activations tells them apart.
TEST_P(GoldenGpu, QuantisedAgreesWithTheReference) {
  const auto ids = golden<int32_t>(file(), "input_ids");
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto run = [&](const OpTable* ops, KvFormat kv) {
      const auto driver = load(ops, format, kv);
      std::vector<float> all = driver->prefill(std::span(ids).first(25), 0);
      for (size_t i = 25; i < 33; ++i) {
        const std::vector<float> logits = driver->decode(ids[i]);
        all.insert(all.end(), logits.begin(), logits.end());
      }
      return all;
    };
    const auto ours = run(cuda_ops(), KvFormat::kBf16), expected = run(&ref_ops(), KvFormat::kF32);
    const size_t vocab = ours.size() / 33;
    std::vector<double> rows;  // a rounding may send a row to another expert: the median is judged
    for (size_t i = 0; i < ours.size(); i += vocab) {
      rows.push_back(
          difference(std::span(ours).subspan(i, vocab), std::span(expected).subspan(i, vocab))
              .relative_l2());
    }
    std::sort(rows.begin(), rows.end());
    EXPECT_LE(rows[rows.size() / 2], kBf16Tolerance) << weight_format_name(format);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenGpu,
                         ::testing::Values("qwen3", "qwen3_yarn", "qwen2", "llama3", "qwen3_moe",
                                           "qwen3_next", "ernie4_5", "ernie4_5_moe", "qwen3_5_mtp"),
                         [](const auto& info) { return std::string(info.param); });

class GoldenGpuImage : public GoldenGpu {};

TEST_P(GoldenGpuImage, TextBeforeTheFirstImage) {
  const auto driver = gpu();
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto image = driver->model().spec().vision->image_token;
  const auto n = static_cast<size_t>(std::find(ids.begin(), ids.end(), image) - ids.begin());
  const auto expected = golden<float>(file(), "logits");
  const auto logits = driver->prefill(std::span(ids).first(n), 0);
  const double l2 = difference(logits, std::span(expected).first(logits.size())).relative_l2();
  std::printf("%s: relative L2 %.4f", GetParam(), l2);
  const size_t vocab = logits.size() / 33;
  for (size_t i = 0; i < 33 && l2 > kBf16Tolerance; ++i) {
    const auto row = [&](std::span<const float> of) { return of.subspan(i * vocab, vocab); };
    std::printf(" %.4f", difference(row(logits), row(expected)).relative_l2());
  }
  std::printf("\n");
  EXPECT_LE(l2, kBf16Tolerance);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenGpuImage, ::testing::Values("qwen3_5", "qwen3_5_moe"),
                         [](const auto& info) { return std::string(info.param); });

class GoldenGpuMtp : public GoldenGpu {};

/// The module over the prompt, and three steps that feed themselves.
TEST_P(GoldenGpuMtp, DraftModule) {
  const auto driver = gpu();
  ASSERT_TRUE(driver);
  const auto drafts = golden<int32_t>(file(), "drafts");
  const auto logits = driver->draft(golden<int32_t>(file(), "input_ids"),
                                    golden<int32_t>(file(), "next_token")[0], drafts);
  const double l2 =
      difference(logits.prompt, golden<float>(file(), "mtp_logits_all")).relative_l2();
  std::printf("%s: relative L2 of mtp_logits_all %.4f, of draft_logits", GetParam(), l2);
  EXPECT_LE(l2, kBf16Tolerance);
  const auto expected = golden<float>(file(), "draft_logits");
  for (size_t i = 0; i < drafts.size(); ++i) {
    const auto& last = logits.steps[i];
    const auto exact = std::span(expected).subspan(i * last.size(), last.size());
    const double error = difference(last, exact).relative_l2();
    std::printf(" %.4f", error);
    EXPECT_LE(error, kBf16Tolerance);
    EXPECT_EQ(std::max_element(last.begin(), last.end()) - last.begin(), drafts[i]);
  }
  std::printf("\n");
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenGpuMtp, ::testing::Values("qwen3_5_mtp"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace weft::testing
