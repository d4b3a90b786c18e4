// Regular expressions (docs/structured_output.md): the whole text must match.

#include "grammar/char_reader.h"
#include "grammar/grammar.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;
using CodePoints = GrammarRules::CodePoints;

const CodePoints kDigits = {{'0', '9'}};
const CodePoints kWord = {{'0', '9'}, {'A', 'Z'}, {'_', '_'}, {'a', 'z'}};
const CodePoints kSpace = {{'\t', '\r'}, {' ', ' '}};

class RegexParser {
 public:
  RegexParser(GrammarRules& rules, std::string_view text, const std::string& field)
      : rules_(rules), in_(text, field) {}

  Result<Node> parse() {
    in_.take("^");
    const Node node = TRY(alternatives(0));
    if (!in_.at_end()) return in_.error("')' without '('");
    return node;
  }

 private:
  Result<Node> alternatives(int depth) {
    if (depth > rules_.limits().max_depth) {
      return exhausted(
          in_.error("groups nested deeper than " + std::to_string(rules_.limits().max_depth))
              .message);
    }
    std::vector<Node> options;
    do {
      std::vector<Node> parts;
      while (!in_.at_end() && in_.peek() != '|' && in_.peek() != ')') {
        if (in_.peek() == '$') {
          in_.skip(1);
          if (!in_.at_end()) return in_.not_supported("'$' before the end");
          break;
        }
        parts.push_back(TRY(repeated(depth)));
      }
      options.push_back(rules_.sequence(parts));
    } while (in_.take("|"));
    return options.size() == 1 ? options[0] : rules_.choice(options);
  }

  Result<Node> repeated(int depth) {
    Node node = TRY(atom(depth));
    for (;;) {
      int64_t low = 0, high = -1;
      if (in_.take("*")) {
      } else if (in_.take("+")) {
        low = 1;
      } else if (in_.take("?")) {
        high = 1;
      } else if (in_.take("{")) {
        const auto [min, max] = TRY(in_.bounds());
        low = min;
        high = max;
      } else {
        return node;
      }
      in_.take("?");  // lazy: the same texts
      if (in_.peek() == '+') return in_.not_supported("a possessive quantifier");
      node = rules_.repeat(node, low, high);
    }
  }

  Result<Node> atom(int depth) {
    if (in_.take("(")) {
      if (in_.take("?:")) {
      } else if (in_.looking_at("?P<") ||
                 (in_.looking_at("?<") && !in_.looking_at("?<=") && !in_.looking_at("?<!"))) {
        while (!in_.at_end() && in_.peek() != '>') in_.skip(1);
        if (!in_.take(">")) return in_.error("'>' is missing");
      } else if (in_.peek() == '?') {
        return in_.not_supported("look-around or flags, '(?'");
      }
      const Node node = TRY(alternatives(depth + 1));
      if (!in_.take(")")) return in_.error("')' is missing");
      return node;
    }
    if (in_.take("[")) return char_class();
    if (in_.take(".")) return rules_.characters({{'\n', '\n'}}, /*negated=*/true);
    if (in_.take("\\")) {
      CodePoints set;
      TRY(escape(set));
      return rules_.characters(set);
    }
    const char c = in_.peek();
    if (c == '*' || c == '+' || c == '?') return in_.error("nothing to repeat");
    if (c == '^') return in_.not_supported("'^' behind the beginning");
    const char32_t code = TRY(in_.code_point());
    return rules_.characters({{code, code}});
  }

  /// Behind a backslash; adds to `set`.
  Result<void> escape(CodePoints& set) {
    if (in_.at_end()) return in_.error("a backslash at the end");
    const char c = in_.peek();
    const auto add = [&set](const CodePoints& more) {
      set.insert(set.end(), more.begin(), more.end());
    };
    const auto one = [&set](char32_t code) { set.emplace_back(code, code); };
    if (c >= '1' && c <= '9') return in_.not_supported("a back reference");
    const char32_t code = TRY(in_.code_point());
    switch (code) {
      case 'd': add(kDigits); return {};
      case 'D': add(complement(kDigits)); return {};
      case 'w': add(kWord); return {};
      case 'W': add(complement(kWord)); return {};
      case 's': add(kSpace); return {};
      case 'S': add(complement(kSpace)); return {};
      case 'n': one('\n'); return {};
      case 'r': one('\r'); return {};
      case 't': one('\t'); return {};
      case 'f': one('\f'); return {};
      case 'v': one('\v'); return {};
      case '0': one(0); return {};
      case 'x': one(TRY(in_.hex(2))); return {};
      case 'u': {
        const bool braces = in_.take("{");
        if (!braces) {
          one(TRY(in_.hex(4)));
          return {};
        }
        char32_t value = 0;
        int digits = 0;
        while (!in_.take("}")) {
          if (++digits > 6) return in_.error("'}' is missing");
          value = value << 4 | TRY(in_.hex(1));
        }
        if (value > 0x10FFFF) return in_.error("a code point beyond U+10FFFF");
        one(value);
        return {};
      }
      default: break;
    }
    const bool letter = (code >= 'a' && code <= 'z') || (code >= 'A' && code <= 'Z');
    if (letter) return in_.not_supported(std::string("the escape \\") + static_cast<char>(code));
    one(code);
    return {};
  }

  /// One member of a class: a character, or a set (then `single` is false).
  Result<CodePoints> class_member(bool& single) {
    CodePoints set;
    single = true;
    if (in_.take("\\")) {
      if (in_.take("b")) {
        set.emplace_back('\b', '\b');
      } else {
        TRY(escape(set));
      }
      single = set.size() == 1 && set[0].first == set[0].second;
      return set;
    }
    if (in_.looking_at("[:")) return in_.not_supported("a POSIX class");
    const char32_t code = TRY(in_.code_point());
    set.emplace_back(code, code);
    return set;
  }

  Result<Node> char_class() {
    const bool negated = in_.take("^");
    CodePoints set;
    bool first = true;
    while (first || in_.peek() != ']') {
      if (in_.at_end()) return in_.error("']' is missing");
      first = false;
      bool single = true;
      const CodePoints low = TRY(class_member(single));
      if (single && in_.peek() == '-' && !in_.looking_at("-]")) {
        in_.skip(1);
        if (in_.at_end()) return in_.error("']' is missing");
        const CodePoints high = TRY(class_member(single));
        if (!single || high[0].first < low[0].first) return in_.error("a range that is reversed");
        set.emplace_back(low[0].first, high[0].first);
        continue;
      }
      set.insert(set.end(), low.begin(), low.end());
    }
    in_.skip(1);
    return rules_.characters(set, negated);
  }

  GrammarRules& rules_;
  CharReader in_;
};

Result<std::shared_ptr<const Grammar>> compile(GrammarRules& rules, Node node,
                                               const std::string& field) {
  const GrammarRules::Rule root = rules.declare("root");
  rules.define(root, node);
  auto grammar = rules.compile(root);
  if (!grammar) return with_context(grammar.error(), field);
  return grammar;
}

Result<void> check_size(size_t bytes, const std::string& field, const GrammarLimits& limits) {
  if (bytes <= limits.max_source_bytes) return {};
  return invalid_argument(field + ": " + std::to_string(bytes) + " bytes are more than " +
                          std::to_string(limits.max_source_bytes));
}

}  // namespace

Result<Node> regex_node(GrammarRules& rules, std::string_view regex, const std::string& field) {
  TRY(check_size(regex.size(), field, rules.limits()));
  return RegexParser(rules, regex, field).parse();
}

Result<std::shared_ptr<const Grammar>> grammar_from_regex(std::string_view regex,
                                                          const std::string& field,
                                                          const GrammarLimits& limits) {
  GrammarRules rules(limits);
  return compile(rules, TRY(regex_node(rules, regex, field)), field);
}

Result<Node> choices_node(GrammarRules& rules, const std::vector<std::string>& choices,
                          const std::string& field) {
  size_t bytes = 0;
  std::vector<Node> options;
  for (const std::string& choice : choices) {
    bytes += choice.size();
    if (choice.empty()) return invalid_argument(field + ": a choice must not be empty");
    options.push_back(rules.literal(choice));
  }
  if (options.empty()) return invalid_argument(field + ": at least one choice is needed");
  TRY(check_size(bytes, field, rules.limits()));
  return rules.choice(options);
}

Result<std::shared_ptr<const Grammar>> grammar_from_choices(const std::vector<std::string>& choices,
                                                            const std::string& field,
                                                            const GrammarLimits& limits) {
  GrammarRules rules(limits);
  return compile(rules, TRY(choices_node(rules, choices, field)), field);
}

}  // namespace weft
