// Attention of prompts: against the oracle, and bit for bit against itself in other company.

#include <algorithm>
#include <numeric>
#include <tuple>

#include "tests/ops_cuda/attention_support.h"

namespace weft {
namespace {

class AttentionPrompt : public testing::TestWithParam<Heads> {};

INSTANTIATE_TEST_SUITE_P(Heads, AttentionPrompt,
                         testing::Values(Heads{4, 2, 64}, Heads{3, 3, 64}, Heads{8, 2, 128},
                                         Heads{7, 1, 128}, Heads{4, 2, 128}, Heads{2, 2, 128},
                                         Heads{8, 1, 256}, Heads{6, 2, 256}, Heads{2, 2, 256},
                                         Heads{4, 2, 32}, Heads{2, 1, 8}, Heads{3, 1, 72},
                                         Heads{4, 4, 96}, Heads{2, 1, 136}),
                         [](const auto& info) {
                           return "H" + std::to_string(info.param.q) + "G" +
                                  std::to_string(info.param.kv) + "D" +
                                  std::to_string(info.param.dim);
                         });

TEST_P(AttentionPrompt, SmallAgainstOracle) {
  expect_oracle(GetParam(), {}, {{1, 0, 1}});
  expect_oracle(GetParam(), {.q_gap = 64, .out_gap = 8, .pad_rows = 3},
                {{1, 0, 70}, {2, 0, 0}, {3, 64, 3}});
}

TEST_P(AttentionPrompt, BordersAgainstOracle) {
  for (const int rows : {2, 63, 64, 65, 127, 128, 129, 191, 193, 257}) {
    expect_oracle(GetParam(), {}, {{static_cast<uint64_t>(rows), 0, rows}});
  }
}

TEST_P(AttentionPrompt, PrefixesAgainstOracle) {
  for (const int start : {64, 128, 192, 320}) {
    for (const int rows : {1, 17, 64, 67, 200}) {
      expect_oracle(GetParam(), {}, {{5, start, rows}});
    }
  }
}

TEST_P(AttentionPrompt, ManySegmentsAgainstOracle) {
  expect_oracle(GetParam(), {.q_gap = 128, .pad_rows = 2},
                {{1, 0, 131},
                 {2, 0, 0},
                 {3, 256, 33},
                 {4, 64, 5},
                 {5, 0, 1},
                 {6, 448, 260},
                 {7, 0, 0},
                 {8, 0, 64}});
}

TEST_P(AttentionPrompt, BlockSizesAgainstOracle) {
  for (const int block_size : {16, 32, 48, 128, 256}) {
    expect_oracle(GetParam(), {.block_size = block_size}, {{1, 0, 200}, {2, 192, 77}});
  }
}

TEST_P(AttentionPrompt, SameBitsInAnyChunks) {
  constexpr int kRows = 707;
  const auto whole = Step(GetParam(), {}, {{9, 0, kRows}}).run();
  for (const std::vector<int>& chunks :
       std::vector<std::vector<int>>{{64, 64, 128, 64, 192, 64, 131},
                                     {192, 192, 192, 131},
                                     {640, 67},
                                     {704, 3},
                                     {320, 387}}) {
    std::vector<std::byte> joined;
    int start = 0;
    for (const int rows : chunks) {
      const auto chunk = Step(GetParam(), {.seed = 7}, {{9, start, rows}}).run();
      joined.insert(joined.end(), chunk[0].begin(), chunk[0].end());
      start += rows;
    }
    ASSERT_EQ(start, kRows);
    EXPECT_TRUE(joined == whole[0]) << "first chunk " << chunks[0];
  }
}

TEST_P(AttentionPrompt, SameBitsOfEveryLength) {
  const auto whole = Step(GetParam(), {}, {{9, 0, 260}}).run();
  for (int rows = 1; rows < 260; rows += 7) {
    const auto part = Step(GetParam(), {.seed = 3}, {{9, 0, rows}}).run();
    ASSERT_TRUE(std::equal(part[0].begin(), part[0].end(), whole[0].begin())) << rows;
  }
}

TEST_P(AttentionPrompt, SameBitsInAnyCompany) {
  const std::vector<Piece> pieces = {{1, 0, 300}, {2, 128, 65}, {3, 512, 20}, {4, 0, 129}};
  std::vector<std::vector<std::byte>> alone;
  for (const Piece& piece : pieces) alone.push_back(Step(GetParam(), {}, {piece}).run()[0]);
  std::vector<size_t> order(pieces.size());
  std::iota(order.begin(), order.end(), size_t{0});
  do {
    std::vector<Piece> mixed;
    for (const size_t i : order) mixed.push_back(pieces[i]);
    mixed.push_back({77, 64, 31});
    const auto got = Step(GetParam(), {.seed = 5 + order[0], .q_gap = 64}, mixed).run();
    for (size_t i = 0; i < order.size(); ++i) {
      ASSERT_TRUE(got[i] == alone[order[i]]) << "piece " << order[i] << " in place " << i;
    }
  } while (std::next_permutation(order.begin(), order.end()));
}

TEST_P(AttentionPrompt, SameBitsInAnyBlocks) {
  const std::vector<Piece> pieces = {{1, 192, 300}, {2, 64, 65}};
  const auto want = concatenated(Step(GetParam(), {.seed = 1}, pieces).run());
  for (const int block_size : {16, 32, 64, 128}) {
    for (const uint64_t seed : {2, 3}) {
      const Layout layout{.block_size = block_size, .seed = seed, .table_gap = 0};
      EXPECT_TRUE(concatenated(Step(GetParam(), layout, pieces).run()) == want) << block_size;
    }
  }
}

TEST_P(AttentionPrompt, SameBitsAgain) {
  const std::vector<Piece> pieces = {{1, 0, 1500}, {2, 1024, 700}};
  const auto want = concatenated(Step(GetParam(), {}, pieces).run());
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(concatenated(Step(GetParam(), {}, pieces).run()) == want);
  }
}

// Enough items that they are taken as they come, and keys for two sections of heads; the parts are
// walked in a fixed way.
TEST(AttentionPromptPlan, SameBitsInLongLaunches) {
  const Heads heads{32, 8, 128};
  const auto whole = Step(heads, {}, {{1, 0, 6300}}).run();
  auto parts = Step(heads, {}, {{1, 0, 2000}}).run()[0];
  for (const int start : {2000, 4100}) {
    const auto part = Step(heads, {}, {{1, start, start == 2000 ? 2100 : 2200}}).run();
    parts.insert(parts.end(), part[0].begin(), part[0].end());
  }
  EXPECT_TRUE(whole[0] == parts);
}

TEST(AttentionPromptPlan, MoreTilesThanALaunchHolds) {
  // 1,100 segments of 1 to 3 rows: two launches.
  std::vector<Piece> pieces;
  for (uint64_t s = 0; s < 1100; ++s) pieces.push_back({s, 0, static_cast<int>(s % 4)});
  expect_oracle({2, 1, 64}, {.block_size = 16}, pieces);
}

}  // namespace
}  // namespace weft
