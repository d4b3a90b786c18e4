#include "server/request_fields.h"

#include <algorithm>
#include <cmath>

namespace weft {

Error wrong_type(const std::string& field, std::string_view wanted, const JsonValue& got) {
  return invalid_argument(field + ": it must be " + std::string(wanted) + ", not " +
                          got.kind_name());
}

Result<bool> read_bool(const std::string& field, const JsonValue& value) {
  if (const auto* b = value.as<bool>()) return *b;
  return wrong_type(field, "true or false", value);
}

Result<int64_t> read_int(const std::string& field, const JsonValue& value) {
  if (const auto* i = value.as<int64_t>()) return *i;
  const auto* real = value.as<JsonReal>();
  if (!real) return wrong_type(field, "an integer", value);
  if (real->value != std::trunc(real->value)) {
    return invalid_argument(field + ": it must be an integer, not a fraction");
  }
  constexpr double kExact = 9007199254740992.0;  // 2^53
  if (std::abs(real->value) > kExact) {
    return invalid_argument(field + ": it is beyond the range of a 64-bit integer");
  }
  return static_cast<int64_t>(real->value);
}

Result<int64_t> read_int_in(const std::string& field, const JsonValue& value, int64_t lo,
                            int64_t hi) {
  const int64_t i = TRY(read_int(field, value));
  if (i >= lo && i <= hi) return i;
  return invalid_argument(field + ": " + std::to_string(i) + " is not in [" + std::to_string(lo) +
                          ", " + std::to_string(hi) + "]");
}

Result<double> read_number(const std::string& field, const JsonValue& value) {
  if (const auto* i = value.as<int64_t>()) return static_cast<double>(*i);
  if (const auto* real = value.as<JsonReal>()) return real->value + 0.0;  // -0 + 0 = 0
  return wrong_type(field, "a number", value);
}

Result<std::string> read_string(const std::string& field, const JsonValue& value) {
  if (const auto* text = value.as<std::string>()) return *text;
  return wrong_type(field, "a string", value);
}

Result<std::string> read_short_string(const std::string& field, const JsonValue& value,
                                      size_t max_bytes) {
  const auto* text = value.as<std::string>();
  if (!text) return wrong_type(field, "a string", value);
  if (text->size() > max_bytes) {
    return too_many(field, text->size(), "bytes", static_cast<int64_t>(max_bytes));
  }
  return *text;
}

Result<const JsonArray*> read_array(const std::string& field, const JsonValue& value) {
  if (const auto* items = value.as<JsonArray>()) return items;
  return wrong_type(field, "an array", value);
}

Result<const JsonObject*> read_object(const std::string& field, const JsonValue& value) {
  if (const auto* members = value.as<JsonObject>()) return members;
  return wrong_type(field, "an object", value);
}

Result<std::vector<int64_t>> read_int_list(const std::string& field, const JsonValue& value) {
  const JsonArray& items = *TRY(read_array(field, value));
  std::vector<int64_t> out;
  out.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    if (const auto* number = items[i].as<int64_t>()) {
      out.push_back(*number);
    } else {
      out.push_back(TRY(read_int(item_of(field, i), items[i])));
    }
  }
  return out;
}

Result<std::vector<std::string>> read_string_list(const std::string& field,
                                                  const JsonValue& value) {
  const JsonArray& items = *TRY(read_array(field, value));
  std::vector<std::string> out;
  out.reserve(items.size());
  for (size_t i = 0; i < items.size(); ++i) {
    const auto* text = items[i].as<std::string>();
    if (!text) return wrong_type(item_of(field, i), "a string", items[i]);
    out.push_back(*text);
  }
  return out;
}

std::string item_of(const std::string& field, size_t i) {
  return field + "[" + std::to_string(i) + "]";
}

Result<void> check_name(const std::string& field, const std::string& name) {
  const auto good = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_' ||
           c == '-' || c == '.';
  };
  if (!name.empty() && name.size() <= 64 && std::all_of(name.begin(), name.end(), good)) return {};
  return invalid_argument(field + ": it must have 1 to 64 of the characters a-z A-Z 0-9 _ - .");
}

Result<void> refuse_unless_off(const std::string& field, const JsonValue& value) {
  const auto* flag = value.as<bool>();
  const auto* items = value.as<JsonArray>();
  const auto* members = value.as<JsonObject>();
  const auto* text = value.as<std::string>();
  if ((flag && !*flag) || (items && items->empty()) || (members && members->empty()) ||
      (text && text->empty())) {
    return {};
  }
  return unsupported(field + ": it is not supported");
}

Error too_many(const std::string& field, size_t got, std::string_view what, int64_t limit) {
  return invalid_argument(field + ": it has " + std::to_string(got) + " " + std::string(what) +
                          "; at most " + std::to_string(limit) + " are accepted");
}

}  // namespace weft
