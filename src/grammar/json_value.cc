#include "grammar/json_value.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <unordered_map>

#include "base/json_text.h"

namespace weft {
namespace {

/// Refuses deep nesting by counting brackets, so that no parser ever sees it.
Result<void> check_depth(std::string_view text, const std::string& field, int max_depth) {
  int depth = 0;
  bool in_string = false;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    if (in_string) {
      if (c == '\\') {
        ++i;
      } else if (c == '"') {
        in_string = false;
      }
    } else if (c == '"') {
      in_string = true;
    } else if (c == '{' || c == '[') {
      if (++depth > max_depth) {
        return exhausted(field + ": arrays and objects are nested deeper than " +
                         std::to_string(max_depth));
      }
    } else if (c == '}' || c == ']') {
      --depth;
    }
  }
  return {};
}

std::string number_text(double value) {
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, value).ptr;
  return {buffer, end};
}

SchemaValue integer_value(int64_t value) {
  SchemaValue out;
  out.kind = SchemaValue::Kind::kInteger;
  out.integer = value;
  out.number = static_cast<double>(value);
  out.text = std::to_string(value);
  return out;
}

SchemaValue number_value(double value) {
  constexpr double kTwo63 = 9223372036854775808.0;
  if (value == std::floor(value) && value >= -kTwo63 && value < kTwo63) {
    return integer_value(static_cast<int64_t>(value));
  }
  SchemaValue out;
  out.kind = SchemaValue::Kind::kNumber;
  out.number = value;
  out.text = number_text(value);
  return out;
}

/// Builds a SchemaValue from the events of nlohmann's parser (which does not recurse).
class Builder : public nlohmann::json_sax<nlohmann::json> {
 public:
  bool null() override { return put({}); }
  bool boolean(bool value) override {
    SchemaValue out;
    out.kind = SchemaValue::Kind::kBool;
    out.boolean = value;
    return put(std::move(out));
  }
  bool number_integer(number_integer_t value) override { return put(integer_value(value)); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value <= static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return put(integer_value(static_cast<int64_t>(value)));
    }
    SchemaValue out;
    out.kind = SchemaValue::Kind::kNumber;
    out.number = static_cast<double>(value);
    out.text = std::to_string(value);
    return put(std::move(out));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (!std::isfinite(value)) {
      error_ = "the number " + text.substr(0, 40) + " is out of range";
      return false;
    }
    return put(number_value(value));
  }
  bool string(string_t& value) override {
    SchemaValue out;
    out.kind = SchemaValue::Kind::kString;
    out.text = std::move(value);
    return put(std::move(out));
  }
  bool binary(binary_t& /*value*/) override { return false; }
  bool start_object(size_t /*size*/) override { return open(SchemaValue::Kind::kObject); }
  bool end_object() override { return close(); }
  bool start_array(size_t /*size*/) override { return open(SchemaValue::Kind::kArray); }
  bool end_array() override { return close(); }
  bool key(string_t& value) override {
    keys_.back() = std::move(value);
    return true;
  }
  bool parse_error(size_t position, const std::string& /*token*/,
                   const nlohmann::json::exception& exception) override {
    // 406: a number too large for a double. The parser's own text repeats the input; ours does not.
    error_ = exception.id == 406 ? "a number is out of range"
                                 : "not valid JSON at byte " + std::to_string(position);
    return false;
  }

  const std::string& error() const { return error_; }
  SchemaValue take() { return std::move(root_); }

 private:
  bool open(SchemaValue::Kind kind) {
    SchemaValue out;
    out.kind = kind;
    open_.push_back(std::move(out));
    keys_.emplace_back();
    return true;
  }
  bool close() {
    SchemaValue done = std::move(open_.back());
    open_.pop_back();
    keys_.pop_back();
    if (done.is_object()) keep_last(done);
    return put(std::move(done));
  }
  /// Of members with the same name: the value of the last, at the place of the first.
  static void keep_last(SchemaValue& object) {
    std::unordered_map<std::string, size_t> seen;
    size_t kept = 0;
    for (size_t i = 0; i < object.members.size(); ++i) {
      const auto [it, is_new] = seen.try_emplace(object.members[i].first, kept);
      if (!is_new) {
        object.members[it->second].second = std::move(object.members[i].second);
      } else {
        if (kept != i) object.members[kept] = std::move(object.members[i]);
        ++kept;
      }
    }
    object.members.resize(kept);
  }
  bool put(SchemaValue value) {
    if (open_.empty()) {
      root_ = std::move(value);
      return true;
    }
    SchemaValue& into = open_.back();
    if (into.is_array()) {
      into.items.push_back(std::move(value));
      return true;
    }
    into.members.emplace_back(std::move(keys_.back()), std::move(value));
    return true;
  }

  SchemaValue root_;
  std::vector<SchemaValue> open_;
  std::vector<std::string> keys_;  // of each open object: the member that comes next
  std::string error_;
};

}  // namespace

SchemaValue::SchemaValue() = default;

const SchemaValue* SchemaValue::find(std::string_view name) const {
  for (const auto& [key, value] : members) {
    if (key == name) return &value;
  }
  return nullptr;
}

bool json_equal(const SchemaValue& a, const SchemaValue& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integer() && b.is_integer() ? a.integer == b.integer : a.number == b.number;
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case SchemaValue::Kind::kBool: return a.boolean == b.boolean;
    case SchemaValue::Kind::kString: return a.text == b.text;
    case SchemaValue::Kind::kArray:
      if (a.items.size() != b.items.size()) return false;
      for (size_t i = 0; i < a.items.size(); ++i) {
        if (!json_equal(a.items[i], b.items[i])) return false;
      }
      return true;
    case SchemaValue::Kind::kObject:
      if (a.members.size() != b.members.size()) return false;
      for (const auto& [name, value] : a.members) {
        const SchemaValue* other = b.find(name);
        if (other == nullptr || !json_equal(value, *other)) return false;
      }
      return true;
    default: return true;
  }
}

Result<SchemaValue> parse_json(std::string_view text, const std::string& field,
                               const SchemaTextLimits& limits) {
  if (text.size() > limits.max_bytes) {
    return exhausted(field + ": " + std::to_string(text.size()) + " bytes, at most " +
                     std::to_string(limits.max_bytes));
  }
  TRY(check_depth(text, field, limits.max_depth));
  Builder builder;
  if (!nlohmann::json::sax_parse(text, &builder)) {
    return invalid_argument(field + ": " +
                            (builder.error().empty() ? "not valid JSON" : builder.error()));
  }
  return builder.take();
}

std::string json_quoted(std::string_view text) {
  std::string out;
  append_json_quoted(text, out, JsonControls::kShort);
  return out;
}

std::u32string code_points_of(std::string_view text) {
  std::u32string out;
  for (size_t i = 0; i < text.size();) {
    const auto lead = static_cast<unsigned char>(text[i]);
    const int len = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    char32_t point = len == 1 ? lead : lead & (0x7f >> len);
    for (int k = 1; k < len && i + k < text.size(); ++k) {
      point = point << 6 | (static_cast<unsigned char>(text[i + k]) & 0x3f);
    }
    out.push_back(point);
    i += len;
  }
  return out;
}

}  // namespace weft
