#include "sched/ngram_matcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

namespace weft {
namespace {

using Tokens = std::vector<int32_t>;

struct Reference {
  NgramDraft result;
  Tokens draft;
};

/// The definition, word by word: every size from the longest, every earlier place from the latest.
Reference by_force(const Tokens& text, int min_size, int max_size, size_t count) {
  const auto length = static_cast<int64_t>(text.size());
  for (int n = max_size; n >= min_size; --n) {
    if (n > length) continue;
    const Tokens query(text.end() - n, text.end());
    for (int64_t i = length - n - 1; i >= 0; --i) {
      if (!std::equal(query.begin(), query.end(), text.begin() + i)) continue;
      Reference found;
      Tokens longer = text;
      for (size_t k = 0; k < count; ++k) longer.push_back(longer[static_cast<size_t>(i + n) + k]);
      found.draft.assign(longer.begin() + length, longer.end());
      found.result.num_tokens = static_cast<int>(count);
      int64_t same = 0;
      while (same < i + n && same < NgramMatcher::kMaxMatched &&
             text[static_cast<size_t>(i + n - 1 - same)] ==
                 text[static_cast<size_t>(length - 1 - same)]) {
        ++same;
      }
      found.result.matched = static_cast<int>(same);
      return found;
    }
  }
  return {};
}

Tokens propose(const NgramMatcher& matcher, const Tokens& extra, size_t count) {
  Tokens draft(count, -7);
  draft.resize(static_cast<size_t>(matcher.propose(extra, draft).num_tokens));
  return draft;
}

Tokens propose(int min_size, int max_size, const Tokens& text, size_t count) {
  NgramMatcher matcher(min_size, max_size, 0);
  matcher.append(text);
  return propose(matcher, {}, count);
}

TEST(NgramMatcher, TheContinuationBeginsBehindTheMatch) {
  EXPECT_EQ(propose(2, 5, {1, 2, 3, 4, 5, 1, 2}, 3), (Tokens{3, 4, 5}));
  EXPECT_EQ(propose(1, 5, {1, 2, 3, 4, 5, 1, 2}, 1), (Tokens{3}));
}

TEST(NgramMatcher, TheFirstTokenOfTheTextMayBePartOfTheMatch) {
  EXPECT_EQ(propose(1, 1, {9, 8, 9}, 1), (Tokens{8}));
}

TEST(NgramMatcher, LongerBeatsLaterAndLaterBeatsEarlier) {
  EXPECT_EQ(propose(1, 3, {7, 1, 2, 50, 9, 2, 60, 7, 1, 2}, 1), (Tokens{50}));
  EXPECT_EQ(propose(1, 1, {7, 1, 2, 50, 9, 2, 60, 7, 1, 2}, 1), (Tokens{60}));
  EXPECT_EQ(propose(2, 2, {1, 2, 50, 1, 2, 60, 1, 2}, 1), (Tokens{60}));
}

TEST(NgramMatcher, AMatchWithoutContinuationIsNone) {
  EXPECT_EQ(propose(2, 3, {1, 2, 3}, 4), Tokens());  // the query would only find itself
  EXPECT_EQ(propose(2, 3, {}, 4), Tokens());
  EXPECT_EQ(propose(1, 3, {4}, 4), Tokens());
  EXPECT_EQ(propose(2, 3, {4, 4}, 4), Tokens());
}

TEST(NgramMatcher, MatchAndQueryMayOverlapAndALoopGoesOn) {
  EXPECT_EQ(propose(2, 3, {4, 4, 4}, 4), (Tokens{4, 4, 4, 4}));
  EXPECT_EQ(propose(3, 3, {1, 2, 1, 2, 1}, 5), (Tokens{2, 1, 2, 1, 2}));
}

TEST(NgramMatcher, NothingBelowTheSmallestSize) {
  EXPECT_EQ(propose(2, 5, {1, 9, 1}, 2), Tokens());
  EXPECT_EQ(propose(1, 5, {1, 9, 1}, 2), (Tokens{9, 1}));
}

TEST(NgramMatcher, AShortTextStillHasItsShortSuffixes) {
  EXPECT_EQ(propose(2, 64, {1, 2, 3, 1, 2}, 1), (Tokens{3}));
}

TEST(NgramMatcher, ExtraTokensAreThereForOneProposalOnly) {
  NgramMatcher matcher(2, 4, 0);
  matcher.append(Tokens{1, 2, 3, 4, 5, 1});
  EXPECT_EQ(propose(matcher, {}, 2), Tokens());
  EXPECT_EQ(propose(matcher, {2, 3}, 2), (Tokens{4, 5}));  // matches before the border
  EXPECT_EQ(propose(matcher, {8, 1, 8}, 1), (Tokens{1}));  // the continuation is in extra
  EXPECT_EQ(propose(matcher, {8, 1, 8}, 3), (Tokens{1, 8, 1}));
  EXPECT_EQ(propose(matcher, {}, 2), Tokens());
  EXPECT_EQ(matcher.num_tokens(), 6);
}

TEST(NgramMatcher, MatchedCountsBeyondTheLargestSize) {
  NgramMatcher matcher(2, 3, 0);
  Tokens draft(1);
  matcher.append(Tokens{9, 1, 2, 3, 4, 5, 8, 1, 2, 3, 4, 5});
  EXPECT_EQ(matcher.propose(draft).matched, 5);
  for (int i = 0; i < 40; ++i) matcher.append(Tokens{6, 7});
  EXPECT_EQ(matcher.propose(draft).matched, NgramMatcher::kMaxMatched);
}

TEST(NgramMatcher, NoRoomIsNoDraft) {
  NgramMatcher matcher(2, 3, 0);
  matcher.append(Tokens{4, 4, 4, 4});
  EXPECT_EQ(matcher.propose(std::span<int32_t>()).num_tokens, 0);
}

/// 10^5 proposals: texts of few distinct tokens (dense matches, chance ones and loops), grown in
/// pieces so that tables double in the middle, asked after every piece with and without extras.
TEST(NgramMatcher, EqualsTheDefinition) {
  std::mt19937 random(20261121);
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<uint32_t>(n)); };
  int proposals = 0, empty = 0, with_extra = 0, across = 0;
  while (proposals < 100000) {
    const int min_size = 1 + below(4), max_size = min_size + below(5);
    const int vocab = 1 + below(below(3) == 0 ? 200 : 4);
    const int prompt_len = 1 + below(30);
    NgramMatcher matcher(min_size, max_size, below(2) == 0 ? 0 : 64, random());
    Tokens text;
    const int final_length = below(20) == 0 ? 400 : 60;
    while (static_cast<int>(text.size()) < final_length) {
      Tokens piece;
      for (int i = text.empty() ? prompt_len : 1 + below(6); i > 0; --i) {
        // Sometimes a copy of an earlier part.
        const bool copy = !text.empty() && below(3) == 0;
        piece.push_back(copy ? text[static_cast<size_t>(below(static_cast<int>(text.size())))]
                             : below(vocab) - 1);
      }
      matcher.append(piece);
      text.insert(text.end(), piece.begin(), piece.end());
      Tokens extra;
      for (int i = below(5); i > 0; --i) extra.push_back(below(vocab) - 1);
      Tokens whole = text;
      whole.insert(whole.end(), extra.begin(), extra.end());
      const auto count = static_cast<size_t>(below(9));
      Tokens draft(count, -7);
      const NgramDraft got = matcher.propose(extra, draft);
      const Reference want = by_force(whole, min_size, max_size, count);
      ASSERT_EQ(got.num_tokens, want.result.num_tokens);
      ASSERT_EQ(got.matched, want.result.matched);
      draft.resize(static_cast<size_t>(got.num_tokens));
      ASSERT_EQ(draft, want.draft);
      ++proposals;
      empty += got.matched == 0;
      with_extra += !extra.empty();
      across += got.matched > 0 && static_cast<int>(text.size()) < prompt_len + got.matched;
    }
  }
  // Every kind occurred.
  EXPECT_GT(empty, 1000);
  EXPECT_GT(proposals - empty, 10000);
  EXPECT_GT(with_extra, 10000);
  EXPECT_GT(across, 1000);
}

/// A text of 4,096 tokens whose pairs all have the same 14 low bits of `place(before, token)`.
template <class Place>
Tokens crafted(const Place& place) {
  std::mt19937 random(1);
  Tokens text = {1};
  while (text.size() < 4096) {
    const auto token = static_cast<int32_t>(random() % 1'000'000);
    if (place(text.back(), token) % 16384 == 0) text.push_back(token);
  }
  return text;
}

int64_t longest_run(const Tokens& text, uint64_t seed) {
  NgramMatcher matcher(2, 2, 0, seed);
  matcher.append(text);
  return matcher.longest_run();
}

// At most half of a table is used: of random places the longest run of 4,096 is about 40.
TEST(NgramMatcher, NoTextIsLongToLookUpInWithoutTheSeed) {
  const GramKeys known(1);
  const auto with_known_seed = [&](int32_t before, int32_t token) {
    return gram_place(add_to_gram(add_to_gram(0, known.key[0], token), known.key[1], before));
  };
  const auto before_there_were_seeds = [](int32_t before, int32_t token) {
    uint64_t hash = 0;
    for (const int32_t id : {token, before}) {
      hash = (hash ^ static_cast<uint32_t>(id)) * 0x9e3779b97f4a7c15u;
      hash ^= hash >> 29;
    }
    return hash;
  };
  const Tokens of_seed_1 = crafted(with_known_seed), of_none = crafted(before_there_were_seeds);
  EXPECT_GT(longest_run(of_seed_1, 1), 2000);
  for (uint64_t seed = 2; seed < 22; ++seed) {
    EXPECT_LT(longest_run(of_seed_1, seed), 150);
    EXPECT_LT(longest_run(of_none, seed), 150);
    for (const int32_t step : {1, 3, 1 << 5, 0x10001}) {
      Tokens row;
      for (int32_t i = 0; i < 4096; ++i) row.push_back(i * step);
      EXPECT_LT(longest_run(row, seed), 150) << "step " << step << ", seed " << seed;
    }
  }
}

TEST(NgramMatcher, ALongTextThatGrewTokenByTokenEqualsTheDefinition) {
  std::mt19937 random(5);
  NgramMatcher matcher(2, 5, 0);
  Tokens text;
  for (int i = 0; i < 20000; ++i) {
    text.push_back(static_cast<int32_t>(random() % 60));
    matcher.append(std::span(text).last(1));
    if (i % 97 != 0) continue;
    Tokens draft(4);
    const NgramDraft got = matcher.propose(draft);
    const Reference want = by_force(text, 2, 5, 4);
    ASSERT_EQ(got.matched, want.result.matched) << i;
    draft.resize(static_cast<size_t>(got.num_tokens));
    ASSERT_EQ(draft, want.draft) << i;
  }
}

}  // namespace
}  // namespace weft
