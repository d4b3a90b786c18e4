#include "grammar/schema_reader.h"

#include <algorithm>
#include <cctype>
#include <set>

#include "base/hex.h"
#include "base/utf8.h"

namespace weft {
namespace {

constexpr size_t kMaxBranches = 4096;   ///< alternatives of one schema
constexpr size_t kMaxChain = 128;       ///< references and combinators within each other
constexpr size_t kMaxWork = 2'000'000;  ///< merged keywords, members and comparisons of a schema
constexpr int kExclusiveDepth = 4;      ///< properties within properties looked at for oneOf

unsigned type_of(const SchemaValue& value) {
  switch (value.kind) {
    case SchemaValue::Kind::kNull: return kNullType;
    case SchemaValue::Kind::kBool: return kBoolType;
    case SchemaValue::Kind::kInteger: return kIntegerType;
    case SchemaValue::Kind::kNumber:
      return decimal_of(value).is_integer() ? kIntegerType : kFractionType;
    case SchemaValue::Kind::kString: return kStringType;
    case SchemaValue::Kind::kArray: return kArrayType;
    case SchemaValue::Kind::kObject: return kObjectType;
  }
  return 0;
}

bool within(int64_t count, int64_t min, int64_t max) {
  return count >= min && (max < 0 || count <= max);
}

bool apart(int64_t min_a, int64_t max_a, int64_t min_b, int64_t max_b) {
  return (max_a >= 0 && max_a < min_b) || (max_b >= 0 && max_b < min_a);
}

const FlatSchema::Property* find_property(const FlatSchema& schema, std::string_view name) {
  for (const auto& property : schema.properties) {
    if (property.name == name) return &property;
  }
  return nullptr;
}

/// A reference's token: %XX, then ~1 and ~0.
std::string unescaped(std::string_view token) {
  std::string out;
  for (size_t i = 0; i < token.size(); ++i) {
    const int byte = escaped_byte(token, i);
    out += byte < 0 ? token[i] : static_cast<char>(byte);
    if (byte >= 0) i += 2;
  }
  std::string text;
  for (size_t i = 0; i < out.size(); ++i) {
    if (out[i] == '~' && i + 1 < out.size() && (out[i + 1] == '0' || out[i + 1] == '1')) {
      text += out[++i] == '0' ? '~' : '/';
    } else {
      text += out[i];
    }
  }
  return text;
}

}  // namespace

std::string shortened(std::string_view text) {
  constexpr size_t kMost = 60;
  if (text.size() <= kMost) return std::string(text);
  size_t cut = kMost;
  while (cut > 0 && (text[cut] & 0xc0) == 0x80) --cut;  // not within a character
  return std::string(text.substr(0, cut)) + "...";
}

std::string step_of(std::string_view key) {
  const bool word = !key.empty() && std::all_of(key.begin(), key.end(), [](unsigned char c) {
    return (c < 0x80 && std::isalnum(c) != 0) || c == '_' || c == '$';
  });
  if (word) return shortened(key);
  std::string out = "[\"";
  for (const char c : shortened(key)) {
    if (c == '"' || c == '\\') out += '\\';
    out += c;
  }
  return out + "\"]";
}

void Conjunction::add(const SchemaValue* schema) {
  if (schema->is_false()) never = true;
  if (schema->is_bool() || (schema->is_object() && schema->members.empty())) return;
  if (std::find(all.begin(), all.end(), schema) == all.end()) all.push_back(schema);
}

void Conjunction::add(const Conjunction& other) {
  never = never || other.never;
  for (const SchemaValue* schema : other.all) add(schema);
}

SchemaReader::SchemaReader(const SchemaValue& root, std::string field)
    : root_(&root), field_(std::move(field)) {}

Conjunction SchemaReader::of(const SchemaValue* schema) const {
  Conjunction out;
  out.add(schema);
  return out;
}

const SchemaValue* SchemaReader::child(const SchemaValue* value, const SchemaValue* parent,
                                       std::string step) {
  if (value != root_) sites_.try_emplace(value, Site{parent, std::move(step)});
  return value;
}

std::string SchemaReader::path_of(const SchemaValue* schema) const {
  std::vector<const std::string*> steps;
  for (auto site = sites_.find(schema); site != sites_.end();
       site = sites_.find(site->second.parent)) {
    steps.push_back(&site->second.step);
  }
  std::string path = field_;
  for (auto step = steps.rbegin(); step != steps.rend(); ++step) {
    if (!(*step)->starts_with('[')) path += '.';
    path += **step;
  }
  return path;
}

std::string SchemaReader::path_of(const Conjunction& schemas) const {
  return schemas.all.empty() ? field_ : path_of(schemas.all[0]);
}

Result<void> SchemaReader::spend(size_t work, const SchemaValue* schema) {
  work_ += work;
  if (work_ <= kMaxWork) return {};
  return exhausted(path_of(schema) +
                   ": the schema has too many combinations of allOf, anyOf, oneOf " + "and $ref");
}

Result<const SchemaValue*> SchemaReader::resolve(const SchemaValue& reference,
                                                 const SchemaValue* at) {
  const std::string path = path_of(at);
  if (!reference.is_string()) return invalid_argument(path + ".$ref: has to be a string");
  const std::string_view text = reference.text;
  if (text != "#" && !text.starts_with("#/")) {
    return unsupported(path + ".$ref: '" + shortened(text) +
                       "': only references within the schema (#/...) are supported");
  }
  const SchemaValue* here = root_;
  for (size_t begin = 1; begin < text.size();) {
    const size_t end = std::min(text.find('/', begin + 1), text.size());
    const std::string token = unescaped(text.substr(begin + 1, end - begin - 1));
    const SchemaValue* next = nullptr;
    if (here->is_object()) {
      next = here->find(token);
    } else if (here->is_array() && !token.empty() && token.size() < 7 &&
               token.find_first_not_of("0123456789") == token.npos) {
      const size_t index = std::stoul(token);
      if (index < here->items.size()) next = &here->items[index];
    }
    if (next == nullptr) {
      return invalid_argument(path + ".$ref: there is nothing at '" + shortened(text) + "'");
    }
    here = child(next, here, step_of(token));
    begin = end;
  }
  return here;
}

Result<SchemaReader::Branches> SchemaReader::expand(const SchemaValue* schema) {
  if (schema->is_bool()) return schema->boolean ? Branches{Conjunction{}} : Branches{};
  const auto found = expanded_.find(schema);
  if (found != expanded_.end()) return found->second;
  if (!schema->is_object()) {
    return invalid_argument(path_of(schema) + ": a schema has to be an object or a boolean");
  }
  if (std::find(expanding_.begin(), expanding_.end(), schema) != expanding_.end()) {
    return unsupported(path_of(schema) + ": the schema refers to itself without anything between");
  }
  if (expanding_.size() >= kMaxChain) {
    return exhausted(path_of(schema) + ": more than " + std::to_string(kMaxChain) +
                     " references and combinators within each other");
  }
  expanding_.push_back(schema);
  auto branches = expand_combinators(schema);
  expanding_.pop_back();
  if (branches.ok()) expanded_[schema] = *branches;
  return branches;
}

Result<SchemaReader::Branches> SchemaReader::expand_combinators(const SchemaValue* schema) {
  TRY(spend(1 + schema->members.size(), schema));
  Branches out = {of(schema)};
  if (const SchemaValue* reference = schema->find("$ref")) {
    const SchemaValue* target = TRY(resolve(*reference, schema));
    out = TRY(multiply(out, TRY(expand(target)), schema));
  }
  if (const SchemaValue* all = schema->find("allOf")) {
    if (!all->is_array() || all->items.empty()) {
      return invalid_argument(path_of(schema) + ".allOf: has to be an array of schemas");
    }
    for (size_t i = 0; i < all->items.size(); ++i) {
      const SchemaValue* part = child(&all->items[i], schema, "allOf[" + std::to_string(i) + "]");
      out = TRY(multiply(out, TRY(expand(part)), schema));
    }
  }
  for (const std::string keyword : {"anyOf", "oneOf"}) {
    if (schema->find(keyword) == nullptr) continue;
    out = TRY(multiply(out, TRY(expand_any(schema, keyword)), schema));
  }
  return out;
}

Result<SchemaReader::Branches> SchemaReader::expand_any(const SchemaValue* schema,
                                                        const std::string& keyword) {
  const SchemaValue* any = schema->find(keyword);
  if (!any->is_array() || any->items.empty()) {
    return invalid_argument(path_of(schema) + "." + keyword + ": has to be an array of schemas");
  }
  std::vector<Branches> options;
  Branches out;
  std::set<Conjunction> seen;
  for (size_t i = 0; i < any->items.size(); ++i) {
    options.push_back(
        TRY(expand(child(&any->items[i], schema, keyword + "[" + std::to_string(i) + "]"))));
    for (const Conjunction& branch : options.back()) {
      if (seen.insert(branch).second) out.push_back(branch);
    }
    TRY(spend(options.back().size(), schema));
  }
  if (out.size() > kMaxBranches) {
    return exhausted(path_of(schema) + "." + keyword + ": more than " +
                     std::to_string(kMaxBranches) + " alternatives");
  }
  if (keyword == "oneOf") TRY(check_exclusive(options, schema));
  return out;
}

Result<SchemaReader::Branches> SchemaReader::multiply(const Branches& a, const Branches& b,
                                                      const SchemaValue* schema) {
  if (a.size() * b.size() > kMaxBranches) {
    return exhausted(path_of(schema) + ": more than " + std::to_string(kMaxBranches) +
                     " combinations of alternatives");
  }
  Branches out;
  std::set<Conjunction> seen;
  for (const Conjunction& left : a) {
    for (const Conjunction& right : b) {
      TRY(spend(1 + left.all.size() * right.all.size(), schema));
      Conjunction both = left;
      both.add(right);
      if (seen.insert(both).second) out.push_back(std::move(both));
    }
  }
  return out;
}

Result<std::vector<FlatSchema>> SchemaReader::alternatives(const Conjunction& schemas) {
  std::vector<FlatSchema> out;
  if (schemas.never) return out;
  Branches branches = {Conjunction{}};
  for (const SchemaValue* schema : schemas.all) {
    branches = TRY(multiply(branches, TRY(expand(schema)), schema));
  }
  for (const Conjunction& branch : branches) {
    FlatSchema flat = TRY(merge(branch));
    if (flat.types != 0 && !(flat.values && flat.values->empty())) out.push_back(std::move(flat));
  }
  return out;
}

Result<bool> SchemaReader::accepts(const Conjunction& schemas, const SchemaValue& value) {
  for (const FlatSchema& flat : TRY(alternatives(schemas))) {
    if (TRY(accepts(flat, value))) return true;
  }
  return false;
}

Result<bool> SchemaReader::accepts(const FlatSchema& schema, const SchemaValue& value) {
  TRY(spend(1, root_));
  const unsigned type = type_of(value);
  if ((schema.types & type) == 0) return false;
  if (schema.values) {
    const auto same = [&](const SchemaValue* other) { return json_equal(*other, value); };
    if (std::none_of(schema.values->begin(), schema.values->end(), same)) return false;
  }
  switch (type) {
    case kIntegerType:
    case kFractionType: return schema.bounds.accepts(decimal_of(value));
    case kStringType:
      if (!schema.patterns.empty()) {
        return unsupported(schema.patterns[0].path + ": 'pattern' beside 'enum', 'const' or " +
                           "'oneOf' is not supported");
      }
      return within(num_chars(value.text), schema.min_length, schema.max_length);
    case kArrayType: return accepts_array(schema, value);
    case kObjectType: return accepts_object(schema, value);
    default: return true;
  }
}

Result<bool> SchemaReader::accepts_array(const FlatSchema& schema, const SchemaValue& value) {
  if (!within(static_cast<int64_t>(value.items.size()), schema.min_items, schema.max_items)) {
    return false;
  }
  for (size_t i = 0; i < value.items.size(); ++i) {
    const Conjunction& item = i < schema.prefix.size() ? schema.prefix[i] : schema.rest;
    if (!TRY(accepts(item, value.items[i]))) return false;
    for (size_t k = 0; k < i && !schema.unique_path.empty(); ++k) {
      TRY(spend(1, root_));
      if (json_equal(value.items[i], value.items[k])) return false;
    }
  }
  return true;
}

Result<bool> SchemaReader::accepts_object(const FlatSchema& schema, const SchemaValue& value) {
  if (!within(static_cast<int64_t>(value.members.size()), schema.min_properties,
              schema.max_properties)) {
    return false;
  }
  if (schema.pattern_properties && !value.members.empty()) {
    return unsupported(schema.pattern_properties->first.path +
                       ": 'patternProperties' beside 'enum', 'const' or 'oneOf' is not supported");
  }
  TRY(spend(value.members.size() * (1 + schema.properties.size()), root_));
  for (const auto& property : schema.properties) {
    if (property.required && value.find(property.name) == nullptr) return false;
  }
  for (const auto& [name, member] : value.members) {
    const FlatSchema::Property* declared = find_property(schema, name);
    if (!TRY(accepts(declared != nullptr ? declared->schema : schema.further, member)))
      return false;
  }
  return true;
}

bool SchemaReader::rejects_all(const FlatSchema& schema,
                               const std::vector<const SchemaValue*>& values) {
  return std::all_of(values.begin(), values.end(), [&](const SchemaValue* value) {
    const auto accepted = accepts(schema, *value);
    return accepted.ok() && !*accepted;
  });
}

bool SchemaReader::disjoint(const Conjunction& a, const Conjunction& b, int depth) {
  const auto left = alternatives(a);
  const auto right = alternatives(b);
  if (!left.ok() || !right.ok()) return false;
  for (const FlatSchema& one : *left) {
    for (const FlatSchema& other : *right) {
      if (!disjoint(one, other, depth)) return false;
    }
  }
  return true;
}

bool SchemaReader::disjoint(const FlatSchema& a, const FlatSchema& b, int depth) {
  const unsigned common = a.types & b.types;
  if (common == 0) return true;
  if (depth == 0 || !spend(1, root_).ok()) return false;
  if (a.values && rejects_all(b, *a.values)) return true;
  if (b.values && rejects_all(a, *b.values)) return true;
  if ((common & (kNullType | kBoolType)) != 0) return false;
  if ((common & kNumberTypes) != 0 && !a.bounds.disjoint(b.bounds)) return false;
  if ((common & kStringType) != 0 &&
      !apart(a.min_length, a.max_length, b.min_length, b.max_length)) {
    return false;
  }
  if ((common & kArrayType) != 0 && !apart(a.min_items, a.max_items, b.min_items, b.max_items)) {
    return false;
  }
  return (common & kObjectType) == 0 || disjoint_objects(a, b, depth);
}

bool SchemaReader::disjoint_objects(const FlatSchema& a, const FlatSchema& b, int depth) {
  for (const auto& property : a.properties) {
    const FlatSchema::Property* other = find_property(b, property.name);
    if (!property.required && (other == nullptr || !other->required)) continue;
    // One of the two demands it: do they ask different things of it?
    if (other == nullptr && b.pattern_properties) continue;
    const Conjunction& theirs = other != nullptr ? other->schema : b.further;
    if (property.schema.never || theirs.never || disjoint(property.schema, theirs, depth - 1)) {
      return true;
    }
  }
  for (const auto& property : b.properties) {
    if (!property.required || find_property(a, property.name) != nullptr) continue;
    if (a.pattern_properties) continue;
    if (a.further.never || disjoint(a.further, property.schema, depth - 1)) return true;
  }
  return false;
}

Result<void> SchemaReader::check_exclusive(const std::vector<Branches>& options,
                                           const SchemaValue* schema) {
  std::vector<std::vector<FlatSchema>> flat(options.size());
  for (size_t i = 0; i < options.size(); ++i) {
    for (const Conjunction& branch : options[i]) flat[i].push_back(TRY(merge(branch)));
  }
  for (size_t i = 0; i < flat.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      for (const FlatSchema& a : flat[k]) {
        for (const FlatSchema& b : flat[i]) {
          TRY(spend(1, schema));
          if (!disjoint(a, b, kExclusiveDepth)) {
            return unsupported(path_of(schema) + ": keyword 'oneOf' is supported only where no " +
                               "value can be valid for two of its schemas (" + std::to_string(k) +
                               " and " + std::to_string(i) + " are not provably exclusive); " +
                               "'anyOf' has no such condition");
          }
        }
      }
    }
  }
  return {};
}

}  // namespace weft
