#include "grammar/tool_grammar.h"

#include <nlohmann/json.hpp>
#include <vector>

#include "grammar/json_schema.h"
#include "grammar/node_kit.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;
using Node = GrammarRules::Node;

constexpr int64_t kMaxCalls = 16;

bool is_plain_string(const Json& schema) {
  return schema.is_object() && schema.value("type", Json()) == "string";
}

/// A string as it stands between tags: of an enumeration one of its values, else any text without
/// '<'.
Node raw_string(const NodeKit& kit, const Json& schema) {
  const auto values = schema.find("enum");
  if (values == schema.end() || !values->is_array()) {
    return kit.times(kit.rules().characters({{'<', '<'}}, /*negated=*/true), 0, -1);
  }
  std::vector<Node> options;
  for (const Json& value : *values) {
    if (value.is_string()) options.push_back(kit.text(value.get<std::string>()));
  }
  return kit.any_of(options);
}

/// A property's schema on its own, with the definitions that it may refer to.
std::string with_definitions(const Json& schema, const Json& parameters) {
  Json out = schema;
  for (const char* name : {"$defs", "definitions"}) {
    if (out.is_object() && parameters.contains(name) && !out.contains(name)) {
      out[name] = parameters[name];
    }
  }
  return out.dump();
}

Result<Node> xml_call(const NodeKit& kit, const std::string& name, const Json& parameters,
                      const std::string& field) {
  std::vector<Node> parts = {kit.text("<tool_call>\n<function=" + name + ">\n")};
  const Json properties = parameters.value("properties", Json::object());
  const Json required = parameters.value("required", Json::array());
  for (const auto& [key, schema] : properties.items()) {
    if (key.find_first_of("<>\n") != std::string::npos) {
      return unsupported(field + ": a property with '<', '>' or a line break in its name");
    }
    const Node value = is_plain_string(schema)
                           ? raw_string(kit, schema)
                           : TRY(json_schema_node(kit.rules(), with_definitions(schema, parameters),
                                                  field + ".properties." + key));
    const Node whole =
        kit.all({kit.text("<parameter=" + key + ">\n"), value, kit.text("\n</parameter>\n")});
    const bool needed =
        required.is_array() && std::find(required.begin(), required.end(), key) != required.end();
    parts.push_back(needed ? whole : kit.optional(whole));
  }
  parts.push_back(kit.text("</function>\n</tool_call>"));
  return kit.all(parts);
}

Result<Node> json_call(const NodeKit& kit, const std::string& name, const Json& parameters,
                       const std::string& field) {
  const Node arguments = parameters.empty()
                             ? kit.text("{}")
                             : TRY(json_schema_node(kit.rules(), parameters.dump(), field));
  return kit.all({kit.text("<tool_call>\n{\"name\": " + Json(name).dump() + ", \"arguments\": "),
                  arguments, kit.text("}\n</tool_call>")});
}

}  // namespace

Result<Node> tool_call_node(GrammarRules& rules, const std::string& tools_json,
                            const ToolGrammarOptions& options) {
  const Json tools = Json::parse(tools_json, nullptr, /*allow_exceptions=*/false);
  if (!tools.is_array()) return invalid_argument("tools: it must be an array");
  const NodeKit kit(rules);
  std::vector<Node> calls;
  for (size_t i = 0; i < tools.size(); ++i) {
    const Json function = tools[i].value("function", Json::object());
    const std::string name = function.value("name", "");
    if (name.empty() || (!options.name.empty() && name != options.name)) continue;
    Json parameters = function.value("parameters", Json::object());
    if (!parameters.is_object()) parameters = Json::object();
    const std::string field = "tools[" + std::to_string(i) + "].function.parameters";
    if (!parameters.empty() && !parameters.contains("type")) parameters["type"] = "object";
    calls.push_back(options.markup == ToolMarkup::kQwenXml
                        ? TRY(xml_call(kit, name, parameters, field))
                        : TRY(json_call(kit, name, parameters, field)));
  }
  if (calls.empty()) return invalid_argument("tool_choice: no tool of that name");
  const Node call = kit.rule("call", kit.any_of(calls));
  if (!options.parallel) return call;
  return kit.all({call, kit.times(kit.all({kit.text("\n"), call}), 0, kMaxCalls - 1)});
}

}  // namespace weft
