#include <algorithm>
#include <charconv>

#include "base/utf8.h"
#include "text/jinja_ast.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

bool space_at(std::string_view s, size_t i, size_t* length) {
  const text::Decoded d = text::decode_valid(s.data() + i);
  *length = static_cast<size_t>(d.length);
  return (text::char_table()(d.code) & text::kSpace) || (d.code >= 0x1C && d.code <= 0x1F);
}

/// \r\n and \r become \n, and one newline at the end is dropped (keep_trailing_newline is off).
std::string normalize_newlines(std::string_view s) {
  std::string out;
  out.reserve(s.size());
  for (size_t i = 0; i < s.size(); ++i) {
    if (s[i] == '\r') {
      out += '\n';
      if (i + 1 < s.size() && s[i + 1] == '\n') ++i;
    } else {
      out += s[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normalize_newlines(source)), s_(source_) {
    line_starts_.push_back(0);
    for (size_t i = 0; i < s_.size(); ++i) {
      if (s_[i] == '\n') line_starts_.push_back(i + 1);
    }
  }

  std::vector<Token> run() {
    while (at_ < s_.size()) {
      const size_t open = find_open(at_);
      if (open == std::string_view::npos) {
        add_data(s_.substr(at_), at_);
        break;
      }
      data_until(open);
    }
    at_ = s_.size();
    push(TokenKind::kEnd, at_);
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(const std::string& message, size_t at) const {
    int line = 0, column = 0;
    position(at, &line, &column);
    throw Failure{message, line, column};
  }
  void position(size_t at, int* line, int* column) const {
    const auto it = std::upper_bound(line_starts_.begin(), line_starts_.end(), at) - 1;
    *line = static_cast<int>(it - line_starts_.begin()) + 1;
    *column = static_cast<int>(num_chars(s_.substr(*it, std::min<size_t>(at - *it, 4096)))) + 1;
  }
  Token& push(TokenKind kind, size_t at, std::string text = {}) {
    int line = 0, column = 0;
    position(at, &line, &column);
    tokens_.push_back({kind, line, column, std::move(text)});
    return tokens_.back();
  }
  void add_data(std::string_view text, size_t at) {
    if (!text.empty()) push(TokenKind::kData, at, std::string(text));
  }
  size_t find_open(size_t from) const {
    for (size_t i = s_.find('{', from); i != std::string_view::npos; i = s_.find('{', i + 1)) {
      if (i + 1 < s_.size() && (s_[i + 1] == '{' || s_[i + 1] == '%' || s_[i + 1] == '#')) return i;
    }
    return std::string_view::npos;
  }
  size_t skip_space(size_t i) const {
    size_t length = 0;
    while (i < s_.size() && space_at(s_, i, &length)) i += length;
    return i;
  }

  /// What stands before a tag, stripped as its sign and lstrip_blocks say.
  std::string_view stripped(std::string_view text, char sign, bool variable) const {
    if (sign == '-') {
      while (!text.empty()) {
        const text::Decoded d = text::decode_before(text.data(), text.data() + text.size());
        size_t length = 0;
        if (!space_at(text, text.size() - static_cast<size_t>(d.length), &length)) break;
        text.remove_suffix(length);
      }
    } else if (sign != '+' && !variable) {
      const size_t line = text.rfind('\n') + 1;  // npos + 1 == 0
      if (line > 0 || line_starting_) {
        size_t i = line, length = 0;
        while (i < text.size() && space_at(text, i, &length)) i += length;
        if (i == text.size() && i > line) text = text.substr(0, line);
      }
    }
    return text;
  }
  /// After a block or comment: "-" eats whitespace, "+" nothing, else one newline.
  void close(char sign) {
    const size_t before = at_;
    if (sign == '-') {
      at_ = skip_space(at_);
    } else if (sign != '+' && at_ < s_.size() && s_[at_] == '\n') {
      ++at_;
    }
    line_starting_ = at_ > before && s_[at_ - 1] == '\n';
  }

  void data_until(size_t open) {
    const char kind = s_[open + 1];
    size_t i = open + 2;
    const char sign = i < s_.size() && (s_[i] == '-' || s_[i] == '+') ? s_[i++] : '\0';
    add_data(stripped(s_.substr(at_, open - at_), sign, kind == '{'), at_);
    if (kind == '#') {
      comment(open, i);
    } else if (kind == '%' && raw_begins(i)) {
      raw(open);
    } else {
      push(kind == '{' ? TokenKind::kVariableBegin : TokenKind::kBlockBegin, open);
      at_ = i;
      line_starting_ = false;
      code(kind == '{', open);
    }
  }

  void comment(size_t open, size_t i) {
    const size_t end = s_.find("#}", i);
    if (end == std::string_view::npos) fail("Missing end of comment tag", open);
    at_ = end + 2;
    close(end > i && (s_[end - 1] == '-' || s_[end - 1] == '+') ? s_[end - 1] : '\0');
  }

  /// Whether "raw %}" stands at i; leaves raw_end_ behind it.
  bool raw_begins(size_t i) {
    i = skip_space(i);
    if (s_.substr(i, 3) != "raw") return false;
    i = skip_space(i + 3);
    const bool strip = i < s_.size() && s_[i] == '-';
    if (s_.substr(i + strip, 2) != "%}") return false;
    raw_end_ = strip ? skip_space(i + 3) : i + 2;
    return true;
  }
  void raw(size_t open) {
    const size_t begin = raw_end_;
    line_starting_ = begin > 0 && s_[begin - 1] == '\n';
    for (size_t tag = s_.find("{%", begin); tag != std::string_view::npos;
         tag = s_.find("{%", tag + 2)) {
      size_t i = tag + 2;
      const char sign = i < s_.size() && (s_[i] == '-' || s_[i] == '+') ? s_[i++] : '\0';
      i = skip_space(i);
      if (s_.substr(i, 6) != "endraw") continue;
      i = skip_space(i + 6);
      const char end_sign = i < s_.size() && (s_[i] == '-' || s_[i] == '+') ? s_[i++] : '\0';
      if (s_.substr(i, 2) != "%}") continue;
      add_data(stripped(s_.substr(begin, tag - begin), sign, false), begin);
      at_ = i + 2;
      close(end_sign);
      return;
    }
    fail("Missing end of raw directive", open);
  }

  /// The tokens of one tag, up to and with its end.
  void code(bool variable, size_t open) {
    std::string balance;  // the closing brackets expected
    const std::string_view end = variable ? "}}" : "%}";
    while (true) {
      at_ = skip_space(at_);
      if (at_ >= s_.size())
        fail(std::string("unexpected end of template, expected '") + std::string(end) + "'", open);
      if (balance.empty()) {
        const char c = s_[at_];
        const bool minus = c == '-' && s_.substr(at_ + 1, 2) == end;
        const bool plus = !variable && c == '+' && s_.substr(at_ + 1, 2) == end;
        if (minus || plus || s_.substr(at_, 2) == end) {
          push(variable ? TokenKind::kVariableEnd : TokenKind::kBlockEnd, at_);
          at_ += minus || plus ? 3 : 2;
          if (!variable) return close(minus ? '-' : plus ? '+' : '\0');
          const size_t before = at_;
          if (minus) at_ = skip_space(at_);
          line_starting_ = at_ > before && s_[at_ - 1] == '\n';
          return;
        }
      }
      token(balance);
    }
  }

  static bool digit(char c) { return c >= '0' && c <= '9'; }
  static bool name_start(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_';
  }

  void token(std::string& balance) {
    const char c = s_[at_];
    if (digit(c)) return number();
    if (c == '"' || c == '\'') return string();
    const size_t begin = at_;
    const bool wide = static_cast<unsigned char>(c) >= 0x80;
    if (name_start(c) || wide) {
      while (at_ < s_.size()) {
        const text::Decoded d = text::decode_valid(s_.data() + at_);
        const bool word = d.code < 0x80 ? name_start(s_[at_]) || digit(s_[at_])
                                        : (text::char_table()(d.code) & text::kWord) != 0;
        if (!word) break;
        at_ += static_cast<size_t>(d.length);
      }
      if (at_ == begin) fail("unexpected character", begin);
      push(TokenKind::kName, begin, std::string(s_.substr(begin, at_ - begin)));
      return;
    }
    for (const std::string_view two : {"//", "**", "==", "!=", ">=", "<="}) {
      if (s_.substr(at_, 2) == two) {
        at_ += 2;
        push(TokenKind::kOperator, begin, std::string(two));
        return;
      }
    }
    if (std::string_view("+-/*%~[](){}<>=.:|,;").find(c) == std::string_view::npos) {
      fail(std::string("unexpected char '") + c + "'", begin);
    }
    if (c == '(' || c == '[' || c == '{') {
      balance += c == '(' ? ')' : c == '[' ? ']' : '}';
    } else if (c == ')' || c == ']' || c == '}') {
      if (balance.empty()) fail(std::string("unexpected '") + c + "'", begin);
      if (balance.back() != c) {
        fail(std::string("unexpected '") + c + "', expected '" + balance.back() + "'", begin);
      }
      balance.pop_back();
    }
    ++at_;
    push(TokenKind::kOperator, begin, std::string(1, c));
  }

  /// Digits with single underscores between them; how many bytes from i.
  size_t digits(size_t i, bool (*accept)(char)) const {
    size_t n = 0;
    while (i + n < s_.size()) {
      if (accept(s_[i + n])) {
        ++n;
      } else if (n > 0 && s_[i + n] == '_' && i + n + 1 < s_.size() && accept(s_[i + n + 1])) {
        n += 2;
      } else {
        break;
      }
    }
    return n;
  }
  void number() {
    const size_t begin = at_;
    const char second = at_ + 1 < s_.size() ? static_cast<char>(s_[at_ + 1] | 0x20) : '\0';
    int base = 10;
    bool real = false;
    size_t end = begin;
    if (s_[begin] == '0' && (second == 'x' || second == 'o' || second == 'b')) {
      base = second == 'x' ? 16 : second == 'o' ? 8 : 2;
      const auto accept =
          base == 16  ? [](char c) { return digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'f'); }
          : base == 8 ? [](char c) { return c >= '0' && c <= '7'; }
                      : [](char c) { return c == '0' || c == '1'; };
      const size_t skip = begin + 2 < s_.size() && s_[begin + 2] == '_' ? 3 : 2;
      end = begin + skip + digits(begin + skip, accept);
      if (end == begin + skip) fail("malformed number", begin);
    } else {
      end += digits(begin, digit);
      if (end + 1 < s_.size() && s_[end] == '.' && digit(s_[end + 1])) {
        real = true;
        end += 1 + digits(end + 1, digit);
      }
      if (end < s_.size() && (s_[end] | 0x20) == 'e') {
        const size_t sign =
            end + 1 < s_.size() && (s_[end + 1] == '+' || s_[end + 1] == '-') ? 2 : 1;
        if (const size_t n = digits(end + sign, digit)) {
          real = true;
          end += sign + n;
        }
      }
    }
    std::string text(s_.substr(begin, end - begin));
    text.erase(std::remove(text.begin(), text.end(), '_'), text.end());
    if (!real && base == 10 && text.size() > 1 && text[0] == '0' &&
        text.find_first_not_of('0') != text.npos) {
      fail("malformed number", begin);  // 007
    }
    Token& token = push(real ? TokenKind::kFloat : TokenKind::kInteger, begin, text);
    const char* first = text.data() + (base == 10 ? 0 : 2);
    const char* last = text.data() + text.size();
    std::errc error{};
    if (real) {
      error = std::from_chars(first, last, token.real).ec;
    } else {
      error = std::from_chars(first, last, token.integer, base).ec;
    }
    if (error != std::errc()) fail("number out of range", begin);
    at_ = end;
  }

  void string() {
    const size_t begin = at_;
    const char quote = s_[at_++];
    std::string out;
    while (true) {
      if (at_ >= s_.size()) fail("unterminated string", begin);
      const char c = s_[at_++];
      if (c == quote) break;
      if (c != '\\') {
        out += c;
        continue;
      }
      if (at_ >= s_.size()) fail("unterminated string", begin);
      escape(s_[at_++], out);
    }
    push(TokenKind::kString, begin, std::move(out));
  }
  void escape(char e, std::string& out) {
    static constexpr std::string_view kNames = "abfnrtv\\'\"";
    static constexpr std::string_view kValues = "\a\b\f\n\r\t\v\\'\"";
    if (const size_t k = kNames.find(e); k != std::string_view::npos) {
      out += kValues[k];
    } else if (e == '\n') {
      return;
    } else if (e >= '0' && e <= '7') {
      char32_t code = static_cast<char32_t>(e - '0');
      for (int k = 0; k < 2 && at_ < s_.size() && s_[at_] >= '0' && s_[at_] <= '7'; ++k) {
        code = code * 8 + static_cast<char32_t>(s_[at_++] - '0');
      }
      text::append_utf8(out, code);
    } else if (e == 'x' || e == 'u' || e == 'U') {
      const size_t n = e == 'x' ? 2 : e == 'u' ? 4 : 8;
      uint32_t code = 0;
      const std::string_view hex = s_.substr(at_, n);
      const auto [p, error] = std::from_chars(hex.data(), hex.data() + hex.size(), code, 16);
      if (hex.size() != n || p != hex.data() + n || error != std::errc() || code > 0x10FFFF ||
          (code >= 0xD800 && code < 0xE000)) {
        fail(std::string("bad \\") + e + " escape in a string", at_);
      }
      text::append_utf8(out, code);
      at_ += n;
    } else if (e == 'N') {
      fail("\\N{...} escapes are not supported", at_);
    } else {
      out += '\\';  // Python keeps unknown escapes
      out += e;
    }
  }

  std::string source_;
  std::string_view s_;
  std::vector<size_t> line_starts_;
  std::vector<Token> tokens_;
  size_t at_ = 0;
  size_t raw_end_ = 0;
  bool line_starting_ = true;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) {
  if (source.size() > kMaxTemplateBytes) throw Failure{"the template is larger than 1 MiB", 1, 1};
  const std::string valid =
      text::is_valid_utf8(source) ? std::string(source) : text::to_valid_utf8(source);
  return Lexer(valid).run();
}

}  // namespace weft::jinja
