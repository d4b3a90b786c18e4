// Python's string functions on UTF-8 with tags.
#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/jinja_interp.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

template <class F>
void for_each_char(std::string_view s, F&& f) {
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    f(d.code, s.substr(i, static_cast<size_t>(d.length)));
    i += static_cast<size_t>(d.length);
  }
}

bool cased(char32_t c) {
  return text::is_upper(c) || text::is_lower(c) || text::is_title(c);
}

/// Full upper case of the characters that become more than one.
void append_upper(std::string& out, char32_t c) {
  switch (c) {
    case 0xDF: out += "SS"; return;
    case 0xFB00: out += "FF"; return;
    case 0xFB01: out += "FI"; return;
    case 0xFB02: out += "FL"; return;
    case 0xFB03: out += "FFI"; return;
    case 0xFB04: out += "FFL"; return;
    case 0xFB05:
    case 0xFB06: out += "ST"; return;
    default: text::append_utf8(out, text::to_upper(c));
  }
}
void append_title(std::string& out, char32_t c) {
  if (c == 0xDF) {
    out += "Ss";
  } else {
    text::append_utf8(out, text::to_title(c));
  }
}
void append_lower(std::string& out, char32_t c) {
  if (c == 0x130) {
    out += "i\xCC\x87";
  } else {
    text::append_utf8(out, text::to_lower(c));
  }
}

}  // namespace

bool is_python_space(char32_t c) {
  return (text::char_table()(c) & text::kSpace) || (c >= 0x1C && c <= 0x1F);
}

std::string upper(std::string_view s) {
  std::string out;
  for_each_char(s, [&](char32_t c, std::string_view) { append_upper(out, c); });
  return out;
}

std::string lower(std::string_view s) {
  std::string out;
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    const size_t next = i + static_cast<size_t>(d.length);
    if (d.code == 0x3A3) {  // a final sigma after a letter and before none
      const bool after = i > 0 && cased(text::decode_before(s.data(), s.data() + i).code);
      const bool before = next < s.size() && cased(text::decode_valid(s.data() + next).code);
      text::append_utf8(out, after && !before ? 0x3C2 : 0x3C3);
    } else {
      append_lower(out, d.code);
    }
    i = next;
  }
  return out;
}

std::string capitalize(std::string_view s) {
  if (s.empty()) return {};
  const text::Decoded first = text::decode_valid(s.data());
  std::string out;
  append_title(out, first.code);
  return out + lower(s.substr(static_cast<size_t>(first.length)));
}

std::string title(std::string_view s) {
  std::string out;
  bool inside = false;
  for_each_char(s, [&](char32_t c, std::string_view) {
    if (inside) {
      append_lower(out, c);
    } else {
      append_title(out, c);
    }
    inside = cased(c);
  });
  return out;
}

std::string title_words(std::string_view s) {
  // jinja2 cuts at runs of - space ( { [ < and capitalises what stands between.
  std::string out;
  size_t begin = 0;
  const auto word = [&](std::string_view w) {
    if (w.empty()) return;
    const text::Decoded first = text::decode_valid(w.data());
    append_upper(out, first.code);
    out += lower(w.substr(static_cast<size_t>(first.length)));
  };
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    const bool cut = is_python_space(d.code) ||
                     (d.code < 0x80 && std::string_view("-({[<").find(static_cast<char>(d.code)) !=
                                           std::string_view::npos);
    if (cut) {
      word(s.substr(begin, i - begin));
      out += s.substr(i, static_cast<size_t>(d.length));
      begin = i + static_cast<size_t>(d.length);
    }
    i += static_cast<size_t>(d.length);
  }
  word(s.substr(begin));
  return out;
}

Tagged strip(const Tagged& tagged, const std::string* characters, bool left, bool right) {
  const std::string& s = tagged.str();
  const auto strips = [&](size_t i, int length) {
    if (!characters) return is_python_space(text::decode_valid(s.data() + i).code);
    return characters->find(s.data() + i, 0, static_cast<size_t>(length)) != std::string::npos;
  };
  size_t begin = 0, end = s.size();
  while (left && begin < end) {
    const int n = text::decode_valid(s.data() + begin).length;
    if (!strips(begin, n)) break;
    begin += static_cast<size_t>(n);
  }
  while (right && end > begin) {
    const int n = text::decode_before(s.data() + begin, s.data() + end).length;
    if (!strips(end - static_cast<size_t>(n), n)) break;
    end -= static_cast<size_t>(n);
  }
  return tagged.slice(begin, end);
}

Tagged replace(const Tagged& s, const Tagged& from, const Tagged& to, int64_t limit,
               size_t max_bytes) {
  Tagged out;
  size_t done = 0;
  const std::string& bytes = s.str();
  const auto check = [&] {
    if (out.size() > max_bytes) throw Failure{"replace makes a string beyond the output limit"};
  };
  if (from.empty()) {  // between all characters
    while (limit != 0) {
      out.append(to);
      check();
      if (limit > 0) --limit;
      if (done == bytes.size()) return out;
      const size_t next =
          done + static_cast<size_t>(text::decode_valid(bytes.data() + done).length);
      out.append(s.slice(done, next));
      done = next;
    }
    out.append(s.slice(done, bytes.size()));
    return out;
  }
  while (limit != 0) {
    const size_t found = bytes.find(from.str(), done);
    if (found == std::string::npos) break;
    out.append(s.slice(done, found));
    out.append(to);
    check();
    done = found + from.size();
    if (limit > 0) --limit;
  }
  out.append(s.slice(done, bytes.size()));
  return out;
}

Tagged escape_html(const Tagged& s) {
  Tagged out;
  const std::string& bytes = s.str();
  size_t done = 0;
  for (size_t i = 0; i < bytes.size(); ++i) {
    const char* to = nullptr;
    switch (bytes[i]) {
      case '&': to = "&amp;"; break;
      case '<': to = "&lt;"; break;
      case '>': to = "&gt;"; break;
      case '"': to = "&#34;"; break;
      case '\'': to = "&#39;"; break;
      default: continue;
    }
    out.append(s.slice(done, i));
    out.append(to, s.user_at(i));
    done = i + 1;
  }
  out.append(s.slice(done, bytes.size()));
  return out;
}

namespace {
std::string_view trim(std::string_view s) {
  while (!s.empty() && is_python_space(text::decode_valid(s.data()).code)) {
    s.remove_prefix(static_cast<size_t>(text::decode_valid(s.data()).length));
  }
  while (!s.empty()) {
    const text::Decoded d = text::decode_before(s.data(), s.data() + s.size());
    if (!is_python_space(d.code)) break;
    s.remove_suffix(static_cast<size_t>(d.length));
  }
  return s;
}
/// Removes the single underscores that Python allows between digits; false where misplaced.
bool drop_underscores(std::string& s) {
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] != '_') continue;
    const auto alnum = [&](size_t k) {
      return k < s.size() && std::isalnum(static_cast<unsigned char>(s[k]));
    };
    if (i == 0 || !alnum(i - 1) || !alnum(i + 1)) return false;
  }
  s.erase(std::remove(s.begin(), s.end(), '_'), s.end());
  return true;
}
}  // namespace

std::optional<int64_t> parse_int(std::string_view text, int base) {
  std::string s(trim(text));
  bool negative = false;
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) {
    negative = s[0] == '-';
    s.erase(0, 1);
  }
  if (s.size() > 2 && s[0] == '0') {
    const char kind = static_cast<char>(s[1] | 0x20);
    const int named = kind == 'x' ? 16 : kind == 'o' ? 8 : kind == 'b' ? 2 : 0;
    if (named != 0 && (base == named || base == 0)) {
      base = named;
      s.erase(0, s[2] == '_' ? 3 : 2);
    }
  }
  if (base == 0) base = 10;
  if (s.empty() || s[0] == '-' || base < 2 || base > 36 || !drop_underscores(s))
    return std::nullopt;
  if (negative) s.insert(0, 1, '-');
  int64_t value = 0;
  const auto [p, error] = std::from_chars(s.data(), s.data() + s.size(), value, base);
  if (error == std::errc::result_out_of_range) throw Failure{"integer beyond 64 bits"};
  if (error != std::errc() || p != s.data() + s.size()) return std::nullopt;
  return value;
}

std::optional<double> parse_float(std::string_view text) {
  std::string s(trim(text));
  bool negative = false;
  if (!s.empty() && (s[0] == '-' || s[0] == '+')) {
    negative = s[0] == '-';
    s.erase(0, 1);
  }
  if (s.empty() || s[0] == '-' || !drop_underscores(s)) return std::nullopt;
  std::string small = s;
  std::transform(small.begin(), small.end(), small.begin(), [](char c) {
    return static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  });
  double value = 0;
  if (small == "inf" || small == "infinity") {
    value = INFINITY;
  } else if (small == "nan") {
    value = NAN;
  } else {
    if (std::isalpha(static_cast<unsigned char>(s[0]))) return std::nullopt;
    const auto [p, error] = std::from_chars(s.data(), s.data() + s.size(), value);
    if (error == std::errc::result_out_of_range) {
      value = s.find("e-") != s.npos || s.find("E-") != s.npos ? 0 : INFINITY;
    } else if (error != std::errc() || p != s.data() + s.size()) {
      return std::nullopt;
    }
  }
  return negative ? -value : value;
}

}  // namespace weft::jinja
