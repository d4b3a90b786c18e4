#include "server/json.h"

#include <gtest/gtest.h>

#include <chrono>

namespace weft {
namespace {

std::string error_of(std::string_view text) {
  const Result<JsonValue> parsed = parse_json(text);
  return parsed ? "accepted" : parsed.error().message;
}

TEST(Json, WritesWhatItRead) {
  const std::string text =
      R"({"a":[1,-2,1.50,1e2,true,false,null,12345678901234567890],"b":{"c":"\"\\\n\u0001é😀"},"":{}})";
  EXPECT_EQ(to_json(*parse_json(text)), text);
  EXPECT_EQ(to_json(*parse_json(" [ \"\\u00e9\\ud83d\\ude00\\/\" ] ")), "[\"é😀/\"]");
}

TEST(Json, KeepsTheOrderOfMembers) {
  const JsonValue value = *parse_json(R"({"z":1,"a":2})");
  EXPECT_EQ(to_json(value), R"({"z":1,"a":2})");
  EXPECT_EQ(*value.find("a")->as<int64_t>(), 2);
  EXPECT_EQ(value.find("b"), nullptr);
}

TEST(Json, RefusesWhatIsNoJson) {
  using namespace std::string_literals;
  const std::string bad[] = {"",
                             " ",
                             "{",
                             "[1,]",
                             "{\"a\":1,}",
                             "{'a':1}",
                             "nul",
                             "NaN",
                             "[NaN]",
                             "[Infinity]",
                             "[-Infinity]",
                             "[1e400]",
                             "[01]",
                             "[+1]",
                             "[.5]",
                             "[1.]",
                             "[0x10]",
                             "{} {}",
                             "{}x",
                             "{}\0"s,
                             "{}\0x"s,
                             "[\"\\ud800\"]",
                             "[\"\\udc00\"]",
                             "[\"\\ud800\\ud800\"]",
                             "[\"\\ud800x\"]",
                             "[\"\\x41\"]",
                             "[\"\n\"]",
                             "[\"\x80\"]",
                             "[\"\xC0\xAF\"]",
                             "[\"\xED\xA0\x80\"]",
                             "[\"\xF4\x90\x80\x80\"]",
                             "\xEF\xBB\xBF{}",
                             "\xFE\xFF\0{\0}"s,
                             "{\0}\0"s,
                             "// x\n{}",
                             "/**/{}"};
  for (const std::string& text : bad) EXPECT_NE(error_of(text), "accepted") << text;
}

TEST(Json, RefusesDuplicateKeysAtAnyDepth) {
  EXPECT_NE(error_of(R"({"a":1,"a":1})").find("\"a\" twice"), std::string::npos);
  EXPECT_NE(error_of(R"([{"b":{"x":1,"y":2,"x":3}}])").find("\"x\" twice"), std::string::npos);
  EXPECT_NE(error_of(R"({"a":1,"\u0061":1})").find("twice"), std::string::npos);
  EXPECT_EQ(error_of(R"([{"a":1},{"a":1}])"), "accepted");
}

TEST(Json, LimitsDepthValuesAndDigits) {
  const auto nested = [](int depth) { return std::string(depth, '[') + std::string(depth, ']'); };
  EXPECT_EQ(error_of(nested(64)), "accepted");
  EXPECT_NE(error_of(nested(65)).find("deeper than 64"), std::string::npos);
  EXPECT_NE(error_of(nested(1'000'000)).find("deeper than 64"), std::string::npos);
  EXPECT_NE(error_of(std::string(1'000'000, '[')).find("deeper than 64"), std::string::npos);
  EXPECT_NE(error_of(std::string(10'000, '9')), "accepted");
  EXPECT_NE(error_of("0." + std::string(10'000, '1')).find("10002 characters"), std::string::npos);
  std::string many = "[0";
  for (int i = 0; i < (1 << 20); ++i) many += ",0";
  EXPECT_NE(error_of(many + "]").find("more than 1048576 values"), std::string::npos);
}

TEST(Json, AMessageNeverRepeatsTheText) {
  const std::string secret(5000, 's');
  for (const std::string& text :
       {"[\"" + secret, "{\"" + secret + "\":1,\"" + secret + "\":2}", "[" + secret + "]"}) {
    EXPECT_LT(error_of(text).size(), 200u);
    EXPECT_EQ(error_of(text).find("sss"), std::string::npos);
  }
}

TEST(Json, ManyKeysTakeNoQuadraticTime) {
  const auto object = [](int keys) {
    std::string text = "{";
    for (int i = 0; i < keys; ++i) text += (i ? ",\"k" : "\"k") + std::to_string(i) + "\":0";
    return text + "}";
  };
  const std::string text = object(500'000);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(error_of(text), "accepted");
  // Quadratic time would be minutes.
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace weft
