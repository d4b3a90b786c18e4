#include "grammar/schema_grammar.h"

#include <algorithm>

#include "base/utf8.h"
#include "grammar/json_number.h"
#include "grammar/schema_pattern.h"
#include "grammar/string_format.h"

namespace weft {
namespace {

using Node = GrammarRules::Node;

constexpr size_t kMaxName = 256;  ///< code points of a name that further names have to differ from

bool has_length(const FlatSchema& schema) {
  return schema.min_length > 0 || schema.max_length >= 0;
}

}  // namespace

/// Types without any condition, which need no rule of their own.
std::optional<Node> SchemaGrammar::simple(const FlatSchema& schema) {
  if (schema.values) return std::nullopt;
  switch (schema.written_types()) {
    case kNullType: return kit_.text("null");
    case kBoolType: return text_.boolean();
    case kIntegerType:
      if (!schema.bounds.bounded()) return text_.integer();
      break;
    case kNumberTypes:
      if (!schema.bounds.bounded()) return text_.number();
      break;
    case kStringType:
      if (!has_length(schema) && schema.patterns.empty() && schema.format.empty()) {
        return text_.string();
      }
      break;
    default:
      if (schema.is_anything()) return text_.any_value();
  }
  return std::nullopt;
}

Result<Node> SchemaGrammar::node(const Conjunction& schemas) {
  if (schemas.never) return kit_.rules().nothing();
  if (schemas.all.empty()) return text_.any_value();
  const auto found = made_.find(schemas);
  if (found != made_.end()) return found->second;
  std::vector<FlatSchema> alternatives = TRY(reader_.alternatives(schemas));
  if (alternatives.size() == 1) {
    if (const auto node = simple(alternatives[0])) {
      made_[schemas] = *node;
      return *node;
    }
  }
  const std::string path = reader_.path_of(schemas);
  const GrammarRules::Rule rule = kit_.rules().declare(path);
  pending_.push_back({rule, std::move(alternatives), path});
  return made_[schemas] = kit_.rules().reference(rule);
}

Result<void> SchemaGrammar::finish() {
  while (!pending_.empty()) {
    const Pending next = std::move(pending_.front());
    pending_.pop_front();
    std::vector<Node> options;
    for (const FlatSchema& schema : next.alternatives) {
      options.push_back(TRY(values(schema, next.path)));
    }
    kit_.rules().define(next.rule, kit_.any_of(options));
  }
  return {};
}

Result<Node> SchemaGrammar::values(const FlatSchema& schema, const std::string& path) {
  std::vector<Node> options;
  if (schema.values) {
    for (const SchemaValue* value : *schema.values) options.push_back(text_.value(*value));
    return kit_.any_of(options);
  }
  if (schema.is_anything()) return text_.any_value();
  const unsigned types = schema.written_types();
  if ((types & kNullType) != 0) options.push_back(kit_.text("null"));
  if ((types & kBoolType) != 0) options.push_back(text_.boolean());
  if ((types & kNumberTypes) != 0) options.push_back(TRY(number(schema)));
  if ((types & kStringType) != 0) {
    const Node quote = kit_.text("\"");
    options.push_back(simple(schema) && types == kStringType
                          ? text_.string()
                          : kit_.all({quote, TRY(string_content(schema, TextForm::kJson)), quote}));
  }
  if ((types & kArrayType) != 0) options.push_back(TRY(array(schema)));
  if ((types & kObjectType) != 0) {
    options.push_back(TRY(object(schema, path)));
  }
  return kit_.any_of(options);
}

Result<Node> SchemaGrammar::number(const FlatSchema& schema) {
  const bool fractions = (schema.types & kFractionType) != 0;
  if (!schema.bounds.bounded()) return fractions ? text_.number() : text_.integer();
  auto node = fractions ? number_node(kit_.rules(), schema.bounds)
                        : integer_node(kit_.rules(), schema.bounds);
  if (!node.ok()) {
    return with_context(node.error(), schema.bounds_path + ": 'minimum' and 'maximum'");
  }
  return node;
}

Result<Node> SchemaGrammar::string_content(const FlatSchema& schema, TextForm form) {
  const int64_t min = schema.min_length;
  const int64_t max = schema.max_length;
  if (max >= 0 && min > max) return kit_.rules().nothing();
  if (schema.patterns.size() > 1) {
    return unsupported(schema.patterns[1].path +
                       ": a second 'pattern' for one value is not supported");
  }
  if (!schema.patterns.empty()) {
    return pattern_node(text_, schema.patterns[0].text, {form, min, max}, schema.patterns[0].path);
  }
  if (!schema.format.empty()) {
    const auto format = string_format(kit_.rules(), schema.format, max);
    // Where the length asks for less than the format may have, only the length binds: a format is
    // an annotation, a length is not.
    if (format && min <= format->min_len &&
        (max < 0 || (format->max_len >= 0 && format->max_len <= max))) {
      return format->node;
    }
  }
  return kit_.times(text_.plain_char(form), min, max);
}

Result<Node> SchemaGrammar::array(const FlatSchema& schema) {
  ArrayShape out;
  out.min_items = schema.min_items;
  out.max_items = schema.max_items;
  bool ends = false;  // an item that can't be: none behind it either
  for (const Conjunction& item : schema.prefix) {
    ends = item.never;
    if (ends) break;
    out.prefix.push_back(TRY(node(item)));
  }
  const bool open =
      schema.has_rest
          ? !schema.rest.never
          : schema.prefix.empty() || schema.min_items > static_cast<int64_t>(schema.prefix.size());
  if (open && !ends) out.rest = TRY(node(schema.rest));
  return text_.array(out);
}

Result<void> SchemaGrammar::add_further(const FlatSchema& schema, ObjectShape& object,
                                        const std::string& path) {
  if (schema.pattern_properties) {
    const auto& [pattern, value] = *schema.pattern_properties;
    if (value.never) return {};
    const Node quote = kit_.text("\"");
    object.further_key = kit_.all(
        {quote, TRY(pattern_node(text_, pattern.text, {TextForm::kJson, 0, -1}, pattern.path)),
         quote});
    object.further_value = TRY(node(value));
    return {};
  }
  // Where nothing is said of further members, a schema that declares some means only those.
  if (schema.has_further ? schema.further.never : schema.has_properties) return {};
  std::vector<std::string> names;
  for (const auto& property : schema.properties) {
    if (num_chars(property.name) > static_cast<int64_t>(kMaxName)) {
      return exhausted(path + ": beside 'additionalProperties' a property has at most " +
                       std::to_string(kMaxName) + " characters ('" + shortened(property.name) +
                       "')");
    }
    names.push_back(property.name);
  }
  object.further_key = text_.other_key(names);
  object.further_value = TRY(node(schema.further));
  return {};
}

/// minProperties and maxProperties, where they come down to what a ObjectShape says.
Result<void> SchemaGrammar::limit_count(const FlatSchema& schema, ObjectShape& object) {
  const auto total = static_cast<int64_t>(object.members.size());
  const auto required = std::count_if(object.members.begin(), object.members.end(),
                                      [](const MemberShape& member) { return member.required; });
  const bool open = object.further_key.has_value();
  if (schema.min_properties > required) {
    if (schema.min_properties == 1) {
      object.non_empty = true;
    } else if (schema.min_properties == total && !open) {
      for (MemberShape& member : object.members) member.required = true;
    } else {
      return unsupported(schema.count_path +
                         ": keyword 'minProperties' is not supported with more " +
                         "than the required properties (except 1)");
    }
  }
  if (schema.max_properties < 0) return {};
  if (schema.max_properties <= required) {
    std::erase_if(object.members, [](const MemberShape& member) { return !member.required; });
    object.further_key.reset();
  } else if (open && required == total) {
    object.max_further = schema.max_properties - required;
  } else if (open || schema.max_properties < total) {
    return unsupported(schema.count_path +
                       ": keyword 'maxProperties' is not supported with optional properties");
  }
  return {};
}

Result<Node> SchemaGrammar::object(const FlatSchema& schema, const std::string& path) {
  ObjectShape out;
  for (const auto& property : schema.properties) {
    if (property.schema.never) continue;
    out.members.push_back({property.name, TRY(node(property.schema)), property.required});
  }
  TRY(add_further(schema, out, path));
  const auto required = std::count_if(out.members.begin(), out.members.end(),
                                      [](const MemberShape& member) { return member.required; });
  const auto most = out.further_key ? -1 : static_cast<int64_t>(out.members.size());
  if ((schema.max_properties >= 0 &&
       schema.max_properties < std::max(required, schema.min_properties)) ||
      (most >= 0 && schema.min_properties > most)) {
    return kit_.rules().nothing();
  }
  TRY(limit_count(schema, out));
  return text_.object(out);
}

}  // namespace weft
