#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "server/json.h"

namespace weft {

// Typed reading of one JSON value. `field` is its path in the request ("messages[2].role"), for the
// message of an error. Nothing is converted: strings and booleans are no numbers.

Error wrong_type(const std::string& field, std::string_view wanted, const JsonValue& got);

Result<bool> read_bool(const std::string& field, const JsonValue& value);
/// A 64-bit integer; 5.0 and 5e0 are integers too, up to 2^53.
Result<int64_t> read_int(const std::string& field, const JsonValue& value);
/// The same in [lo, hi].
Result<int64_t> read_int_in(const std::string& field, const JsonValue& value, int64_t lo,
                            int64_t hi);
/// A finite number; -0 is 0.
Result<double> read_number(const std::string& field, const JsonValue& value);
Result<std::string> read_string(const std::string& field, const JsonValue& value);
/// At most `max_bytes`.
Result<std::string> read_short_string(const std::string& field, const JsonValue& value,
                                      size_t max_bytes);
Result<const JsonArray*> read_array(const std::string& field, const JsonValue& value);
Result<const JsonObject*> read_object(const std::string& field, const JsonValue& value);
Result<std::vector<int64_t>> read_int_list(const std::string& field, const JsonValue& value);
Result<std::vector<std::string>> read_string_list(const std::string& field, const JsonValue& value);

/// "field[i]".
std::string item_of(const std::string& field, size_t i);
/// 1 to 64 letters, digits, '_', '-' or '.': names of functions and schemas.
Result<void> check_name(const std::string& field, const std::string& name);
/// Of a feature that would change the answer and is not there: false, "", [] and {} are fine.
Result<void> refuse_unless_off(const std::string& field, const JsonValue& value);
Error too_many(const std::string& field, size_t got, std::string_view what, int64_t limit);

}  // namespace weft
