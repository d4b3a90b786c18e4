#pragma once

#include <string_view>
#include <vector>

#include "grammar/rules.h"

namespace weft {

/// Shorthand to write small grammars by hand.
class NodeKit {
 public:
  using Node = GrammarRules::Node;
  explicit NodeKit(GrammarRules& rules) : rules_(rules) {}

  GrammarRules& rules() const { return rules_; }
  Node text(std::string_view bytes) const { return rules_.literal(bytes); }
  /// One ASCII character out of pairs of bounds: set("azAZ09__").
  Node set(std::string_view bounds) const;
  Node digits(int64_t min, int64_t max) const { return times(set("09"), min, max); }
  Node all(const std::vector<Node>& parts) const { return rules_.sequence(parts); }
  Node any_of(const std::vector<Node>& options) const;
  Node any_text(const std::vector<std::string_view>& options) const;
  Node optional(Node node) const { return rules_.choice({rules_.empty(), node}); }
  /// min to max times; max -1: without end. A large count of something is written as blocks of
  /// about its square root, so that the automaton stays small.
  Node times(Node node, int64_t min, int64_t max) const;
  /// A rule of its own, so that what refers to it several times costs once.
  Node rule(std::string name, Node body) const;

 private:
  Node exactly(Node node, Node block, int64_t block_len, int64_t count) const;

  GrammarRules& rules_;
};

}  // namespace weft
