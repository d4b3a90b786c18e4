#include "checkpoint/config_json.h"

#include <gmock/gmock.h>

#include "checkpoint/test_files.h"

namespace weft {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::TempDir;
using testing::write_file;

ConfigJson parsed(const std::string& text) {
  auto json = ConfigJson::parse(text, "config.json");
  EXPECT_TRUE(json.ok()) << (json.ok() ? "" : json.error().message);
  return std::move(json).value();
}

std::string refusal(const std::string& text, ConfigJsonLimits limits = {}) {
  const auto json = ConfigJson::parse(text, "config.json", limits);
  return json.ok() ? "accepted" : json.error().message;
}

TEST(ConfigJson, TypedGetters) {
  const ConfigJson json = parsed(R"({"i": 5, "neg": -3, "f": 2.5, "b": true, "s": "x", "nil": null,
    "ints": [1, 2], "nums": [1, 2.5], "strs": ["a"], "o": {"p": 7}, "os": [{"q": 1}, {"q": 2}]})");
  EXPECT_EQ(*json.integer("i"), 5);
  EXPECT_EQ(*json.integer_or("absent", 9), 9);
  EXPECT_EQ(*json.integer_or("nil", 9), 9);
  EXPECT_EQ(*json.integer_in("neg", -3, -3), -3);
  EXPECT_EQ(*json.integer_in_or("absent", 1, 2, 77), 77);
  EXPECT_EQ(*json.number("f"), 2.5);
  EXPECT_EQ(*json.number("i"), 5.0);
  EXPECT_EQ(*json.number_or("absent", 0.5), 0.5);
  EXPECT_EQ(*json.number_in_or("f", 0, 3, 1), 2.5);
  EXPECT_TRUE(*json.flag("b"));
  EXPECT_FALSE(*json.flag_or("nil", false));
  EXPECT_EQ(*json.string("s"), "x");
  EXPECT_EQ(*json.string_or("absent", "y"), "y");
  EXPECT_THAT(*json.integers("ints"), ElementsAre(1, 2));
  EXPECT_THAT(*json.numbers("nums"), ElementsAre(1.0, 2.5));
  EXPECT_THAT(*json.strings("strs"), ElementsAre("a"));
  EXPECT_EQ(*json.object("o")->integer("p"), 7);
  EXPECT_EQ(*(*json.objects("os"))[1].integer("q"), 2);
  EXPECT_FALSE(json.has("nil"));
  EXPECT_FALSE(json.has("absent"));
  EXPECT_THAT(json.names(),
              ElementsAre("b", "f", "i", "ints", "neg", "nums", "o", "os", "s", "strs"));
  EXPECT_EQ(json.dump("ints"), "[1,2]");
}

TEST(ConfigJson, ErrorsNameTheFieldAndTheAllowedValues) {
  const ConfigJson json = parsed(R"({"heads": 0, "name": 3, "size": "8", "theta": true, "half": 1.5,
    "list": [1, "x"], "huge": 18446744073709551615, "o": {"in": []}, "tie": 1})");
  const auto message = [](const auto& result) { return result.error().message; };
  EXPECT_EQ(message(json.integer_in("heads", 1, 64)),
            "config.json: heads must be an integer from 1 to 64, got 0");
  EXPECT_EQ(message(json.string("name")), "config.json: name must be a string, got 3");
  EXPECT_EQ(message(json.integer("size")),
            "config.json: size must be an integer of 64 bits, got the string \"8\"");
  EXPECT_EQ(message(json.number("theta")), "config.json: theta must be a finite number, got true");
  EXPECT_FALSE(json.integer("half").ok());
  EXPECT_FALSE(json.integer("huge").ok());
  EXPECT_FALSE(json.flag("tie").ok());
  EXPECT_EQ(message(json.integers("list")),
            "config.json: list must be an array of integers, but item 1 is the string \"x\"");
  EXPECT_EQ(message(json.integer("absent")),
            "config.json: absent is missing; it must be an integer");
  EXPECT_EQ(message(json.object("o")->integer("in")),
            "config.json: o.in must be an integer of 64 bits, got an array of 0");
  EXPECT_EQ(message(json.number_in("half", 0, 1)),
            "config.json: half must be a number from 0.0 to 1.0, got 1.5");
  // A fallback never hides a value of the wrong type.
  EXPECT_FALSE(json.integer_or("size", 1).ok());
  EXPECT_FALSE(json.flag_or("tie", false).ok());
}

TEST(ConfigJson, NestedViewFallsBackToTheTopLevel) {
  const ConfigJson json =
      parsed(R"({"tie": true, "a": 1, "text_config": {"a": 2, "tie": null, "rope": {"x": 3}}})");
  const ConfigJson text = json.text_config().value();
  EXPECT_EQ(*text.integer("a"), 2);
  EXPECT_TRUE(*text.flag("tie"));
  EXPECT_EQ(*text.object("rope")->integer("x"), 3);
  EXPECT_EQ(text.field("a"), "config.json: text_config.a");
  EXPECT_EQ(text.field("tie"), "config.json: tie");
  EXPECT_EQ(*json.integer("a"), 1);
  // Without the object, the view is the top level.
  EXPECT_EQ(*parsed(R"({"a": 4})").text_config()->integer("a"), 4);
  EXPECT_FALSE(parsed(R"({"text_config": 4})").text_config().ok());
}

// A02 for config.json
TEST(ConfigJsonAttack, RefusedWhileParsing) {
  EXPECT_THAT(refusal(R"({"a": 1e400})"), HasSubstr("too large"));
  EXPECT_THAT(refusal(R"({"a": -1e400})"), HasSubstr("too large"));
  for (const char* text :
       {R"({"a": NaN})", R"({"a": Infinity})", R"({"a": -Infinity})", "", "{", R"({"a": 1,})",
        R"({"a": 01})", "{\"a\": \"\xff\"}", R"({"a": "\ud800"})", R"({"a": 1} x)", "[]", "1",
        "null", "{\"a\0\": 1}"}) {
    EXPECT_NE(refusal(text), "accepted") << text;
  }
  EXPECT_THAT(refusal(R"({"a": 1, "a": 2})"), HasSubstr("\"a\" twice"));
  EXPECT_THAT(refusal(R"({"o": {"b": 1, "b": 1}})"), HasSubstr("\"b\" twice"));
  EXPECT_THAT(refusal("{\"a\":" + std::string(1000000, '[')), HasSubstr("deeper than 32"));
  std::string deep;
  for (int i = 0; i < 1000000; ++i) deep += "{\"a\":";
  EXPECT_THAT(refusal(deep), HasSubstr("deeper than 32"));
  EXPECT_THAT(refusal("{\"" + std::string(5000, 'k') + "\": 1}"), HasSubstr("at most 4096"));
  EXPECT_THAT(refusal("{}", {.max_bytes = 1}), HasSubstr("at most 1 are accepted"));
  EXPECT_THAT(refusal(R"({"a": [1, 2, 3]})", {.max_values = 4}), HasSubstr("more than 4 values"));
  EXPECT_EQ(refusal(R"({"a": [{}], "b": {"a": 1}})"), "accepted");
}

TEST(ConfigJsonAttack, MessagesCarryNoControlCharacters) {
  const ConfigJson json =
      parsed(R"({"a": "\u001b[2J\n", "b": ")" + std::string(100000, 'x') + "\"}");
  EXPECT_THAT(json.integer("a").error().message, HasSubstr("\"\\x1b[2J\\x0a\""));
  EXPECT_LT(json.integer("b").error().message.size(), 400u);
}

TEST(LoadConfig, EosFromGenerationConfigOrConfig) {
  const TempDir dir;
  EXPECT_THAT(load_config(dir.path()).error().message, HasSubstr("no config.json"));
  EXPECT_EQ(load_config(dir.file("absent")).error().kind, ErrorKind::kNotFound);
  write_file(dir.file("config.json"), R"({"eos_token_id": 3, "text_config": {"bos_token_id": 1}})");
  auto config = load_config(dir.path());
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_THAT(config->generation.eos_token_ids, ElementsAre(3));
  EXPECT_EQ(config->generation.bos_token_id, 1);
  EXPECT_FALSE(config->generation.do_sample.has_value());

  write_file(dir.file("generation_config.json"),
             R"({"eos_token_id": [7, 8], "do_sample": true, "temperature": 0.6, "top_k": 20,
                 "top_p": 0.95, "repetition_penalty": 1.05, "pad_token_id": -1})");
  config = load_config(dir.path());
  ASSERT_TRUE(config.ok()) << config.error().message;
  EXPECT_THAT(config->generation.eos_token_ids, ElementsAre(7, 8));
  EXPECT_EQ(config->generation.do_sample, true);
  EXPECT_EQ(config->generation.temperature, 0.6);
  EXPECT_EQ(config->generation.top_k, 20);
  EXPECT_EQ(config->generation.top_p, 0.95);
  EXPECT_EQ(config->generation.repetition_penalty, 1.05);
  EXPECT_FALSE(config->generation.pad_token_id.has_value());
  EXPECT_FALSE(config->generation.min_p.has_value());
}

TEST(LoadConfig, GenerationValuesAreChecked) {
  const TempDir dir;
  write_file(dir.file("config.json"), "{}");
  for (const char* text :
       {R"({"temperature": -1})", R"({"top_p": 1.5})", R"({"top_k": -2})",
        R"({"eos_token_id": -5})", R"({"eos_token_id": [1, 4294967296]})",
        R"({"eos_token_id": "</s>"})", R"({"do_sample": "yes"})", R"({"repetition_penalty": 0})"}) {
    write_file(dir.file("generation_config.json"), text);
    const auto config = load_config(dir.path());
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_THAT(config.error().message, HasSubstr("generation_config.json: "));
  }
}

}  // namespace
}  // namespace weft
