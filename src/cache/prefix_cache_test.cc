#include "cache/prefix_cache.h"

#include <gtest/gtest.h>

#include <map>
#include <numeric>
#include <random>

#include "cache/audit.h"

namespace weft {
namespace {

constexpr int kBlock = 64;

/// A sequence's tokens with the hashes of its full blocks.
struct Prefix {
  Prefix(const PrefixIndex& index, std::vector<int32_t> ids, const std::string& salt = {})
      : tokens(std::move(ids)) {
    hashes.push_back(index.root(salt));
    for (size_t i = 0; (i + 1) * kBlock <= tokens.size(); ++i) {
      hashes.push_back(index.block_hash(hashes[i], std::span(tokens).subspan(i * kBlock, kBlock)));
    }
  }
  PrefixView view() const { return {tokens, hashes}; }
  std::vector<int32_t> tokens;
  std::vector<Hash128> hashes;
};

std::vector<int32_t> text(int length, int first = 0) {
  std::vector<int32_t> tokens(static_cast<size_t>(length));
  std::iota(tokens.begin(), tokens.end(), first);
  return tokens;
}

std::vector<BlockId> fill(PrefixCache& cache, const Prefix& prefix) {
  std::vector<BlockId> blocks;
  uint64_t twin = 0;
  for (size_t i = 0; i + 1 < prefix.hashes.size(); ++i) {
    blocks.push_back(cache.allocate_block());
    EXPECT_TRUE(cache.register_block(prefix.view(), static_cast<int>(i), blocks.back(), twin));
  }
  return blocks;
}

TEST(PrefixCache, FindsThePrefixInOrderOnly) {
  PrefixCache cache({.num_blocks = 8, .hash_key = 1});
  const Prefix a(cache.index(), text(256));
  const std::vector<BlockId> blocks = fill(cache, a);
  EXPECT_EQ(cache.lookup(a.view(), 100).blocks, 4);
  EXPECT_EQ(std::vector(cache.matched().begin(), cache.matched().end()), blocks);
  EXPECT_EQ(cache.lookup(a.view(), 3).blocks, 3);
  std::vector<int32_t> other = text(256);
  other[130] = 9999;
  EXPECT_EQ(cache.lookup(Prefix(cache.index(), other).view(), 100).blocks, 2);
  // The same tokens behind another beginning are another block.
  EXPECT_EQ(cache.lookup(Prefix(cache.index(), text(64, 64)).view(), 100).blocks, 0);
}

TEST(PrefixCache, EqualBlocksBehindDifferentPrefixesAreBothCached) {
  PrefixCache cache({.num_blocks = 8, .hash_key = 1});
  std::vector<int32_t> tokens = text(128);
  const Prefix a(cache.index(), tokens);
  tokens[0] = 7777;
  const Prefix b(cache.index(), tokens);
  fill(cache, a);
  fill(cache, b);
  EXPECT_EQ(cache.lookup(a.view(), 9).blocks, 2);
  EXPECT_EQ(cache.lookup(b.view(), 9).blocks, 2);
}

/// A63: where nearly all hashes collide, a hit is still of the very tokens before it; blocks that
/// are evicted and come again in between included.
TEST(PrefixCache, CollidingHashesNeverShareABlock) {
  for (const int hash_bits : {0, 1, 2, 3, 5, 8}) {
    PrefixCache cache({.num_blocks = 9, .hash_key = 1, .hash_bits = hash_bits});
    std::map<BlockId, std::vector<int32_t>> computed;  // tokens up to the end of the block
    std::mt19937 random(static_cast<uint32_t>(hash_bits));
    int hits = 0;
    for (int round = 0; round < 20'000; ++round) {
      std::vector<int32_t> tokens;
      for (size_t n = 1 + random() % 4; n > 0; --n) {
        const std::vector<int32_t> block = text(kBlock, static_cast<int>(random() % 3));
        tokens.insert(tokens.end(), block.begin(), block.end());
      }
      const Prefix prefix(cache.index(), tokens);
      std::vector<BlockId> held;
      const int num_hits = cache.lookup(prefix.view(), 9).blocks;
      for (const BlockId block : cache.matched()) {
        const std::vector<int32_t>& content = computed.at(block);
        ASSERT_EQ(content, std::vector(tokens.begin(), tokens.begin() + std::ssize(content)));
        ASSERT_EQ(std::ssize(content), std::ssize(held) * kBlock + kBlock);
        held.push_back(block);
        cache.ref_block(block);
        ++hits;
      }
      uint64_t twin = 0;
      // Now and then computed again beside what is cached, as two that come at once do.
      const bool alone = random() % 4 == 0;
      for (int i = alone ? 0 : num_hits; i < std::ssize(tokens) / kBlock; ++i) {
        if (alone && i < num_hits) cache.unref_block(held[static_cast<size_t>(i)]);
        const BlockId block = cache.allocate_block();
        computed[block] = {tokens.begin(), tokens.begin() + (i + 1) * kBlock};
        held.resize(std::max(held.size(), static_cast<size_t>(i) + 1));
        held[static_cast<size_t>(i)] = block;
        PrefixView view = prefix.view();
        view.blocks = std::span(held).first(static_cast<size_t>(i) + 1);
        cache.register_block(view, i, block, twin);
      }
      for (auto it = held.rbegin(); it != held.rend(); ++it) cache.unref_block(*it);
    }
    EXPECT_GT(hits, 200) << hash_bits << " bits";
    const std::vector<int> nobody(9, 0);
    EXPECT_EQ(audit(cache, nobody, {}), "");
  }
}

TEST(PrefixCache, SaltSeparates) {
  PrefixCache cache({.num_blocks = 8, .hash_key = 1});
  fill(cache, Prefix(cache.index(), text(128), "alice"));
  EXPECT_EQ(cache.lookup(Prefix(cache.index(), text(128), "alice").view(), 9).blocks, 2);
  EXPECT_EQ(cache.lookup(Prefix(cache.index(), text(128), "bob").view(), 9).blocks, 0);
  EXPECT_EQ(cache.lookup(Prefix(cache.index(), text(128)).view(), 9).blocks, 0);
}

TEST(PrefixIndex, KeyAndImageContentEnterTheHash) {
  const PrefixIndex one(1, 4, kBlock);
  const PrefixIndex two(2, 4, kBlock);
  const std::vector<int32_t> tokens = text(kBlock);
  EXPECT_NE(one.block_hash({}, tokens).lo, two.block_hash({}, tokens).lo);
  EXPECT_NE(one.block_hash({}, tokens).lo, one.block_hash({}, tokens, Hash128{3, 4}).lo);
  EXPECT_NE(one.block_hash({}, tokens, {3, 4}).lo, one.block_hash({}, tokens, {3, 5}).lo);
}

TEST(PrefixIndex, EqualHashesAloneShareNothing) {
  PrefixIndex index(1, 4, kBlock);
  const std::vector<int32_t> tokens = text(kBlock);
  std::vector<int32_t> forged = tokens;
  forged[63] ^= 1;
  const BlockKey key{.hash = {5, 6}, .parent = {1, 2}, .tokens = tokens, .extra = {}};
  ASSERT_TRUE(index.insert(key, BlockId{2}));
  EXPECT_EQ(index.find(key), BlockId{2});
  BlockKey collision = key;
  collision.tokens = forged;
  EXPECT_FALSE(index.find(collision).valid()) << "another text";
  EXPECT_FALSE(index.insert(collision, BlockId{3}));
  collision = key;
  collision.parent = {1, 3};
  EXPECT_FALSE(index.find(collision).valid()) << "behind another prefix";
  collision = key;
  collision.extra = {9, 9};
  EXPECT_FALSE(index.find(collision).valid()) << "another image";
  index.erase(BlockId{2});
  EXPECT_FALSE(index.find(key).valid());
}

TEST(PrefixCache, StateHitIsTheDeepestCheckpointWithinTheKvHit) {
  PrefixCache cache({.num_blocks = 8, .num_slots = 4, .hash_key = 1});
  const Prefix a(cache.index(), text(256));
  fill(cache, a);
  EXPECT_EQ(cache.lookup(a.view(), 9).blocks, 0) << "no state, no hit";
  EXPECT_EQ(cache.lookup(a.view(), 9).kv_blocks, 4);
  const SlotId at64 = cache.allocate_slot();
  const SlotId at192 = cache.allocate_slot();
  ASSERT_TRUE(cache.register_checkpoint(a.view(), 64, at64, CheckpointKind::kDense));
  ASSERT_TRUE(cache.register_checkpoint(a.view(), 192, at192, CheckpointKind::kDense));
  EXPECT_EQ(cache.slots().checkpoint(at192).parent, at64);
  const SlotId again = cache.allocate_slot();
  EXPECT_FALSE(cache.register_checkpoint(a.view(), 192, again, CheckpointKind::kDense));
  EXPECT_EQ(cache.lookup(a.view(), 9).state, at192);
  EXPECT_EQ(cache.lookup(a.view(), 9).blocks, 3);
  EXPECT_EQ(cache.lookup(a.view(), 2).state, at64);
}

TEST(PrefixCache, EvictingABlockDropsItsCheckpoint) {
  PrefixCache cache({.num_blocks = 1, .num_slots = 1, .hash_key = 1});
  const Prefix a(cache.index(), text(64));
  const BlockId block = fill(cache, a)[0];
  const SlotId slot = cache.allocate_slot();
  ASSERT_TRUE(cache.register_checkpoint(a.view(), 64, slot, CheckpointKind::kPlanned));
  cache.unref_slot(slot);
  cache.unref_block(block);
  EXPECT_EQ(cache.allocate_block(), block);
  EXPECT_EQ(cache.slots().num_free(), 1);
  EXPECT_EQ(cache.lookup(a.view(), 9).kv_blocks, 0);
  const int one[] = {1};
  const int none[] = {0};
  EXPECT_EQ(audit(cache, one, none), "");
}

TEST(PrefixCache, SmallBlocksAreReusedInWholeBoundaries) {
  PrefixCache cache({.block_size = 16, .num_blocks = 16, .hash_key = 1});
  std::vector<int32_t> tokens = text(112);
  std::vector<Hash128> hashes{cache.index().root("")};
  uint64_t twin = 0;
  for (size_t i = 0; i < 7; ++i) {
    hashes.push_back(cache.index().block_hash(hashes[i], std::span(tokens).subspan(i * 16, 16)));
    cache.register_block({tokens, hashes}, static_cast<int>(i), cache.allocate_block(), twin);
  }
  EXPECT_EQ(cache.lookup({tokens, hashes}, 100).blocks, 4) << "64 of 112 tokens";
}

TEST(PrefixCache, ForgettingAPrefixLeavesTheOthers) {
  PrefixCache cache({.num_blocks = 8, .hash_key = 1});
  const Prefix a(cache.index(), text(128));
  const Prefix b(cache.index(), text(128, 500));
  fill(cache, a);
  fill(cache, b);
  cache.forget_prefix(a.view());
  EXPECT_EQ(cache.lookup(a.view(), 9).blocks, 0);
  EXPECT_EQ(cache.lookup(b.view(), 9).blocks, 2);
}

TEST(Audit, NamesTheBlockAndTheSlotThatLeaked) {
  PrefixCache cache({.num_blocks = 2, .num_slots = 2, .hash_key = 1});
  cache.allocate_block();
  cache.allocate_slot();
  const int none[] = {0, 0};
  const int first[] = {1, 0};
  EXPECT_EQ(audit(cache, none, first), "block 0 has 1 references, but 0 owners");
  EXPECT_EQ(audit(cache, first, none), "slot 0 has 1 references, but 0 owners");
  EXPECT_EQ(audit(cache, first, first), "");
  EXPECT_TRUE(counters_agree(cache, 1, 1));
  EXPECT_FALSE(counters_agree(cache, 0, 1));
}

}  // namespace
}  // namespace weft
