#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "base/result.h"

namespace weft {

struct JsonValue;
using JsonArray = std::vector<JsonValue>;
using JsonObject = std::vector<std::pair<std::string, JsonValue>>;  ///< in the order of the text

/// A number that is not a 64-bit integer: a fraction, an exponent, or too many digits.
struct JsonReal {
  double value = 0;  ///< finite
  std::string text;  ///< as it was written, so that it can be written again
};

/// What a JSON text says (RFC 8259). Object keys are unique, strings are valid UTF-8.
struct JsonValue {
  std::variant<std::nullptr_t, bool, int64_t, JsonReal, std::string, JsonArray, JsonObject> data =
      nullptr;

  bool is_null() const { return data.index() == 0; }
  template <class T>
  const T* as() const {
    return std::get_if<T>(&data);
  }
  /// The member of an object, or nullptr. Takes time linear in the number of members.
  const JsonValue* find(std::string_view key) const;
  /// "null", "a boolean", "a number", "a string", "an array" or "an object", for messages.
  const char* kind_name() const;
};

struct JsonLimits {
  int max_depth = 64;           ///< nested arrays and objects
  size_t max_values = 1 << 20;  ///< of all kinds
  size_t max_number_len = 64;   ///< characters
};

/// Reads one JSON text in time O(n log n), before anything is built checked against `limits`.
/// Refused besides bad syntax: duplicate keys, a byte order mark, UTF-16, invalid UTF-8, lone
/// surrogates, NaN and Infinity, numbers beyond a double, text after the value. Errors
/// (kInvalidArgument) say what and where, without the text itself and without a field in front.
Result<JsonValue> parse_json(std::string_view text, const JsonLimits& limits = {});

/// Appends the value without spaces; numbers as they were written, members in their order.
void append_json(const JsonValue& value, std::string& out);
std::string to_json(const JsonValue& value);

}  // namespace weft
