#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <iterator>

#include "checkpoint/safetensors.h"
#include "media/positions.h"
#include "media/processing.h"
#include "tests/golden/compare.h"
#include "tests/support/oracle.h"

// Preprocessing and positions against the outputs of transformers (see the oracle's README).

namespace weft::testing {
namespace {

std::vector<uint8_t> read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

class MediaGolden : public ::testing::TestWithParam<const char*> {
 protected:
  std::string dir() const { return oracle_dir() + "/models/" + GetParam(); }
  SafetensorsFile file() const {
    return SafetensorsFile::open(dir() + "/golden.safetensors").value();
  }
  ImageProcessing processing() const {
    const std::vector<uint8_t> json = read_file(dir() + "/preprocessor_config.json");
    return parse_image_processing({reinterpret_cast<const char*>(json.data()), json.size()})
        .value();
  }
};

TEST_P(MediaGolden, PixelValuesAndGrids) {
  const ImageProcessing p = processing();
  const auto expected = golden<float>(file(), "pixel_values");
  const auto grids = golden<int32_t>(file(), "image_grid_thw");
  const auto values = sample_values(p);
  const size_t plane = static_cast<size_t>(p.temporal_patch_size * p.patch_size * p.patch_size);
  size_t at = 0;
  for (const size_t i : {0u, 1u}) {
    const auto bytes = read_file(dir() + "/image" + std::to_string(i) + ".png");
    const PatchImage got = make_patches(decode_image(bytes, {}).value(), p).value();
    EXPECT_EQ((std::vector<int32_t>{got.grid.t, got.grid.h, got.grid.w}),
              std::vector<int32_t>(grids.begin() + 3 * i, grids.begin() + 3 * i + 3));
    ASSERT_LE(at + got.patches.size(), expected.size());
    double largest = 0, sum = 0;
    for (size_t j = 0; j < got.patches.size(); ++j) {
      const size_t channel = j / plane % 3;
      const double levels =
          (values[channel * 256 + got.patches[j]] - expected[at + j]) * p.std[channel] * 255;
      largest = std::max(largest, std::abs(levels));
      sum += std::abs(levels);
    }
    // The oracle resized with torch's kernels, whose rounding may differ by a level.
    EXPECT_LE(largest, 2.0);
    EXPECT_LE(sum / static_cast<double>(got.patches.size()), 0.05);
    at += got.patches.size();
  }
  EXPECT_EQ(at, expected.size());
}

TEST_P(MediaGolden, PositionsAndDelta) {
  const auto ids = golden<int32_t>(file(), "input_ids");
  const auto grids = golden<int32_t>(file(), "image_grid_thw");
  const auto expected = golden<int32_t>(file(), "position_ids");
  const int32_t image_token = 250;
  std::vector<TokenGrid> images;
  auto at = ids.begin();
  for (const size_t i : {0u, 1u}) {
    at = std::find(at, ids.end(), image_token);
    images.push_back(
        {.first = at - ids.begin(), .h = grids[3 * i + 1] / 2, .w = grids[3 * i + 2] / 2});
    at += images.back().tokens();
  }
  const auto prompt_len = static_cast<int64_t>(ids.size());
  const PromptPositions got = prompt_positions(images, prompt_len);
  ASSERT_EQ(got.triples.size(), ids.size());
  for (size_t i = 0; i < ids.size(); ++i) {
    for (size_t axis = 0; axis < 3; ++axis) {
      EXPECT_EQ(got.triples[i][axis], expected[axis * ids.size() + i]) << i << " " << axis;
    }
  }
  EXPECT_EQ(got.rope_delta, golden<int32_t>(file(), "rope_delta")[0]);
}

INSTANTIATE_TEST_SUITE_P(Models, MediaGolden,
                         ::testing::Values("qwen2_5_vl", "qwen3_vl", "qwen3_5", "qwen3_5_moe"));

}  // namespace
}  // namespace weft::testing
