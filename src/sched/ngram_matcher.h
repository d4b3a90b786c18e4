#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "base/gram_hash.h"
#include "base/random_key.h"

namespace weft {

/// What an n-gram proposal is: how many tokens were written, and how long a suffix was found again.
struct NgramDraft {
  int num_tokens = 0;
  int matched = 0;  ///< tokens before the continuation that equal the end of the text; counted to
                    ///< NgramMatcher::kMaxMatched. At least the size that matched; 0: no match
};

/// Drafts from the text itself: what followed the last time that the text's end occurred.
///
/// The text is a request's prompt, then its accepted tokens. A suffix of n tokens matches at an
/// earlier end e if text[e - n, e) equals it and text[e] exists; the draft is text[e], text[e + 1],
/// ... Longer n wins, then the latest e. Match, query and continuation may overlap, and may cross
/// the border of prompt and answer. A continuation that reaches the text's end goes on with the
/// draft itself, so a loop of the text stays a loop (as in LZ77).
///
/// append() and propose() cost O(max_size) expected time whatever the length of the text, but for
/// the allocation of a table that doubles, whose entries move over a few at a time. A token takes
/// 4 bytes and 8 to 24 a size. Only accepted tokens are appended, so nothing is ever taken back.
/// The hash has a key, which no proposal depends on: a text made for it would cost O(n) a token.
class NgramMatcher {
 public:
  static constexpr int kMaxSize = 64;
  static constexpr int kMaxMatched = 64;

  /// Sizes of suffixes, 1 <= min_size <= max_size <= kMaxSize. `expected_tokens`: memory for the
  /// tokens themselves that is taken at once. `seed`: of the hash.
  NgramMatcher(int min_size, int max_size, int64_t expected_tokens, uint64_t seed = random_key());

  void append(std::span<const int32_t> tokens);
  int64_t num_tokens() const { return static_cast<int64_t>(text_.tokens.size()); }

  /// Fills the front of `draft`, as if `extra` (drafts of another source) had been appended. All
  /// of it when there is a match, nothing otherwise.
  NgramDraft propose(std::span<const int32_t> extra, std::span<int32_t> draft) const;
  NgramDraft propose(std::span<int32_t> draft) const { return propose({}, draft); }

  /// For tests: used slots of a table side by side, which bound what a token costs.
  int64_t longest_run() const;

 private:
  struct Text {
    explicit Text(uint64_t seed) : keys(seed) {}
    GramKeys keys;
    std::vector<int32_t> tokens;
  };
  /// The latest end of each n-gram of one size: open addressing, at most half full. While it
  /// grows, the entries of the table before are moved by and by.
  class Table {
   public:
    explicit Table(int size) : size_(size) {}
    int size() const { return size_; }
    /// `gram(e)`: text[e - size, e) is the gram that `hash` is of. 0: none.
    template <class IsGram>
    int32_t find(uint64_t hash, const IsGram& is_gram) const;
    void put(uint64_t hash, int32_t end, const Text& text);
    int64_t longest_run() const;

   private:
    struct Free {
      void operator()(int32_t* p) const { std::free(p); }
    };
    struct Slots {
      std::unique_ptr<int32_t[], Free> ends;  // 0: empty
      size_t count = 0;                       // a power of two, or 0
    };
    static Slots allocate(size_t count);
    template <class IsGram>
    static int32_t* slot(const Slots& slots, uint64_t hash, const IsGram& is_gram);
    void grow();
    void move_some(int count, const Text& text);

    int size_;
    Slots now_, before_;
    size_t used_ = 0;   // of now_
    size_t moved_ = 0;  // slots of before_ that are in now_
  };

  std::vector<Table> tables_;  // of min_size, min_size + 1, ...
  Text text_;
};

}  // namespace weft
