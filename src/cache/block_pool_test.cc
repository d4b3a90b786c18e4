#include "cache/block_pool.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace weft {
namespace {

TEST(BlockPool, FreeBlocksComeBeforeCachedOnes) {
  BlockPool pool(3);
  const BlockId a = pool.allocate().block;
  pool.set_cached(a);
  pool.unref(a);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.num_evictable(), 1);
  EXPECT_FALSE(pool.allocate().evicted);
  EXPECT_FALSE(pool.allocate().evicted);
  const BlockPool::Allocation last = pool.allocate();
  EXPECT_TRUE(last.evicted);
  EXPECT_EQ(last.block, a);
  EXPECT_FALSE(pool.cached(a));
  EXPECT_EQ(pool.available(), 0);
  EXPECT_THROW(pool.allocate(), Panic);
  EXPECT_TRUE(pool.consistent());
}

TEST(BlockPool, EvictsTheLeastRecentlyUsed) {
  BlockPool pool(3);
  BlockId id[3];
  for (BlockId& b : id) b = pool.allocate().block;
  for (const BlockId b : id) pool.set_cached(b);
  pool.unref(id[1]);
  pool.unref(id[0]);
  pool.unref(id[2]);
  pool.touch(id[1]);
  pool.ref(id[0]);  // held again: out of reach
  EXPECT_EQ(pool.allocate().block, id[2]);
  EXPECT_EQ(pool.allocate().block, id[1]);
  EXPECT_EQ(pool.available(), 0);
  EXPECT_TRUE(pool.consistent());
}

TEST(BlockPool, SharedBlockStaysUntilItsLastOwnerLeaves) {
  BlockPool pool(2);
  const BlockId a = pool.allocate().block;
  pool.ref(a);
  EXPECT_EQ(pool.total_refs(), 2);
  pool.unref(a);
  EXPECT_EQ(pool.num_used(), 1);
  pool.unref(a);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_THROW(pool.unref(a), Panic) << "released twice";
  EXPECT_THROW(pool.ref(a), Panic) << "a free block has no content";
}

TEST(BlockPool, ForgettingACachedBlockFreesItOnlyWhenNobodyHoldsIt) {
  BlockPool pool(2);
  const BlockId a = pool.allocate().block;
  pool.set_cached(a);
  pool.clear_cached(a);
  EXPECT_EQ(pool.num_used(), 1);
  pool.set_cached(a);
  pool.unref(a);
  pool.clear_cached(a);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_TRUE(pool.consistent());
}

}  // namespace
}  // namespace weft
