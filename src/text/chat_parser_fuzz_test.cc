// Random answers, sound and unsound, in random cuttings: the same result for every cutting, valid
// arguments, nothing of the markup in the content of what a sound answer begins with; linear time.
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

constexpr std::string_view kTools = R"([{"type": "function", "function": {"name": "f",
  "parameters": {"properties": {"s": {"type": "string"}, "i": {"type": "integer"},
  "o": {"type": "object"}, "sn": {"type": ["string", "null"]}}}}}])";

class Writer {
 public:
  explicit Writer(uint64_t seed) : random_(seed) {}

  size_t below(size_t n) { return random_() % n; }
  std::string_view one_of(const std::vector<std::string_view>& texts) {
    return texts[below(texts.size())];
  }

  std::string text() {
    std::string out;
    for (size_t n = 1 + below(4); n > 0; --n) {
      out += one_of({"a", " b ", "é", "😀", "\n", "x < y", "<b>", "{", "}", "it's", "</p", "\t"});
    }
    return out;
  }
  std::string value(int depth) {
    switch (below(depth > 2 ? 4 : 6)) {
      case 0: return std::to_string(static_cast<int>(below(2000)) - 1000);
      case 1: return std::string(one_of({"true", "false", "null", "-0.5e+3"}));
      case 2: return R"("a \" \\ } ] \u00e9 \ud83d\ude00 é </tool_call>")";
      case 3: return "\"\"";
      case 4: return "[" + value(depth + 1) + ", " + value(depth + 1) + "]";
      default: return "{\"k\": " + value(depth + 1) + ",\n \"l\":" + value(depth + 1) + " }";
    }
  }
  std::string call(Tools tools) {
    if (tools == Tools::kQwenXml && below(5) != 0) {
      std::string out = "<tool_call>\n<function=f>\n";
      std::vector<std::string_view> keys = {"s", "i", "o", "sn", "u"};
      std::shuffle(keys.begin(), keys.end(), random_);
      for (size_t n = below(4); n > 0; --n) {
        const std::string_view key = keys[n];
        out += "<parameter=" + std::string(key) + ">\n" + (below(2) == 0 ? value(0) : text()) +
               "\n</parameter>\n";
      }
      return out + "</function>\n</tool_call>";
    }
    const std::string arguments = "{\"a\": " + value(0) + "}";
    const std::string_view key = tools == Tools::kLlamaJson ? "parameters" : "arguments";
    std::string object = below(3) == 0
                             ? "{\"" + std::string(key) + "\": " + arguments + ", \"name\": \"f\"}"
                             : "{\"name\": \"f\", \"" + std::string(key) + "\": " + arguments + "}";
    return tools == Tools::kLlamaJson ? object : "<tool_call>\n" + object + "\n</tool_call>";
  }
  /// An answer as a model should write it.
  std::string sound(const ChatFormat& format) {
    std::string out;
    if (format.reasoning == Reasoning::kThinkTags && below(2) == 0) {
      out += "<think>\n" + text() + "\n</think>\n\n";
    }
    if (format.tools != Tools::kLlamaJson && below(2) == 0) out += text() + "\n\n";
    for (size_t n = below(3); n > 0; --n) out += call(format.tools) + (n > 1 ? "\n" : "");
    return out;
  }
  std::string mutated(std::string out) {
    for (size_t n = 1 + below(4); n > 0 && !out.empty(); --n) {
      const size_t at = below(out.size());
      switch (below(4)) {
        case 0: out.erase(at, 1 + below(5)); break;
        case 1: out.insert(at, soup(1)); break;
        case 2: out[at] = "<>{}\"\\/,: \n"[below(11)]; break;
        default: out.insert(at, out.substr(below(out.size()), below(20)));
      }
    }
    return out;
  }
  std::string soup(size_t size) {
    std::string out;
    for (; size > 0; --size) {
      out += one_of({"<think>",
                     "</think>",
                     "<tool_call>",
                     "</tool_call>",
                     "<function=",
                     "f>",
                     "<function=f>",
                     "</function>",
                     "<parameter=s>",
                     "<parameter=i>",
                     "</parameter>",
                     "{\"name\": \"f\"",
                     ", ",
                     "\"arguments\": {",
                     "}",
                     "\"",
                     "\\",
                     "{",
                     "[",
                     "]",
                     ":",
                     "\n",
                     " ",
                     "<",
                     "</",
                     "a",
                     "é",
                     "null",
                     "12",
                     "\\ud83d",
                     "\"arguments\": \"{",
                     "<|python_tag|>",
                     ";",
                     "\"k\"",
                     "-",
                     "."});
    }
    return out;
  }

 private:
  std::mt19937_64 random_;
};

bool is_object(const std::string& text, simdjson::dom::parser& parser) {
  simdjson::dom::object object;
  return parser.parse(text).get(object) == simdjson::SUCCESS;
}

TEST(ChatParserFuzz, EveryCuttingGivesTheSame) {
  simdjson::dom::parser parser;
  size_t num_calls = 0;
  for (uint64_t seed = 0; seed < 12000; ++seed) {
    Writer writer(seed);
    const ChatFormat format = kFormats[writer.below(3)];
    const ChatParserOptions options{.tools_enabled = writer.below(8) != 0,
                                    .starts_in_reasoning = writer.below(8) == 0,
                                    .tools_json = std::string(kTools),
                                    .seed = seed};
    std::string text =
        writer.below(3) == 0 ? writer.soup(1 + writer.below(30)) : writer.sound(format);
    if (writer.below(2) == 0) text = writer.mutated(text);
    const auto whole = parse_answer(format, options, text, [](size_t rest) { return rest; });
    ASSERT_TRUE(whole.well_formed) << text;
    ASSERT_EQ(whole, parse_answer(format, options, text, [](size_t) { return 1; })) << text;
    for (int i = 0; i < 3; ++i) {
      ASSERT_EQ(whole, parse_answer(format, options, text,
                                    [&writer](size_t rest) {
                                      return 1 + writer.below(std::min<size_t>(rest, 20));
                                    }))
          << text;
    }
    num_calls += whole.calls.size();
    for (const auto& call : whole.calls) {
      ASSERT_FALSE(call.name.empty());
      // Mutations may leave half a character, which no JSON may hold.
      if (!simdjson::validate_utf8(text)) continue;
      ASSERT_TRUE(is_object(call.arguments, parser)) << text << "\n-> " << call.arguments;
    }
  }
  EXPECT_GT(num_calls, 4000U);
}

TEST(ChatParserFuzz, BeginningsOfSoundAnswersShowNoMarkup) {
  simdjson::dom::parser parser;
  for (uint64_t seed = 0; seed < 300; ++seed) {
    Writer writer(seed);
    const ChatFormat format = kFormats[writer.below(2)];
    const ChatParserOptions options{.tools_enabled = true, .tools_json = std::string(kTools)};
    const std::string text = writer.sound(format);
    for (size_t size = 0; size <= text.size(); ++size) {
      if (size < text.size() && (text[size] & 0xc0) == 0x80) continue;
      const auto answer =
          parse_answer(format, options, text.substr(0, size), [](size_t rest) { return rest; });
      for (const char* markup : {"<tool_call>", "tool_call>", "<function", "<parameter", "<think>",
                                 "</think>", "\"name\"", "arguments"}) {
        ASSERT_EQ(answer.content.find(markup), std::string::npos) << text.substr(0, size);
      }
      for (const auto& call : answer.calls) {
        ASSERT_TRUE(is_object(call.arguments, parser)) << text.substr(0, size);
      }
    }
  }
}

/// Of this thread alone: other work on the machine does not count.
double thread_seconds() {
  timespec time = {};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

double seconds(const ChatFormat& format, const std::string& unit, size_t bytes, size_t piece) {
  std::string text;
  while (text.size() < bytes) text += unit;
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    const double begin = thread_seconds();
    parse_answer(format, {.tools_enabled = true, .tools_json = std::string(kTools)}, text,
                 [piece](size_t rest) { return std::min(rest, piece); });
    best = std::min(best, thread_seconds() - begin);
  }
  return best;
}

TEST(ChatParserFuzz, TakesLinearTime) {
  const size_t bytes = size_t{1} << (kSanitized ? 14 : 17);
  for (const ChatFormat& format : kFormats) {
    for (const char* unit :
         {"<tool_call>", "<think>", "<tool_call>{", "<tool_call>{\"name\": \"f\", \"arguments\": {",
          "<tool_call>\n<function=f>\n<parameter=s>\n", "</parameter>\n</function>\n",
          "<function=", "</parameter> ", "\n", "<", "{\"a\":", "[",
          "{\"arguments\": \"{\\\"a\\\": ", "\\ud83d"}) {
      const double once = seconds(format, unit, bytes, 64);
      const double fourfold = seconds(format, unit, 4 * bytes, 64);
      // Quadratic time takes sixteen times as long; the constant is the clock's noise.
      EXPECT_LE(fourfold, 8 * once + 0.002) << unit;
      EXPECT_LE(fourfold, 1.0) << unit;
    }
  }
}

}  // namespace
}  // namespace weft
