#include "text/unicode.h"

#include <simdjson.h>
#include <utf8proc.h>

#include <algorithm>
#include <cstring>
#include <map>
#include <string>

#include "base/check.h"

namespace weft::text {
namespace {

bool is_white_space(char32_t c) {
  return (c >= 9 && c <= 13) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
         (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F || c == 0x205F ||
         c == 0x3000;
}

bool in(int category, utf8proc_category_t first, utf8proc_category_t last) {
  return category >= first && category <= last;
}

/// Circled and squared letters: Other_Alphabetic outside of L, M and Nl.
bool is_symbol_letter(char32_t c) {
  return (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
         (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
}

uint8_t class_bits(char32_t c, int category) {
  uint8_t bits = 0;
  const bool letter = in(category, UTF8PROC_CATEGORY_LU, UTF8PROC_CATEGORY_LO);
  const bool mark = in(category, UTF8PROC_CATEGORY_MN, UTF8PROC_CATEGORY_ME);
  if (letter) bits |= kLetter;
  if (mark) bits |= kMark;
  if (in(category, UTF8PROC_CATEGORY_ND, UTF8PROC_CATEGORY_NO)) bits |= kNumber;
  if (is_white_space(c)) bits |= kSpace;
  if (c == '\r' || c == '\n') bits |= kNewline;
  if (letter || mark || category == UTF8PROC_CATEGORY_ND || category == UTF8PROC_CATEGORY_NL ||
      category == UTF8PROC_CATEGORY_PC || c == 0x200C || c == 0x200D || is_symbol_letter(c)) {
    bits |= kWord;
  }
  return bits;
}

/// Full canonical decomposition of one code point.
void decompose(char32_t c, std::vector<utf8proc_int32_t>& out) {
  utf8proc_int32_t buffer[32];
  int last_class = 0;
  const auto n = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), buffer, 32,
                                         UTF8PROC_DECOMPOSE, &last_class);
  CHECK(n > 0 && n <= 32);
  out.insert(out.end(), buffer, buffer + n);
}

utf8proc_int32_t combining_class(utf8proc_int32_t c) {
  return utf8proc_get_property(c)->combining_class;
}

/// NFC of decoded text: decompose, order the marks, compose.
void compose_region(std::string_view region, std::vector<utf8proc_int32_t>& buffer,
                    std::string& out) {
  buffer.clear();
  for (size_t i = 0; i < region.size();) {
    const Decoded d = decode_valid(region.data() + i);
    decompose(d.code, buffer);
    i += static_cast<size_t>(d.length);
  }
  // utf8proc's own ordering is an insertion sort: quadratic on a long run of marks.
  for (size_t i = 0; i < buffer.size();) {
    if (combining_class(buffer[i]) == 0) {
      ++i;
      continue;
    }
    size_t end = i;
    while (end < buffer.size() && combining_class(buffer[end]) != 0) ++end;
    std::stable_sort(buffer.begin() + static_cast<ptrdiff_t>(i),
                     buffer.begin() + static_cast<ptrdiff_t>(end),
                     [](auto a, auto b) { return combining_class(a) < combining_class(b); });
    i = end;
  }
  const auto n =
      utf8proc_normalize_utf32(buffer.data(), static_cast<utf8proc_ssize_t>(buffer.size()),
                               static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
  CHECK(n >= 0);
  for (utf8proc_ssize_t i = 0; i < n; ++i) {
    append_utf8(out, static_cast<char32_t>(buffer[static_cast<size_t>(i)]));
  }
}

/// Offset of the first NFC-unsafe character at or after `i`, or the size.
size_t find_unsafe(std::string_view s, size_t i, const CharTable& table) {
  while (i < s.size()) {
    if (static_cast<unsigned char>(s[i]) < 0x80) {
      uint64_t eight;
      if (i + 8 <= s.size() && (std::memcpy(&eight, s.data() + i, 8), true) &&
          (eight & 0x8080808080808080ull) == 0) {
        i += 8;
      } else {
        ++i;
      }
      continue;
    }
    const Decoded d = decode_valid(s.data() + i);
    if (table(d.code) & kNfcUnsafe) return i;
    i += static_cast<size_t>(d.length);
  }
  return s.size();
}

}  // namespace

CharTable::CharTable() {
  std::vector<uint8_t> bits(0x110000);
  std::vector<utf8proc_int32_t> parts;
  for (char32_t c = 0; c < 0x110000; ++c) {
    const auto* property = utf8proc_get_property(static_cast<utf8proc_int32_t>(c));
    bits[c] |= class_bits(c, property->category);
    if (property->combining_class != 0) bits[c] |= kNfcUnsafe;
    if (c < 0x80 || (c >= 0xD800 && c < 0xE000)) continue;
    parts.clear();
    decompose(c, parts);
    if (parts.size() == 1 && parts[0] == static_cast<utf8proc_int32_t>(c)) continue;
    auto composed = parts;
    const auto n = utf8proc_normalize_utf32(
        composed.data(), static_cast<utf8proc_ssize_t>(composed.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_STABLE | UTF8PROC_COMPOSE));
    if (n != 1 || composed[0] != static_cast<utf8proc_int32_t>(c)) {
      bits[c] |= kNfcUnsafe;
    } else {
      // Its last part is a mark or jamo that composes backwards.
      bits[static_cast<size_t>(parts.back())] |= kNfcUnsafe;
    }
  }
  std::map<std::string, uint16_t> known;
  for (size_t page = 0; page < page_of_.size(); ++page) {
    std::string content(reinterpret_cast<const char*>(bits.data()) + page * 256, 256);
    const auto [it, added] = known.emplace(std::move(content), static_cast<uint16_t>(known.size()));
    if (added) pages_.insert(pages_.end(), it->first.begin(), it->first.end());
    page_of_[page] = it->second;
  }
}

namespace {
int category(char32_t c) {
  return utf8proc_get_property(static_cast<utf8proc_int32_t>(c))->category;
}
}  // namespace

bool is_printable(char32_t c) {
  if (c < 0x7F) return c >= 0x20;
  const int k = category(c);
  return k != UTF8PROC_CATEGORY_CN && !in(k, UTF8PROC_CATEGORY_ZS, UTF8PROC_CATEGORY_CO);
}
char32_t to_upper(char32_t c) {
  return static_cast<char32_t>(utf8proc_toupper(static_cast<utf8proc_int32_t>(c)));
}
char32_t to_lower(char32_t c) {
  return static_cast<char32_t>(utf8proc_tolower(static_cast<utf8proc_int32_t>(c)));
}
char32_t to_title(char32_t c) {
  return static_cast<char32_t>(utf8proc_totitle(static_cast<utf8proc_int32_t>(c)));
}
bool is_upper(char32_t c) {
  return utf8proc_isupper(static_cast<utf8proc_int32_t>(c)) != 0;
}
bool is_lower(char32_t c) {
  return utf8proc_islower(static_cast<utf8proc_int32_t>(c)) != 0;
}
bool is_title(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_LT;
}
bool is_decimal(char32_t c) {
  return category(c) == UTF8PROC_CATEGORY_ND;
}

const CharTable& char_table() {
  static const CharTable table;
  return table;
}

void append_utf8(std::string& out, char32_t c) {
  if (c < 0x80) {
    out.push_back(static_cast<char>(c));
  } else if (c < 0x800) {
    out.push_back(static_cast<char>(0xC0 | c >> 6));
    out.push_back(static_cast<char>(0x80 | (c & 63)));
  } else if (c < 0x10000) {
    out.push_back(static_cast<char>(0xE0 | c >> 12));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 63)));
    out.push_back(static_cast<char>(0x80 | (c & 63)));
  } else {
    out.push_back(static_cast<char>(0xF0 | c >> 18));
    out.push_back(static_cast<char>(0x80 | (c >> 12 & 63)));
    out.push_back(static_cast<char>(0x80 | (c >> 6 & 63)));
    out.push_back(static_cast<char>(0x80 | (c & 63)));
  }
}

bool is_valid_utf8(std::string_view s) {
  return simdjson::validate_utf8(s.data(), s.size());
}

Utf8Step next_utf8(std::string_view s) {
  const auto* u = reinterpret_cast<const unsigned char*>(s.data());
  const unsigned char lead = u[0];
  if (lead < 0x80) return {Utf8Step::kValid, 1};
  if (lead < 0xC2 || lead > 0xF4) return {Utf8Step::kInvalid, 1};
  const int need = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  unsigned char low = 0x80, high = 0xBF;  // the allowed second byte (no overlong, no surrogate)
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (int i = 1; i < need; ++i) {
    if (static_cast<size_t>(i) >= s.size()) return {Utf8Step::kIncomplete, i};
    if (u[i] < low || u[i] > high) return {Utf8Step::kInvalid, i};
    low = 0x80;
    high = 0xBF;
  }
  return {Utf8Step::kValid, need};
}

std::string to_valid_utf8(std::string_view s) {
  std::string out;
  out.reserve(s.size());
  while (!s.empty()) {
    const Utf8Step step = next_utf8(s);
    if (step.kind == Utf8Step::kValid) {
      out.append(s.substr(0, static_cast<size_t>(step.length)));
    } else {
      out.append("\xEF\xBF\xBD");
    }
    s.remove_prefix(static_cast<size_t>(step.length));
  }
  return out;
}

void normalize_nfc(std::string& text, std::string* mask) {
  const CharTable& table = char_table();
  size_t unsafe = find_unsafe(text, 0, table);
  if (unsafe == text.size()) return;
  std::string out, out_mask;
  out.reserve(text.size());
  std::vector<utf8proc_int32_t> buffer;
  size_t done = 0;  // text[0, done) is in `out`
  const std::string_view view = text;
  const auto copy_to = [&](size_t end) {
    out.append(view.substr(done, end - done));
    if (mask) out_mask.append(*mask, done, end - done);
    done = end;
  };
  while (unsafe < view.size()) {
    size_t begin = unsafe;
    if (begin > done) {
      begin -= static_cast<size_t>(decode_before(view.data() + done, view.data() + begin).length);
    }
    size_t end = unsafe;
    while (end < view.size()) {
      const Decoded d = decode_valid(view.data() + end);
      if (!(table(d.code) & kNfcUnsafe)) break;
      end += static_cast<size_t>(d.length);
    }
    copy_to(begin);
    const size_t before = out.size();
    compose_region(view.substr(begin, end - begin), buffer, out);
    if (mask) {
      const bool trusted = mask->find('0', begin) >= end;
      out_mask.append(out.size() - before, trusted ? '1' : '0');
    }
    done = end;
    unsafe = find_unsafe(view, end, table);
  }
  copy_to(view.size());
  text = std::move(out);
  if (mask) *mask = std::move(out_mask);
}

}  // namespace weft::text
