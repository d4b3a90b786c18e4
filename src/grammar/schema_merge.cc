#include <algorithm>
#include <unordered_map>
#include <unordered_set>

#include "grammar/schema_reader.h"

namespace weft {
namespace {

constexpr size_t kMaxEnum = 4096;
constexpr int64_t kMaxCount = 1'000'000;  ///< of minItems, maxLength, ...

/// Keywords that say nothing about which values are valid.
bool is_annotation(const std::string& name) {
  static const std::unordered_set<std::string> kNames = {"$schema",         "$comment",
                                                         "$defs",           "definitions",
                                                         "$anchor",         "title",
                                                         "description",     "default",
                                                         "examples",        "example",
                                                         "deprecated",      "readOnly",
                                                         "writeOnly",       "nullable",
                                                         "discriminator",   "externalDocs",
                                                         "contentEncoding", "contentMediaType",
                                                         "contentSchema",   "xml"};
  return kNames.contains(name) || name.starts_with("x-");
}

/// Read by SchemaReader::expand.
bool is_combinator(const std::string& name) {
  return name == "$ref" || name == "allOf" || name == "anyOf" || name == "oneOf";
}

void raise(int64_t& min, int64_t count) {
  min = std::max(min, count);
}
void lower(int64_t& max, int64_t count) {
  max = max < 0 ? count : std::min(max, count);
}

}  // namespace

Error SchemaReader::Keyword::bad(const std::string& what) const {
  return invalid_argument(path + "." + name + ": " + what);
}

Error SchemaReader::Keyword::unsupported_here(const std::string& why) const {
  return unsupported(path + ": keyword '" + shortened(name) + "' is not supported" +
                     (why.empty() ? "" : " " + why));
}

Result<FlatSchema> SchemaReader::merge(const Conjunction& plain) {
  Merge merge;
  if (plain.never) {
    merge.flat.types = 0;
    return std::move(merge.flat);
  }
  for (const SchemaValue* schema : plain.all) {
    merge.arrays.emplace_back();
    merge.objects.emplace_back();
    const std::string path = path_of(schema);
    TRY(spend(schema->members.size(), schema));
    for (const auto& [name, value] : schema->members) {
      TRY(merge_keyword({schema, name, value, path}, merge));
    }
  }
  FlatSchema& flat = merge.flat;
  finish_arrays(merge);
  TRY(finish_objects(merge));
  if (!flat.unique_path.empty() && !flat.values && (flat.types & kArrayType) != 0 &&
      (flat.max_items < 0 || flat.max_items > 1)) {
    return unsupported(flat.unique_path + ": keyword 'uniqueItems' is not supported");
  }
  if (flat.values) TRY(keep_valid_values(flat, plain.all[0]));
  return std::move(flat);
}

Result<void> SchemaReader::merge_keyword(const Keyword& keyword, Merge& merge) {
  if (is_combinator(keyword.name) || is_annotation(keyword.name)) return {};
  FlatSchema& flat = merge.flat;
  if (TRY(merge_general(keyword, flat)) || TRY(merge_number(keyword, flat)) ||
      TRY(merge_string(keyword, flat)) || TRY(merge_array(keyword, flat, merge.arrays.back())) ||
      TRY(merge_object(keyword, flat, merge.objects.back()))) {
    return {};
  }
  return keyword.unsupported_here();
}

Result<bool> SchemaReader::merge_general(const Keyword& keyword, FlatSchema& flat) {
  static const std::unordered_map<std::string, unsigned> kTypes = {
      {"null", kNullType},      {"boolean", kBoolType},  {"integer", kIntegerType},
      {"number", kNumberTypes}, {"string", kStringType}, {"array", kArrayType},
      {"object", kObjectType}};
  const SchemaValue& value = keyword.value;
  if (keyword.name == "$id") {
    if (keyword.schema != root_) return keyword.unsupported_here("below the root");
    return true;
  }
  if (keyword.name == "enum" || keyword.name == "const") {
    TRY(merge_values(keyword, flat));
    return true;
  }
  if (keyword.name != "type") return false;
  unsigned types = 0;
  const std::vector<SchemaValue> single = {value};
  for (const SchemaValue& name : value.is_array() ? value.items : single) {
    const auto found = kTypes.find(name.text);
    if (!name.is_string() || found == kTypes.end()) {
      return keyword.bad(
          "has to be (an array of) null, boolean, integer, number, string, array, object");
    }
    types |= found->second;
  }
  flat.types &= types;
  flat.has_type = true;
  return true;
}

Result<void> SchemaReader::merge_values(const Keyword& keyword, FlatSchema& flat) {
  std::vector<const SchemaValue*> values;
  if (keyword.name == "const") {
    values.push_back(&keyword.value);
  } else {
    if (!keyword.value.is_array() || keyword.value.items.empty()) {
      return keyword.bad("has to be an array of at least one value");
    }
    if (keyword.value.items.size() > kMaxEnum) {
      return exhausted(keyword.path + ".enum: " + std::to_string(keyword.value.items.size()) +
                       " values, at most " + std::to_string(kMaxEnum));
    }
    for (const SchemaValue& item : keyword.value.items) values.push_back(&item);
  }
  flat.has_type = true;
  if (!flat.values) {
    flat.values = std::move(values);
    return {};
  }
  TRY(spend(values.size() * flat.values->size(), keyword.schema));
  std::erase_if(*flat.values, [&](const SchemaValue* kept) {
    return std::none_of(values.begin(), values.end(),
                        [&](const SchemaValue* other) { return json_equal(*kept, *other); });
  });
  return {};
}

Result<bool> SchemaReader::merge_number(const Keyword& keyword, FlatSchema& flat) {
  const std::string& name = keyword.name;
  const SchemaValue& value = keyword.value;
  const bool low = name == "minimum" || name == "exclusiveMinimum";
  const bool high = name == "maximum" || name == "exclusiveMaximum";
  if (!low && !high && name != "multipleOf") return false;
  if (!value.is_number()) return keyword.bad("has to be a number");
  flat.mentioned |= kNumberTypes;
  if (name == "multipleOf") {
    if (!value.is_integer() || value.integer != 1) return keyword.unsupported_here("(except 1)");
    flat.types &= ~kFractionType;
    return true;
  }
  flat.bounds_path = keyword.path;
  const bool strict = name.starts_with("exclusive");
  if (low) {
    flat.bounds.raise_low(decimal_of(value), strict);
  } else {
    flat.bounds.lower_high(decimal_of(value), strict);
  }
  return true;
}

namespace {

/// Reads a count into a lower or an upper bound.
Result<void> merge_count(const std::string& path, const SchemaValue& value, int64_t& min,
                         int64_t& max) {
  const bool is_min = path[path.rfind('.') + 2] == 'i';  // minX, not maxX
  if (!value.is_integer() || value.integer < 0) {
    return invalid_argument(path + ": has to be an integer of 0 or more");
  }
  if (value.integer > kMaxCount) {
    return exhausted(path + ": " + value.text + ", at most " + std::to_string(kMaxCount));
  }
  if (is_min) {
    raise(min, value.integer);
  } else {
    lower(max, value.integer);
  }
  return {};
}

}  // namespace

Result<bool> SchemaReader::merge_string(const Keyword& keyword, FlatSchema& flat) {
  const std::string& name = keyword.name;
  const SchemaValue& value = keyword.value;
  if (name == "minLength" || name == "maxLength") {
    TRY(merge_count(keyword.path + "." + name, value, flat.min_length, flat.max_length));
    flat.length_path = keyword.path;
  } else if (name == "pattern" || name == "format") {
    if (!value.is_string()) return keyword.bad("has to be a string");
    if (name == "format") {
      if (flat.format.empty()) flat.format = value.text;
      return true;  // `format` also stands beside numbers: it mentions no type
    }
    const auto same = [&](const FlatSchema::Pattern& other) { return other.text == value.text; };
    if (std::none_of(flat.patterns.begin(), flat.patterns.end(), same)) {
      flat.patterns.push_back({value.text, keyword.path + ".pattern"});
    }
  } else {
    return false;
  }
  flat.mentioned |= kStringType;
  return true;
}

Result<bool> SchemaReader::merge_array(const Keyword& keyword, FlatSchema& flat, ArrayPart& part) {
  const std::string& name = keyword.name;
  const SchemaValue& value = keyword.value;
  if (name == "prefixItems" || (name == "items" && value.is_array())) {
    if (!value.is_array()) return keyword.bad("has to be an array of schemas");
    for (size_t i = 0; i < value.items.size(); ++i) {
      part.prefix.push_back(
          child(&value.items[i], keyword.schema, name + "[" + std::to_string(i) + "]"));
    }
  } else if (name == "items") {
    part.rest = child(&value, keyword.schema, name);
  } else if (name == "additionalItems") {
    // Of draft 7: it goes with an array in `items`, and says nothing otherwise.
    const SchemaValue* items = keyword.schema->find("items");
    if (items != nullptr && items->is_array()) part.rest = child(&value, keyword.schema, name);
  } else if (name == "minItems" || name == "maxItems") {
    TRY(merge_count(keyword.path + "." + name, value, flat.min_items, flat.max_items));
    flat.items_path = keyword.path;
  } else if (name == "uniqueItems") {
    if (!value.is_bool()) return keyword.bad("has to be a boolean");
    if (value.boolean) flat.unique_path = keyword.path;
  } else {
    return false;
  }
  flat.mentioned |= kArrayType;
  return true;
}

Result<bool> SchemaReader::merge_object(const Keyword& keyword, FlatSchema& flat,
                                        ObjectPart& part) {
  const std::string& name = keyword.name;
  const SchemaValue& value = keyword.value;
  if (name == "properties" || name == "patternProperties") {
    if (!value.is_object()) return keyword.bad("has to be an object of schemas");
    for (const auto& [key, schema] : value.members) {
      const std::string step = step_of(key);
      child(&schema, keyword.schema, name + (step.starts_with('[') ? "" : ".") + step);
    }
    (name == "properties" ? part.properties : part.patterns) = &value;
    flat.has_properties = flat.has_properties || name == "properties";
  } else if (name == "required") {
    const auto is_text = [](const SchemaValue& item) { return item.is_string(); };
    if (!value.is_array() || !std::all_of(value.items.begin(), value.items.end(), is_text)) {
      return keyword.bad("has to be an array of strings");
    }
    part.required = &value;
  } else if (name == "additionalProperties") {
    part.further = child(&value, keyword.schema, name);
  } else if (name == "propertyNames") {
    const SchemaValue* type = value.find("type");
    const bool trivial = value.is_true() || (value.is_object() && value.members.empty()) ||
                         (value.members.size() == 1 && type != nullptr && type->text == "string");
    if (!trivial) return keyword.unsupported_here();
  } else if (name == "minProperties" || name == "maxProperties") {
    TRY(merge_count(keyword.path + "." + name, value, flat.min_properties, flat.max_properties));
    flat.count_path = keyword.path;
  } else {
    return false;
  }
  flat.mentioned |= kObjectType;
  return true;
}

void SchemaReader::finish_arrays(Merge& merge) {
  FlatSchema& flat = merge.flat;
  size_t longest = 0;
  for (const ArrayPart& part : merge.arrays) longest = std::max(longest, part.prefix.size());
  flat.prefix.resize(longest);
  for (const ArrayPart& part : merge.arrays) {
    for (size_t i = 0; i < longest; ++i) {
      if (i < part.prefix.size()) {
        flat.prefix[i].add(part.prefix[i]);
      } else if (part.rest != nullptr) {
        flat.prefix[i].add(part.rest);
      }
    }
    if (part.rest != nullptr) {
      flat.rest.add(part.rest);
      flat.has_rest = true;
    }
  }
}

Result<void> SchemaReader::finish_objects(Merge& merge) {
  FlatSchema& flat = merge.flat;
  std::unordered_map<std::string, size_t> index;
  const auto declare = [&](const std::string& name) -> FlatSchema::Property& {
    const auto [it, is_new] = index.try_emplace(name, flat.properties.size());
    if (is_new) flat.properties.push_back({name, {}, false});
    return flat.properties[it->second];
  };
  const ObjectPart* with_patterns = nullptr;
  for (const ObjectPart& part : merge.objects) {
    if (part.properties != nullptr) {
      for (const auto& [name, schema] : part.properties->members) declare(name);
    }
    if (part.patterns != nullptr && !part.patterns->members.empty()) {
      const SchemaValue& first = part.patterns->members[0].second;
      if (with_patterns != nullptr || part.patterns->members.size() > 1) {
        return unsupported(path_of(sites_.at(&first).parent) +
                           ": keyword 'patternProperties' is supported with one pattern only");
      }
      with_patterns = &part;
    }
  }
  for (const ObjectPart& part : merge.objects) {
    if (part.required == nullptr) continue;
    for (const SchemaValue& name : part.required->items) declare(name.text).required = true;
  }
  for (const ObjectPart& part : merge.objects) {
    std::unordered_map<std::string_view, const SchemaValue*> declared;
    if (part.properties != nullptr) {
      for (const auto& [name, schema] : part.properties->members) declared[name] = &schema;
    }
    if (!declared.empty() || part.further != nullptr) {
      TRY(spend(flat.properties.size(), root_));
      for (FlatSchema::Property& property : flat.properties) {
        const auto found = declared.find(property.name);
        if (found != declared.end()) {
          property.schema.add(found->second);
        } else if (part.further != nullptr) {
          property.schema.add(part.further);
        }
      }
    }
    if (part.further != nullptr) {
      flat.further.add(part.further);
      flat.has_further = true;
    }
  }
  for (const FlatSchema::Property& property : flat.properties) {
    if (property.required && property.schema.never) flat.types &= ~kObjectType;
  }
  if (with_patterns != nullptr) TRY(finish_pattern(merge, *with_patterns));
  return {};
}

Result<void> SchemaReader::finish_pattern(Merge& merge, const ObjectPart& with_patterns) {
  FlatSchema& flat = merge.flat;
  const auto& [pattern, schema] = with_patterns.patterns->members[0];
  const std::string path = path_of(sites_.at(&schema).parent);
  if (!flat.properties.empty()) {
    return unsupported(path +
                       ": keyword 'patternProperties' is not supported beside 'properties' " +
                       "and 'required'");
  }
  Conjunction value;
  value.add(&schema);
  for (const ObjectPart& part : merge.objects) {
    if (&part != &with_patterns && part.further != nullptr) value.add(part.further);
  }
  flat.pattern_properties.emplace(FlatSchema::Pattern{pattern, path + ".patternProperties"},
                                  std::move(value));
  return {};
}

Result<void> SchemaReader::keep_valid_values(FlatSchema& flat, const SchemaValue* schema) {
  std::vector<const SchemaValue*> values;
  values.swap(*flat.values);
  flat.values.reset();  // what is checked is all the rest
  std::vector<const SchemaValue*> kept;
  for (const SchemaValue* value : values) {
    TRY(spend(1, schema));
    if (TRY(accepts(flat, *value))) kept.push_back(value);
  }
  flat.values = std::move(kept);
  return {};
}

}  // namespace weft
