#include "nn/vision_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

namespace weft {
namespace {

using testing::ElementsAre;

std::vector<int32_t> counting(size_t n) {
  std::vector<int32_t> out(n);
  std::iota(out.begin(), out.end(), 0);
  return out;
}

TEST(VisionPlan, WithoutWindowsPatchesStayInTheirOrder) {
  const VisionSpec spec{.num_positions = 16};
  const VisionGrid grids[] = {{1, 2, 4}, {2, 2, 2}};
  VisionPlan plan;
  for (int again = 0; again < 2; ++again) {  // its memory is used again
    plan_vision(spec, grids, plan);
    EXPECT_EQ(plan.source, counting(16));
    EXPECT_THAT(plan.frames, ElementsAre(0, 8, 12, 16));
    EXPECT_TRUE(plan.windows.empty());
    EXPECT_TRUE(plan.order.empty());
    // Merge blocks: (row, column) 00 01 10 11, then 02 03 12 13.
    EXPECT_THAT(std::vector<int32_t>(plan.positions.begin(), plan.positions.begin() + 16),
                ElementsAre(0, 0, 0, 1, 1, 0, 1, 1, 0, 2, 0, 3, 1, 2, 1, 3));
    EXPECT_EQ(plan.grid_ids.size(), 64u);
  }
}

TEST(VisionPlan, LearnedPositionsLieBetweenFourOfTheGrid) {
  const VisionSpec spec{.num_positions = 16};  // 4 x 4
  const VisionGrid grid{1, 2, 8};
  VisionPlan plan;
  plan_vision(spec, {&grid, 1}, plan);
  for (size_t i = 0; i < 16; ++i) {
    float sum = 0, row = 0, column = 0;
    for (size_t j = 0; j < 4; ++j) {
      const int32_t id = plan.grid_ids[4 * i + j];
      ASSERT_TRUE(id >= 0 && id < 16);
      const float weight = plan.grid_weights[4 * i + j];
      sum += weight;
      const int32_t id_row = id / 4, id_column = id % 4;
      row += weight * static_cast<float>(id_row);
      column += weight * static_cast<float>(id_column);
    }
    EXPECT_FLOAT_EQ(sum, 1);
    // Ends on ends: position i of n lies at i (side - 1) / (n - 1).
    EXPECT_NEAR(row, plan.positions[2 * i] * 3.0, 1e-5);
    EXPECT_NEAR(column, plan.positions[2 * i + 1] * 3.0 / 7, 1e-5);
  }
}

TEST(VisionPlan, WindowsAreCutFromTheCornerAndPutBack) {
  const VisionSpec spec{.gated = true, .window = 2};
  const VisionGrid grid{1, 4, 6};  // 2 x 3 blocks: a window of 2 x 2 and one of 2 x 1
  VisionPlan plan;
  plan_vision(spec, {&grid, 1}, plan);
  EXPECT_THAT(plan.frames, ElementsAre(0, 24));
  EXPECT_THAT(plan.windows, ElementsAre(0, 16, 24));
  EXPECT_THAT(plan.order, ElementsAre(0, 1, 4, 2, 3, 5));
  std::vector<int32_t> blocks;
  for (size_t i = 0; i < 24; i += 4) blocks.push_back(plan.source[i] / 4);
  EXPECT_THAT(blocks, ElementsAre(0, 1, 3, 4, 2, 5));
  EXPECT_TRUE(plan.grid_ids.empty());
}

}  // namespace
}  // namespace weft
