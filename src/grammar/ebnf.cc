// EBNF in the dialect of GBNF (docs/structured_output.md).

#include <map>

#include "grammar/char_reader.h"
#include "grammar/grammar.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;

class EbnfParser {
 public:
  EbnfParser(GrammarRules& rules, std::string_view text, const std::string& field)
      : rules_(rules), in_(text, field) {}

  Result<GrammarRules::Rule> parse() {
    skip_spaces(/*lines=*/true);
    while (!in_.at_end()) {
      TRY(definition());
      skip_spaces(/*lines=*/true);
    }
    for (const auto& [name, entry] : names_) {
      if (!entry.defined) return in_.error("rule '" + name + "' is used but not defined; seen");
    }
    const auto root = names_.find("root");
    if (root == names_.end()) return in_.error("there is no rule 'root'; the end");
    return root->second.rule;
  }

 private:
  struct Entry {
    GrammarRules::Rule rule;
    bool defined = false;
  };

  void skip_spaces(bool lines) {
    for (;;) {
      const char c = in_.peek();
      if (c == ' ' || c == '\t' || (lines && (c == '\n' || c == '\r'))) {
        in_.skip(1);
      } else if (c == '#') {
        while (!in_.at_end() && in_.peek() != '\n') in_.skip(1);
      } else {
        return;
      }
    }
  }

  static bool in_name(char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-';
  }

  std::string name() {
    std::string out;
    while (in_name(in_.peek())) {
      out += in_.peek();
      in_.skip(1);
    }
    return out;
  }

  Entry& entry(const std::string& name) {
    const auto [it, fresh] = names_.try_emplace(name);
    if (fresh) it->second.rule = rules_.declare(name);
    return it->second;
  }

  Result<void> definition() {
    const std::string left = name();
    if (left.empty()) return in_.error("a rule name is missing");
    skip_spaces(false);
    if (!in_.take("::=") && !in_.take(":") && !in_.take("=")) return in_.error("'::=' is missing");
    const Node body = TRY(alternatives(0));
    if (!in_.at_end() && in_.peek() != '\n' && in_.peek() != '\r') {
      return in_.error("something that is no expression");
    }
    Entry& known = entry(left);
    if (known.defined)
      return in_.error("rule '" + left + "' is defined twice; the second one ends");
    known.defined = true;
    rules_.define(known.rule, body);
    return {};
  }

  /// Whether a line break here goes on with the same rule: inside of parentheses, or when '|' or no
  /// new rule follows.
  bool goes_on() {
    CharReader ahead = in_;
    const CharReader here = in_;
    skip_spaces(true);
    if (in_.peek() == '|') return true;
    ahead = in_;
    const std::string next = name();
    skip_spaces(false);
    const bool new_rule = !next.empty() && (in_.looking_at("::=") || in_.peek() == ':');
    in_ = new_rule || ahead.at_end() ? here : ahead;
    return !new_rule && !ahead.at_end();
  }

  Result<Node> alternatives(int depth) {
    if (depth > rules_.limits().max_depth) {
      return exhausted(in_.error("groups nested too deeply").message);
    }
    std::vector<Node> options;
    do {
      std::vector<Node> parts;
      for (;;) {
        skip_spaces(/*lines=*/depth > 0);
        const char c = in_.peek();
        if (c == '\n' || c == '\r') {
          if (!goes_on()) break;
          continue;
        }
        if (in_.at_end() || c == '|' || c == ')' || c == ';') break;
        parts.push_back(TRY(repeated(depth)));
      }
      in_.take(";");
      options.push_back(rules_.sequence(parts));
    } while (in_.take("|"));
    return options.size() == 1 ? options[0] : rules_.choice(options);
  }

  Result<Node> repeated(int depth) {
    Node node = TRY(atom(depth));
    for (;;) {
      if (in_.take("*")) {
        node = rules_.repeat(node, 0, -1);
      } else if (in_.take("+")) {
        node = rules_.repeat(node, 1, -1);
      } else if (in_.take("?")) {
        node = rules_.repeat(node, 0, 1);
      } else if (in_.take("{")) {
        const auto [low, high] = TRY(in_.bounds());
        node = rules_.repeat(node, low, high);
      } else {
        return node;
      }
    }
  }

  Result<Node> atom(int depth) {
    if (in_.take("(")) {
      const Node node = TRY(alternatives(depth + 1));
      skip_spaces(true);
      if (!in_.take(")")) return in_.error("')' is missing");
      return node;
    }
    if (in_.take("[")) return char_class();
    if (in_.peek() == '"' || in_.peek() == '\'') return literal();
    if (in_.take(".")) return rules_.characters({}, /*negated=*/true);
    const std::string word = name();
    if (word.empty()) return in_.error("an expression is missing");
    return rules_.reference(entry(word).rule);
  }

  Result<char32_t> character() {
    if (!in_.take("\\")) return in_.code_point();
    if (in_.at_end()) return in_.error("a backslash at the end");
    const char32_t code = TRY(in_.code_point());
    switch (code) {
      case 'n': return U'\n';
      case 'r': return U'\r';
      case 't': return U'\t';
      case 'x': return in_.hex(2);
      case 'u': return in_.hex(4);
      case 'U': return in_.hex(8);
      default: break;
    }
    if (code < 0x80 && in_name(static_cast<char>(code)) && code != '-' && code != '_') {
      return in_.not_supported(std::string("the escape \\") + static_cast<char>(code));
    }
    return code;
  }

  Result<Node> literal() {
    const char quote = in_.peek();
    in_.skip(1);
    std::vector<Node> parts;
    while (in_.peek() != quote) {
      if (in_.at_end() || in_.peek() == '\n') return in_.error("a quote is missing");
      const char32_t code = TRY(character());
      parts.push_back(rules_.characters({{code, code}}));
    }
    in_.skip(1);
    return rules_.sequence(parts);
  }

  Result<Node> char_class() {
    const bool negated = in_.take("^");
    GrammarRules::CodePoints set;
    while (in_.peek() != ']') {
      if (in_.at_end()) return in_.error("']' is missing");
      const char32_t low = TRY(character());
      char32_t high = low;
      if (in_.peek() == '-' && !in_.looking_at("-]")) {
        in_.skip(1);
        if (in_.at_end()) return in_.error("']' is missing");
        high = TRY(character());
        if (high < low) return in_.error("a range that is reversed");
      }
      set.emplace_back(low, high);
    }
    in_.skip(1);
    return rules_.characters(set, negated);
  }

  GrammarRules& rules_;
  CharReader in_;
  std::map<std::string, Entry> names_;
};

}  // namespace

Result<GrammarRules::Rule> ebnf_rule(GrammarRules& rules, std::string_view text,
                                     const std::string& field) {
  if (text.size() > rules.limits().max_source_bytes) {
    return invalid_argument(field + ": " + std::to_string(text.size()) + " bytes are more than " +
                            std::to_string(rules.limits().max_source_bytes));
  }
  return EbnfParser(rules, text, field).parse();
}

Result<std::shared_ptr<const Grammar>> grammar_from_ebnf(std::string_view text,
                                                         const std::string& field,
                                                         const GrammarLimits& limits) {
  GrammarRules rules(limits);
  auto grammar = rules.compile(TRY(ebnf_rule(rules, text, field)));
  if (!grammar) return with_context(grammar.error(), field);
  return grammar;
}

}  // namespace weft
