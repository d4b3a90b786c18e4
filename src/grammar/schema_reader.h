#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "base/result.h"
#include "grammar/json_number.h"
#include "grammar/json_value.h"
#include "grammar/rules.h"

namespace weft {

/// Schemas that hold together; without any: every value is valid.
struct Conjunction {
  std::vector<const SchemaValue*> all;
  bool never = false;  ///< one of them is `false`

  friend bool operator<(const Conjunction& a, const Conjunction& b) {
    return std::tie(a.never, a.all) < std::tie(b.never, b.all);
  }
  bool operator==(const Conjunction&) const = default;
  void add(const SchemaValue* schema);
  void add(const Conjunction& other);
};

/// The types of JSON values as bits. A number with a fraction and an integer are told apart.
enum JsonTypes : unsigned {
  kNullType = 1,
  kBoolType = 2,
  kIntegerType = 4,
  kFractionType = 8,
  kStringType = 16,
  kArrayType = 32,
  kObjectType = 64,
  kNumberTypes = kIntegerType | kFractionType,
  kAllTypes = 127,
};

/// One alternative of a schema, with everything that has to hold at once merged.
struct FlatSchema {
  struct Property {
    std::string name;
    Conjunction schema;
    bool required = false;
  };
  struct Pattern {
    std::string text;
    std::string path;
  };

  unsigned types = kAllTypes;  ///< of valid values
  unsigned mentioned = 0;      ///< types some keyword is about
  bool has_type = false;       ///< `type`, `enum` or `const` stands somewhere
  std::optional<std::vector<const SchemaValue*>> values;  ///< enum, const: only these

  NumberBounds bounds;
  std::string bounds_path;

  int64_t min_length = 0;
  int64_t max_length = -1;  ///< -1: no bound
  std::string length_path;
  std::vector<Pattern> patterns;
  std::string format;

  std::vector<Conjunction> prefix;
  Conjunction rest;
  bool has_rest = false;  ///< whether `items` says anything about items behind the prefix
  int64_t min_items = 0;
  int64_t max_items = -1;
  std::string items_path;
  std::string unique_path;  ///< of `uniqueItems: true`

  std::vector<Property> properties;
  Conjunction further;       ///< of members that are not declared
  bool has_further = false;  ///< whether additionalProperties says anything about them
  bool has_properties = false;
  std::optional<std::pair<Pattern, Conjunction>> pattern_properties;
  int64_t min_properties = 0;
  int64_t max_properties = -1;
  std::string count_path;

  /// What texts are written for: the valid types, but where no type is given those the keywords are
  /// about (`{"properties": ...}` means objects).
  unsigned written_types() const {
    return has_type || (types & mentioned) == 0 ? types : types & mentioned;
  }
  bool is_anything() const { return types == kAllTypes && mentioned == 0 && !values; }
};

/// Reads a schema: resolves references, multiplies out allOf, anyOf and oneOf, merges the rest.
/// Everything it hands out lives as long as the root it was given.
class SchemaReader {
 public:
  SchemaReader(const SchemaValue& root, std::string field);

  Conjunction root() const { return of(root_); }
  /// The alternatives of a conjunction. Errors: kUnsupported and kInvalidArgument with the path and
  /// the keyword, kExhausted where there are too many alternatives.
  Result<std::vector<FlatSchema>> alternatives(const Conjunction& schemas);
  /// Whether a value is valid. An error where that depends on what is not read here (patterns).
  Result<bool> accepts(const Conjunction& schemas, const SchemaValue& value);
  Result<bool> accepts(const FlatSchema& schema, const SchemaValue& value);
  /// Where a schema stands: FIELD.properties.a
  std::string path_of(const SchemaValue* schema) const;
  std::string path_of(const Conjunction& schemas) const;

 private:
  using Branches = std::vector<Conjunction>;
  struct ArrayPart {
    std::vector<const SchemaValue*> prefix;
    const SchemaValue* rest = nullptr;
  };
  struct ObjectPart {
    const SchemaValue* properties = nullptr;
    const SchemaValue* required = nullptr;
    const SchemaValue* further = nullptr;
    const SchemaValue* patterns = nullptr;
  };
  struct Merge {
    FlatSchema flat;
    std::vector<ArrayPart> arrays;
    std::vector<ObjectPart> objects;
  };
  /// One keyword of a schema.
  struct Keyword {
    const SchemaValue* schema;
    const std::string& name;
    const SchemaValue& value;
    std::string path;  ///< of the schema
    Error bad(const std::string& what) const;
    Error unsupported_here(const std::string& why = {}) const;
  };

  // schema_reader.cc
  Result<Branches> expand(const SchemaValue* schema);
  Result<Branches> expand_combinators(const SchemaValue* schema);
  Result<Branches> expand_any(const SchemaValue* schema, const std::string& keyword);
  Result<Branches> multiply(const Branches& a, const Branches& b, const SchemaValue* schema);
  Result<const SchemaValue*> resolve(const SchemaValue& reference, const SchemaValue* at);
  Result<void> check_exclusive(const std::vector<Branches>& options, const SchemaValue* schema);
  bool disjoint(const FlatSchema& a, const FlatSchema& b, int depth);
  bool disjoint(const Conjunction& a, const Conjunction& b, int depth);
  bool disjoint_objects(const FlatSchema& a, const FlatSchema& b, int depth);
  bool rejects_all(const FlatSchema& schema, const std::vector<const SchemaValue*>& values);
  Result<bool> accepts_array(const FlatSchema& schema, const SchemaValue& value);
  Result<bool> accepts_object(const FlatSchema& schema, const SchemaValue& value);
  const SchemaValue* child(const SchemaValue* value, const SchemaValue* parent, std::string step);
  Conjunction of(const SchemaValue* schema) const;
  Result<void> spend(size_t work, const SchemaValue* schema);

  // schema_merge.cc
  Result<FlatSchema> merge(const Conjunction& plain);
  Result<void> merge_keyword(const Keyword& keyword, Merge& merge);
  Result<bool> merge_general(const Keyword& keyword, FlatSchema& flat);
  Result<bool> merge_number(const Keyword& keyword, FlatSchema& flat);
  Result<bool> merge_string(const Keyword& keyword, FlatSchema& flat);
  Result<bool> merge_array(const Keyword& keyword, FlatSchema& flat, ArrayPart& part);
  Result<bool> merge_object(const Keyword& keyword, FlatSchema& flat, ObjectPart& part);
  Result<void> merge_values(const Keyword& keyword, FlatSchema& flat);
  void finish_arrays(Merge& merge);
  Result<void> finish_objects(Merge& merge);
  Result<void> finish_pattern(Merge& merge, const ObjectPart& with_patterns);
  Result<void> keep_valid_values(FlatSchema& flat, const SchemaValue* schema);

  struct Site {
    const SchemaValue* parent;
    std::string step;
  };

  const SchemaValue* root_;
  std::string field_;
  std::map<const SchemaValue*, Site> sites_;
  std::map<const SchemaValue*, Branches> expanded_;
  std::vector<const SchemaValue*> expanding_;  // through $ref, allOf, anyOf: what is within what
  size_t work_ = 0;
};

/// User text for a message: not too long.
std::string shortened(std::string_view text);

/// A key as a step of a path, shortened: in brackets and quotation marks where it is no word.
std::string step_of(std::string_view key);

}  // namespace weft
