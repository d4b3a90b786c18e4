#include "tensor/view.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace weft {
namespace {

TEST(TensorView, SlicesKeepStrides) {
  std::vector<float> data(24);
  const TensorView x(data.data(), DType::kF32, {4, 6});
  const TensorView part = x.rows(1, 3).columns(2, 6).split_last(2, 2);
  EXPECT_EQ(part.rank, 3);
  EXPECT_EQ(part.row<float>(1), data.data() + 2 * 6 + 2);
  EXPECT_EQ(part.stride[1], 2);
  EXPECT_FALSE(part.contiguous());
  EXPECT_TRUE(x.contiguous());
  EXPECT_THROW(x.rows(3, 5), Panic);
}

TEST(DType, Bf16RoundsToNearestEven) {
  EXPECT_EQ(float_to_bf16(1.0f), 0x3F80);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3F808000u)), 0x3F80);  // tie to even
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x3F818000u)), 0x3F82);
  EXPECT_EQ(float_to_bf16(std::bit_cast<float>(0x7F7FFFFFu)), 0x7F80);    // overflows to infinity
  EXPECT_NE(float_to_bf16(std::bit_cast<float>(0x7F800001u)) & 0x7F, 0);  // NaN stays NaN
}

TEST(DType, E4m3RoundsToTheNearestCodeAndTiesToTheEvenOne) {
  for (uint32_t bits = 0; bits < 65536; ++bits) {
    const float x = bf16_to_float(static_cast<bf16>(bits));
    const uint8_t got = float_to_e4m3(x);
    ASSERT_EQ(got >> 7, bits >> 15);
    if (std::isnan(x)) {
      ASSERT_EQ(got & 0x7F, 0x7F);
      continue;
    }
    int best = 0;
    for (int code = 0; code < 0x7F; ++code) {
      const auto distance = [&](int c) {
        return std::fabs(std::fabs(double{x}) - e4m3_to_float(static_cast<uint8_t>(c)));
      };
      const double here = distance(code), there = distance(best);
      if (here < there || (here == there && code % 2 == 0)) best = code;
    }
    if (std::isinf(x)) best = 0x7E;
    ASSERT_EQ(got & 0x7F, best) << x;
  }
  EXPECT_EQ(float_to_e4m3(std::nextafter(0x1p-6f, 0.0f)), 0x08);  // up to the smallest normal code
  EXPECT_EQ(float_to_e4m3(std::nextafter(0x1p-10f, 1.0f)), 0x01);
  EXPECT_EQ(float_to_e4m3(0x1p-10f), 0x00);  // tie to even
}

}  // namespace
}  // namespace weft
