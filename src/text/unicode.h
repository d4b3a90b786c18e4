#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace weft::text {

/// What the tokenizer and the template interpreter ask about a code point (Unicode 15, from
/// utf8proc). Bits, because the split patterns test unions of classes.
enum CharBits : uint8_t {
  kLetter = 1,      ///< \p{L}
  kMark = 2,        ///< \p{M}
  kNumber = 4,      ///< \p{N}
  kSpace = 8,       ///< White_Space: \s of Oniguruma and Rust
  kNewline = 16,    ///< \r or \n
  kWord = 32,       ///< \w of Rust's regex crate
  kNfcUnsafe = 64,  ///< not a starter, or changed by NFC, or may compose with what stands before
};

/// Code point -> CharBits, two-stage so that the pages in use stay in the cache.
class CharTable {
 public:
  CharTable();
  uint8_t operator()(char32_t c) const {
    return c < 0x110000 ? pages_[(static_cast<size_t>(page_of_[c >> 8]) << 8) | (c & 255)] : 0;
  }
  uint8_t ascii(unsigned char c) const { return pages_[(size_t{page_of_[0]} << 8) | c]; }

 private:
  std::array<uint16_t, 0x1100> page_of_{};
  std::vector<uint8_t> pages_;
};

/// The one table: constant after its first use.
const CharTable& char_table();

struct Decoded {
  char32_t code;
  int length;  ///< bytes
};

/// The code point at `p`, which must point into valid UTF-8.
inline Decoded decode_valid(const char* p) {
  const auto* u = reinterpret_cast<const unsigned char*>(p);
  if (u[0] < 0x80) return {u[0], 1};
  if (u[0] < 0xE0) return {static_cast<char32_t>((u[0] & 31) << 6 | (u[1] & 63)), 2};
  if (u[0] < 0xF0) {
    return {static_cast<char32_t>((u[0] & 15) << 12 | (u[1] & 63) << 6 | (u[2] & 63)), 3};
  }
  return {
      static_cast<char32_t>((u[0] & 7) << 18 | (u[1] & 63) << 12 | (u[2] & 63) << 6 | (u[3] & 63)),
      4};
}

/// The code point that ends just before `p`; `begin` < p, all valid UTF-8.
inline Decoded decode_before(const char* begin, const char* p) {
  const char* q = p - 1;
  while (q > begin && (static_cast<unsigned char>(*q) & 0xC0) == 0x80) --q;
  return decode_valid(q);
}

/// Python's str.isprintable() of one character.
bool is_printable(char32_t c);
/// Simple case mappings, and the categories that Python's str predicates ask about.
char32_t to_upper(char32_t c);
char32_t to_lower(char32_t c);
char32_t to_title(char32_t c);
bool is_upper(char32_t c);
bool is_lower(char32_t c);
bool is_title(char32_t c);
bool is_decimal(char32_t c);

void append_utf8(std::string& out, char32_t c);

bool is_valid_utf8(std::string_view s);

/// What stands at the front of possibly broken UTF-8: a valid character, an invalid part to be
/// replaced by one U+FFFD (a maximal subpart, as WHATWG, Rust's from_utf8_lossy and Python do), or
/// a prefix that could still become a character.
struct Utf8Step {
  enum Kind { kValid, kInvalid, kIncomplete } kind;
  int length;  ///< bytes
};
Utf8Step next_utf8(std::string_view s);

/// A copy in which every maximal invalid subpart is U+FFFD.
std::string to_valid_utf8(std::string_view s);

/// Normalization form C in O(n log n), in place. `mask`, if given, holds one byte for each byte of
/// `text` ('1' trusted, '0' from the user) and is kept in step: what is composed from any untrusted
/// byte is untrusted.
void normalize_nfc(std::string& text, std::string* mask);

}  // namespace weft::text
