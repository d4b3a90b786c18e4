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
  for (const uint64_t density : {0, 5, 90}) {
    expect_oracle(GetParam(), {}, {{1, 0, 700}, {2, 2048, 129}},
                  {.kinds = {kBlocks}, .density = density});
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
  const auto whole = bits(GetParam(), {{9, 0, kRows}}, kMixed);
  for (const std::vector<int>& chunks : std::vector<std::vector<int>>{
           {128, 128, 256, 128, 260}, {64, 192, 320, 324}, {512, 388}, {896, 4}}) {
    std::vector<std::byte> joined;
    int start = 0;
    for (const int rows : chunks) {
      const auto chunk = bits(GetParam(), {{9, start, rows}}, kMixed, {.seed = 7});
      joined.insert(joined.end(), chunk.begin(), chunk.end());
      start += rows;
    }
    ASSERT_EQ(start, kRows);
    EXPECT_TRUE(joined == whole) << "first chunk " << chunks[0];
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
