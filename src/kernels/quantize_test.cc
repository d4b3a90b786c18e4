#include "kernels/quantize.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace weft {
namespace {

TEST(F16, EveryValueSurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = f16_to_float(static_cast<f16>(bits));
    if (std::isnan(x)) continue;
    EXPECT_EQ(float_to_f16(x), bits);
  }
}

TEST(F16, RoundsToNearestEven) {
  EXPECT_EQ(float_to_f16(1.0f + 0x1p-11f), float_to_f16(1.0f));  // a tie goes to the even one
  EXPECT_EQ(float_to_f16(1.0f + 3 * 0x1p-11f), float_to_f16(1.0f + 2 * 0x1p-10f));
  EXPECT_EQ(f16_to_float(float_to_f16(0x1p-25f)), 0.0f);
  EXPECT_EQ(f16_to_float(float_to_f16(0x1.8p-25f)), 0x1p-24f);
  EXPECT_EQ(f16_to_float(float_to_f16(65519.0f)), 65504.0f);
  EXPECT_TRUE(std::isinf(f16_to_float(float_to_f16(65520.0f))));
  EXPECT_TRUE(std::isnan(f16_to_float(float_to_f16(std::nanf("")))));
}

TEST(Quantize, Int8KeepsTheExtremeWeight) {
  float w[32] = {};
  w[3] = -12.7f;
  w[4] = 6.35f;
  int8_t codes[32];
  const float s = f16_to_float(quantize_group_int8(w, 32, codes));
  EXPECT_EQ(codes[3], -127);
  EXPECT_NEAR(codes[3] * s, -12.7f, 12.7f * 0x1p-10f);
  EXPECT_NEAR(codes[4], 63.5f, 0.6f);
  EXPECT_EQ(codes[0], 0);
}

TEST(Quantize, Int4GivesTheExtremeWeightCodeMinusEight) {
  float w[32] = {};
  w[0] = -1.0f;
  w[1] = 4.0f;   // the extreme: scale is -0.5
  w[2] = -4.0f;  // would need +8: clamps to 7
  int8_t codes[32];
  const float s = f16_to_float(quantize_group_int4(w, 32, codes));
  EXPECT_EQ(s, -0.5f);
  EXPECT_EQ(codes[0], 2);
  EXPECT_EQ(codes[1], -8);
  EXPECT_EQ(codes[2], 7);
}

TEST(Quantize, ZeroTinyAndBrokenGroupsAreDefined) {
  int8_t codes[32];
  float w[32] = {};
  EXPECT_EQ(quantize_group_int8(w, 32, codes), 0);
  EXPECT_EQ(codes[31], 0);
  w[0] = 1e-9f;  // its scale rounds to 0 in f16
  quantize_group_int4(w, 32, codes);
  EXPECT_EQ(codes[0], 0);
  w[0] = 3e38f;
  EXPECT_TRUE(std::isfinite(f16_to_float(quantize_group_int8(w, 32, codes))));
  EXPECT_EQ(codes[0], 127);
  w[0] = std::numeric_limits<float>::quiet_NaN();
  quantize_group_int8(w, 32, codes);
  EXPECT_EQ(codes[5], 0);
}

TEST(Quantize, AShortGroupIsPaddedWithZeroCodes) {
  const float w[3] = {1.0f, 2.0f, 3.0f};
  int8_t codes[32];
  quantize_group_int8(w, 3, codes);
  EXPECT_EQ(codes[2], 127);
  for (int i = 3; i < 32; ++i) EXPECT_EQ(codes[i], 0);
}

}  // namespace
}  // namespace weft
