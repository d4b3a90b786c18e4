// Attention of prompts over quantised caches: bit for bit that over a bf16 cache which holds the
// same values rounded to bf16, whatever lies beside a segment and wherever its blocks are.

#include "tests/ops_cuda/kv_world.h"

namespace weft {
namespace {

const KvCase kCases[] = {
    {KvFormat::kInt8Dynamic, {8, 2, 128}}, {KvFormat::kFp8Block, {4, 4, 64}, 16},
    {KvFormat::kInt4, {8, 2, 128}},        {KvFormat::kInt4, {4, 1, 256}, 48},
    {KvFormat::kInt4, {4, 2, 96}},         {KvFormat::kInt8, {8, 2, 128}, 128},
    {KvFormat::kFp8, {8, 1, 256}},         {KvFormat::kInt8Dynamic, {8, 2, 80}, 32},
    {KvFormat::kInt4, {4, 2, 72}, 32},
};

TEST(KvGatherTest, SmallPiecesAreTheBf16Ones) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    KvWorld world(of, {{1, 0, 1}, {2, 0, 0}, {3, 64, 5}, {4, 0, 65}}, 3);
    EXPECT_EQ(world.run(true), world.run(false));
  }
}

TEST(KvGatherTest, PiecesAreTheBf16Ones) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    // The first alone fills the scratch memory: several launches.
    KvWorld world(
        of, {{1, 1920, 300}, {2, 0, 200}, {3, 0, 0}, {4, 576, 127}, {5, 1024, 1}, {6, 64, 700}}, 4);
    EXPECT_EQ(world.run(true), world.run(false));
  }
}

TEST(KvGatherTest, ManyPiecesAndOtherBlocks) {
  const KvCase of{KvFormat::kInt8Dynamic, {8, 2, 128}};
  std::vector<Piece> pieces;
  for (int i = 0; i < 150; ++i)
    pieces.push_back({static_cast<uint64_t>(i + 1), 64 * (i % 3), i % 7});
  pieces.push_back({900, 6400, 100});
  KvWorld world(of, pieces, 5), other(of, pieces, 6);
  const std::vector<std::byte> out = world.run(true);
  EXPECT_EQ(out, world.run(false));
  EXPECT_EQ(out, other.run(true));
}

TEST(KvGatherTest, SmallListsAreTheBf16Ones) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim);
    KvWorld world(of, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}, {4, 0, 300}}, 3);
    EXPECT_EQ(world.listed(true, 8), world.listed(false, 8));
  }
}

TEST(KvGatherTest, ListsAreTheBf16Ones) {
  for (const KvCase& of : kCases) {
    for (const int stride : {4, 8, 16}) {
      SCOPED_TRACE(testing::Message()
                   << kv_format_name(of.format) << " D " << of.heads.dim << " stride " << stride);
      KvWorld world(of, {{1, 1920, 300}, {2, 0, 900}, {3, 0, 0}, {4, 640, 127}, {5, 1024, 1}}, 8);
      const KvWorld::Listed got = world.listed(true, stride);
      EXPECT_EQ(got, world.listed(false, stride));
      EXPECT_NE(got.out, world.run(true)) << "no list leaves anything out";
    }
  }
}

TEST(KvGatherTest, PlansOfHeads) {
  const KvCase of{KvFormat::kInt4, {4, 2, 128}};
  KvWorld world(of, {{1, 1024, 300}, {2, 0, 700}, {3, 512, 77}}, 7);
  std::vector<int32_t> kinds;
  for (int i = 0; i < 12; ++i) kinds.push_back(i % 3 == 0 ? 0 : -1);
  const DeviceTensor on_device(kinds);
  HeadPlan plan;
  plan.kinds = {on_device.view.data, DType::kI32, {3, 4}};
  plan.window_blocks = 2;
  EXPECT_EQ(world.run(true, &plan), world.run(false, &plan));
  EXPECT_NE(world.run(true, &plan), world.run(true));
}

}  // namespace
}  // namespace weft
