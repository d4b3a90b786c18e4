#include "cache/state_pool.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace weft {
namespace {

SlotId cached_slot(StatePool& pool, StateCheckpoint checkpoint) {
  const SlotId slot = pool.allocate(false).slot;
  pool.cache(slot, checkpoint);
  pool.unref(slot);
  return slot;
}

TEST(StatePool, PromotedSlotStaysWithItsReaderAndInTheCache) {
  StatePool pool(2);
  const SlotId live = pool.allocate(false).slot;
  pool.cache(live, {.block = BlockId{7}, .position = 64});
  EXPECT_EQ(pool.num_evictable(), 0) << "the sequence still reads it";
  const SlotId fresh = pool.allocate(false).slot;
  EXPECT_NE(fresh, live);
  EXPECT_FALSE(pool.allocate(false).slot.valid()) << "nothing may be evicted";
  pool.unref(live);
  const StatePool::Allocation next = pool.allocate(false);
  EXPECT_EQ(next.slot, live);
  EXPECT_EQ(next.evicted, BlockId{7});
  EXPECT_TRUE(pool.consistent());
}

TEST(StatePool, EvictsTheSmallestSavingForItsAge) {
  StatePool pool(3);
  cached_slot(pool, {.block = BlockId{0}, .position = 1024, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{1}, .position = 64, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{2}, .position = 64, .kind = CheckpointKind::kPlanned});
  EXPECT_EQ(pool.allocate(false).evicted, BlockId{1}) << "as small as 2, but older";
  EXPECT_EQ(pool.allocate(false).evicted, BlockId{2});
  EXPECT_EQ(pool.allocate(false).evicted, BlockId{0});
}

TEST(StatePool, DenseChainIsThinnedNotCut) {
  // Every dense checkpoint closes a gap of 64; when the first goes, the second closes 128 and is
  // worth more than the third, though it is older.
  StatePool pool(6);
  SlotId parent;
  for (int i = 1; i <= 6; ++i) {
    parent = cached_slot(pool, {.block = BlockId{i}, .position = 64 * i, .parent = parent});
  }
  std::vector<int> evicted;
  for (int i = 0; i < 2; ++i) evicted.push_back(pool.allocate(false).evicted.value);
  EXPECT_EQ(evicted, (std::vector<int>{1, 3}));
  EXPECT_TRUE(pool.consistent());
}

TEST(StatePool, DenseCheckpointsNeverDisplacePlannedOnes) {
  StatePool pool(2);
  const SlotId planned =
      cached_slot(pool, {.block = BlockId{0}, .position = 64, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{1}, .position = 128, .parent = planned});
  EXPECT_EQ(pool.allocate(/*dense_only=*/true).evicted, BlockId{1});
  EXPECT_FALSE(pool.allocate(/*dense_only=*/true).slot.valid());
  EXPECT_EQ(pool.allocate(/*dense_only=*/false).slot, planned);
}

TEST(StatePool, AHitMakesADenseCheckpointPlanned) {
  StatePool pool(1);
  const SlotId slot = cached_slot(pool, {.block = BlockId{0}, .position = 64});
  pool.touch(slot);
  EXPECT_FALSE(pool.allocate(/*dense_only=*/true).slot.valid());
  pool.uncache(slot);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_THROW(pool.unref(slot), Panic) << "released twice";
}

}  // namespace
}  // namespace weft
