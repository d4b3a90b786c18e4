#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/unicode.h"

namespace weft::text {

/// The split patterns with a hand-written scanner. They differ in two things only: whether marks
/// belong to words, and how many digits stand together.
enum class KnownPattern { kNone, kQwen2, kQwen35, kLlama3 };

/// Which known pattern this regular expression is (compared as text), or kNone.
KnownPattern known_pattern(std::string_view regex);

/// End of the pre-token that starts at `begin` < s.size(); `s` is valid UTF-8. Every character
/// belongs to some match. Amortised linear: a whitespace run is read at most twice.
///
///   (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?W+|\p{N}{1,d}| ?[^\s W \p{N}]+[\r\n]*|
///   \s*[\r\n]+|\s+(?!\S)|\s+        with W = \p{L} or [\p{L}\p{M}], d = 1 or 3
size_t next_piece(KnownPattern pattern, std::string_view s, size_t begin, const CharTable& table);

/// A match or a gap between matches.
struct Piece {
  size_t begin, end;
  bool match;
};

/// Any other regular expression: PCRE2 with JIT, Unicode properties, and a budget of match steps
/// in proportion to the input, so that a pattern that backtracks without end is an error.
class Regex {
 public:
  /// Oniguruma's syntax as tokenizer.json has it, as far as PCRE2 means the same; what it would
  /// understand differently (\h, set operations in classes) is refused.
  static Result<Regex> compile(std::string_view pattern);

  /// Appends the matches and the gaps between them, in order; together they cover `s` (valid
  /// UTF-8). Errors: kExhausted when the step budget is spent.
  Result<void> split(std::string_view s, std::vector<Piece>& out) const;

 private:
  struct Code;
  explicit Regex(std::shared_ptr<const Code> code) : code_(std::move(code)) {}
  std::shared_ptr<const Code> code_;  // immutable, shared by threads
};

}  // namespace weft::text
