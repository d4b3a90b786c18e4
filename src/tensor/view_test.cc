#include "tensor/view.h"

#include <gtest/gtest.h>

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

}  // namespace
}  // namespace weft
