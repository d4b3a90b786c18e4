#include "sched/ngram_matcher.h"

#include <algorithm>
#include <limits>
#include <new>

#include "base/check.h"

namespace weft {
namespace {

constexpr size_t kFirstSlots = 64;

uint64_t hash_before(const GramKeys& keys, const std::vector<int32_t>& tokens, int64_t end,
                     int size) {
  uint64_t hash = 0;
  for (int64_t i = 1; i <= size; ++i) {
    hash = add_to_gram(hash, keys.key[i - 1], tokens[static_cast<size_t>(end - i)]);
  }
  return hash;
}

}  // namespace

NgramMatcher::Table::Slots NgramMatcher::Table::allocate(size_t count) {
  Slots slots;
  // calloc: a large table's pages are zero without being written.
  slots.ends.reset(static_cast<int32_t*>(std::calloc(count, sizeof(int32_t))));
  if (slots.ends == nullptr) throw std::bad_alloc();
  slots.count = count;
  return slots;
}

template <class IsGram>
int32_t* NgramMatcher::Table::slot(const Slots& slots, uint64_t hash, const IsGram& is_gram) {
  const size_t mask = slots.count - 1;
  for (size_t i = gram_place(hash) & mask;; i = (i + 1) & mask) {
    int32_t* const end = &slots.ends[i];
    if (*end == 0 || is_gram(*end)) return end;
  }
}

template <class IsGram>
int32_t NgramMatcher::Table::find(uint64_t hash, const IsGram& is_gram) const {
  if (now_.count == 0) return 0;
  const int32_t end = *slot(now_, hash, is_gram);
  return end != 0 || before_.count == 0 ? end : *slot(before_, hash, is_gram);
}

void NgramMatcher::Table::grow() {
  before_ = std::move(now_);
  now_ = allocate(std::max(kFirstSlots, 2 * before_.count));
  used_ = moved_ = 0;
}

void NgramMatcher::Table::move_some(int count, const Text& text) {
  const std::vector<int32_t>& tokens = text.tokens;
  for (; count > 0 && moved_ < before_.count; --count) {
    const int32_t end = before_.ends[moved_++];
    if (end == 0) continue;
    const auto gram = tokens.begin() + end - size_;
    int32_t* const found =
        slot(now_, hash_before(text.keys, tokens, end, size_), [&](int32_t other) {
          return std::equal(gram, gram + size_, tokens.begin() + other - size_);
        });
    if (*found != 0) continue;  // occurred again since
    *found = end;
    ++used_;
  }
  if (moved_ == before_.count) before_ = {};
}

void NgramMatcher::Table::put(uint64_t hash, int32_t end, const Text& text) {
  const std::vector<int32_t>& tokens = text.tokens;
  // Half of before_ was used, and now_ has twice its slots: it is half full after as many new
  // grams as before_ has used slots at the earliest, and two slots a gram move all in time.
  if (2 * used_ >= now_.count) {
    CHECK(before_.count == 0);
    grow();
  }
  if (before_.count != 0) move_some(4, text);
  const auto gram = tokens.begin() + end - size_;
  int32_t* const found = slot(now_, hash, [&](int32_t other) {
    return std::equal(gram, gram + size_, tokens.begin() + other - size_);
  });
  if (*found == 0) ++used_;
  *found = end;
}

int64_t NgramMatcher::Table::longest_run() const {
  int64_t longest = 0;
  for (const Slots* slots : {&now_, &before_}) {
    int64_t run = 0;
    for (size_t i = 0; i < 2 * slots->count; ++i) {  // twice: one goes over the end
      run = slots->ends[i & (slots->count - 1)] != 0 ? run + 1 : 0;
      longest = std::max(longest, run);
    }
  }
  return longest;
}

NgramMatcher::NgramMatcher(int min_size, int max_size, int64_t expected_tokens, uint64_t seed)
    : text_(seed) {
  CHECK(1 <= min_size && min_size <= max_size && max_size <= kMaxSize);
  for (int size = min_size; size <= max_size; ++size) tables_.emplace_back(size);
  text_.tokens.reserve(static_cast<size_t>(std::max<int64_t>(0, expected_tokens)));
}

void NgramMatcher::append(std::span<const int32_t> tokens) {
  CHECK(tokens.size() < std::numeric_limits<int32_t>::max() - text_.tokens.size());
  for (const int32_t token : tokens) {
    // The grams that end here have a continuation from now on: `token`.
    const int64_t end = num_tokens();
    uint64_t hash = 0;
    int size = 0;
    for (Table& table : tables_) {
      if (table.size() > end) break;
      for (; size < table.size(); ++size) {
        hash = add_to_gram(hash, text_.keys.key[size],
                           text_.tokens[static_cast<size_t>(end - 1 - size)]);
      }
      table.put(hash, static_cast<int32_t>(end), text_);
    }
    text_.tokens.push_back(token);
  }
}

int64_t NgramMatcher::longest_run() const {
  int64_t longest = 0;
  for (const Table& table : tables_) longest = std::max(longest, table.longest_run());
  return longest;
}

NgramDraft NgramMatcher::propose(std::span<const int32_t> extra, std::span<int32_t> draft) const {
  const int64_t known = num_tokens();
  const int64_t length = known + static_cast<int64_t>(extra.size());
  const auto at = [&](int64_t i) {
    return i < known ? text_.tokens[static_cast<size_t>(i)] : extra[static_cast<size_t>(i - known)];
  };
  // The longest size that has an earlier end: a suffix that never occurred has no longer one that
  // did, so the first failure ends the search.
  int64_t best = 0;
  int matched = 0, size = 0;
  uint64_t hash = 0;
  for (const Table& table : tables_) {
    if (table.size() >= length) break;
    for (; size < table.size(); ++size) {
      hash = add_to_gram(hash, text_.keys.key[size], at(length - 1 - size));
    }
    const auto ends_here = [&](int64_t end) {
      if (end < size) return false;
      for (int i = 1; i <= size; ++i) {
        if (at(end - i) != at(length - i)) return false;
      }
      return true;
    };
    // Ends from `known` on are not in the tables: their continuation is in `extra`.
    int64_t end = length - 1;
    while (end >= known && !ends_here(end)) --end;
    if (end < known) end = table.find(hash, ends_here);
    if (end == 0) break;
    best = end;
    matched = size;
  }
  if (matched == 0) return {};

  while (matched < kMaxMatched && matched < best &&
         at(best - matched - 1) == at(length - matched - 1)) {
    ++matched;
  }
  for (size_t i = 0; i < draft.size(); ++i) {
    const int64_t from = best + static_cast<int64_t>(i);
    draft[i] = from < length ? at(from) : draft[static_cast<size_t>(from - length)];
  }
  return {static_cast<int>(draft.size()), matched};
}

}  // namespace weft
