#include "cache/state_pool.h"

#include <gtest/gtest.h>

#include "base/check.h"

namespace weft {
namespace {

SlotId cached_slot(StatePool& pool, StateCheckpoint checkpoint) {
  const SlotId slot = pool.allocate().slot;
  pool.cache(slot, checkpoint);
  pool.unref(slot);
  return slot;
}

TEST(StatePool, PromotedSlotStaysWithItsReaderAndInTheCache) {
  StatePool pool(2);
  const SlotId live = pool.allocate().slot;
  pool.cache(live, {.block = BlockId{7}, .position = 64});
  EXPECT_EQ(pool.num_evictable(), 0) << "the sequence still reads it";
  const SlotId fresh = pool.allocate().slot;
  EXPECT_NE(fresh, live);
  EXPECT_FALSE(pool.allocate().slot.valid()) << "nothing may be evicted";
  pool.unref(live);
  const StatePool::Allocation next = pool.allocate();
  EXPECT_EQ(next.slot, live);
  EXPECT_EQ(next.evicted, BlockId{7});
  EXPECT_TRUE(pool.consistent());
}

TEST(StatePool, EvictsTheSmallestSavingForItsAge) {
  StatePool pool(3);
  cached_slot(pool, {.block = BlockId{0}, .position = 1024, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{1}, .position = 64, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{2}, .position = 64, .kind = CheckpointKind::kPlanned});
  EXPECT_EQ(pool.allocate().evicted, BlockId{1}) << "as small as 2, but older";
  EXPECT_EQ(pool.allocate().evicted, BlockId{2});
  EXPECT_EQ(pool.allocate().evicted, BlockId{0});
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
  for (int i = 0; i < 2; ++i) evicted.push_back(pool.allocate().evicted.value);
  EXPECT_EQ(evicted, (std::vector<int>{1, 3}));
  EXPECT_TRUE(pool.consistent());
}

TEST(StatePool, DenseCheckpointsNeverDisplacePlannedOnes) {
  StatePool pool(2);
  const SlotId planned =
      cached_slot(pool, {.block = BlockId{0}, .position = 64, .kind = CheckpointKind::kPlanned});
  cached_slot(pool, {.block = BlockId{1}, .position = 128, .parent = planned});
  EXPECT_EQ(pool.allocate_for_checkpoint(CheckpointKind::kDense, 4096).evicted, BlockId{1});
  EXPECT_FALSE(pool.allocate_for_checkpoint(CheckpointKind::kDense, 4096).slot.valid());
  EXPECT_EQ(pool.allocate().slot, planned);
}

TEST(StatePool, ACheckpointDisplacesOnlyOneWorthLess) {
  StatePool pool(1);
  cached_slot(pool, {.block = BlockId{0}, .position = 640, .kind = CheckpointKind::kProven});
  const auto planned = CheckpointKind::kPlanned;
  EXPECT_FALSE(pool.allocate_for_checkpoint(planned, 640).slot.valid());
  EXPECT_FALSE(pool.allocate_for_checkpoint(planned, 640).slot.valid());
  // Each refusal ages it: by now it is worth 4 * 640 / 3.
  EXPECT_TRUE(pool.allocate_for_checkpoint(planned, 854).slot.valid());
}

TEST(StatePool, AHitOutweighsADeeperPrefixNobodyShared) {
  StatePool pool(2);
  const SlotId shared =
      cached_slot(pool, {.block = BlockId{0}, .position = 640, .kind = CheckpointKind::kPlanned});
  pool.touch(shared);
  cached_slot(pool, {.block = BlockId{1}, .position = 960, .kind = CheckpointKind::kPlanned});
  pool.raise(shared, CheckpointKind::kPlanned);  // never lowers
  EXPECT_EQ(pool.allocate().evicted, BlockId{1});
}

TEST(StatePool, AHitSavesADenseCheckpointFromDenseOnes) {
  StatePool pool(1);
  const SlotId slot = cached_slot(pool, {.block = BlockId{0}, .position = 64});
  pool.touch(slot);
  EXPECT_FALSE(pool.allocate_for_checkpoint(CheckpointKind::kDense, 4096).slot.valid());
  pool.uncache(slot);
  EXPECT_EQ(pool.num_free(), 1);
  EXPECT_THROW(pool.unref(slot), Panic) << "released twice";
}

}  // namespace
}  // namespace weft
