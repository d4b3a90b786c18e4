#include "text/json_stream.h"

#include <gtest/gtest.h>
#include <simdjson.h>

#include <string>
#include <string_view>

namespace weft::text {
namespace {

/// What comes out of `in`, closed; "!" before it where it is unsound.
std::string mended(std::string_view in) {
  JsonStream stream;
  std::string out, mark;
  for (const char c : in) {
    const auto step = stream.step(c, out);
    if (step == JsonStream::Step::kBad) mark = "!";
    if (step != JsonStream::Step::kMore) break;
  }
  stream.close(out);
  return mark + out;
}

TEST(JsonStream, SoundJsonPassesAsItIs) {
  for (const char* json :
       {R"({})", R"([])", R"({ })",
        "{\n  \"a\" : [1, 2.5e-3, -0, 0.1E+9],\n  \"b\": {\"c\": null}\n}",
        R"(["\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00", true, false, "ü😀</tool_call>"])", R"("x")",
        R"([[[{"a":[{}]}]]])"}) {
    EXPECT_EQ(mended(json), json);
  }
}

TEST(JsonStream, WhatModelsGetWrongIsMended) {
  EXPECT_EQ(mended("{\"a\": \"x\ny\tz\"}"), R"({"a": "x\ny\tz"})");
  EXPECT_EQ(mended(R"({"a": 'x'})"), "!{}");
  EXPECT_EQ(mended(R"({"a": "it\'s \d \x"})"), R"({"a": "it's \\d \\x"})");
  EXPECT_EQ(mended(R"({"a": [1, 2, ], })"), R"({"a": [1, 2]})");
  EXPECT_EQ(mended(R"({"a": True, "b": False, "c": None})"),
            R"({"a": true, "b": false, "c": null})");
  EXPECT_EQ(mended(R"(["\ud83d", "\ude00", "\ud83dx", "\ud83d\n", "\ud83dA"])"),
            R"(["\ufffd", "\ufffd", "\ufffdx", "\ufffd\n", "\ufffdA"])");
  EXPECT_EQ(mended(R"(["\u12", "\u1g", "\ud83d\u12"])"), R"(["\\u12", "\\u1g", "\ufffd\\u12"])");
  EXPECT_EQ(mended(R"({"a": 01})"), R"(!{"a": 0})");
  EXPECT_EQ(mended("nope"), "!null");
  EXPECT_EQ(mended(std::string(100, '[')), "!" + std::string(64, '[') + std::string(64, ']'));
}

TEST(JsonStream, EveryBeginningClosesToValidJson) {
  const std::string json =
      R"({"a\n": [1, -2.5e-3, "x\u00e9\ud83d\ude00\"", {"k": true, "l": null}], "b": {}, "c": "é"})";
  simdjson::dom::parser parser;
  for (size_t size = 1; size <= json.size(); ++size) {
    if ((json[size - 1] & 0xc0) == 0xc0) continue;  // half a character
    const std::string out = mended(json.substr(0, size));
    EXPECT_EQ(parser.parse(out).error(), simdjson::SUCCESS) << out;
  }
  EXPECT_EQ(mended(R"({"a": 1, "locat)"), R"({"a": 1})");
  EXPECT_EQ(mended(R"({"a": 1, "b": )"), R"({"a": 1})");
  EXPECT_EQ(mended(R"({"a": -)"), R"({"a": -0})");
}

TEST(JsonStringReader, Decodes) {
  const auto decoded = [](std::string_view in) {
    JsonStringReader reader;
    std::string out;
    for (size_t i = 0; i < in.size(); ++i) {
      if (reader.step(in[i], out)) return out + "|" + std::string(in.substr(i + 1));
    }
    return out;
  };
  EXPECT_EQ(decoded(R"(a\"b\\\n\u00e9\ud83d\ude00\/" rest)"), "a\"b\\\né😀/| rest");
  EXPECT_EQ(decoded(R"(\ud83dx\ude00\u1")"), "\ufffdx\ufffd\ufffd|");
}

}  // namespace
}  // namespace weft::text
