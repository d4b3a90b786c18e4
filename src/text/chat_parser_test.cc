#include "text/chat_parser.h"

#include <gtest/gtest.h>

#include <chrono>
#include <random>

namespace weft {
namespace {

using Reasoning = ChatFormat::Reasoning;
using Tools = ChatFormat::Tools;

constexpr const char* kTools = R"([{"type":"function","function":{"name":"add","parameters":{
  "type":"object","properties":{"a":{"type":"integer"},"note":{"type":"string"},
  "opt":{"anyOf":[{"type":"array"},{"type":"null"}]}}}}}])";

/// The answer as one line: reasoning | content | name(arguments) ...
std::string joined(const ChatDelta& delta) {
  std::string out = delta.reasoning + "|" + delta.content + "|";
  int index = -1;
  for (const ToolCallDelta& piece : delta.tool_calls) {
    if (piece.index != index) {
      EXPECT_EQ(piece.index, index + 1);
      EXPECT_FALSE(piece.id.empty());
      EXPECT_FALSE(piece.name.empty());
      out += " " + piece.name + "=";
      index = piece.index;
    } else {
      EXPECT_TRUE(piece.id.empty() && piece.name.empty());
    }
    out += piece.arguments;
  }
  return out;
}

ChatParser parser(bool in_reasoning) {
  return ChatParser({Reasoning::kThinkTags, Tools::kHermesJson},
                    {.tools_enabled = true,
                     .starts_in_reasoning = in_reasoning,
                     .tools_json = kTools,
                     .seed = 7});
}

std::string parse(const std::string& text, bool in_reasoning = false, size_t cut = 0) {
  ChatParser p = parser(in_reasoning);
  ChatDelta all;
  if (cut == 0) cut = text.size() + 1;
  for (size_t i = 0; i < text.size(); i += cut) p.push(text.substr(i, cut), all);
  p.finish(all);
  return joined(all);
}

TEST(ChatParser, Reasoning) {
  EXPECT_EQ(parse("<think>\nhm\n</think>\n\nYes."), "hm|Yes.|");
  EXPECT_EQ(parse("hm\nho\n</think>\n\nYes.", true), "hm\nho|Yes.|");
  EXPECT_EQ(parse("\n <think>x</think>y"), "x|y|");
  EXPECT_EQ(parse("<think>\n\n</think>\n\nYes."), "|Yes.|");
  EXPECT_EQ(parse("never closed <tool_call>{\"name\": \"f\"}</tool_call>", true),
            "never closed <tool_call>{\"name\": \"f\"}</tool_call>||");
  EXPECT_EQ(parse(" <thin"), "| <thin|");
  EXPECT_EQ(parse("a <think> b"), "|a <think> b|");
  EXPECT_EQ(parse("x </thin", true), "x </thin||");
}

TEST(ChatParser, HermesCalls) {
  EXPECT_EQ(parse("<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 1, \"b\": [2, \"}\"]}}"
                  "\n</tool_call>"),
            "|| add={\"a\": 1, \"b\": [2, \"}\"]}");
  EXPECT_EQ(parse("Sure.\n<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>\n"
                  "<tool_call>{\"name\":\"g\"}</tool_call> done"),
            "|Sure. done| f={} g={}");
  EXPECT_EQ(parse("<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"f\"}</tool_call>"),
            "|| f={\"a\": 1}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call>"), "|| f={}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}</tool_call>"),
            "|| f={\"a\": 1}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": \"\"}</tool_call>"), "|| f={}");
  EXPECT_EQ(parse("<tool_call>{\"id\": 7, \"name\": \"f\", \"arguments\": {\"t\": "
                  "\"</tool_call>\"}}</tool_call>"),
            "|| f={\"t\": \"</tool_call>\"}");
}

TEST(ChatParser, WhatIsNoCallIsContent) {
  EXPECT_EQ(parse("<tool_call>\nhello</tool_call>"), "|<tool_call>\nhello</tool_call>|");
  EXPECT_EQ(parse("<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>"),
            "|<tool_call>{\"name\": 3, \"arguments\": {}}</tool_call>|");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>"),
            "|<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>|");
  EXPECT_EQ(parse("2 <tool 3"), "|2 <tool 3|");
}

TEST(ChatParser, BrokenArgumentsAreClosed) {
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"x"),
            "|| f={\"a\": \"x\"}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 12"), "|| f={}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": [1, 2"),
            "|| f={\"a\": [1]}");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"argum"), "||");
  EXPECT_EQ(parse("<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": 1,, 2}}</tool_call>"),
            "|, 2}}</tool_call>| f={\"a\": 1}");
}

TEST(ChatParser, XmlCalls) {
  const std::string open = "<tool_call>\n<function=add>\n", close = "</function>\n</tool_call>";
  EXPECT_EQ(parse(open +
                  "<parameter=a>\n3\n</parameter>\n<parameter=note>\nx < \"y\"\n\n"
                  "</parameter>\n" +
                  close),
            "|| add={\"a\": 3, \"note\": \"x < \\\"y\\\"\\n\"}");
  EXPECT_EQ(parse(open + close), "|| add={}");
  EXPECT_EQ(parse(open + "<parameter=a>\nthree\n</parameter>\n" + close),
            "|| add={\"a\": \"three\"}");
  EXPECT_EQ(parse(open + "<parameter=opt>\n[1, 2]\n</parameter>" + close),
            "|| add={\"opt\": [1, 2]}");
  EXPECT_EQ(parse(open + "<parameter=note></parameter>" + close), "|| add={\"note\": \"\"}");
  EXPECT_EQ(parse(open + "<parameter=note>a</para</parameter>" + close),
            "|| add={\"note\": \"a</para\"}");
  EXPECT_EQ(parse(open + "<parameter=other>\n7\n</parameter>" + close),
            "|| add={\"other\": \"7\"}");
  EXPECT_EQ(parse(open + "<parameter=note>\nab\n</par"), "|| add={\"note\": \"ab\"}");
  EXPECT_EQ(parse(open + "junk" + close), "|junk</function>\n</tool_call>| add={}");
}

TEST(ChatParser, IdsAreAFunctionOfTheSeed) {
  ChatDelta a, b;
  for (ChatDelta* out : {&a, &b}) {
    ChatParser p = parser(false);
    p.push("<tool_call>{\"name\":\"f\"}</tool_call><tool_call>{\"name\":\"f\"}</tool_call>", *out);
  }
  ASSERT_EQ(a.tool_calls.size(), 2U);
  EXPECT_EQ(a.tool_calls[0].id, b.tool_calls[0].id);
  EXPECT_NE(a.tool_calls[0].id, a.tool_calls[1].id);
}

/// Answers of tags, JSON and noise: joined pieces are the same however the text is cut.
TEST(ChatParser, CutsDoNotMatter) {
  const std::vector<std::string> parts = {"<think>",
                                          "</think>",
                                          "<tool_call>",
                                          "</tool_call>",
                                          "\n",
                                          " ",
                                          "{\"name\": \"f\", ",
                                          "\"arguments\": ",
                                          "{\"a\": \"x\\n\\u00e9\"}",
                                          "}",
                                          "{",
                                          "\"",
                                          ":",
                                          ",",
                                          "[1, -2.5e3]",
                                          "true",
                                          "<function=add>",
                                          "</function>",
                                          "<parameter=note>",
                                          "<parameter=a>",
                                          "</parameter>",
                                          "ä€",
                                          "text",
                                          "<",
                                          "</",
                                          "null",
                                          "\"arguments\": {\"k\": {\"z\": []}}}",
                                          "\\"};
  std::mt19937_64 random(20261121);
  size_t calls = 0;
  for (int round = 0; round < 20000; ++round) {
    std::string text;
    const size_t n = random() % 14;
    for (size_t i = 0; i < n; ++i) text += parts[random() % parts.size()];
    const bool thinking = random() % 4 == 0;
    const std::string whole = parse(text, thinking);
    calls += whole.find('=') != std::string::npos ? 1 : 0;
    for (size_t cut : {1, 2, 3, 7}) ASSERT_EQ(parse(text, thinking, cut), whole) << text;
  }
  EXPECT_GT(calls, 100U);
}

TEST(ChatParser, LinearTime) {
  for (const std::string unit : {"<tool_call>", "<tool_call>{", "<think>", "<", "\n", "{\"a\":"}) {
    const auto seconds = [&](size_t bytes) {
      std::string text;
      while (text.size() < bytes) text += unit;
      double best = 1e9;
      for (int i = 0; i < 3; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        parse(text);
        best = std::min(
            best, std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
      }
      return best;
    };
    const double once = seconds(1 << 19);
    EXPECT_LT(seconds(1 << 21), 4 * 2.2 * once + 0.01) << unit;
  }
}

TEST(ChatFormat, FromTemplatesAndFlags) {
  EXPECT_EQ(detect_chat_format("a <think> <tool_call>\n{\"name\"").tools, Tools::kHermesJson);
  EXPECT_EQ(detect_chat_format("<tool_call>\n<function=x").tools, Tools::kQwenXml);
  EXPECT_EQ(detect_chat_format("plain").reasoning, Reasoning::kNone);
  EXPECT_EQ(choose_chat_format("hermes", "qwen3", {})->tools, Tools::kHermesJson);
  const auto bad = choose_chat_format("pythonic", "auto", {});
  ASSERT_FALSE(bad.ok());
}

}  // namespace
}  // namespace weft
