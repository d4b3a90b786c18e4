#include "server/api_keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <functional>
#include <random>

#include "base/temp_dir.h"

namespace weft {
namespace {

ApiKeys keys_of(const std::vector<std::string>& keys) {
  return std::move(ApiKeys::make(keys)).value();
}

TEST(ApiKeys, WithoutKeysEverybodyIsOneScope) {
  const ApiKeys keys = keys_of({});
  EXPECT_FALSE(keys.required());
  EXPECT_EQ(keys.check("", "")->id, "");
  EXPECT_EQ(keys.check("Bearer whatever", "")->id, "");
}

TEST(ApiKeys, EachKeyOpensWithAScopeOfItsOwn) {
  const ApiKeys keys = keys_of({"sk-one", "sk-two", "sk-one"});
  const auto one = keys.check("Bearer sk-one", "");
  const auto two = keys.check("bEARER   sk-two", "");
  ASSERT_TRUE(one && two);
  EXPECT_EQ(one->id.size(), 32u);
  EXPECT_NE(one->id, two->id);
  EXPECT_EQ(keys.check("", "sk-one")->id, one->id);
  EXPECT_EQ(keys.check("Bearer sk-one", "sk-one")->id, one->id);
  EXPECT_EQ(one->id.find("sk-"), std::string::npos);
  const ApiKeys other_process = keys_of({"sk-one"});
  EXPECT_NE(other_process.check("Bearer sk-one", "")->id, one->id);
}

TEST(ApiKeys, NothingElseOpens) {
  const ApiKeys keys = keys_of({"sk-one", "sk-two"});
  for (const char* header : {"", "sk-one", "Bearer", "Bearer ", "Bearer sk-on", "Bearer sk-one2",
                             "Bearer sk-one ", "Bearer sk-one,sk-two", "Bearersk-one",
                             "Basic sk-one", "Bearer\tsk-one", "Bearer SK-ONE", " Bearer sk-one"}) {
    EXPECT_FALSE(keys.check(header, "")) << header;
  }
  EXPECT_FALSE(keys.check("", "sk-on"));
  EXPECT_FALSE(keys.check("", " sk-one"));
  EXPECT_FALSE(keys.check("Bearer wrong", "sk-one")) << "one wrong key is too many";
  EXPECT_FALSE(keys.check("Bearer sk-one", "wrong"));
  EXPECT_FALSE(keys.check("Bearer sk-one", "sk-two")) << "whose request would it be?";
  EXPECT_FALSE(keys.check("Bearer " + std::string(100000, 'x'), ""));
  EXPECT_FALSE(keys.check("", std::string("sk-one\0", 7)));
}

TEST(ApiKeys, BadKeysAreRefusedWithoutBeingShown) {
  for (const std::string& bad : {std::string(), std::string("a b"), std::string("caf\xc3\xa9"),
                                 std::string(513, 'x'), std::string("tab\t")}) {
    const auto made = ApiKeys::make({"good", bad});
    ASSERT_FALSE(made.ok());
    EXPECT_NE(made.error().message.find("key 2"), std::string::npos);
    if (!bad.empty()) {
      EXPECT_EQ(made.error().message.find(bad), std::string::npos);
    }
  }
}

TEST(ApiKeys, FileHoldsOneALine) {
  const TempDir directory;
  const std::string path = directory.file("keys");
  std::ofstream(path) << "# team a\nsk-a\n\n  sk-b \r\n\t# not this\nsk-c";
  const auto keys = read_api_key_file(path);
  ASSERT_TRUE(keys.ok());
  EXPECT_EQ(*keys, (std::vector<std::string>{"sk-a", "sk-b", "sk-c"}));
  std::ofstream(path) << "# nothing\n";
  EXPECT_FALSE(read_api_key_file(path).ok()) << "an empty file must not open the server";
  std::remove(path.c_str());
  EXPECT_FALSE(read_api_key_file(path).ok());
}

/// Welch's t of the times of two kinds of keys, called in random order ("dudect": Reparaz,
/// Balasch, Verbauwhede 2017). The slowest tenth is cut: interrupts, not the code.
/// `guesses`: of the two kinds; each is copied to the one place where `call` reads it, so that
/// addresses don't tell them apart.
double t_statistic(const std::vector<std::string> (&guesses)[2],
                   const std::function<void(const std::string&)>& call, size_t samples) {
  std::mt19937 random(7);
  std::vector<double> times[2];
  std::string guess = guesses[0][0];
  for (size_t i = 0; i < samples; ++i) {
    const uint32_t draw = random();
    const auto kind = static_cast<int>(draw & 1);
    const std::string& chosen = guesses[kind][(draw >> 1) % guesses[kind].size()];
    std::copy(chosen.begin(), chosen.end(), guess.begin());
    const auto begin = std::chrono::steady_clock::now();
    call(guess);
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - begin;
    times[kind].push_back(took.count());
  }
  std::vector<double> all = times[0];
  all.insert(all.end(), times[1].begin(), times[1].end());
  const auto cut = all.begin() + static_cast<ptrdiff_t>(all.size() * 9 / 10);
  std::nth_element(all.begin(), cut, all.end());
  double mean[2], variance[2];
  for (int kind = 0; kind < 2; ++kind) {
    std::vector<double>& t = times[kind];
    std::erase_if(t, [limit = *cut](double x) { return x > limit; });
    mean[kind] = variance[kind] = 0;
    for (const double x : t) mean[kind] += x / static_cast<double>(t.size());
    for (const double x : t) variance[kind] += (x - mean[kind]) * (x - mean[kind]);
    variance[kind] /= static_cast<double>(t.size()) * static_cast<double>(t.size() - 1);
  }
  return (mean[0] - mean[1]) / std::sqrt(variance[0] + variance[1]);
}

/// A60: 10^5 wrong keys, |t| < 4.5.
TEST(ApiKeys, TimeTellsNothingAboutHowMuchOfAKeyIsRight) {
  const std::string right = "sk-" + std::string(61, 'r');
  const ApiKeys keys = keys_of({"sk-first", right, "sk-last"});
  // Kind 0 shares all but its end with a key, kind 1 nothing; the same length, fresh memory.
  std::mt19937 random(3);
  std::vector<std::string> guesses[2];
  for (int i = 0; i < 256; ++i) {
    std::string near = "Bearer " + right, far = near;
    for (size_t c = 7; c < far.size(); ++c) far[c] = static_cast<char>('a' + random() % 16);
    near.back() = far.back();
    guesses[0].push_back(near);
    guesses[1].push_back(far);
  }
  int opened = 0;
  const auto check = [&](const std::string& header) {
    opened += keys.check(header, "").has_value();
  };
  t_statistic(guesses, check, 2000);  // caches and branch predictors
  double t = 0;
  for (int attempt = 0; attempt < 5; ++attempt) {  // a leak shows every time, noise does not
    t = t_statistic(guesses, check, 100000);
    if (std::abs(t) < 4.5) break;
  }
  EXPECT_LT(std::abs(t), 4.5);
  EXPECT_EQ(opened, 0);

  // That the test can see a leak: a comparison that stops at the first difference.
  const auto naive = [&](const std::string& header) {
    size_t same = 0;
    while (same < right.size() && header[7 + same] == right[same]) {
      ++same;
      asm volatile("" ::: "memory");
    }
    opened += same == right.size();
  };
  double leak = 0;
  for (int attempt = 0; attempt < 5 && std::abs(leak) < 4.5; ++attempt) {
    leak = t_statistic(guesses, naive, 100000);
  }
  EXPECT_GT(std::abs(leak), 4.5);
}

}  // namespace
}  // namespace weft
