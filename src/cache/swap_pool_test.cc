#include "cache/swap_pool.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(SwapPool, GivesAllOrNothing) {
  SwapPool pool(5, 1);
  SwapHold a, b, c;
  ASSERT_TRUE(pool.take(3, true, a));
  EXPECT_EQ(a.blocks, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_EQ(a.slot, 0);
  EXPECT_FALSE(pool.take(3, false, b));  // too few blocks
  EXPECT_FALSE(pool.take(1, true, b));   // no slot
  EXPECT_TRUE(b.empty());
  EXPECT_EQ(pool.free_blocks(), 2);
  ASSERT_TRUE(pool.take(2, false, b));
  EXPECT_EQ(b.slot, -1);
  EXPECT_EQ(pool.free_blocks(), 0);
  EXPECT_EQ(pool.free_slots(), 0);
  pool.give_back(a);
  EXPECT_TRUE(a.empty());
  EXPECT_EQ(pool.free_blocks(), 3);
  ASSERT_TRUE(pool.take(3, true, c));
  pool.give_back(c);
  pool.give_back(b);
  EXPECT_EQ(pool.free_blocks(), 5);
  EXPECT_EQ(pool.free_slots(), 1);
}

}  // namespace
}  // namespace weft
