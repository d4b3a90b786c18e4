#include "text/chat_parser.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <string>

#include "text/chat_parser_testing.h"

namespace weft {
namespace {

using Reasoning = ChatFormat::Reasoning;
using Tools = ChatFormat::Tools;

constexpr ChatFormat kHermes{Reasoning::kThinkTags, Tools::kHermesJson};
constexpr ChatFormat kXml{Reasoning::kThinkTags, Tools::kQwenXml};
constexpr ChatFormat kLlama{Reasoning::kNone, Tools::kLlamaJson};

const ChatParserOptions& options() {
  static const ChatParserOptions kOptions{.tools_enabled = true,
                                          .tools_json = R"([
    {"type": "function", "function": {"name": "f", "parameters": {"type": "object",
      "$defs": {"Point": {"type": "object"}, "Color": {"enum": ["red", "blue"]}},
      "properties": {
        "s": {"type": "string"}, "i": {"type": "integer"}, "n": {"type": "number"},
        "b": {"type": "boolean"}, "o": {"type": "object"}, "a": {"type": "array"},
        "z": {"type": "null"}, "sn": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "si": {"type": ["string", "integer"]}, "p": {"$ref": "#/$defs/Point"},
        "c": {"$ref": "#/$defs/Color"}}}}},
    {"type": "function", "function": {"name": "g"}}])",
                                          .seed = 1};
  return kOptions;
}

/// The answer as text: reasoning in [], content, then calls as name(arguments). The same for every
/// cutting tried.
std::string shown(ChatFormat format, std::string_view text,
                  const ChatParserOptions& with = options()) {
  const ParsedAnswer answer = parse_answer(format, with, text, [](size_t rest) { return rest; });
  EXPECT_TRUE(answer.well_formed);
  for (size_t size : {1, 2, 3, 7}) {
    const ParsedAnswer cut =
        parse_answer(format, with, text, [size](size_t rest) { return std::min(size, rest); });
    EXPECT_EQ(cut, answer) << text;
  }
  std::string out;
  if (!answer.reasoning.empty()) out += "[" + answer.reasoning + "]";
  out += answer.content;
  for (const auto& call : answer.calls) out += "|" + call.name + "(" + call.arguments + ")";
  return out;
}

std::string in_call(std::string_view text) {
  return "<tool_call>\n" + std::string(text) + "\n</tool_call>";
}

std::string thinking(std::string_view text) {
  ChatParserOptions with = options();
  with.starts_in_reasoning = true;
  return shown(kHermes, text, with);
}

TEST(ChatParser, PartsReasoning) {
  EXPECT_EQ(shown(kHermes, "<think>\nWhy?\n\nSo.\n</think>\n\nBecause."), "[Why?\n\nSo.]Because.");
  EXPECT_EQ(shown(kHermes, "\n <think>a</think>b"), "[a]b");
  EXPECT_EQ(shown(kHermes, "<think>\n\n</think>\n\nHi\n"), "Hi\n");
  EXPECT_EQ(shown(kHermes, "<think>never ends </thin"), "[never ends </thin]");
  EXPECT_EQ(shown(kHermes, "plain <think>x</think>"), "plain <think>x</think>");
  EXPECT_EQ(shown(kHermes, " \n <b>x"), " \n <b>x");
  EXPECT_EQ(shown(kHermes, "<think>a < b << </thinks></think>ok"), "[a < b << </thinks>]ok");
  EXPECT_EQ(shown(kHermes, "<think>a</think></think>\n\nb"), "[a]b");
  EXPECT_EQ(shown(kHermes, "<think>a</think>\n<think>b</think>c"), "[a\nb]c");
  EXPECT_EQ(shown(kHermes, "<think>a</think>\n\n    indented"), "[a]    indented");
  EXPECT_EQ(thinking("Why?\n</think>\n\nBecause."), "[Why?]Because.");
  EXPECT_EQ(thinking("<think>\nagain</think>x"), "[again]x");
  EXPECT_EQ(thinking("\n</think>\n\nx"), "x");
  EXPECT_EQ(thinking("not <think> closed\n"), "[not <think> closed]");
  EXPECT_EQ(shown({}, "<think>a</think>b"), "<think>a</think>b");
}

TEST(ChatParser, TellsWhetherItIsInReasoning) {
  ChatParser parser(kHermes, options());
  ChatDelta delta;
  EXPECT_FALSE(parser.in_reasoning());
  parser.push("<think>", delta);
  EXPECT_TRUE(parser.in_reasoning());
  parser.push("a</think>", delta);
  EXPECT_FALSE(parser.in_reasoning());
  ChatParser opened(kHermes, {.starts_in_reasoning = true});
  EXPECT_TRUE(opened.in_reasoning());
}

TEST(ChatParser, CallsInReasoningAreReasoning) {
  const std::string call = in_call(R"({"name": "f", "arguments": {}})");
  EXPECT_EQ(shown(kHermes, "<think>I could " + call + "</think>" + call),
            "[I could " + call + "]|f({})");
  EXPECT_EQ(shown(kXml, "<think>" + call), "[" + call + "]");
}

TEST(ChatParser, HermesCalls) {
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": {"city": "Paris", "n": 3}})")),
            R"(|f({"city": "Paris", "n": 3}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"arguments": {"a": [1, {"b": "}"}]}, "name": "f"})")),
            R"(|f({"a": [1, {"b": "}"}]}))");
  // Nothing between the parts; further keys; a name with escapes.
  EXPECT_EQ(
      shown(kHermes,
            R"(<tool_call>{"id":7,"name":"\u0066","x":[{}],"arguments":{"s":"<a>"}}</tool_call>)"),
      R"(|f({"s":"<a>"}))");
  // Arguments as a string of JSON.
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": "{\"a\": \"x\\n\\u00e9\"}"})")),
            R"(|f({"a": "x\n\u00e9"}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"arguments": "{\"a\": 1}", "name": "f"})")),
            R"(|f({"a": 1}))");
  // Markup inside a string is the string's.
  EXPECT_EQ(
      shown(kHermes, in_call(R"({"name": "f", "arguments": {"a": "</tool_call><tool_call>{}"}})")),
      R"(|f({"a": "</tool_call><tool_call>{}"}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": {"a": "日本 😀 é"}})")),
            R"(|f({"a": "日本 😀 é"}))");
}

TEST(ChatParser, NoArgumentsAreAnEmptyObject) {
  for (const char* call :
       {R"({"name": "f"})", R"({"name": "f", "arguments": {}})",
        R"({"name": "f", "arguments": null})", R"({"name": "f", "arguments": ""})",
        R"({"name": "f", "arguments": "{}"})", R"({"name": "f", "arguments": None})",
        R"({"arguments": null, "name": "f"})", R"({"name": "f", "arguments": "null"})",
        R"({"arguments": "", "name": "f"})"}) {
    EXPECT_EQ(shown(kHermes, in_call(call)), "|f({})") << call;
  }
  EXPECT_EQ(shown(kXml, in_call("<function=f>\n</function>")), "|f({})");
  EXPECT_EQ(shown(kXml, in_call("<function=f></function>")), "|f({})");
  EXPECT_EQ(shown(kXml, in_call("<function=f>")), "|f({})");
}

TEST(ChatParser, ContentAroundCalls) {
  const std::string f = in_call(R"({"name": "f"})"), g = in_call(R"({"name": "g"})");
  EXPECT_EQ(shown(kHermes, f + "\n" + g), "|f({})|g({})");
  EXPECT_EQ(shown(kHermes, f + g), "|f({})|g({})");
  EXPECT_EQ(shown(kHermes, "Let me see.\n\n" + f + "\n" + g + "\n"), "Let me see.|f({})|g({})");
  EXPECT_EQ(shown(kHermes, "A " + f + "B\n" + g + "\n\nC "), "A B\n\nC |f({})|g({})");
  EXPECT_EQ(shown(kHermes, "\n\n" + f + "\n\nDone."), "Done.|f({})");
  EXPECT_EQ(shown(kHermes, "<think>\nhm\n</think>\n\n" + f), "[hm]|f({})");
  EXPECT_EQ(shown(kHermes, "no call  \n"), "no call  \n");
  EXPECT_EQ(shown(kHermes, "a <"), "a <");
}

TEST(ChatParser, WithoutToolsMarkupIsContent) {
  const std::string text = " " + in_call(R"({"name": "f"})") + " ";
  EXPECT_EQ(shown(kHermes, text, {}), text);
  EXPECT_EQ(shown({Reasoning::kThinkTags, Tools::kNone}, text), text);
}

TEST(ChatParser, WhatIsNoCallIsContent) {
  for (const std::string& text :
       {std::string("Use <tool_call> for it."), in_call("f(1)"), in_call("[1]"),
        in_call(R"({"name": 3, "arguments": {}})"), in_call(R"({"name": "f", "arguments": [1]})"),
        in_call(R"({"name": "f", "arguments": "text"})"), in_call(R"({"arguments": {"a": 1}})"),
        in_call(R"({"name": "", "arguments": {}})"), in_call("{}"), in_call("{'name': 'f'}"),
        std::string("<tool_call><tool_call >"), in_call("<function f>")}) {
    EXPECT_EQ(shown(kHermes, "a " + text + " b"), "a " + text + " b");
  }
  // A call after it is one all the same.
  EXPECT_EQ(shown(kHermes, "<tool_call> or " + in_call(R"({"name": "f"})")),
            "<tool_call> or|f({})");
  EXPECT_EQ(shown(kHermes, "<tool_call>\n" + in_call(R"({"name": "f"})")), "<tool_call>|f({})");
  EXPECT_EQ(shown(kXml, "<tool_call>\n<function=f>\n<tool_call><function=g></function>"),
            "<tool_call>\n<function=f>|g({})");
  EXPECT_EQ(shown(kXml, "an <function=f> there"), "an <function=f> there");
}

TEST(ChatParser, UnsoundArgumentsAreClosed) {
  // The braces do not match.
  EXPECT_EQ(shown(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1}\n</tool_call>x"),
            R"(x|f({"a": 1}))");
  EXPECT_EQ(shown(kHermes, "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1\n</tool_call>x"),
            R"(x|f({"a": 1}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": {"a": 1}}})") + "x"),
            R"(x|f({"a": 1}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": {"a": b}})")), "|f({})");
  EXPECT_EQ(shown(kHermes, in_call("{\"name\": \"f\", \"arguments\": {\"a\": \"x\ny\",}}")),
            R"(|f({"a": "x\ny"}))");
  EXPECT_EQ(shown(kHermes, in_call(R"({"name": "f", "arguments": "{\"a\": [1"})")),
            R"(|f({"a": [1]}))");
  // No end of the block, but another call.
  EXPECT_EQ(shown(kHermes, "<tool_call>{\"name\": \"f\"}\n" + in_call(R"({"name": "g"})")),
            "|f({})|g({})");
}

TEST(ChatParser, AnEndInsideACall) {
  EXPECT_EQ(shown(kHermes, "a <tool_call>\n{\"name\": \"f"), "a");
  EXPECT_EQ(shown(kHermes, "<tool_call>\n{\"name\": \"f\", \"argum"), "");
  EXPECT_EQ(shown(kHermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {"), "|f({})");
  EXPECT_EQ(shown(kHermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": \"x\\u00"),
            R"(|f({"a": "x"}))");
  EXPECT_EQ(shown(kXml, "<tool_call>\n<function=f>\n<parameter=s>\nx\n</para"),
            R"(|f({"s": "x"}))");
  EXPECT_EQ(shown(kXml, "<tool_call>\n<function=f>\n<parameter=s>\nx\n</parameter>\n</fun"),
            R"(|f({"s": "x"}))");
  EXPECT_EQ(shown(kXml, "<tool_call>\n<function=f>\n<parameter=i>\n12"), "|f({})");
  EXPECT_EQ(shown(kXml, "<tool_call>\n<function=f>\n<param"), "");
}

std::string xml(std::string_view parameters) {
  return in_call("<function=f>\n" + std::string(parameters) + "</function>");
}

std::string one(std::string_view key, std::string_view value) {
  return shown(kXml, xml("<parameter=" + std::string(key) + ">\n" + std::string(value) +
                         "\n</parameter>\n"));
}

TEST(ChatParser, XmlParametersHaveTheTypesOfTheSchema) {
  EXPECT_EQ(one("s", "Paris"), R"(|f({"s": "Paris"}))");
  EXPECT_EQ(one("s", "5"), R"(|f({"s": "5"}))");
  EXPECT_EQ(one("s", "null"), R"(|f({"s": "null"}))");
  EXPECT_EQ(one("s", ""), R"(|f({"s": ""}))");
  EXPECT_EQ(one("s", "\n a\n\tb \n"), R"(|f({"s": "\n a\n\tb \n"}))");
  EXPECT_EQ(one("s", "\"q\" \\ \x01 é😀"), R"(|f({"s": "\"q\" \\ \u0001 é😀"}))");
  EXPECT_EQ(one("i", " 5 "), R"(|f({"i": 5}))");
  EXPECT_EQ(one("i", "-12"), R"(|f({"i": -12}))");
  EXPECT_EQ(one("i", "five"), R"(|f({"i": "five"}))");
  EXPECT_EQ(one("i", "1."), R"(|f({"i": "1."}))");
  EXPECT_EQ(one("i", "05"), R"(|f({"i": "05"}))");
  EXPECT_EQ(one("i", ""), R"(|f({"i": ""}))");
  EXPECT_EQ(one("n", "2.5e3"), R"(|f({"n": 2.5e3}))");
  EXPECT_EQ(one("b", "True"), R"(|f({"b": true}))");
  EXPECT_EQ(one("b", "tru"), R"(|f({"b": "tru"}))");
  EXPECT_EQ(one("z", "null"), R"(|f({"z": null}))");
  EXPECT_EQ(one("o", "{\"k\": [1, \"<\"],\n \"l\": \"x\"}"),
            "|f({\"o\": {\"k\": [1, \"<\"],\n \"l\": \"x\"}})");
  EXPECT_EQ(one("o", "{\"k\": "), R"(|f({"o": "{\"k\": "}))");
  EXPECT_EQ(one("a", "[1, 2] x"), R"(|f({"a": "[1, 2] x"}))");
  EXPECT_EQ(one("p", "{}"), R"(|f({"p": {}}))");
  EXPECT_EQ(one("c", "red"), R"(|f({"c": "red"}))");
  EXPECT_EQ(one("sn", "null"), R"(|f({"sn": null}))");
  EXPECT_EQ(one("sn", "nullify"), R"(|f({"sn": "nullify"}))");
  EXPECT_EQ(one("sn", "nu"), R"(|f({"sn": "nu"}))");
  EXPECT_EQ(one("sn", ""), R"(|f({"sn": ""}))");
  EXPECT_EQ(one("si", "5"), R"(|f({"si": 5}))");
  EXPECT_EQ(one("si", "\"5\""), R"(|f({"si": "\"5\""}))");
  EXPECT_EQ(one("si", "[5]"), R"(|f({"si": "[5]"}))");
  EXPECT_EQ(one("unknown", "5"), R"(|f({"unknown": "5"}))");
}

TEST(ChatParser, XmlValuesMayHoldWhatLooksLikeTheirEnd) {
  for (const char* value :
       {"a < b", "<b>x</b>", "</param", "</parameters>", "</parameter", "x</parameter>y",
        "</parameter>\n\n</parameter>\n<b", "<parameter=x>", "</function>",
        "</function> </function>", "</tool_call>", "<<</parameter><", "<tool_call>\n<function=g>",
        "\n<", "</parameter>\n</functio"}) {
    EXPECT_EQ(one("s", value).substr(0, 8), R"(|f({"s":)");
    std::string expected = "|f({\"s\": \"";
    for (const char* c = value; *c != 0; ++c) expected += *c == '\n' ? "\\n" : std::string(1, *c);
    EXPECT_EQ(one("s", value), expected + "\"})");
  }
}

TEST(ChatParser, XmlCalls) {
  EXPECT_EQ(shown(kXml, xml("<parameter=s>\na\n</parameter>\n<parameter=i>\n3\n</parameter>\n")),
            R"(|f({"s": "a", "i": 3}))");
  EXPECT_EQ(shown(kXml, xml("<parameter=s>a</parameter><parameter=s>b</parameter>")),
            R"(|f({"s": "a"}))");
  EXPECT_EQ(shown(kXml, "Sure.\n\n" + xml("<parameter=s>a</parameter>") + "\n" +
                            in_call("<function=g>\n</function>") + "\nok"),
            "Sure.\nok|f({\"s\": \"a\"})|g({})");
  // Two in one block; the tags that models forget.
  EXPECT_EQ(shown(kXml, in_call("<function=f></function>\n<function=g></function>")),
            "|f({})|g({})");
  EXPECT_EQ(shown(kXml, "hm <function=f>\n<parameter=i>1</parameter>\n</function>\n</tool_call>x"),
            "hm x|f({\"i\": 1})");
  EXPECT_EQ(shown(kXml, "<function=f>\n</function>\n\nx"), "x|f({})");
  EXPECT_EQ(shown(kXml, "<tool_call><function=f><parameter=s>\na\n</function>\n</tool_call>x"),
            R"(x|f({"s": "a"}))");
  EXPECT_EQ(shown(kXml, "<tool_call><function=f><parameter=s>\na\n</parameter></tool_call>x"),
            R"(x|f({"s": "a"}))");
  // The other format in the block.
  EXPECT_EQ(shown(kXml, in_call(R"({"name": "f", "arguments": {"s": 1}})")), R"(|f({"s": 1}))");
}

TEST(ChatParser, LlamaCalls) {
  EXPECT_EQ(shown(kLlama, R"({"name": "f", "parameters": {"s": "x"}})"), R"(|f({"s": "x"}))");
  EXPECT_EQ(shown(kLlama, R"(<|python_tag|>{"type": "function", "name": "f", "parameters": {}})"),
            "|f({})");
  EXPECT_EQ(shown(kLlama, R"({"name": "f", "parameters": {}}; {"name": "g", "arguments": {}})"),
            "|f({})|g({})");
  for (const char* text : {R"({"name": "h", "parameters": {}})", R"({"name": "f"})",
                           R"(Hi {"name": "f", "parameters": {}})", R"({"answer": 42})", "{",
                           R"({"name": "f", "par)", " plain ", "<|python_tag|>print(1)", "<|py"}) {
    EXPECT_EQ(shown(kLlama, text), text);
  }
}

TEST(ChatParser, IdsComeFromTheSeedAndTellCallsApart) {
  const std::string text = in_call(R"({"name": "f"})") + in_call(R"({"name": "f"})");
  const auto whole = [](size_t rest) { return rest; };
  const auto a = parse_answer(kHermes, options(), text, whole);
  ChatParserOptions other = options();
  other.seed = 2;
  const auto b = parse_answer(kHermes, other, text, whole);
  ASSERT_EQ(a.calls.size(), 2U);
  EXPECT_EQ(a, parse_answer(kHermes, options(), text, whole));
  EXPECT_EQ(a.calls[0].id.size(), 29U);
  EXPECT_EQ(a.calls[0].id.substr(0, 5), "call_");
  EXPECT_NE(a.calls[0].id, a.calls[1].id);
  EXPECT_NE(a.calls[0].id, b.calls[0].id);
  EXPECT_NE(a.calls[1].id, b.calls[0].id);
}

TEST(ChatParser, GivesPiecesOutAsSoonAsTheyAreCertain) {
  const auto after = [](ChatFormat format, std::string_view text) {
    ChatParser parser(format, options());
    ChatDelta delta;
    parser.push(text, delta);
    std::string out = delta.reasoning + "/" + delta.content;
    for (const auto& call : delta.tool_calls) out += "|" + call.name + "(" + call.arguments;
    return out;
  };
  EXPECT_EQ(after(kHermes, "<think>\nab"), "ab/");
  EXPECT_EQ(after(kHermes, "ab c"), "/ab c");
  EXPECT_EQ(after(kHermes, "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"ab"),
            "/|f({\"s\": \"ab");
  EXPECT_EQ(after(kXml, "<tool_call>\n<function=f>\n<parameter=s>\nab"), "/|f({\"s\": \"ab");
  EXPECT_EQ(after(kXml, "<tool_call>\n<function=f>\n<parameter=sn>\nab"), "/|f({\"sn\": \"ab");
}

}  // namespace
}  // namespace weft
