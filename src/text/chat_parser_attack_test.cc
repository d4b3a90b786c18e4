// A32: what a model may write, on purpose or not, goes through the parsers of reasoning and tool
// calls: a megabyte of openers without a closer, every prefix of a valid answer, a million streams
// of random tokens. Nothing crashes, calls are valid, and time is linear: t(2n) / t(n) <= 2.2.
#include <gtest/gtest.h>
#include <simdjson.h>

#include <algorithm>
#include <ctime>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "tests/support/sanitized.h"
#include "text/chat_parser.h"
#include "text/chat_parser_testing.h"

namespace weft {
namespace {

using Reasoning = ChatFormat::Reasoning;
using Tools = ChatFormat::Tools;

ChatParserOptions options_of(bool starts_in_reasoning = false) {
  return {.tools_enabled = true,
          .starts_in_reasoning = starts_in_reasoning,
          .tools_json = R"([{"type": "function", "function": {"name": "f", "parameters":
              {"properties": {"s": {"type": "string"}, "i": {"type": "integer"},
                              "o": {"type": "object"}}}}}])"};
}

/// CPU time of this thread alone for the text in pieces of a token's size: the best of three.
double parse_seconds(const ChatFormat& format, const std::string& text) {
  const auto now = [] {
    timespec time = {};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
  };
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const double begin = now();
    ChatParser parser(format, options_of());
    for (size_t at = 0; at < text.size(); at += 4) {
      ChatDelta delta;
      parser.push(std::string_view(text).substr(at, 4), delta);
    }
    ChatDelta delta;
    parser.finish(delta);
    best = std::min(best, now() - begin);
  }
  return best;
}

TEST(ChatParserAttack, A32MegabytesOfOpenersTakeLinearTime) {
  const size_t n = size_t{kSanitized ? 1u << 16 : 1u << 20};
  for (const ChatFormat& format : kFormats) {
    for (const char* opener :
         {"<think>", "<tool_call>", "<tool_call>\n{", "<tool_call>\n{\"name\": \"f\", ",
          "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": ", "{\"a\": [",
          "<tool_call>\n<function=f>\n<parameter=s>\n", "<function=f", "<parameter=", "\"", "\\",
          "</tool_call", "<", "[", "\n\n", "{\"name\": \"f\", \"parameters\": {\"a\": \""}) {
      std::string text;
      while (text.size() < 2 * n) text += opener;
      double ratio = 0;
      for (int attempt = 0; attempt < 4; ++attempt) {  // neighbours of the machine share its caches
        const double once = parse_seconds(format, text.substr(0, n));
        const double twice = parse_seconds(format, text.substr(0, 2 * n));
        ratio = twice / once;
        if (ratio <= 2.2) break;
      }
      EXPECT_LE(ratio, kSanitized ? 3.0 : 2.2) << opener;
    }
  }
}

/// An object, and UTF-8, whatever came before; numbers beyond 64 bits are JSON still.
void expect_sound(const ParsedAnswer& answer, simdjson::dom::parser& parser,
                  std::string_view text) {
  ASSERT_TRUE(answer.well_formed) << text;
  for (const auto& call : answer.calls) {
    ASSERT_FALSE(call.name.empty()) << text;
    simdjson::dom::object object;
    const simdjson::error_code error = parser.parse(call.arguments).get(object);
    ASSERT_TRUE(error == simdjson::SUCCESS || error == simdjson::NUMBER_ERROR)
        << text << "\n-> " << call.arguments;
  }
}

TEST(ChatParserAttack, A32EveryPrefixOfAValidAnswer) {
  const std::string thought = "<think>\nFirst {\"a\": 1} <b> and é 😀.\n</think>\n\n";
  const std::string valid[] = {
      thought +
          "I ask.\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"s\": \"a\\\"é\\u00e9\","
          " \"o\": {\"k\": [1, -2.5e3, null]}}}\n</tool_call>\n<tool_call>\n{\"name\": \"f\","
          " \"arguments\": {}}\n</tool_call>",
      thought +
          "I ask.\n\n<tool_call>\n<function=f>\n<parameter=s>\na < b\n</parameter>\n"
          "<parameter=o>\n{\"k\": [1, 2]}\n</parameter>\n<parameter=i>\n7\n</parameter>\n"
          "</function>\n</tool_call>\n<tool_call>\n<function=f>\n</function>\n</tool_call>",
      "{\"name\": \"f\", \"parameters\": {\"s\": \"é\", \"o\": {\"k\": [true, \"}\"]}}}; "
      "{\"name\": \"f\", \"parameters\": {}}"};
  simdjson::dom::parser parser;
  for (size_t f = 0; f < std::size(kFormats); ++f) {
    const std::string& text = valid[f];
    size_t calls = 0;
    for (size_t size = 0; size <= text.size(); ++size) {
      if (size < text.size() && (text[size] & 0xc0) == 0x80) continue;
      const std::string prefix = text.substr(0, size);
      const auto whole =
          parse_answer(kFormats[f], options_of(), prefix, [](size_t n) { return n; });
      expect_sound(whole, parser, prefix);
      EXPECT_EQ(whole, parse_answer(kFormats[f], options_of(), prefix, [](size_t) { return 1; }))
          << prefix;
      EXPECT_GE(whole.calls.size(), calls) << prefix;  // none is taken back
      calls = whole.calls.size();
    }
    EXPECT_EQ(calls, 2u);
  }
}

TEST(ChatParserAttack, A32AMillionRandomStreams) {
  const std::string_view tokens[] = {"<think>",
                                     "</think>",
                                     "<tool_call>",
                                     "</tool_call>",
                                     "<function=",
                                     "f>",
                                     "</function>",
                                     "<parameter=",
                                     "s>",
                                     "i>",
                                     "o>",
                                     "</parameter>",
                                     "{",
                                     "}",
                                     "[",
                                     "]",
                                     "\"",
                                     ": ",
                                     ", ",
                                     "\"name\"",
                                     "\"f\"",
                                     "\"arguments\"",
                                     "\"parameters\"",
                                     "\\",
                                     "\\u00",
                                     "e9",
                                     "\n",
                                     "\n\n",
                                     " ",
                                     "<",
                                     ">",
                                     "</",
                                     "tool",
                                     "_call>",
                                     "é",
                                     "😀",
                                     "12",
                                     "-",
                                     "1e9",
                                     ".",
                                     "null",
                                     "true",
                                     "a",
                                     "it's",
                                     "{\"name\": \"f\", \"arguments\": {",
                                     "<tool_call>\n<function=f>\n",
                                     "; ",
                                     "<|python_tag|>"};
  std::mt19937_64 random(32);
  simdjson::dom::parser parser;
  std::string text;
  std::vector<size_t> ends;
  size_t calls = 0;
  const int streams = kSanitized ? 50'000 : 1'000'000;
  for (int i = 0; i < streams; ++i) {
    text.clear();
    ends.clear();
    for (uint64_t n = 1 + random() % 16; n > 0; --n) {
      text += tokens[random() % std::size(tokens)];
      ends.push_back(text.size());
    }
    const ChatFormat& format = kFormats[random() % std::size(kFormats)];
    const ChatParserOptions options = options_of(random() % 4 == 0);
    size_t token = 0;
    const auto by_tokens = parse_answer(
        format, options, text, [&](size_t rest) { return ends[token++] - (text.size() - rest); });
    expect_sound(by_tokens, parser, text);
    if (i % 8 == 0) {
      ASSERT_EQ(by_tokens, parse_answer(format, options, text, [](size_t n) { return n; })) << text;
    }
    calls += by_tokens.calls.size();
  }
  EXPECT_GT(calls, static_cast<size_t>(streams) / 200);
}

}  // namespace
}  // namespace weft
