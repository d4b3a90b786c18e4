#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace weft::text {

/// One entry of added_tokens in tokenizer.json.
struct AddedToken {
  int32_t id = -1;
  std::string content;
  bool special = false;      ///< skipped by decode(skip_special)
  bool single_word = false;  ///< matches only between non-word characters
  bool lstrip = false;       ///< swallows whitespace on its left
  bool rstrip = false;       ///< swallows whitespace on its right
  bool normalized = false;   ///< looked for after normalization, in normalized form
};

/// A stretch of text: a token found in it (id >= 0) or text between tokens.
struct Stretch {
  size_t begin, end;
  int32_t id;
};

/// Finds added tokens in text: leftmost first, and of those that start there the longest.
class AddedTokenMatcher {
 public:
  static constexpr size_t kMaxTokenBytes = 512;

  /// `pattern`: what to look for (the content, normalized if the token asks for it).
  void add(const AddedToken& token, std::string_view pattern);
  bool empty() const { return tokens_.empty(); }

  /// Appends the stretches that cover `s` (valid UTF-8). `mask` (same length as `s`, or empty: all
  /// trusted): a token matches only inside one run of '1'.
  void split(std::string_view s, std::string_view mask, std::vector<Stretch>& out) const;

 private:
  struct Flags {
    int32_t id;
    bool single_word, lstrip, rstrip;
  };
  const Flags* longest_at(std::string_view s, size_t begin, size_t limit, size_t* end) const;

  std::vector<Flags> tokens_;
  std::vector<int32_t> token_at_{-1};             // trie node -> index into tokens_, -1: none
  std::unordered_map<uint64_t, uint32_t> edges_;  // node << 8 | byte -> node
  bool first_byte_[256] = {};
};

}  // namespace weft::text
