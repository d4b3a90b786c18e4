#include "grammar/json_schema.h"

#include "grammar/json_text.h"
#include "grammar/schema_grammar.h"

namespace weft {
namespace {

Result<std::shared_ptr<const Grammar>> compiled(GrammarRules& rules, GrammarRules::Node node,
                                                const std::string& field) {
  const GrammarRules::Rule root = rules.declare(field);
  rules.define(root, node);
  auto grammar = rules.compile(root);
  if (!grammar.ok()) return with_context(grammar.error(), field);
  return grammar;
}

}  // namespace

Result<GrammarRules::Node> json_schema_node(GrammarRules& rules, std::string_view schema_json,
                                            const std::string& field, const JsonStyle& style) {
  // Each schema within a schema takes two levels of JSON: the keyword and the place in it.
  const SchemaTextLimits limits{rules.limits().max_source_bytes, 2 * rules.limits().max_depth};
  const SchemaValue root = TRY(parse_json(schema_json, field, limits));
  JsonText text(rules, style);
  SchemaGrammar grammar(text, root, field);
  if (root.is_bool()) return root.boolean ? text.any_value() : rules.nothing();
  const GrammarRules::Node node = TRY(grammar.node(grammar.reader().root()));
  TRY(grammar.finish());
  return node;
}

Result<std::shared_ptr<const Grammar>> grammar_from_json_schema(std::string_view schema_json,
                                                                const std::string& field,
                                                                const GrammarLimits& limits,
                                                                const JsonStyle& style) {
  GrammarRules rules(limits);
  const GrammarRules::Node node = TRY(json_schema_node(rules, schema_json, field, style));
  return compiled(rules, node, field);
}

Result<std::shared_ptr<const Grammar>> grammar_from_json_object(const GrammarLimits& limits,
                                                                const JsonStyle& style) {
  GrammarRules rules(limits);
  JsonText text(rules, style);
  return compiled(rules, text.any_object(), "json_object");
}

}  // namespace weft
