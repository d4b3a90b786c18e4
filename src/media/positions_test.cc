#include "media/positions.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

using Triples = std::vector<std::array<int32_t, 3>>;

TEST(PromptPositions, TextIsOneDimensional) {
  const PromptPositions got = prompt_positions({}, 3);
  EXPECT_EQ(got.triples, (Triples{{0, 0, 0}, {1, 1, 1}, {2, 2, 2}}));
  EXPECT_EQ(got.rope_delta, 0);
}

TEST(PromptPositions, AnImageTakesItsLongerSide) {
  const TokenGrid image{.first = 1, .h = 2, .w = 3};
  const PromptPositions got = prompt_positions({&image, 1}, 8);
  EXPECT_EQ(
      got.triples,
      (Triples{
          {0, 0, 0}, {1, 1, 1}, {1, 1, 2}, {1, 1, 3}, {1, 2, 1}, {1, 2, 2}, {1, 2, 3}, {4, 4, 4}}));
  EXPECT_EQ(got.rope_delta, 5 - 8);
}

TEST(PromptPositions, AnImageMayEndThePromptAndFollowAnother) {
  const TokenGrid images[] = {{.first = 0, .h = 1, .w = 2}, {.first = 2, .h = 2, .w = 1}};
  const PromptPositions got = prompt_positions(images, 4);
  EXPECT_EQ(got.triples, (Triples{{0, 0, 0}, {0, 0, 1}, {2, 2, 2}, {2, 3, 2}}));
  EXPECT_EQ(got.rope_delta, 0);
}

TEST(PromptPositions, ALongVideoOfSmallFramesHasAPositiveDelta) {
  const TokenGrid video{.first = 0, .t = 9, .h = 1, .w = 1};
  EXPECT_EQ(prompt_positions({&video, 1}, 9).rope_delta, 0);
  const TokenGrid image{.first = 0, .h = 1, .w = 1};
  EXPECT_EQ(prompt_positions({&image, 1}, 5).rope_delta, 0);
}

TEST(PromptPositions, FramesOfAVideoLieAsFarApartAsTheirTimes) {
  // The example of transformers' Qwen2.5-VL: 25 positions a second, 2 frames a group, 1 a second.
  const TokenGrid video{.first = 0, .t = 3, .h = 2, .w = 2, .seconds = 2, .per_second = 25};
  const PromptPositions got = prompt_positions({&video, 1}, 14);
  EXPECT_EQ(got.triples, (Triples{{0, 0, 0},
                                  {0, 0, 1},
                                  {0, 1, 0},
                                  {0, 1, 1},
                                  {50, 0, 0},
                                  {50, 0, 1},
                                  {50, 1, 0},
                                  {50, 1, 1},
                                  {100, 0, 0},
                                  {100, 0, 1},
                                  {100, 1, 0},
                                  {100, 1, 1},
                                  {101, 101, 101},
                                  {102, 102, 102}}));
  EXPECT_EQ(got.rope_delta, 103 - 14);
}

TEST(PromptPositions, FractionsOfAPositionAddUpBeforeTheyAreCutOff) {
  const TokenGrid video{.first = 1, .t = 5, .h = 1, .w = 1, .seconds = 2.0f / 3, .per_second = 1};
  const PromptPositions got = prompt_positions({&video, 1}, 7);
  std::vector<int32_t> t;
  for (const auto& triple : got.triples) t.push_back(triple[0]);
  EXPECT_EQ(t, (std::vector<int32_t>{0, 1, 1, 2, 3, 3, 4}));
}

}  // namespace
}  // namespace weft
