#include "grammar/schema_pattern.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "base/hex.h"
#include "grammar/schema_reader.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;
using CodePoints = GrammarRules::CodePoints;

constexpr int64_t kMaxRepeats = 1'000'000;  ///< in {m,n}
constexpr int64_t kEndless = int64_t{1} << 40;
constexpr int kMaxGroups = 64;  ///< within each other

struct Part {
  enum class Kind { kSet, kSequence, kChoice, kRepeat, kStart, kEnd };
  Kind kind = Kind::kSequence;
  CodePoints set;
  std::vector<Part> parts;
  int64_t min = 0, max = 0;  ///< kRepeat; max -1: without end
};

/// A class of characters as two implementations may see it: `sure` by both, `maybe` by one.
struct Class {
  CodePoints sure;
  CodePoints maybe;
};

void append(CodePoints& to, const CodePoints& from) {
  to.insert(to.end(), from.begin(), from.end());
}

Class negated(const Class& c) {
  return {complement(c.maybe), complement(c.sure)};
}

/// \d, \w, \s: ASCII for sure; Python adds what Unicode calls a digit, a letter, a space, ECMA-262
/// some spaces.
Class named_class(char32_t name) {
  if (name == 'd') {
    // Python's other decimal digits all lie within these ranges.
    return {{{'0', '9'}},
            {{'0', '9'}, {0x660, 0x1c59}, {0xa620, 0xabff}, {0xf900, kLastCodePoint}}};
  }
  if (name == 'w') {
    const CodePoints word = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
    CodePoints maybe = word;
    maybe.emplace_back(0x80, kLastCodePoint);
    return {word, maybe};
  }
  const CodePoints space = {{'\t', '\r'}, {' ', ' '}};
  CodePoints maybe = space;
  append(maybe, {{0x1c, 0x1f},
                 {0x85, 0x85},
                 {0xa0, 0xa0},
                 {0x1680, 0x1680},
                 {0x2000, 0x200a},
                 {0x2028, 0x2029},
                 {0x202f, 0x202f},
                 {0x205f, 0x205f},
                 {0x3000, 0x3000},
                 {0xfeff, 0xfeff}});
  return {space, maybe};
}

class Parser {
 public:
  Parser(std::string_view pattern, const std::string& path)
      : text_(code_points_of(pattern)), path_(path) {}

  Result<Part> parse() {
    Part part = TRY(alternatives(0));
    if (at_ < text_.size()) return bad("an unmatched ')'");
    return part;
  }

 private:
  bool more() const { return at_ < text_.size(); }
  char32_t peek(size_t ahead = 0) const {
    return at_ + ahead < text_.size() ? text_[at_ + ahead] : U'\0';
  }
  bool take(char32_t c) {
    if (!more() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  Error bad(const std::string& what) const {
    return invalid_argument(path_ + ": " + what + " at character " + std::to_string(at_));
  }
  Error refused(const std::string& what) const {
    return unsupported(path_ + ": " + what + " (at character " + std::to_string(at_) +
                       ") is not supported");
  }

  Result<Part> alternatives(int depth) {
    if (depth > kMaxGroups) return exhausted(path_ + ": groups are nested too deeply");
    std::vector<Part> options;
    do {
      options.push_back(TRY(sequence(depth)));
    } while (take('|'));
    if (options.size() == 1) return std::move(options[0]);
    return Part{.kind = Part::Kind::kChoice, .parts = std::move(options)};
  }

  Result<Part> sequence(int depth) {
    Part out;
    while (more() && peek() != '|' && peek() != ')') {
      Part part = TRY(atom(depth));
      TRY(quantify(part));
      out.parts.push_back(std::move(part));
    }
    return out;
  }

  Result<Part> atom(int depth) {
    const char32_t c = text_[at_++];
    switch (c) {
      case '^': return Part{.kind = Part::Kind::kStart};
      case '$': return Part{.kind = Part::Kind::kEnd};
      case '(': return group(depth);
      case '[': return set();
      case '.': return of(complement({{'\n', '\n'}, {'\r', '\r'}, {0x2028, 0x2029}}));
      case '*':
      case '+':
      case '?': --at_; return bad("nothing to repeat");
      case '\\': {
        Class escaped;
        TRY(escape(escaped));
        return of(std::move(escaped.sure));
      }
      default: return of({{c, c}});
    }
  }
  static Part of(CodePoints set) { return {.kind = Part::Kind::kSet, .set = std::move(set)}; }

  Result<Part> group(int depth) {
    if (take('?')) {
      const bool named =
          peek() == 'P' ? peek(1) == '<' : peek() == '<' && peek(1) != '=' && peek(1) != '!';
      if (named) {
        while (more() && !take('>')) ++at_;
      } else if (!take(':')) {
        return refused("a group that begins with '(?' and is none of (?:...) and (?<name>...)");
      }
    }
    Part part = TRY(alternatives(depth + 1));
    if (!take(')')) return bad("an unclosed group");
    return part;
  }

  /// Digits up to kMaxRepeats.
  Result<int64_t> count() {
    int64_t value = 0;
    while (more() && peek() >= '0' && peek() <= '9') {
      value = value * 10 + static_cast<int64_t>(text_[at_++] - '0');
      if (value > kMaxRepeats) {
        return exhausted(path_ + ": a repetition of more than " + std::to_string(kMaxRepeats));
      }
    }
    return value;
  }
  static bool digit(char32_t c) { return c >= '0' && c <= '9'; }

  /// {m}, {m,} or {m,n} at the current place? Anything else is a brace that means itself.
  bool at_braces() const {
    size_t i = at_ + 1;
    const auto here = [&] { return i < text_.size() ? text_[i] : U'\0'; };
    while (digit(here())) ++i;
    if (here() == ',') {
      ++i;
      while (digit(here())) ++i;
    }
    return peek() == '{' && here() == '}' && i > at_ + 1;
  }

  Result<void> quantify(Part& part) {
    int64_t min = 0;
    int64_t max = -1;
    if (take('?')) {
      max = 1;
    } else if (take('+')) {
      min = 1;
    } else if (at_braces()) {
      ++at_;
      if (peek() == ',') return refused("'{,n}'");
      min = TRY(count());
      max = min;
      if (take(',')) max = peek() == '}' ? -1 : TRY(count());
      take('}');
      if (max >= 0 && max < min) return bad("a repetition with its bounds reversed");
    } else if (!take('*')) {
      return {};
    }
    if (part.kind == Part::Kind::kStart || part.kind == Part::Kind::kEnd) {
      return refused("a repeated anchor");
    }
    take('?');  // lazy: finds the same texts
    if (peek() == '+' || peek() == '*' || peek() == '?' || at_braces()) {
      return refused("a quantifier behind a quantifier");
    }
    Part repeated{.kind = Part::Kind::kRepeat, .min = min, .max = max};
    repeated.parts.push_back(std::move(part));
    part = std::move(repeated);
    return {};
  }

  Result<char32_t> hex(size_t digits) {
    char32_t value = 0;
    for (size_t i = 0; i < digits; ++i) {
      const char32_t c = peek();
      const int d = c < 0x80 ? hex_digit(static_cast<char>(c)) : -1;
      if (!more() || d < 0) return bad("a bad \\x or \\u escape");
      value = value * 16 + static_cast<char32_t>(d);
      ++at_;
    }
    return value;
  }

  /// What stands behind a backslash. True: a single character (in `out.sure`).
  Result<bool> escape(Class& out) {
    if (!more()) return bad("a backslash at the end");
    const char32_t c = text_[at_++];
    static constexpr std::pair<char32_t, char32_t> kControls[] = {
        {'t', '\t'}, {'n', '\n'}, {'r', '\r'}, {'f', '\f'}, {'v', '\v'}};
    if (c == 'd' || c == 'w' || c == 's') {
      out = named_class(c);
      return false;
    }
    if (c == 'D' || c == 'W' || c == 'S') {
      out = negated(named_class(c - 'A' + 'a'));
      return false;
    }
    char32_t value = c;
    const auto control = std::find_if(std::begin(kControls), std::end(kControls),
                                      [&](const auto& entry) { return entry.first == c; });
    if (control != std::end(kControls)) {
      value = control->second;
    } else if (c == 'x') {
      value = TRY(hex(2));
    } else if (c == 'u') {
      value = TRY(hex(4));
      if (value >= 0xd800 && value < 0xdc00 && peek() == '\\' && peek(1) == 'u') {
        at_ += 2;
        const char32_t low = TRY(hex(4));
        if (low < 0xdc00 || low > 0xdfff) return bad("half a surrogate pair");
        value = 0x10000 + ((value - 0xd800) << 10) + (low - 0xdc00);
      }
    } else if (digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) {
      return refused(std::string("'\\") + static_cast<char>(c) + "'");
    }
    out = {{{value, value}}, {{value, value}}};
    return true;
  }

  Result<Part> set() {
    const bool outside = take('^');
    if (peek() == ']') return refused("an empty class");
    Class all;
    while (true) {
      if (!more()) return bad("an unclosed class");
      if (take(']')) break;
      Class first;
      const bool single = TRY(set_item(first));
      if (single && peek() == '-' && peek(1) != ']' && at_ + 1 < text_.size()) {
        ++at_;
        Class last;
        if (!TRY(set_item(last))) return refused("a class as the end of a range");
        const char32_t from = first.sure[0].first;
        const char32_t to = last.sure[0].first;
        if (from > to) return bad("a range with its ends reversed");
        first = {{{from, to}}, {{from, to}}};
      }
      append(all.sure, first.sure);
      append(all.maybe, first.maybe);
    }
    return of(outside ? complement(all.maybe) : std::move(all.sure));
  }
  Result<bool> set_item(Class& out) {
    const char32_t c = text_[at_++];
    if (c == '\\') {
      if (peek() == 'b') {
        ++at_;
        out = {{{'\b', '\b'}}, {{'\b', '\b'}}};
        return true;
      }
      return escape(out);
    }
    out = {{{c, c}}, {{c, c}}};
    return true;
  }

  std::u32string text_;
  const std::string& path_;
  size_t at_ = 0;
};

int64_t capped(int64_t value) {
  return std::min(value, kEndless);
}

/// Code points of the shortest and of the longest text.
std::pair<int64_t, int64_t> lengths(const Part& part) {
  switch (part.kind) {
    case Part::Kind::kSet: return {1, 1};
    case Part::Kind::kSequence: {
      std::pair<int64_t, int64_t> sum = {0, 0};
      for (const Part& inner : part.parts) {
        const auto [min, max] = lengths(inner);
        sum = {capped(sum.first + min), capped(sum.second + max)};
      }
      return sum;
    }
    case Part::Kind::kChoice: {
      std::pair<int64_t, int64_t> range = {kEndless, 0};
      for (const Part& inner : part.parts) {
        const auto [min, max] = lengths(inner);
        range = {std::min(range.first, min), std::max(range.second, max)};
      }
      return range;
    }
    case Part::Kind::kRepeat: {
      const auto [min, max] = lengths(part.parts[0]);
      if (part.max < 0) return {capped(min * part.min), max == 0 ? 0 : kEndless};
      return {capped(min * part.min), max >= kEndless ? kEndless : capped(max * part.max)};
    }
    default: return {0, 0};
  }
}

bool has_anchor(const Part& part) {
  return part.kind == Part::Kind::kStart || part.kind == Part::Kind::kEnd ||
         std::any_of(part.parts.begin(), part.parts.end(), has_anchor);
}

/// Writes the alternatives of a pattern.
class Writer {
 public:
  Writer(JsonText& text, const PatternUse& use, const std::string& path)
      : text_(text), kit_(text.kit()), use_(use), path_(path) {}

  Result<Node> whole(const Part& part) {
    if (part.kind == Part::Kind::kChoice) {
      std::vector<Node> options;
      for (const Part& option : part.parts) options.push_back(TRY(whole(option)));
      return kit_.any_of(options);
    }
    if (part.kind == Part::Kind::kSequence && part.parts.size() == 1 && has_anchor(part) &&
        !part.parts[0].parts.empty()) {
      return whole(part.parts[0]);  // (^a$|^b$)
    }
    return alternative(part);
  }

 private:
  static Part anything() {
    Part set{.kind = Part::Kind::kSet, .set = {{0, kLastCodePoint}}};
    Part repeated{.kind = Part::Kind::kRepeat, .min = 0, .max = -1};
    repeated.parts.push_back(std::move(set));
    return repeated;
  }

  Result<Node> alternative(const Part& part) {
    std::vector<Part> parts;
    if (part.kind == Part::Kind::kSequence) {
      parts = part.parts;
    } else {
      parts.push_back(part);
    }
    bool from_start = false;
    bool to_end = false;
    while (!parts.empty() && parts.front().kind == Part::Kind::kStart) {
      from_start = true;
      parts.erase(parts.begin());
    }
    while (!parts.empty() && parts.back().kind == Part::Kind::kEnd) {
      to_end = true;
      parts.pop_back();
    }
    if (!from_start) parts.insert(parts.begin(), anything());
    if (!to_end) parts.push_back(anything());
    Part all{.kind = Part::Kind::kSequence, .parts = std::move(parts)};
    if (has_anchor(all)) {
      return unsupported(path_ +
                         ": '^' and '$' are supported only at the ends of a pattern or of " +
                         "one of its alternatives");
    }
    TRY(fit(all.parts));
    return write(all);
  }

  /// Puts the length of the text into the one part whose length varies.
  Result<void> fit(std::vector<Part>& parts) {
    const auto [min, max] = lengths({.kind = Part::Kind::kSequence, .parts = parts});
    if (use_.max_len >= 0 && min > use_.max_len) {
      parts = {{.kind = Part::Kind::kChoice}};  // without options: nothing
      return {};
    }
    const bool too_short = use_.min_len > min;
    const bool too_long = use_.max_len >= 0 && max > use_.max_len;
    if (!too_short && !too_long) return {};
    const auto varies = [](const Part& part) {
      const auto [shortest, longest] = lengths(part);
      return shortest != longest;
    };
    const auto found = std::find_if(parts.begin(), parts.end(), varies);
    if (found == parts.end()) {  // too short, and can't be longer
      parts = {{.kind = Part::Kind::kChoice}};
      return {};
    }
    if (std::count_if(parts.begin(), parts.end(), varies) != 1 ||
        found->kind != Part::Kind::kRepeat ||
        lengths(found->parts[0]) != std::pair<int64_t, int64_t>(1, 1)) {
      return unsupported(
          path_ + ": keyword 'pattern' together with 'minLength' and 'maxLength' is " +
          "supported only where one part of the pattern, and of single characters, " +
          "varies in length");
    }
    const int64_t fixed = min - found->min;
    found->min = std::max(found->min, use_.min_len - fixed);
    if (use_.max_len >= 0) {
      const int64_t most = use_.max_len - fixed;
      found->max = found->max < 0 ? most : std::min(found->max, most);
    }
    if (found->max >= 0 && found->min > found->max) parts = {{.kind = Part::Kind::kChoice}};
    return {};
  }

  Node write(const Part& part) {
    std::vector<Node> nodes;
    switch (part.kind) {
      case Part::Kind::kSet: {
        const bool all = part.set == CodePoints{{0, kLastCodePoint}};
        return all ? text_.plain_char(use_.form) : text_.character(part.set, false, use_.form);
      }
      case Part::Kind::kRepeat: return kit_.times(write(part.parts[0]), part.min, part.max);
      default:
        for (const Part& inner : part.parts) nodes.push_back(write(inner));
        return part.kind == Part::Kind::kChoice ? kit_.any_of(nodes) : kit_.all(nodes);
    }
  }

  JsonText& text_;
  const NodeKit& kit_;
  const PatternUse& use_;
  const std::string& path_;
};

}  // namespace

Result<Node> pattern_node(JsonText& text, std::string_view pattern, const PatternUse& use,
                          const std::string& path) {
  const Part part = TRY(Parser(pattern, path).parse());
  return Writer(text, use, path).whole(part);
}

}  // namespace weft
