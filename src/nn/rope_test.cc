#include "nn/rope.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

namespace weft {
namespace {

TEST(Rope, DefaultFrequenciesAndTable) {
  const RopeSpec spec{.theta = 10000, .rotary_dim = 8};
  const std::vector<float> f = rope_inverse_frequencies(spec);
  ASSERT_EQ(f.size(), 4u);
  EXPECT_FLOAT_EQ(f[0], 1.0f);
  EXPECT_FLOAT_EQ(f[2], 0.01f);
  const Rope rope = Rope::create(spec, 5).value();
  EXPECT_FLOAT_EQ(rope.table().cos_sin.row<float>(3)[0], std::cos(3.0f));
  EXPECT_FLOAT_EQ(rope.table().cos_sin.row<float>(4)[2 * 1 + 1], std::sin(4 * f[1]));
}

TEST(Rope, Llama3StretchesOnlyLongWavelengths) {
  RopeSpec spec{.theta = 500000, .rotary_dim = 64};
  const std::vector<float> base = rope_inverse_frequencies(spec);
  spec.scaling = Llama3Scaling{
      .factor = 8, .low_freq_factor = 1, .high_freq_factor = 4, .original_positions = 8192};
  const std::vector<float> f = rope_inverse_frequencies(spec);
  for (size_t i = 0; i < f.size(); ++i) {
    const double wavelength = 2 * M_PI / base[i];
    if (wavelength < 8192.0 / 4) {
      EXPECT_EQ(f[i], base[i]);
    } else if (wavelength > 8192.0) {
      EXPECT_FLOAT_EQ(f[i], base[i] / 8);
    } else {
      EXPECT_LT(f[i], base[i]);
      EXPECT_GT(f[i], base[i] / 8);
    }
  }
}

TEST(Rope, YarnBlendsBetweenTheCorrectionDims) {
  RopeSpec spec{.theta = 1e6, .rotary_dim = 128};
  const std::vector<float> base = rope_inverse_frequencies(spec);
  YarnScaling yarn{.factor = 4, .original_positions = 32768};
  yarn.attention_factor = yarn_attention_factor(4, 0, 0);
  spec.scaling = yarn;
  const std::vector<float> f = rope_inverse_frequencies(spec);
  EXPECT_EQ(f.front(), base.front());
  EXPECT_FLOAT_EQ(f.back(), base.back() / 4);
  // Between the two, worked out by hand: low = floor(23.596) = 23, high = ceil(39.651) = 40.
  EXPECT_EQ(f[23], base[23]);
  EXPECT_LT(f[24], base[24]);
  EXPECT_GT(f[39], base[39] / 4 * 1.0001f);
  EXPECT_FLOAT_EQ(f[40], base[40] / 4);
  EXPECT_DOUBLE_EQ(rope_attention_factor(spec), 0.1 * std::log(4.0) + 1);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(40, 1, 1), 1.0);
  EXPECT_DOUBLE_EQ(yarn_attention_factor(40, 1, 0), 0.1 * std::log(40.0) + 1);
  // Without rounding the ramp begins at 23.596.
  yarn.truncate = false;
  spec.scaling = yarn;
  EXPECT_FLOAT_EQ(rope_inverse_frequencies(spec)[23], base[23]);
  EXPECT_GT(rope_inverse_frequencies(spec)[30], f[30]);
}

TEST(Rope, SectionsInTheirOrders) {
  RopeSpec spec{.rotary_dim = 64, .sections = {11, 11, 10}};
  std::vector<uint8_t> axes = rope_axes(spec);
  EXPECT_EQ(axes[10], 0);
  EXPECT_EQ(axes[11], 1);
  EXPECT_EQ(axes[22], 2);
  spec.section_order = SectionOrder::kInterleaved;
  axes = rope_axes(spec);
  EXPECT_EQ(axes[29], 2);
  EXPECT_EQ(axes[30], 0);
  EXPECT_EQ(axes[31], 1);  // the 11th of h; w has only 10
  EXPECT_EQ(std::count(axes.begin(), axes.end(), 0), 11);
  EXPECT_EQ(std::count(axes.begin(), axes.end(), 1), 11);
  spec = {.rotary_dim = 16, .sections = {2, 3, 3}, .section_order = SectionOrder::kAlternating};
  EXPECT_EQ(rope_axes(spec), (std::vector<uint8_t>{1, 2, 1, 2, 1, 2, 0, 0}));
  EXPECT_TRUE(spec.multimodal());
  EXPECT_FALSE(RopeSpec{}.multimodal());
}

TEST(Rope, PositionsOfPromptAndGeneratedTokens) {
  const std::vector<std::array<int32_t, 3>> prompt = {{0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {3, 3, 3}};
  EXPECT_EQ(position(prompt, -1, 2), (Position{1, 1, 2}));
  EXPECT_EQ(position(prompt, -1, 4), (Position{3, 3, 3}));
  EXPECT_EQ(position({}, 0, 7), (Position{7, 7, 7}));
}

}  // namespace
}  // namespace weft
