#include "text/stop_strings.h"

#include <gtest/gtest.h>

#include <random>

namespace weft {
namespace {

struct Found {
  std::string text;
  std::optional<size_t> stop;
};

Found run(const std::vector<std::string>& stops, std::string_view text, std::mt19937* random,
          bool include) {
  auto matcher = std::move(StopStrings::make(stops, include)).value();
  Found f;
  while (!text.empty() && !f.stop) {
    const size_t n = random ? 1 + (*random)() % text.size() : text.size();
    f.stop = matcher.push(text.substr(0, n), f.text);
    text.remove_prefix(n);
  }
  if (!f.stop) matcher.finish(f.text);
  return f;
}

TEST(StopStrings, EarliestEndThenLongestWhateverTheCut) {
  std::mt19937 random(9);
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::string> stops(1 + random() % 4);
    for (auto& s : stops) {
      s.resize(1 + random() % 4);
      for (char& c : s) c = static_cast<char>('a' + random() % 2);
    }
    std::string text(random() % 30, 'a');
    for (char& c : text) c = static_cast<char>('a' + random() % 3);
    size_t best_end = std::string::npos, best_size = 0;
    for (const auto& s : stops) {
      const size_t at = text.find(s);
      if (at == std::string::npos) continue;
      const size_t end = at + s.size();
      if (best_end == std::string::npos || end < best_end ||
          (end == best_end && s.size() > best_size)) {
        best_end = end;
        best_size = s.size();
      }
    }
    for (const bool include : {false, true}) {
      const Found f = run(stops, text, &random, include);
      ASSERT_EQ(f.stop.has_value(), best_end != std::string::npos);
      if (f.stop) {
        ASSERT_EQ(stops[*f.stop], text.substr(best_end - best_size, best_size));
        ASSERT_EQ(f.text, text.substr(0, include ? best_end : best_end - best_size));
      } else {
        ASSERT_EQ(f.text, text);
      }
    }
  }
}

TEST(StopStrings, HoldsOnlyWhatCouldBecomeAStop) {
  auto matcher = std::move(StopStrings::make({"\n\nUser:", "ok"}, false)).value();
  std::string out;
  EXPECT_FALSE(matcher.push("Hi o", out));
  EXPECT_EQ(out, "Hi ");
  EXPECT_FALSE(matcher.push("n\n", out));
  EXPECT_EQ(out, "Hi on");
  EXPECT_FALSE(matcher.push("\n\n", out));
  EXPECT_EQ(matcher.num_held(), 2u);
  EXPECT_EQ(matcher.push("User: x", out), 0u);
  EXPECT_EQ(out, "Hi on\n");
  EXPECT_FALSE(matcher.push("more", out));
  EXPECT_EQ(out, "Hi on\n");
}

TEST(StopStrings, Refuses) {
  EXPECT_EQ(StopStrings::make({"a", ""}, false).error().message,
            "stop[1] must be UTF-8 of 1 to 4096 bytes");
  EXPECT_FALSE(StopStrings::make({"\xFF"}, false).ok());
  EXPECT_FALSE(StopStrings::make(std::vector<std::string>(65, "x"), false).ok());
}

}  // namespace
}  // namespace weft
