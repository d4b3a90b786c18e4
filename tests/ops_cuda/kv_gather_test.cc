// Attention of prompts over quantised caches: near float64 over what the cache holds, and bit for
// bit the same however a prompt is cut, whatever lies beside a segment and wherever its blocks are.

#include <array>

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

constexpr double kTolerance = 2e-3;  // relative L2 of a call: rounding outputs gives 1.7e-3

testing::Message name_of(const KvCase& of) {
  return testing::Message() << kv_format_name(of.format) << " D " << of.heads.dim;
}

TEST(KvGatherTest, SmallPieces) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(name_of(of));
    KvWorld world(of, {{1, 0, 1}, {2, 0, 0}, {3, 64, 5}, {4, 0, 65}}, 3),
        cut(of, {{1, 0, 1}, {3, 64, 1}, {3, 65, 4}, {4, 0, 64}, {4, 64, 1}}, 4);
    EXPECT_LE(relative_l2(world.prompts(), world.oracle()), kTolerance);
    EXPECT_EQ(world.run(true), cut.run(true));
  }
}

TEST(KvGatherTest, Pieces) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(name_of(of));
    // The first alone fills the scratch memory: several launches.
    KvWorld world(
        of, {{1, 1920, 300}, {2, 0, 200}, {3, 0, 0}, {4, 576, 127}, {5, 1024, 1}, {6, 64, 700}}, 4);
    KvWorld cut(of,
                {{1, 1920, 100},
                 {1, 2020, 200},
                 {2, 0, 17},
                 {2, 17, 183},
                 {4, 576, 127},
                 {5, 1024, 1},
                 {6, 64, 448},
                 {6, 512, 252}},
                5);
    EXPECT_LE(relative_l2(world.prompts(), world.oracle()), kTolerance);
    EXPECT_EQ(world.run(true), cut.run(true));
  }
}

TEST(KvGatherTest, ManyPiecesAndOtherBlocks) {
  const KvCase of{KvFormat::kInt8Dynamic, {8, 2, 128}};
  std::vector<Piece> pieces;
  for (int i = 0; i < 150; ++i)
    pieces.push_back({static_cast<uint64_t>(i + 1), 64 * (i % 3), i % 7});
  pieces.push_back({900, 6400, 100});
  KvWorld world(of, pieces, 5), other(of, pieces, 6);
  EXPECT_LE(relative_l2(world.prompts(), world.oracle()), kTolerance);
  EXPECT_EQ(world.run(true), other.run(true));
}

// Rows that f16 cannot hold as they are, of all keys or some: they come with powers of two, and a
// row that sees none of them has the bits that it has without them.
TEST(KvGatherTest, RowsBeyondTheRangeOfF16) {
  struct Rows {
    const char* name;
    float q;
    std::function<float(int position, int plane)> factor;
  };
  const Rows all[] = {
      {"tiny values", 1, [](int, int plane) { return plane == 2 ? 0x1p-20f : 1; }},
      {"large values", 1, [](int, int plane) { return plane == 2 ? 0x1p40f : 1; }},
      {"tiny keys", 0x1p20f, [](int, int plane) { return plane == 1 ? 0x1p-20f : 1; }},
      {"large keys", 0x1p-40f, [](int, int plane) { return plane == 1 ? 0x1p40f : 1; }},
      {"some", 1,
       [](int at, int plane) {
         const float factors[2][3] = {{0x1p-16f, 1, 1}, {1, 0x1p18f, 0x1p-18f}};
         return at >= 100 && at % 7 < 3 ? factors[plane - 1][at % 7] : 1;
       }},
  };
  for (const KvCase& base : kCases) {
    for (const Rows& rows : all) {
      SCOPED_TRACE(name_of(base) << ": " << rows.name);
      KvCase of = base;
      of.calibrated = true;
      of.q_scale = 1.7f * rows.q;
      of.change = [&](const Piece&, int position, int plane, std::vector<float>& row) {
        for (float& x : row) x *= rows.factor(position, plane);
      };
      KvWorld world(of, {{1, 0, 230}, {2, 384, 40}}, 3);
      EXPECT_LE(relative_l2(world.prompts(), world.oracle()), kTolerance);
      if (kv_has_static_scales(of.format)) continue;  // those of fewer keys are others
      KvWorld cut(of, {{1, 0, 90}, {1, 90, 140}, {2, 384, 3}, {2, 387, 37}}, 4);
      EXPECT_EQ(world.run(true), cut.run(true));
    }
  }
}

constexpr double kFromBf16 = 8e-3;  // of outputs over a bf16 cache that holds the rounded values

// Lists are those over a bf16 cache that holds the rounded values.
void expect_lists(const KvWorld::Listed& got, const KvWorld::Listed& plain, const KvWorld& world) {
  EXPECT_EQ(got.words, plain.words);
  EXPECT_EQ(got.counts, plain.counts);
  EXPECT_EQ(got.mass, plain.mass);
  EXPECT_LE(relative_l2(world.floats(got.out), world.floats(plain.out)), kFromBf16);
}

TEST(KvGatherTest, SmallLists) {
  for (const KvCase& of : kCases) {
    SCOPED_TRACE(name_of(of));
    KvWorld world(of, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}, {4, 0, 300}}, 3);
    expect_lists(world.listed(true, 8), world.listed(false, 8), world);
  }
}

TEST(KvGatherTest, Lists) {
  for (const KvCase& of : kCases) {
    for (const int stride : {4, 8, 16}) {
      SCOPED_TRACE(name_of(of) << " stride " << stride);
      const std::vector<Piece> pieces{
          {1, 1920, 300}, {2, 0, 900}, {3, 0, 0}, {4, 640, 127}, {5, 1024, 1}};
      KvWorld world(of, pieces, 8);
      const KvWorld::Listed got = world.listed(true, stride);
      expect_lists(got, world.listed(false, stride), world);
      EXPECT_EQ(got, KvWorld(of, pieces, 9).listed(true, stride)) << "in other blocks";
      EXPECT_NE(got.out, world.run(true)) << "no list leaves anything out";
    }
  }
}

TEST(KvGatherTest, PlansOfHeads) {
  for (const KvCase& of : {KvCase{KvFormat::kInt4, {4, 2, 128}},
                           {KvFormat::kInt8, {4, 2, 64}},
                           {KvFormat::kFp8Block, {4, 2, 256}}}) {
    SCOPED_TRACE(name_of(of));
    KvWorld world(of, {{1, 1024, 300}, {2, 0, 700}, {3, 512, 77}}, 7);
    const auto with = [&](const auto& kind_of) {
      std::vector<int32_t> kinds;
      for (int i = 0; i < 12; ++i) kinds.push_back(kind_of(i));
      const DeviceTensor on_device(kinds);
      HeadPlan plan;
      plan.kinds = {on_device.view.data, DType::kI32, {3, 4}};
      plan.window_blocks = 2;
      return std::array{world.run(true, &plan), world.run(false, &plan)};
    };
    const auto [some, plain] = with([](int i) { return i % 3 == 0 ? 0 : -1; });
    EXPECT_LE(relative_l2(world.floats(some), world.floats(plain)), kFromBf16);
    EXPECT_NE(some, world.run(true));
    EXPECT_EQ(with([](int) { return 0; })[0], world.run(true)) << "full heads";
  }
}

}  // namespace
}  // namespace weft
