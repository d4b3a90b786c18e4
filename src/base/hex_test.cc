#include "base/hex.h"

#include <gtest/gtest.h>

namespace weft {
namespace {

TEST(Hex, DigitsOfBothCasesAndNothingElse) {
  constexpr std::string_view kLower = "0123456789abcdef", kUpper = "0123456789ABCDEF";
  int digits = 0;
  for (int c = -128; c < 128; ++c) {
    const auto byte = static_cast<char>(c);
    const size_t lower = kLower.find(byte), upper = kUpper.find(byte);
    const size_t value = lower != kLower.npos ? lower : upper;
    EXPECT_EQ(hex_digit(byte), value != kLower.npos ? static_cast<int>(value) : -1) << c;
    digits += hex_digit(byte) >= 0 ? 1 : 0;
  }
  EXPECT_EQ(digits, 22);
}

TEST(Hex, EscapesAreWholeOrNone) {
  EXPECT_EQ(escaped_byte("%2B", 0), '+');
  EXPECT_EQ(escaped_byte("a%fFz", 1), 0xff);
  EXPECT_EQ(escaped_byte("%00", 0), 0);
  for (const std::string_view none : {"", "%", "%2", "%2g", "%g2", "2B%", "%%2B", "% 2", "%+2"}) {
    EXPECT_EQ(escaped_byte(none, 0), -1) << none;
  }
  EXPECT_EQ(escaped_byte("%2B", 1), -1);
  EXPECT_EQ(escaped_byte("%2B", 7), -1);
  EXPECT_EQ(escaped_byte(std::string_view("%2B").substr(0, 2), 0), -1) << "behind the view";
}

TEST(Hex, EveryByteComesBack) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string text = "%";
    append_hex(text, static_cast<uint8_t>(byte));
    EXPECT_EQ(escaped_byte(text, 0), byte);
  }
}

}  // namespace
}  // namespace weft
