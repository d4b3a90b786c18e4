#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace weft {

/// A JSON value with its members in the order of the text: what schemas are read from.
struct SchemaValue {
  enum class Kind { kNull, kBool, kInteger, kNumber, kString, kArray, kObject };

  /// In the .cc: clang would want `members` complete where a Result is made of this.
  SchemaValue();

  Kind kind = Kind::kNull;
  bool boolean = false;
  int64_t integer = 0;  ///< of kInteger
  double number = 0;    ///< of kInteger and kNumber
  std::string text;     ///< a string, in UTF-8; of a number its canonical text
  std::vector<SchemaValue> items;
  std::vector<std::pair<std::string, SchemaValue>> members;

  bool is_object() const { return kind == Kind::kObject; }
  bool is_array() const { return kind == Kind::kArray; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_bool() const { return kind == Kind::kBool; }
  bool is_integer() const { return kind == Kind::kInteger; }
  bool is_number() const { return kind == Kind::kInteger || kind == Kind::kNumber; }
  bool is_true() const { return is_bool() && boolean; }
  bool is_false() const { return is_bool() && !boolean; }
  /// The member of that name, or null.
  const SchemaValue* find(std::string_view name) const;
};

/// Equality as JSON Schema has it: 1 equals 1.0, members in any order.
bool json_equal(const SchemaValue& a, const SchemaValue& b);

/// What parse_json() takes.
struct SchemaTextLimits {
  size_t max_bytes = 64 << 10;
  int max_depth = 64;  ///< arrays and objects within each other
};

/// Reads strict JSON. A number that is integral in value (2.0, 1e3) and fits into 64 bits is a
/// kInteger, as JSON Schema has it. Of two members of one name the last counts. Errors name
/// `field`: kExhausted beyond the limits (found before anything recurses), kInvalidArgument for bad
/// JSON and for numbers out of the range of a double.
Result<SchemaValue> parse_json(std::string_view text, const std::string& field,
                               const SchemaTextLimits& limits);

/// `text` as a JSON string with quotes: escaped only where JSON demands it.
std::string json_quoted(std::string_view text);

/// The code points of valid UTF-8.
std::u32string code_points_of(std::string_view text);

}  // namespace weft
