#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace weft {

class Grammar;

/// Bounds of a grammar; beyond them it is refused with kExhausted by name of the bound.
struct GrammarLimits {
  size_t max_source_bytes = 64 << 10;  ///< of a schema, regex or EBNF text
  int max_depth = 32;                  ///< nesting of a schema or an expression
  size_t max_nodes = 200'000;          ///< expressions after expansion of repetitions
  size_t max_states = 500'000;         ///< of the automaton
};

/// Builds a context-free grammar over bytes: what the front ends (JSON schema, regex, EBNF, choice)
/// write and what compile() turns into an automaton. Handles are small integers of this builder.
class GrammarRules {
 public:
  struct Node {
    int32_t id = -1;
  };
  struct Rule {
    int32_t id = -1;
  };
  using CodePoints = std::vector<std::pair<char32_t, char32_t>>;  ///< closed ranges

  explicit GrammarRules(GrammarLimits limits = {});
  ~GrammarRules();
  GrammarRules(GrammarRules&&) noexcept;

  Node empty();    ///< the empty text
  Node nothing();  ///< no text at all
  Node literal(std::string_view bytes);
  /// One character, encoded in UTF-8, out of (or with `negated` outside of) the ranges. Surrogates
  /// are never matched.
  Node characters(const CodePoints& ranges, bool negated = false);
  Node sequence(const std::vector<Node>& parts);
  Node choice(const std::vector<Node>& options);
  /// `node` min to max times; max -1: without end.
  Node repeat(Node node, int64_t min, int64_t max);
  /// A rule may be referred to before it is defined; it may refer to itself (not as its own first
  /// part: left recursion is refused by compile()).
  Rule declare(std::string name);
  void define(Rule rule, Node body);
  Node reference(Rule rule);

  const GrammarLimits& limits() const;
  /// The grammar whose texts are those of `root`. Errors: kExhausted where a limit is met,
  /// kInvalidArgument for an undefined or left-recursive rule. A grammar without any text is
  /// refused too.
  Result<std::shared_ptr<const Grammar>> compile(Rule root) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

constexpr char32_t kLastCodePoint = 0x10FFFF;
/// The code points outside of the ranges, sorted and apart from each other.
GrammarRules::CodePoints complement(GrammarRules::CodePoints ranges);

}  // namespace weft
