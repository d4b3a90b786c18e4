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

}  // namespace
}  // namespace weft
