#include "base/json_text.h"

#include <gtest/gtest.h>

#include "base/utf8.h"

namespace weft {
namespace {

std::string quoted(std::string_view text, JsonControls controls = JsonControls::kHex) {
  std::string out = "x";
  append_json_quoted(text, out, controls);
  return out;
}

TEST(JsonText, EscapesWhatJsonDemandsAndNothingElse) {
  EXPECT_EQ(quoted(""), "x\"\"");
  EXPECT_EQ(quoted("a\"b\\c/d"), R"(x"a\"b\\c/d")");
  EXPECT_EQ(quoted("\n\r\t"), R"(x"\n\r\t")");
  EXPECT_EQ(quoted(std::string_view("\0\x1f\x7f", 3)), "x\"\\u0000\\u001f\x7f\"");
  EXPECT_EQ(quoted("\u00e9\U0001F600"), "x\"\u00e9\U0001F600\"");
}

TEST(JsonText, BackspaceAndFormFeedHaveTwoForms) {
  EXPECT_EQ(quoted("\b\f\v"), R"(x"\u0008\u000c\u000b")");
  EXPECT_EQ(quoted("\b\f\v", JsonControls::kShort), R"(x"\b\f\u000b")");
}

TEST(Utf8, CountsCharacters) {
  EXPECT_EQ(num_chars(""), 0);
  EXPECT_EQ(num_chars("abc"), 3);
  EXPECT_EQ(num_chars("\u00e9\u20ac\U0001F600"), 3);
}

}  // namespace
}  // namespace weft
