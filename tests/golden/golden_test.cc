#include <gtest/gtest.h>

#include <algorithm>

#include "tests/golden/golden_case.h"

// Every family's tiny checkpoint against the outputs of transformers (see the oracle's README).

namespace weft::testing {
namespace {

class GoldenText : public Golden {};

TEST_P(GoldenText, LogitsOfEveryPositionInF32) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto expected = golden<float>(file(), "logits");
  for (const size_t row : {0u, 1u}) {
    driver->reset();
    const auto logits = driver->prefill(std::span(ids).subspan(row * 33, 33), 0);
    const auto d =
        difference(logits, std::span(expected).subspan(row * logits.size(), logits.size()));
    EXPECT_LE(d.relative_max(), kF32Tolerance);
  }
}

TEST_P(GoldenText, LongPromptInOnePieceAndInChunks) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "long_ids");
  const auto expected = golden<float>(file(), "long_last4_logits");
  for (const int64_t chunk : {0, 64, 128, 192}) {
    driver->reset();
    const auto logits = driver->prefill(ids, chunk, 4);
    EXPECT_LE(difference(logits, expected).relative_max(), kF32Tolerance) << "chunk " << chunk;
  }
}

/// Whatever rows are asked, the last layer's other rows are not needed for them.
TEST_P(GoldenText, AskedRowsAreThoseOfAll) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto all = driver->prefill(std::span(ids).first(33), 0);
  for (const size_t count : {1u, 4u, 32u}) {
    driver->reset();
    const auto logits = driver->prefill(std::span(ids).first(33), 0, static_cast<int64_t>(count));
    EXPECT_EQ(logits, std::vector(all.end() - std::ssize(logits), all.end())) << count;
  }
}

TEST_P(GoldenText, GreedyContinuation) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto expected = golden<int32_t>(file(), "greedy");
  const auto logits = driver->prefill(std::span(ids).first(33), 0, 1);
  EXPECT_EQ(driver->greedy(logits, expected.size()), expected);
}

TEST_P(GoldenText, Bf16) {
  const auto driver = load(WeightFormat::kBf16);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto expected = golden<float>(file(), "logits");
  const auto logits = driver->prefill(std::span(ids).first(33), 0);
  EXPECT_LE(difference(logits, std::span(expected).first(logits.size())).relative_l2(),
            kBf16Tolerance);
  driver->reset();
  const auto long_logits = driver->prefill(golden<int32_t>(file(), "long_ids"), 64, 4);
  EXPECT_LE(difference(long_logits, golden<float>(file(), "long_last4_logits")).relative_l2(),
            kBf16Tolerance);
}

bool has_experts(const ModelSpec& spec) {
  return std::any_of(spec.layers.begin(), spec.layers.end(), [](const LayerSpec& layer) {
    return std::holds_alternative<MoeSpec>(layer.mlp);
  });
}

/// Weight-only int8 and int4: every backend holds the codes of the reference, so that only the
/// rounding of activations tells them apart. That may send a row of a random model to another
/// expert, so models with experts are judged by their median row.
TEST_P(GoldenText, QuantisedAgreesWithTheReference) {
  constexpr size_t kPrompt = 25, kDecoded = 8;
  const auto ids = golden<int32_t>(file(), "input_ids");
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    const auto run = [&](const OpTable* ops) {
      const auto driver = Driver::load(dir(), {.ops = ops, .format = format}).value();
      std::vector<float> all = driver->prefill(std::span(ids).first(kPrompt), 0);
      for (size_t i = kPrompt; i < kPrompt + kDecoded; ++i) {
        const std::vector<float> logits = driver->decode(ids[i]);
        all.insert(all.end(), logits.begin(), logits.end());
      }
      return all;
    };
    const auto ours = run(ops()), expected = run(&ref_ops());
    const size_t vocab = ours.size() / (kPrompt + kDecoded);
    std::vector<double> rows;
    for (size_t i = 0; i < ours.size(); i += vocab) {
      rows.push_back(
          difference(std::span(ours).subspan(i, vocab), std::span(expected).subspan(i, vocab))
              .relative_l2());
    }
    std::sort(rows.begin(), rows.end());
    const ModelSpec spec = parse_model(load_config(dir()).value().config).value();
    EXPECT_LE(has_experts(spec) ? rows[rows.size() / 2] : rows.back(), kBf16Tolerance)
        << weight_format_name(format);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenText,
                         ::testing::ValuesIn(cases({"qwen3", "qwen3_yarn", "qwen2", "llama3",
                                                    "qwen3_moe", "qwen3_next", "ernie4_5",
                                                    "ernie4_5_moe"})),
                         case_name);

/// Checkpoints with images: everything loads, and what stands before the first image is text.
class GoldenImage : public Golden {};

TEST_P(GoldenImage, TextBeforeTheFirstImageInF32) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const ModelSpec& spec = driver->model().spec();
  ASSERT_TRUE(spec.vision.has_value());
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto expected = golden<float>(file(), "logits");
  const size_t n = static_cast<size_t>(std::find(ids.begin(), ids.end(), spec.vision->image_token) -
                                       ids.begin());
  ASSERT_GT(n, 0u);
  ASSERT_LT(n, ids.size());
  const auto logits = driver->prefill(std::span(ids).first(n), 0);
  EXPECT_LE(difference(logits, std::span(expected).first(logits.size())).relative_max(),
            kF32Tolerance);
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenImage,
                         ::testing::ValuesIn(cases({"qwen3_5", "qwen3_5_moe"})), case_name);

class GoldenMtp : public Golden {};

TEST_P(GoldenMtp, ModelInF32) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto logits = driver->prefill(ids, 0);
  EXPECT_LE(difference(logits, golden<float>(file(), "logits")).relative_max(), kF32Tolerance);
  const auto expected = golden<int32_t>(file(), "greedy");
  EXPECT_EQ(driver->greedy(logits, expected.size()), expected);
}

TEST_P(GoldenMtp, DraftModuleInF32) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  ASSERT_TRUE(driver->model().spec().mtp.has_value());
  const auto drafts = golden<int32_t>(file(), "drafts");
  const auto logits = driver->draft(golden<int32_t>(file(), "input_ids"),
                                    golden<int32_t>(file(), "next_token")[0], drafts);
  EXPECT_LE(difference(logits.prompt, golden<float>(file(), "mtp_logits_all")).relative_max(),
            kF32Tolerance);
  const auto expected = golden<float>(file(), "draft_logits");
  for (size_t i = 0; i < drafts.size(); ++i) {
    const auto& last = logits.steps[i];
    const auto exact = std::span(expected).subspan(i * last.size(), last.size());
    EXPECT_LE(difference(last, exact).relative_max(), kF32Tolerance);
    EXPECT_EQ(std::max_element(last.begin(), last.end()) - last.begin(), drafts[i]);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenMtp, ::testing::ValuesIn(cases({"qwen3_5_mtp"})),
                         case_name);

}  // namespace
}  // namespace weft::testing
