#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "base/result.h"
#include "grammar/rules.h"

namespace weft {

/// White space a JSON grammar leaves to the model. Whatever is chosen here, it is bounded.
struct JsonStyle {
  bool spaces = true;       ///< one space behind ':' and ',' and inside brackets is allowed
  bool line_breaks = true;  ///< a line break with an indent as well
  int max_indent = 32;      ///< spaces (or an eighth of it tabs) behind a line break
  int max_depth = 12;  ///< arrays and objects within each other where the schema allows any value
};

/// The JSON texts that are valid for a schema (2020-12 or draft 7), as a part of `rules`. Every
/// text is valid; the converse holds but for what docs/structured_output.md lists (order of
/// members, escapes, white space, digits). Errors name `field`, the path within the schema and the
/// keyword: kUnsupported for what is not supported, kInvalidArgument for a bad schema, kExhausted
/// for limits.
Result<GrammarRules::Node> json_schema_node(GrammarRules& rules, std::string_view schema_json,
                                            const std::string& field, const JsonStyle& style = {});

/// The same as a grammar of its own.
Result<std::shared_ptr<const Grammar>> grammar_from_json_schema(std::string_view schema_json,
                                                                const std::string& field,
                                                                const GrammarLimits& limits = {},
                                                                const JsonStyle& style = {});

/// Any JSON object.
Result<std::shared_ptr<const Grammar>> grammar_from_json_object(const GrammarLimits& limits = {},
                                                                const JsonStyle& style = {});

}  // namespace weft
