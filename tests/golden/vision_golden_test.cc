#include "tests/golden/golden_case.h"
#include "tests/golden/vision_case.h"

// The image families against transformers: features of the vision tower, logits of a prompt with
// two images, and the greedy continuation (see the oracle's README).

namespace weft::testing {
namespace {

constexpr double kFeatureTolerance = 1e-3;  // relative L2, f32
constexpr double kLogitTolerance = 5e-4;    // of the largest logit, f32

class VisionGolden : public Golden {};

TEST_P(VisionGolden, FeaturesLogitsAndGreedyInF32) {
  const auto driver = load(WeightFormat::kF32, true);
  ASSERT_TRUE(driver);
  const auto features = driver->encode(image_grids(file()), golden<float>(file(), "pixel_values"));
  const auto expected_features = golden<float>(file(), "image_features");
  EXPECT_LE(difference(merged(*driver, features), expected_features).relative_l2(),
            kFeatureTolerance);
  place_images(*driver, file(), features);
  const auto logits = driver->prefill(golden<int32_t>(file(), "input_ids"), 0);
  EXPECT_LE(difference(logits, golden<float>(file(), "logits")).relative_max(), kLogitTolerance);
  const auto greedy = golden<int32_t>(file(), "greedy");
  EXPECT_EQ(driver->greedy(logits, greedy.size()), greedy);
}

TEST_P(VisionGolden, Bf16) {
  const auto driver = load(WeightFormat::kBf16, true);
  ASSERT_TRUE(driver);
  check_features_and_logits(*driver, file(), std::get<0>(GetParam()) == "qwen3_5_moe",
                            kBf16Tolerance);
}

TEST_P(VisionGolden, AnImageDoesNotDependOnTheOthersOfItsPass) {
  const auto driver = load(WeightFormat::kBf16, true);
  ASSERT_TRUE(driver);
  check_images_alone(*driver, file());
}

INSTANTIATE_TEST_SUITE_P(
    Images, VisionGolden,
    ::testing::ValuesIn(cases({"qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"})), case_name);

}  // namespace
}  // namespace weft::testing
