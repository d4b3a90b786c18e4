#include "app/attention_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weft {
namespace {

using ::testing::HasSubstr;

/// Two layers of two heads and three blocks: full, streaming; by blocks, full.
AttentionReport small_report() {
  AttentionReport out{.model = "a <model>", .prefill = "xattn", .tokens = 300};
  out.record.num_blocks = 3;
  const std::vector<uint8_t> all = {1, 0, 0, 1, 1, 0, 1, 1, 1}, some = {1, 0, 0, 1, 1, 0, 1, 0, 1};
  const auto both = [](std::vector<uint8_t> a, const std::vector<uint8_t>& b) {
    a.insert(a.end(), b.begin(), b.end());
    return a;
  };
  out.record.layers = {
      {.kinds = {0, -1}, .blocks = both(all, some), .mass = {1, 1, 1, 1, 1, 0.5f}},
      {.kinds = {1, 0}, .blocks = both(some, all), .mass = {1, 1, 0.75f, 1, 1, 1}}};
  return out;
}

TEST(AttentionReport, SharesOfAHead) {
  const HeadShares shares = head_shares(small_report().record, 0, 1);
  EXPECT_DOUBLE_EQ(shares.computed, 5.0 / 6);
  EXPECT_DOUBLE_EQ(shares.mass, 2.5 / 3);
  EXPECT_DOUBLE_EQ(shares.least_mass, 0.5);
}

TEST(AttentionReport, TextHasALineALayer) {
  const std::string text = attention_text(small_report());
  EXPECT_THAT(text,
              HasSubstr("300 tokens, 3 blocks of 128; heads: 2 full, 1 streaming, 1 by blocks"));
  EXPECT_THAT(text, HasSubstr("computed 91.7 %"));
  EXPECT_THAT(text, HasSubstr("layer   0  fs  blocks  91.7 %"));
  EXPECT_THAT(text, HasSubstr("layer   1  bf"));
}

TEST(AttentionReport, PageStandsAloneAndEscapesNames) {
  const std::string page = attention_page(small_report());
  EXPECT_THAT(page, HasSubstr("a &lt;model&gt;"));
  EXPECT_THAT(page, HasSubstr("<title>layer 1, head 0: blocks, 83.3 % of the blocks"));
  EXPECT_THAT(page, HasSubstr("\"9  99 909\""));  // the picture of a head by blocks
  EXPECT_EQ(page.find("http"), std::string::npos);
}

}  // namespace
}  // namespace weft
