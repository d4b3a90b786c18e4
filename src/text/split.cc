#include "text/split.h"

namespace weft::text {
namespace {

constexpr std::string_view kQwen2Pattern =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kQwen35Pattern =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";
constexpr std::string_view kLlama3Pattern =
    R"re((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)re";

/// The characters of one piece of text, with their classes.
class Scanner {
 public:
  Scanner(std::string_view s, const CharTable& table) : s_(s), table_(table) {}
  bool at_end(size_t i) const { return i >= s_.size(); }
  /// Class bits at `i`; *next is where the following character starts.
  uint8_t bits(size_t i, size_t* next) const {
    const auto c = static_cast<unsigned char>(s_[i]);
    if (c < 0x80) {
      *next = i + 1;
      return table_.ascii(c);
    }
    const Decoded d = decode_valid(s_.data() + i);
    *next = i + static_cast<size_t>(d.length);
    return table_(d.code);
  }
  /// First position at or after `i` whose character has none of `mask`.
  size_t skip(size_t i, uint8_t mask) const {
    size_t next = i;
    while (i < s_.size() && (bits(i, &next) & mask)) i = next;
    return i;
  }
  size_t skip_none_of(size_t i, uint8_t mask) const {
    size_t next = i;
    while (i < s_.size() && !(bits(i, &next) & mask)) i = next;
    return i;
  }

 private:
  std::string_view s_;
  const CharTable& table_;
};

/// Length of 's 't 're 've 'm 'll 'd at `i` (any case; U+017F folds to s), or 0.
size_t contraction(std::string_view s, size_t i) {
  const auto lower = [&](size_t k) { return k < s.size() ? static_cast<char>(s[k] | 0x20) : '\0'; };
  switch (lower(i + 1)) {
    case 's':
    case 't':
    case 'm':
    case 'd': return 2;
    case 'r':
    case 'v': return lower(i + 2) == 'e' ? 3 : 0;
    case 'l': return lower(i + 2) == 'l' ? 3 : 0;
    default: return s.substr(i + 1, 2) == "\xC5\xBF" ? 3 : 0;
  }
}

}  // namespace

KnownPattern known_pattern(std::string_view regex) {
  if (regex == kQwen2Pattern) return KnownPattern::kQwen2;
  if (regex == kQwen35Pattern) return KnownPattern::kQwen35;
  if (regex == kLlama3Pattern) return KnownPattern::kLlama3;
  return KnownPattern::kNone;
}

size_t next_piece(KnownPattern pattern, std::string_view s, size_t begin, const CharTable& table) {
  const uint8_t word = pattern == KnownPattern::kQwen35 ? kLetter | kMark : kLetter;
  const int max_digits = pattern == KnownPattern::kLlama3 ? 3 : 1;
  const Scanner scan(s, table);
  if (s[begin] == '\'') {
    if (const size_t n = contraction(s, begin)) return begin + n;
  }
  size_t second = 0;
  const uint8_t first_bits = scan.bits(begin, &second);
  if (first_bits & word) return scan.skip(second, word);
  if (first_bits & kNumber) {
    size_t end = second;
    for (int digits = 1; digits < max_digits && !scan.at_end(end); ++digits) {
      size_t next = 0;
      if (!(scan.bits(end, &next) & kNumber)) break;
      end = next;
    }
    return end;
  }
  size_t third = second;
  const uint8_t second_bits = scan.at_end(second) ? 0 : scan.bits(second, &third);
  if (!(first_bits & kNewline) && (second_bits & word)) return scan.skip(third, word);
  const uint8_t not_symbol = word | kNumber | kSpace;
  const bool symbol_after_space =
      s[begin] == ' ' && !scan.at_end(second) && !(second_bits & not_symbol);
  if (!(first_bits & kSpace) || symbol_after_space) {
    return scan.skip(scan.skip_none_of(symbol_after_space ? third : second, not_symbol), kNewline);
  }
  // A run of whitespace: up to its last newline; else all of it at the end of the text; else all
  // but its last character, which goes with what follows.
  size_t end = begin, last = begin, after_newline = 0;
  while (!scan.at_end(end)) {
    size_t next = 0;
    const uint8_t bits = scan.bits(end, &next);
    if (!(bits & kSpace)) break;
    last = end;
    end = next;
    if (bits & kNewline) after_newline = end;
  }
  if (after_newline != 0) return after_newline;
  if (scan.at_end(end) || last == begin) return end;
  return last;
}

}  // namespace weft::text
