#include "grammar/tool_grammar.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "grammar/json_text.h"
#include "grammar/schema_grammar.h"

namespace weft {
namespace {

using Json = nlohmann::ordered_json;
using Node = GrammarRules::Node;

constexpr int64_t kMaxCalls = 16;

/// What ends a raw value, as text/tool_call_xml.cc reads it.
const std::vector<std::string>& closing_tags() {
  static const std::vector<std::string> kTags = {"</parameter>", "</function>"};
  return kTags;
}

bool is_xml_name(std::string_view name) {
  return !name.empty() && std::all_of(name.begin(), name.end(), [](char c) {
    return static_cast<unsigned char>(c) > 0x20 && c != '<' && c != '>' && c != '"' && c != '\\';
  });
}

/// The arguments of one function.
class Arguments {
 public:
  Arguments(JsonText& text, const SchemaValue& schema, std::string field)
      : text_(text), kit_(text.kit()), field_(field), grammar_(text, schema, std::move(field)) {}

  /// As one JSON object.
  Result<Node> json() {
    std::vector<Node> options;
    for (const FlatSchema& flat : TRY(alternatives())) {
      options.push_back(TRY(grammar_.values(flat, field_)));
    }
    TRY(grammar_.finish());
    return kit_.any_of(options);
  }

  /// As elements, one a parameter, in the order of the schema.
  Result<Node> xml() {
    std::vector<Node> options;
    for (const FlatSchema& flat : TRY(alternatives())) options.push_back(TRY(elements(flat)));
    TRY(grammar_.finish());
    return kit_.any_of(options);
  }

 private:
  /// Those of the schema's alternatives that are objects.
  Result<std::vector<FlatSchema>> alternatives() {
    std::vector<FlatSchema> flats = TRY(grammar_.reader().alternatives(grammar_.reader().root()));
    for (FlatSchema& flat : flats) {
      flat.types &= kObjectType;
      flat.has_type = true;
      if (flat.values) std::erase_if(*flat.values, [](const auto* v) { return !v->is_object(); });
    }
    std::erase_if(flats, [](const FlatSchema& flat) {
      return flat.types == 0 || (flat.values && flat.values->empty());
    });
    if (flats.empty()) return invalid_argument(field_ + ": the schema allows no object");
    return flats;
  }

  Result<Node> elements(const FlatSchema& flat) {
    if (flat.values) {
      return unsupported(field_ + ": keyword 'enum' is not supported for all parameters together");
    }
    int64_t required = 0;
    int64_t total = 0;
    std::vector<Node> parts;
    for (const FlatSchema::Property& property : flat.properties) {
      if (property.schema.never) continue;
      const std::string path = field_ + ".properties." + shortened(property.name);
      if (!is_xml_name(property.name)) {
        return unsupported(path + ": a name with white space, '<', '>', '\"' or '\\' is not " +
                           "supported by this model's format");
      }
      const Node whole =
          kit_.all({kit_.text("<parameter=" + property.name + ">\n"),
                    TRY(value(property.schema, path)), kit_.text("\n</parameter>\n")});
      parts.push_back(property.required ? whole : kit_.optional(whole));
      required += property.required ? 1 : 0;
      ++total;
    }
    if (flat.min_properties > required ||
        (flat.max_properties >= 0 && flat.max_properties < total)) {
      return unsupported(field_ + ": keywords 'minProperties' and 'maxProperties' are not " +
                         "supported by this model's format");
    }
    return kit_.all(parts);
  }

  /// A parameter's value: strings as they are, all else as JSON.
  Result<Node> value(const Conjunction& schema, const std::string& path) {
    std::vector<FlatSchema> flats = TRY(grammar_.reader().alternatives(schema));
    unsigned types = schema.all.empty() ? unsigned{kStringType} : 0;
    for (const FlatSchema& flat : flats) types |= written(flat);
    if ((types & kStringType) == 0) return grammar_.node(schema);
    std::vector<Node> options;
    if (schema.all.empty()) options.push_back(raw_text());
    for (FlatSchema& flat : flats) {
      const unsigned all = written(flat);
      if ((all & kStringType) != 0) options.push_back(TRY(raw_string(flat, types, path)));
      const unsigned others = all & ~kStringType;
      if (others == 0) continue;
      if (flat.values) {
        std::erase_if(*flat.values, [](const auto* v) { return v->is_string(); });
      } else {
        flat.types = others;
        flat.has_type = true;
      }
      options.push_back(TRY(grammar_.values(flat, path)));
    }
    return kit_.any_of(options);
  }

  /// What stands there as text, of values of any kind.
  static unsigned written(const FlatSchema& flat) {
    if (flat.is_anything()) return kStringType;
    if (!flat.values) return flat.written_types();
    unsigned types = 0;
    for (const SchemaValue* value : *flat.values) {
      types |= value->is_string()   ? kStringType
               : value->is_number() ? kNumberTypes
               : value->is_array()  ? kArrayType
               : value->is_object() ? kObjectType
                                    : kNullType;
    }
    return types;
  }

  Node raw_text() { return text_.text_without(closing_tags()); }

  /// The characters with which a text would be read as another of the types.
  static std::string other_starts(unsigned types) {
    std::string out;
    if ((types & kNumberTypes) != 0) out += "-0123456789";
    if ((types & kArrayType) != 0) out += '[';
    if ((types & kObjectType) != 0) out += '{';
    return out.empty() ? out : out + " \t\n\r";
  }

  Result<Node> raw_string(const FlatSchema& flat, unsigned types, const std::string& path) {
    const std::string starts = other_starts(types);
    if (flat.values) {
      std::vector<Node> options;
      for (const SchemaValue* value : *flat.values) {
        if (!value->is_string()) continue;
        const std::string& text = value->text;
        const bool closes =
            std::any_of(closing_tags().begin(), closing_tags().end(),
                        [&](const std::string& tag) { return text.find(tag) != text.npos; });
        if (closes || (!text.empty() && starts.find(text[0]) != starts.npos)) {
          return unsupported(path + ": the value '" + shortened(text) +
                             "' is not supported by this model's format");
        }
        options.push_back(kit_.text(text));
      }
      return kit_.any_of(options);
    }
    const bool bound = flat.min_length > 0 || flat.max_length >= 0 || !flat.patterns.empty() ||
                       !flat.format.empty();
    if (starts.empty()) {
      return bound ? grammar_.string_content(flat, TextForm::kRaw) : Result<Node>(raw_text());
    }
    if (bound) {
      return unsupported(path + ": a string with conditions beside numbers, arrays or objects is " +
                         "not supported by this model's format");
    }
    GrammarRules::CodePoints first = {{'<', '<'}};
    for (const char c : starts) {
      first.emplace_back(static_cast<unsigned char>(c), static_cast<unsigned char>(c));
    }
    return kit_.optional(kit_.all({kit_.rules().characters(first, true), raw_text()}));
  }

  JsonText& text_;
  const NodeKit& kit_;
  std::string field_;
  SchemaGrammar grammar_;
};

Result<Node> call_node(JsonText& text, const std::string& name, const Json& function,
                       const std::string& field, ToolMarkup markup) {
  const NodeKit& kit = text.kit();
  const bool xml = markup == ToolMarkup::kQwenXml;
  if (xml && !is_xml_name(name)) {
    return unsupported(field + ".name: white space, '<', '>', '\"' and '\\' are not supported by " +
                       "this model's format");
  }
  const auto found = function.find("parameters");
  const bool none =
      found == function.end() || found->is_null() || (found->is_object() && found->empty());
  Node arguments = kit.text(xml ? "" : "{}");
  if (!none) {
    const std::string path = field + ".parameters";
    const GrammarLimits& limits = kit.rules().limits();
    const SchemaValue schema =
        TRY(parse_json(found->dump(), path, {limits.max_source_bytes, 2 * limits.max_depth}));
    Arguments made(text, schema, path);
    arguments = TRY(xml ? made.xml() : made.json());
  }
  const std::string begin =
      xml ? "<function=" + name + ">\n" : "{\"name\": " + Json(name).dump() + ", \"arguments\": ";
  return kit.all({kit.text("<tool_call>\n" + begin), arguments,
                  kit.text(xml ? "</function>\n</tool_call>" : "}\n</tool_call>")});
}

}  // namespace

Result<Node> tool_call_node(GrammarRules& rules, const std::string& tools_json,
                            const ToolGrammarOptions& options) {
  const Json tools = Json::parse(tools_json, nullptr, /*allow_exceptions=*/false);
  if (!tools.is_array()) return invalid_argument("tools: it must be an array");
  JsonText text(rules, {});
  const NodeKit& kit = text.kit();
  std::vector<Node> calls;
  for (size_t i = 0; i < tools.size(); ++i) {
    const std::string field = "tools[" + std::to_string(i) + "].function";
    const Json function = tools[i].is_object() ? tools[i].value("function", Json()) : Json();
    const auto name = function.is_object() ? function.find("name") : function.end();
    if (name == function.end() || !name->is_string() ||
        name->get_ref<const std::string&>().empty()) {
      return invalid_argument(field + ".name: it must be a string");
    }
    const std::string& wanted = name->get_ref<const std::string&>();
    if (!options.name.empty() && wanted != options.name) continue;
    calls.push_back(TRY(call_node(text, wanted, function, field, options.markup)));
  }
  if (calls.empty()) return invalid_argument("tool_choice: no tool of that name");
  const Node call = kit.rule("call", kit.any_of(calls));
  if (!options.parallel) return call;
  return kit.all({call, kit.times(kit.all({kit.text("\n"), call}), 0, kMaxCalls - 1)});
}

}  // namespace weft
