#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "grammar/json_schema.h"
#include "grammar/json_value.h"
#include "grammar/node_kit.h"
#include "grammar/rules.h"

namespace weft {

/// How the characters of a text are written: in a JSON string, or as they are.
enum class TextForm {
  kJson,  ///< escaped where JSON demands it
  kRaw,   ///< as they are, without '<' (inside an element that a tag closes)
};

/// One member of an object.
struct MemberShape {
  std::string name;
  GrammarRules::Node value;
  bool required = false;
};

/// An object: its members in this order, then any number of further ones.
struct ObjectShape {
  std::vector<MemberShape> members;
  std::optional<GrammarRules::Node> further_key;  ///< with quotes; nullopt: no further members
  GrammarRules::Node further_value;
  bool non_empty = false;
  int64_t max_further = -1;
};

/// An array: the first items by position, then items of one kind.
struct ArrayShape {
  std::vector<GrammarRules::Node> prefix;
  std::optional<GrammarRules::Node> rest;
  int64_t min_items = 0;
  int64_t max_items = -1;  ///< -1: no bound
};

/// The parts of JSON as grammar nodes; what is used often is a rule made once.
class JsonText {
 public:
  using Node = GrammarRules::Node;
  JsonText(GrammarRules& rules, const JsonStyle& style) : kit_(rules), style_(style) {}

  const NodeKit& kit() const { return kit_; }

  Node boolean();
  Node integer();  ///< any, see integer_node()
  Node number();   ///< any, see number_node()
  Node string();   ///< any, with quotes
  /// A string of min to max code points (max -1: no bound), with quotes.
  Node string(int64_t min_len, int64_t max_len);
  Node any_value() { return any_value(style_.max_depth); }
  Node any_object() { return any_object(style_.max_depth); }
  Node any_array() { return any_array(style_.max_depth); }
  /// Exactly this value; white space as the style has it, members in the given order.
  Node value(const SchemaValue& value);

  Node object(const ObjectShape& object);
  Node array(const ArrayShape& array);
  /// A key (with quotes) that is none of these names: a trie of the names, and what leaves it. Each
  /// character has one way to be written, so no escape can spell a declared name.
  Node other_key(const std::vector<std::string>& names);

  /// One character out of the ranges, in that form.
  Node character(const GrammarRules::CodePoints& ranges, bool negated, TextForm form);
  /// Any one character in that form, escapes of all kinds included.
  Node plain_char(TextForm form);
  /// Any text as it is in which none of these tags stands. Each begins with a '<' and has no other.
  Node text_without(const std::vector<std::string>& tags);

 private:
  Node any_value(int depth);
  Node any_object(int depth);
  Node any_array(int depth);
  Node gap();    ///< between tokens: nothing, or white space
  Node colon();  ///< the colon behind a key
  Node comma();  ///< a comma and what may follow it
  Node string_char();
  Node bracketed(char open, Node inner, char close);
  Node member(const MemberShape& member);
  Node some_optional(const std::vector<Node>& members, size_t begin, size_t end);
  Node optional_run(const std::vector<Node>& members, size_t begin, size_t end);
  Node tag_tail(const std::vector<std::string>& tags, const std::string& begun);
  Node key_tail(const std::vector<std::u32string>& names, size_t begin, size_t end, size_t at);
  /// The rule of that name, made by `body` when it is first asked for.
  template <class Body>
  Node once(const std::string& name, Body body);

  NodeKit kit_;
  JsonStyle style_;
  std::map<std::string, Node> made_;
};

}  // namespace weft
