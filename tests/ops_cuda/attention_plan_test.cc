// Attention of prompts where heads see a part of the keys (HeadPlan).

#include "tests/ops_cuda/attention_support.h"

namespace weft {
namespace {

constexpr HeadKind kFull = HeadKind::kFull, kBlocks = HeadKind::kBlocks,
                   kStreaming = HeadKind::kStreaming;

const Plan kMixed{.kinds = {kFull, kBlocks, kStreaming, kBlocks, kStreaming}};

class AttentionPlan : public testing::TestWithParam<Heads> {};

INSTANTIATE_TEST_SUITE_P(Heads, AttentionPlan,
                         testing::Values(Heads{4, 2, 64}, Heads{8, 2, 128}, Heads{3, 1, 128},
                                         Heads{2, 1, 96}, Heads{4, 2, 256}),
                         [](const auto& info) {
                           return "H" + std::to_string(info.param.q) + "G" +
                                  std::to_string(info.param.kv) + "D" +
                                  std::to_string(info.param.dim);
                         });

std::vector<std::byte> bits(const Heads& heads, const std::vector<Piece>& pieces, const Plan& plan,
                            const Layout& layout = {}) {
  return concatenated(Step(heads, layout, pieces, plan).run());
}

TEST_P(AttentionPlan, SmallAgainstOracle) {
  expect_oracle(GetParam(), {.pad_rows = 3}, {{1, 0, 1}, {2, 0, 0}, {3, 128, 70}}, kMixed);
}

TEST_P(AttentionPlan, MixedHeadsAgainstOracle) {
  expect_oracle(GetParam(), {.q_gap = 64},
                {{1, 0, 450}, {2, 384, 200}, {3, 0, 127}, {4, 64, 129}, {5, 1280, 65}}, kMixed);
  expect_oracle(GetParam(), {.block_size = 16}, {{6, 640, 150}}, kMixed);
}

TEST_P(AttentionPlan, StreamingAgainstOracle) {
  for (const int sink : {0, 1, 3}) {
    for (const int window : {1, 2, 5}) {
      for (const int rows : {1, 127, 128, 129, 255, 513}) {
        expect_oracle(GetParam(), {}, {{static_cast<uint64_t>(rows), 0, rows}},
                      {.kinds = {kStreaming}, .sink_blocks = sink, .window_blocks = window});
      }
    }
  }
}

TEST_P(AttentionPlan, SparseListsAgainstOracle) {
  for (const uint64_t density : {0, 5, 90, 91}) {
    expect_oracle(GetParam(), {}, {{1, 0, 700}, {2, 2048, 129}},
                  {.kinds = {kBlocks}, .density = density, .long_lists = density > 90});
  }
}

TEST_P(AttentionPlan, AllFullIsDense) {
  const std::vector<Piece> pieces = {{1, 0, 700}, {2, 512, 65}};
  EXPECT_TRUE(bits(GetParam(), pieces, {.kinds = {kFull}}) == bits(GetParam(), pieces, {}));
}

TEST_P(AttentionPlan, WhatSeesAllIsFull) {
  const std::vector<Piece> pieces = {{1, 0, 700}, {2, 512, 65}};
  const auto full = Step(GetParam(), {}, pieces, {.kinds = {kFull}}).run();
  for (const Plan& plan :
       {Plan{.kinds = {kBlocks}, .density = 100}, Plan{.kinds = {kStreaming}, .window_blocks = 6},
        Plan{.kinds = {kStreaming}, .sink_blocks = 6}}) {
    const auto all = Step(GetParam(), {}, pieces, plan).run();
    if (GetParam().dim > 64) {
      EXPECT_TRUE(all == full);
    } else {  // full heads of 64 have larger tiles
      EXPECT_LE(relative_l2(to_floats(all), to_floats(full)), 3e-3);
    }
  }
}

TEST_P(AttentionPlan, TheOwnBlockIsAlwaysSeen) {
  Plan plan{.kinds = {kBlocks}};
  const std::vector<Piece> pieces = {{1, 0, 300}, {2, 256, 1}};
  const auto want = bits(GetParam(), pieces, plan);
  plan.with_diagonal = false;
  EXPECT_TRUE(bits(GetParam(), pieces, plan) == want);
}

TEST_P(AttentionPlan, SameBitsInAnyChunks) {
  constexpr int kRows = 900;
  // With the hint, lists of most blocks have another launch, by what their heads hold of a chunk.
  const Plan dense{.kinds = {kBlocks}, .density = 80};
  Plan hinted = dense;
  hinted.long_lists = true;
  EXPECT_TRUE(bits(GetParam(), {{9, 0, kRows}}, dense) ==
              bits(GetParam(), {{9, 0, kRows}}, hinted));
  for (const Plan& plan : {kMixed, hinted}) {
    const auto whole = bits(GetParam(), {{9, 0, kRows}}, plan);
    for (const std::vector<int>& chunks : std::vector<std::vector<int>>{
             {128, 128, 256, 128, 260}, {64, 192, 320, 324}, {512, 388}, {896, 4}}) {
      std::vector<std::byte> joined;
      int start = 0;
      for (const int rows : chunks) {
        const auto chunk = bits(GetParam(), {{9, start, rows}}, plan, {.seed = 7});
        joined.insert(joined.end(), chunk.begin(), chunk.end());
        start += rows;
      }
      ASSERT_EQ(start, kRows);
      EXPECT_TRUE(joined == whole) << "first chunk " << chunks[0];
    }
  }
}

TEST_P(AttentionPlan, SameBitsInAnyCompanyAndBlocks) {
  const std::vector<Piece> pieces = {{1, 0, 300}, {2, 128, 65}, {3, 512, 20}, {4, 0, 129}};
  std::vector<std::vector<std::byte>> alone;
  for (const Piece& piece : pieces) alone.push_back(bits(GetParam(), {piece}, kMixed));
  for (size_t shift = 0; shift < pieces.size(); ++shift) {
    std::vector<Piece> mixed;
    for (size_t i = 0; i < pieces.size(); ++i) mixed.push_back(pieces[(i + shift) % 4]);
    mixed.push_back({77, 64, 31});
    const Layout layout{.block_size = shift % 2 ? 64 : 128, .seed = 5 + shift};
    const auto got = Step(GetParam(), layout, mixed, kMixed).run();
    for (size_t i = 0; i < pieces.size(); ++i) {
      EXPECT_TRUE(got[i] == alone[(i + shift) % 4]) << "piece " << (i + shift) % 4;
    }
  }
}

// Properties of docs/kernels/elastic.md, by their numbers.

TEST(AttentionPlanProperty, P04SinkAndAWindowOf16AreTheMaskOfTheirTokens) {
  for (const auto& [rows, sink] : {std::pair{4095, 0}, {4096, 1}, {4097, 2}}) {
    for (const int dim : {64, 128}) {
      expect_oracle({1, 1, dim}, {}, {{1, 0, rows}},
                    {.kinds = {kStreaming}, .sink_blocks = sink, .window_blocks = 16});
    }
  }
}

TEST_P(AttentionPlan, P09HeadsAndPagesMayComeInAnyOrder) {
  const Heads& given = GetParam();
  const Heads heads{3 * (given.q / given.kv), 3, given.dim};
  const std::vector<Piece> pieces = {{1, 0, 450}, {2, 512, 130}};
  const Plan plan{.kinds = {kFull, kBlocks, kStreaming, kBlocks, kBlocks}, .window_blocks = 1};
  const auto want = Step(heads, {}, pieces, plan).run();
  const int group = heads.q / heads.kv;
  const auto width = static_cast<size_t>(heads.dim * 2);  // bytes
  for (const int rotate : {1, 2}) {
    const auto got = Step(heads, {.seed = 9, .rotate = rotate}, pieces, plan).run();
    for (size_t s = 0; s < pieces.size(); ++s) {
      ASSERT_EQ(got[s].size(), want[s].size());
      for (size_t at = 0; at * width < got[s].size(); ++at) {
        const size_t h = at % static_cast<size_t>(heads.q), row = at / static_cast<size_t>(heads.q);
        const size_t from =
            at - h + (h + static_cast<size_t>(rotate * group)) % static_cast<size_t>(heads.q);
        ASSERT_EQ(std::memcmp(&got[s][at * width], &want[s][from * width], width), 0)
            << "piece " << s << " row " << row << " head " << h;
      }
    }
  }
}

TEST(AttentionPlanProperty, P16AHundredRandomShapes) {
  constexpr int kDims[] = {64, 128, 256}, kPages[] = {16, 32, 48, 64, 128};
  for (uint64_t seed = 0; seed < 100; ++seed) {
    const auto draw = [&](uint64_t what, int n) {
      return static_cast<int>(philox4x32(seed, what, 8)[0] % static_cast<uint32_t>(n));
    };
    const int kv_heads = 1 + draw(0, 3), group = 1 + draw(1, 4);
    const int dim = draw(2, 2) == 0 ? kDims[draw(3, 3)] : 8 * (1 + draw(3, 32));
    const Layout layout{.block_size = kPages[draw(4, 5)],
                        .seed = seed,
                        .q_gap = 8 * draw(5, 4),
                        .out_gap = 8 * draw(6, 3),
                        .table_gap = draw(7, 4),
                        .pad_rows = draw(8, 3),
                        .page_gap = 64 * draw(9, 3)};
    Plan plan{.sink_blocks = draw(10, 4),
              .window_blocks = 1 + draw(11, 3),
              .seed = seed,
              .density = static_cast<uint64_t>(draw(12, 11) * 10),
              .with_diagonal = draw(13, 2) == 0,
              .long_lists = seed % 2 == 0};
    for (int i = 0; i <= draw(14, 5); ++i) {
      plan.kinds.push_back(static_cast<HeadKind>(draw(20 + static_cast<uint64_t>(i), 3) - 1));
    }
    std::vector<Piece> pieces;
    for (int i = 0; i <= draw(15, 3); ++i) {
      const auto at = static_cast<uint64_t>(30 + 3 * i);
      pieces.push_back({seed * 4 + static_cast<uint64_t>(i), 64 * draw(at, 8),
                        draw(at + 1, draw(at + 2, 8) == 0 ? 400 : 140)});
    }
    expect_oracle({kv_heads * group, kv_heads, dim}, layout, pieces, plan);
    ASSERT_FALSE(testing::Test::HasFailure()) << "seed " << seed;
  }
}

TEST(AttentionPlanProperty, P18MoreElementsThan32BitsCount) {
  constexpr int64_t kMemory = int64_t{10} << 30;
  if (!has_free_memory(kMemory)) GTEST_SKIP() << "less than 10 GiB of device memory";
  for (const Heads& heads : {Heads{4, 2, 64}, Heads{4, 2, 128}, Heads{2, 1, 256}}) {
    const std::vector<Piece> piece = {{1, 0, 300}};
    for (const Plan& plan : {Plan{}, kMixed}) {
      const auto want = Step(heads, {}, piece, plan).run();
      // 300 rows, or 7 pages: 4.7e9 elements, too many for 32 bits without a sign as well.
      constexpr int64_t kRowGap = int64_t{15} << 20, kPageGap = int64_t{5} << 27;
      EXPECT_TRUE(Step(heads, {.q_gap = kRowGap}, piece, plan).run() == want);
      EXPECT_TRUE(Step(heads, {.out_gap = kRowGap}, piece, plan).run() == want);
      EXPECT_TRUE(Step(heads, {.page_gap = kPageGap}, piece, plan).run() == want);
    }
  }
}

TEST(AttentionPlanLong, ListsOfMoreThan1024Blocks) {
  for (const uint64_t density : {0, 1, 50}) {
    expect_oracle({2, 1, 64}, {}, {{3, 1025 * 128 + 64, 66}},
                  {.kinds = {kBlocks, kStreaming}, .window_blocks = 3, .density = density});
  }
}

TEST(AttentionPlanLong, MoreTilesThanALaunchHolds) {
  std::vector<Piece> pieces;
  for (uint64_t s = 0; s < 1100; ++s) pieces.push_back({s, 0, static_cast<int>(s % 4)});
  expect_oracle({2, 1, 64}, {.block_size = 16}, pieces, kMixed);
}

}  // namespace
}  // namespace weft
