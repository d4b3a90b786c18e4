#pragma once

#include <algorithm>
#include <array>

#include "tests/golden/compare.h"
#include "tests/golden/driver.h"

// What the tests of the image families on the CPU and on a GPU share: two images in one prompt.

namespace weft::testing {

inline std::vector<VisionGrid> image_grids(const SafetensorsFile& file) {
  const auto thw = golden<int32_t>(file, "image_grid_thw");
  return {{thw[0], thw[1], thw[2]}, {thw[3], thw[4], thw[5]}};
}

/// The first out_hidden columns of the features: what the merger gave.
inline std::vector<float> merged(const Driver& driver, const std::vector<float>& features) {
  const VisionSpec& spec = driver.model().vision()->spec();
  std::vector<float> out;
  for (size_t at = 0; at < features.size(); at += static_cast<size_t>(spec.feature_width())) {
    const auto row = features.begin() + static_cast<int64_t>(at);
    out.insert(out.end(), row, row + spec.out_hidden);
  }
  return out;
}

/// Gives the driver the positions of the prompt and the features of its images.
inline void place_images(Driver& driver, const SafetensorsFile& file, std::vector<float> features) {
  const auto axes = golden<int32_t>(file, "position_ids");
  std::vector<std::array<int32_t, 3>> positions;
  const size_t n = axes.size() / 3;
  for (size_t i = 0; i < n; ++i) positions.push_back({axes[i], axes[n + i], axes[2 * n + i]});
  driver.set_positions(positions, golden<int32_t>(file, "rope_delta")[0]);
  driver.set_images(std::move(features), driver.model().vision()->spec().image_token);
}

/// In bf16: the features and the logits of every position within `tolerance` (relative L2). Of a
/// model with experts the median position counts, as rounding may send a row of a random model to
/// another expert.
inline void check_features_and_logits(Driver& driver, const SafetensorsFile& file, bool experts,
                                      double tolerance) {
  const auto features = driver.encode(image_grids(file), golden<float>(file, "pixel_values"));
  EXPECT_LE(
      difference(merged(driver, features), golden<float>(file, "image_features")).relative_l2(),
      tolerance);
  place_images(driver, file, features);
  const auto logits = driver.prefill(golden<int32_t>(file, "input_ids"), 0);
  const auto expected = golden<float>(file, "logits");
  const auto vocab = static_cast<size_t>(driver.vocab());
  std::vector<double> rows;
  for (size_t at = 0; at < logits.size(); at += vocab) {
    rows.push_back(
        difference(std::span(logits).subspan(at, vocab), std::span(expected).subspan(at, vocab))
            .relative_l2());
  }
  std::sort(rows.begin(), rows.end());
  EXPECT_LE(experts ? rows[rows.size() / 2] : rows.back(), tolerance);
}

/// The features of an image have the same bits alone as beside the other one.
inline void check_images_alone(Driver& driver, const SafetensorsFile& file) {
  const auto patches = golden<float>(file, "pixel_values");
  const auto both = driver.encode(image_grids(file), patches);
  const int64_t width = driver.model().vision()->spec().patch_values();
  size_t at = 0, token = 0;
  for (const VisionGrid& grid : image_grids(file)) {
    const size_t count = static_cast<size_t>(grid.patches() * width);
    const auto alone = driver.encode({&grid, 1}, std::span(patches).subspan(at, count));
    EXPECT_TRUE(std::equal(alone.begin(), alone.end(), both.begin() + static_cast<int64_t>(token)));
    at += count;
    token += alone.size();
  }
  EXPECT_EQ(token, both.size());
}

}  // namespace weft::testing
