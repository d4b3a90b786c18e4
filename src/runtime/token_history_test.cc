#include "runtime/token_history.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

namespace weft {
namespace {

Request make_request(std::vector<int32_t> prompt, int max_tokens, float repetition_penalty) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.max_tokens = max_tokens;
  request.sampling.repetition_penalty = repetition_penalty;
  return request;
}

TEST(TokenHistory, CountsWhatAMapCounts) {
  std::mt19937 rng(1);
  for (const int vocab : {3, 50, 100000}) {
    std::uniform_int_distribution<int32_t> token(0, vocab - 1);
    std::vector<int32_t> prompt;
    for (int i = 0; i < 300; ++i) prompt.push_back(token(rng));
    const Request request = make_request(prompt, 500, 1.1f);
    TokenHistory history(request, vocab, 1000);
    std::vector<int32_t> generated;
    for (int i = 0; i < 500; ++i) {
      generated.push_back(i == 0 || rng() % 2 != 0 ? token(rng) : generated[0]);
      history.append(generated.back());
    }
    ASSERT_EQ(history.num_generated(), static_cast<int64_t>(generated.size()));
    std::map<int32_t, int> want;
    for (const int32_t t : generated) ++want[t];
    std::map<int32_t, int> got;
    std::set<int32_t> seen, want_seen(prompt.begin(), prompt.end());
    want_seen.insert(generated.begin(), generated.end());
    for (const auto& entry : history.counts().entries()) {
      ASSERT_TRUE(seen.insert(entry.token).second) << "an entry occurs twice";
      if (entry.generated > 0) got[entry.token] = entry.generated;
    }
    EXPECT_EQ(got, want);
    EXPECT_EQ(seen, want_seen);
  }
}

TEST(TokenHistory, CountsNothingWithoutPenalties) {
  const Request request = make_request({1, 2, 3}, 10, 1.0f);
  TokenHistory history(request, 100, 100);
  history.append(5);
  EXPECT_EQ(history.num_generated(), 1);
  EXPECT_EQ(history.generated(0), 5);
  EXPECT_TRUE(history.counts().entries().empty());
}

}  // namespace
}  // namespace weft
