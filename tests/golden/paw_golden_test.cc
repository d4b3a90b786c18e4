#include <gtest/gtest.h>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/golden/golden_case.h"
#include "tests/support/oracle.h"

// Elastic-Attention: what heads see of a prompt is what the reference's routers and estimates say,
// and the logits follow (docs/kernels/elastic.md).

namespace weft::testing {
namespace {

constexpr double kRouterTolerance = 1e-4;
constexpr double kRoutedTolerance = 5e-4;  // of the largest logit

class GoldenPaw : public Golden {
 protected:
  void SetUp() override {
    if (!oracle_has("models/" + std::get<0>(GetParam()))) GTEST_SKIP() << "not packed";
  }
  std::unique_ptr<Driver> load_with(const PrefillOptions& prefill,
                                    WeightFormat format = WeightFormat::kF32) const {
    auto driver = Driver::load(
        dir(), {.ops = backends()[std::get<1>(GetParam())].ops,
                .format = format,
                .kv_format = format == WeightFormat::kF32 ? KvFormat::kF32 : KvFormat::kBf16,
                .prefill = prefill});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
};

TEST_P(GoldenPaw, DensePrefillInF32) {
  const auto driver = load_with({.kind = PrefillOptions::Kind::kDense});
  ASSERT_TRUE(driver);
  const auto logits = driver->prefill(golden<int32_t>(file(), "input_ids"), 192, 8);
  const auto expected = golden<float>(file(), "dense_logits_last8");
  EXPECT_LE(difference(logits, expected).relative_max(), kF32Tolerance);
}

TEST_P(GoldenPaw, RoutedPrefillInOnePieceAndLayerByLayer) {
  const auto driver = load_with({});
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto router = golden<float>(file(), "router_logits");
  const auto kinds = golden<int32_t>(file(), "head_types");
  const auto blocks = golden<uint8_t>(file(), "blocks");
  const auto expected = golden<float>(file(), "logits_last8");
  std::vector<float> whole;
  for (const int64_t piece : {0, 128, 640}) {
    if (ops() == &ref_ops() && piece > 0) break;  // slow
    driver->reset();
    PlanRecord record{.num_blocks = (std::ssize(ids) + 127) / 128};
    driver->set_record(&record);
    const auto logits = driver->prefill(ids, piece, 8);
    driver->set_record(nullptr);
    EXPECT_LE(difference(logits, expected).relative_max(), kRoutedTolerance) << "piece " << piece;
    ASSERT_EQ(record.layers.size(), driver->model().spec().layers.size());
    size_t at_logit = 0, at_kind = 0, at_block = 0;
    for (size_t layer = 0; layer < record.layers.size(); ++layer) {
      const PlanRecord::Layer& plan = record.layers[layer];
      for (const float logit : plan.logits) {
        EXPECT_NEAR(logit, router[at_logit++], kRouterTolerance) << "layer " << layer;
      }
      for (const int32_t kind : plan.kinds) EXPECT_EQ(kind, kinds[at_kind++]) << "layer " << layer;
      for (const uint8_t block : plan.blocks) {
        EXPECT_EQ(block, blocks[at_block++]) << "layer " << layer;
      }
    }
    EXPECT_EQ(at_logit, router.size());
    EXPECT_EQ(at_kind, kinds.size());
    EXPECT_EQ(at_block, blocks.size());
    // Pieces don't show: the same bits.
    if (whole.empty()) whole = logits;
    EXPECT_EQ(logits, whole) << "piece " << piece;
    const auto greedy = golden<int32_t>(file(), "greedy");
    EXPECT_EQ(driver->greedy(logits, greedy.size()), greedy);
  }
}

INSTANTIATE_TEST_SUITE_P(Families, GoldenPaw,
                         ::testing::ValuesIn(cases({"pawqwen3_full_xattn",
                                                    "pawqwen3_full_streaming",
                                                    "pawqwen3_xattn_streaming"})),
                         case_name);

/// A prompt under XAttention without a router, in pieces that are multiples of 128.
TEST_P(GoldenPaw, ChunksOfXattnKeepTheBits) {
  if (ops() == &ref_ops()) GTEST_SKIP() << "slow";
  const auto driver = load_with({.kind = PrefillOptions::Kind::kXattn, .threshold = 0.6f});
  ASSERT_TRUE(driver);
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto whole = driver->prefill(ids, 0, 8);
  for (const int64_t chunk : {128, 384}) {
    driver->reset();
    EXPECT_EQ(driver->prefill(ids, chunk, 8), whole);
  }
  const auto everything = load_with({.kind = PrefillOptions::Kind::kXattn, .threshold = 1.0f});
  const auto dense = load_with({.kind = PrefillOptions::Kind::kDense});
  ASSERT_TRUE(everything && dense);
  const auto dense_logits = dense->prefill(ids, 0, 8);
  EXPECT_EQ(everything->prefill(ids, 128, 8), dense_logits);
  EXPECT_NE(whole, dense_logits);
}

}  // namespace
}  // namespace weft::testing
