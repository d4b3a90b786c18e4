#include <gtest/gtest.h>

#include <algorithm>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

// The image families on a GPU, in bf16, against transformers' float32: features of the tower and
// logits of a prompt with two images. Needs a GPU; CI compiles it.

namespace weft::testing {
namespace {

constexpr double kTolerance = 2e-2;  // relative L2

class VisionGoldenGpu : public ::testing::TestWithParam<const char*> {
 protected:
  SafetensorsFile file() const {
    return SafetensorsFile::open(oracle_dir() + "/models/" + GetParam() + "/golden.safetensors")
        .value();
  }
  std::vector<VisionGrid> grids() const {
    const auto thw = golden<int32_t>(file(), "image_grid_thw");
    return {{thw[0], thw[1], thw[2]}, {thw[3], thw[4], thw[5]}};
  }
};

TEST_P(VisionGoldenGpu, FeaturesAndLogits) {
  const auto loaded =
      Driver::load(oracle_dir() + "/models/" + GetParam(), {.ops = cuda_ops(),
                                                            .format = WeightFormat::kBf16,
                                                            .kv_format = KvFormat::kBf16,
                                                            .images = true});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  Driver& driver = **loaded;
  const auto features = driver.encode(grids(), golden<float>(file(), "pixel_values"));
  const VisionSpec& spec = driver.model().vision()->spec();
  std::vector<float> merged;
  for (size_t at = 0; at < features.size(); at += static_cast<size_t>(spec.feature_width())) {
    const auto row = features.begin() + static_cast<int64_t>(at);
    merged.insert(merged.end(), row, row + spec.out_hidden);
  }
  EXPECT_LE(difference(merged, golden<float>(file(), "image_features")).relative_l2(), kTolerance);

  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto axes = golden<int32_t>(file(), "position_ids");
  std::vector<std::array<int32_t, 3>> positions;
  const size_t n = ids.size();
  for (size_t i = 0; i < n; ++i) positions.push_back({axes[i], axes[n + i], axes[2 * n + i]});
  driver.set_positions(positions, golden<int32_t>(file(), "rope_delta")[0]);
  driver.set_images(features, spec.image_token);
  const auto logits = driver.prefill(ids, 0);
  // Rounding may send a row of a random model to another expert: the median row counts there.
  const auto expected = golden<float>(file(), "logits");
  const auto vocab = static_cast<size_t>(driver.vocab());
  std::vector<double> rows;
  for (size_t at = 0; at < logits.size(); at += vocab) {
    rows.push_back(
        difference(std::span(logits).subspan(at, vocab), std::span(expected).subspan(at, vocab))
            .relative_l2());
  }
  std::sort(rows.begin(), rows.end());
  const bool experts = std::string_view(GetParam()) == "qwen3_5_moe";
  EXPECT_LE(experts ? rows[rows.size() / 2] : rows.back(), kTolerance);
}

TEST_P(VisionGoldenGpu, AnImageDoesNotDependOnTheOthersOfItsPass) {
  const auto loaded =
      Driver::load(oracle_dir() + "/models/" + GetParam(), {.ops = cuda_ops(),
                                                            .format = WeightFormat::kBf16,
                                                            .kv_format = KvFormat::kBf16,
                                                            .images = true});
  ASSERT_TRUE(loaded.ok()) << loaded.error().message;
  Driver& driver = **loaded;
  const auto patches = golden<float>(file(), "pixel_values");
  const auto both = driver.encode(grids(), patches);
  const int64_t width = driver.model().vision()->spec().patch_values();
  size_t at = 0, token = 0;
  for (const VisionGrid& grid : grids()) {
    const size_t count = static_cast<size_t>(grid.patches() * width);
    const auto alone = driver.encode({&grid, 1}, std::span(patches).subspan(at, count));
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), both.begin() + static_cast<int64_t>(token)));
    at += count;
    token += alone.size();
  }
}

INSTANTIATE_TEST_SUITE_P(Images, VisionGoldenGpu,
                         ::testing::Values("qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"));

}  // namespace
}  // namespace weft::testing
