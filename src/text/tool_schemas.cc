#include "text/tool_schemas.h"

#include <simdjson.h>

#include <string>

namespace weft::text {
namespace {

namespace json = simdjson::dom;

constexpr size_t kMaxJsonDepth = 128;
constexpr int kMaxNesting = 8;  // of anyOf and $ref

uint8_t type_by_name(std::string_view name) {
  if (name == "null") return kJsonNull;
  if (name == "boolean" || name == "bool") return kJsonBoolean;
  if (name == "integer" || name == "number" || name == "int" || name == "float") return kJsonNumber;
  if (name == "string" || name == "str") return kJsonString;
  if (name == "array" || name == "list") return kJsonArray;
  if (name == "object" || name == "dict") return kJsonObject;
  return 0;
}

uint8_t type_of(const json::element& value) {
  switch (value.type()) {
    case json::element_type::ARRAY: return kJsonArray;
    case json::element_type::OBJECT: return kJsonObject;
    case json::element_type::STRING: return kJsonString;
    case json::element_type::BOOL: return kJsonBoolean;
    case json::element_type::NULL_VALUE: return kJsonNull;
    default: return kJsonNumber;
  }
}

/// Types that `schema` allows; 0: it does not say. `root` resolves its references.
uint8_t types_of(const json::element& schema, const json::element& root, int nesting) {
  if (nesting > kMaxNesting || !schema.is_object()) return 0;
  std::string_view text;
  json::element field;
  json::array list;
  if (schema["$ref"].get(text) == simdjson::SUCCESS) {
    if (text.size() < 2 || text.substr(0, 2) != "#/") return 0;
    if (root.at_pointer(text.substr(1)).get(field) != simdjson::SUCCESS) return 0;
    return types_of(field, root, nesting + 1);
  }
  uint8_t types = 0;
  if (schema["type"].get(field) == simdjson::SUCCESS) {
    if (field.get(text) == simdjson::SUCCESS) types = type_by_name(text);
    if (field.get(list) == simdjson::SUCCESS) {
      for (const json::element name : list) {
        if (name.get(text) == simdjson::SUCCESS) types |= type_by_name(text);
      }
    }
    return types;
  }
  if (schema["const"].get(field) == simdjson::SUCCESS) return type_of(field);
  if (schema["enum"].get(list) == simdjson::SUCCESS) {
    for (const json::element value : list) types |= type_of(value);
    return types;
  }
  for (const char* key : {"anyOf", "oneOf", "allOf"}) {
    if (schema[key].get(list) != simdjson::SUCCESS) continue;
    for (const json::element part : list) types |= types_of(part, root, nesting + 1);
    if (types != 0) return types;
  }
  if (schema["properties"].get(field) == simdjson::SUCCESS) return kJsonObject;
  if (schema["items"].get(field) == simdjson::SUCCESS) return kJsonArray;
  return 0;
}

}  // namespace

ToolSchemas::ToolSchemas(std::string_view tools_json) {
  if (tools_json.empty()) return;
  json::parser parser;
  if (parser.allocate(tools_json.size() + 64, kMaxJsonDepth) != simdjson::SUCCESS) return;
  json::element root;
  json::array list;
  if (parser.parse(tools_json.data(), tools_json.size(), true).get(root) != simdjson::SUCCESS) {
    return;
  }
  if (root.get(list) != simdjson::SUCCESS) return;
  for (const json::element tool : list) {
    json::element function = tool;
    if (!tool.is_object()) continue;
    if (tool["function"].get(function) != simdjson::SUCCESS) function = tool;
    std::string_view name;
    if (!function.is_object() || function["name"].get(name) != simdjson::SUCCESS) continue;
    Parameters& parameters = tools_[std::string(name)];
    json::element schema;
    json::object properties;
    if (function["parameters"].get(schema) != simdjson::SUCCESS || !schema.is_object()) continue;
    if (schema["properties"].get(properties) != simdjson::SUCCESS) continue;
    for (const auto [key, value] : properties) {
      parameters[std::string(key)] = types_of(value, schema, 0);
    }
  }
}

uint8_t ToolSchemas::types(std::string_view tool, std::string_view parameter) const {
  const auto found = tools_.find(tool);
  if (found == tools_.end()) return kJsonString;
  const auto type = found->second.find(parameter);
  return type == found->second.end() || type->second == 0 ? uint8_t{kJsonString} : type->second;
}

}  // namespace weft::text
