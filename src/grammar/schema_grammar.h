#pragma once

#include <deque>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "grammar/json_text.h"
#include "grammar/schema_reader.h"

namespace weft {

/// Writes the values of one schema as grammar rules: a rule for each schema that is met, so that
/// recursion and repeated use cost nothing. Rules are made from a queue, never by recursion.
class SchemaGrammar {
 public:
  using Node = GrammarRules::Node;
  /// `text` and `root` outlive it.
  SchemaGrammar(JsonText& text, const SchemaValue& root, std::string field)
      : text_(text), kit_(text.kit()), reader_(root, std::move(field)) {}

  SchemaReader& reader() { return reader_; }
  /// A node of the values that are valid; its rules are complete after finish().
  Result<Node> node(const Conjunction& schemas);
  Result<void> finish();
  /// The content of a string without quotes.
  Result<Node> string_content(const FlatSchema& schema, TextForm form);
  /// The values of one alternative.
  Result<Node> values(const FlatSchema& schema, const std::string& path);

 private:
  struct Pending {
    GrammarRules::Rule rule;
    std::vector<FlatSchema> alternatives;
    std::string path;
  };

  Result<Node> number(const FlatSchema& schema);
  Result<Node> array(const FlatSchema& schema);
  Result<Node> object(const FlatSchema& schema, const std::string& path);
  Result<void> limit_count(const FlatSchema& schema, ObjectShape& object);
  Result<void> add_further(const FlatSchema& schema, ObjectShape& object, const std::string& path);
  std::optional<Node> simple(const FlatSchema& schema);

  JsonText& text_;
  const NodeKit& kit_;
  SchemaReader reader_;
  std::map<Conjunction, Node> made_;
  std::deque<Pending> pending_;
};

}  // namespace weft
