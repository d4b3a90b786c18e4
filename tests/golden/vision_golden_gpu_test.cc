#include <gtest/gtest.h>

#include <memory>

#include "tests/golden/vision_case.h"
#include "tests/support/oracle.h"

// The image families on a GPU, in bf16, against transformers' float32: features of the tower and
// logits of a prompt with two images. Needs a GPU; CI compiles it.

namespace weft::testing {
namespace {

class VisionGoldenGpu : public ::testing::TestWithParam<const char*> {
 protected:
  std::string dir() const { return oracle_dir() + "/models/" + GetParam(); }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  std::unique_ptr<Driver> load() const {
    auto driver = Driver::load(dir(), {.ops = cuda_ops(),
                                       .format = WeightFormat::kBf16,
                                       .kv_format = KvFormat::kBf16,
                                       .images = true});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
};

TEST_P(VisionGoldenGpu, FeaturesAndLogits) {
  const auto driver = load();
  ASSERT_TRUE(driver);
  check_features_and_logits(*driver, file(), std::string_view(GetParam()) == "qwen3_5_moe",
                            kBf16Tolerance);
}

TEST_P(VisionGoldenGpu, AnImageDoesNotDependOnTheOthersOfItsPass) {
  const auto driver = load();
  ASSERT_TRUE(driver);
  check_images_alone(*driver, file());
}

INSTANTIATE_TEST_SUITE_P(Images, VisionGoldenGpu,
                         ::testing::Values("qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"));

}  // namespace
}  // namespace weft::testing
