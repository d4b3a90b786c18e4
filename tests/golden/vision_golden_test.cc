#include <gtest/gtest.h>

#include <algorithm>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"
#include "tests/support/oracle.h"

// The image families against transformers: features of the vision tower, logits of a prompt with
// two images, and the greedy continuation (see the oracle's README).

namespace weft::testing {
namespace {

struct Backend {
  std::string name;
  const OpTable* ops;
};

std::vector<Backend> backends() {
  std::vector<Backend> out = {{"ref", &ref_ops()}};
  const CpuInfo cpu = cpu_info();
  for (const CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    if (cpu.supported && isa <= cpu.isa)
      out.push_back({std::string(cpu_isa_name(isa)), &cpu_ops(isa)});
  }
  return out;
}

constexpr double kFeatureTolerance = 1e-3;  // relative L2, f32
constexpr double kLogitTolerance = 5e-4;    // of the largest logit, f32
constexpr double kBf16Tolerance = 2e-2;     // relative L2

class VisionGolden : public ::testing::TestWithParam<std::tuple<std::string, size_t>> {
 protected:
  std::string dir() const { return oracle_dir() + "/models/" + std::get<0>(GetParam()); }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  std::unique_ptr<Driver> load(WeightFormat format) const {
    auto driver = Driver::load(
        dir(), {.ops = backends()[std::get<1>(GetParam())].ops,
                .format = format,
                .kv_format = format == WeightFormat::kF32 ? KvFormat::kF32 : KvFormat::kBf16,
                .images = true});
    EXPECT_TRUE(driver.ok()) << driver.error().message;
    return driver.ok() ? std::move(driver).value() : nullptr;
  }
  std::vector<VisionGrid> grids() const {
    const auto thw = golden<int32_t>(file(), "image_grid_thw");
    return {{thw[0], thw[1], thw[2]}, {thw[3], thw[4], thw[5]}};
  }
  /// The first out_hidden columns: what the merger gave.
  static std::vector<float> merged(const Driver& driver, const std::vector<float>& features) {
    const VisionSpec& spec = driver.model().vision()->spec();
    std::vector<float> out;
    for (size_t at = 0; at < features.size(); at += static_cast<size_t>(spec.feature_width())) {
      out.insert(out.end(), features.begin() + static_cast<int64_t>(at),
                 features.begin() + static_cast<int64_t>(at) + spec.out_hidden);
    }
    return out;
  }
  void place(Driver& driver, std::vector<float> features) const {
    const auto ids = golden<int32_t>(file(), "input_ids");
    const auto axes = golden<int32_t>(file(), "position_ids");
    std::vector<std::array<int32_t, 3>> positions;
    const size_t n = ids.size();
    for (size_t i = 0; i < n; ++i) positions.push_back({axes[i], axes[n + i], axes[2 * n + i]});
    driver.set_positions(positions, golden<int32_t>(file(), "rope_delta")[0]);
    driver.set_images(std::move(features), driver.model().vision()->spec().image_token);
  }
};

TEST_P(VisionGolden, FeaturesLogitsAndGreedyInF32) {
  const auto driver = load(WeightFormat::kF32);
  ASSERT_TRUE(driver);
  const auto features = driver->encode(grids(), golden<float>(file(), "pixel_values"));
  const auto expected_features = golden<float>(file(), "image_features");
  EXPECT_LE(difference(merged(*driver, features), expected_features).relative_l2(),
            kFeatureTolerance);
  const auto ids = golden<int32_t>(file(), "input_ids");
  place(*driver, features);
  const auto logits = driver->prefill(ids, 0);
  EXPECT_LE(difference(logits, golden<float>(file(), "logits")).relative_max(), kLogitTolerance);
  const auto greedy = golden<int32_t>(file(), "greedy");
  EXPECT_EQ(driver->greedy(logits, greedy.size()), greedy);
}

TEST_P(VisionGolden, Bf16) {
  const auto driver = load(WeightFormat::kBf16);
  ASSERT_TRUE(driver);
  const auto features = driver->encode(grids(), golden<float>(file(), "pixel_values"));
  EXPECT_LE(
      difference(merged(*driver, features), golden<float>(file(), "image_features")).relative_l2(),
      kBf16Tolerance);
  place(*driver, features);
  const auto logits = driver->prefill(golden<int32_t>(file(), "input_ids"), 0);
  // Rounding may send a row of a random model to another expert: the median row counts.
  const auto expected = golden<float>(file(), "logits");
  const auto vocab = static_cast<size_t>(driver->vocab());
  std::vector<double> rows;
  for (size_t at = 0; at < logits.size(); at += vocab) {
    rows.push_back(
        difference(std::span(logits).subspan(at, vocab), std::span(expected).subspan(at, vocab))
            .relative_l2());
  }
  std::sort(rows.begin(), rows.end());
  const bool experts = std::get<0>(GetParam()) == "qwen3_5_moe";
  EXPECT_LE(experts ? rows[rows.size() / 2] : rows.back(), kBf16Tolerance);
}

TEST_P(VisionGolden, AnImageDoesNotDependOnTheOthersOfItsPass) {
  const auto driver = load(WeightFormat::kBf16);
  ASSERT_TRUE(driver);
  const auto patches = golden<float>(file(), "pixel_values");
  const auto both = driver->encode(grids(), patches);
  const int64_t width = driver->model().vision()->spec().patch_values();
  size_t at = 0, token = 0;
  for (const VisionGrid& grid : grids()) {
    const size_t count = static_cast<size_t>(grid.patches() * width);
    const auto alone = driver->encode({&grid, 1}, std::span(patches).subspan(at, count));
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), both.begin() + static_cast<int64_t>(token)));
    at += count;
    token += alone.size();
  }
  EXPECT_EQ(token, both.size());
}

std::vector<std::tuple<std::string, size_t>> cases() {
  std::vector<std::tuple<std::string, size_t>> out;
  for (const char* name : {"qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"}) {
    for (size_t b = 0; b < backends().size(); ++b) out.emplace_back(name, b);
  }
  return out;
}

INSTANTIATE_TEST_SUITE_P(Images, VisionGolden, ::testing::ValuesIn(cases()),
                         [](const ::testing::TestParamInfo<std::tuple<std::string, size_t>>& info) {
                           return std::get<0>(info.param) + "_" +
                                  backends()[std::get<1>(info.param)].name;
                         });

}  // namespace
}  // namespace weft::testing
