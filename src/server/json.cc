#include "server/json.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "base/json_text.h"

namespace weft {
namespace {

using Sax = nlohmann::json_sax<nlohmann::json>;

/// Builds the value while the text is read; every limit is checked before memory is taken.
class Builder final : public Sax {
 public:
  explicit Builder(const JsonLimits& limits) : limits_(limits) {}

  JsonValue& root() { return root_; }
  const std::string& reason() const { return reason_; }

  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(int64_t{value}); }
  bool number_unsigned(number_unsigned_t value) override {
    if (value > static_cast<uint64_t>(INT64_MAX)) {
      return add(JsonReal{static_cast<double>(value), std::to_string(value)});
    }
    return add(static_cast<int64_t>(value));
  }
  bool number_float(number_float_t value, const string_t& text) override {
    if (text.size() > limits_.max_number_len) {
      return fail("it has a number of " + std::to_string(text.size()) + " characters; at most " +
                  std::to_string(limits_.max_number_len) + " are accepted");
    }
    if (!std::isfinite(value)) return fail("it has a number beyond the range of a double");
    return add(JsonReal{value, text});
  }
  bool string(string_t& value) override { return add(std::move(value)); }
  bool binary(binary_t&) override { return fail("it has a binary value"); }
  bool start_object(size_t) override { return open(JsonObject{}); }
  bool start_array(size_t) override { return open(JsonArray{}); }
  bool end_array() override {
    open_.pop_back();
    return true;
  }
  bool end_object() override {
    const auto& members = std::get<JsonObject>(open_.back()->data);
    open_.pop_back();
    return check_unique(members);
  }
  bool key(string_t& name) override {
    std::get<JsonObject>(open_.back()->data).emplace_back(std::move(name), JsonValue{});
    return true;
  }
  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (error.id == 406) return fail("it has a number beyond the range of a double");
    return fail("it is not valid JSON: an error at byte " + std::to_string(position));
  }

 private:
  bool fail(std::string reason) {
    if (reason_.empty()) reason_ = std::move(reason);
    return false;
  }
  /// Sorting and not hashing: nobody can choose keys that make it slow.
  bool check_unique(const JsonObject& members) {
    if (members.size() < 2) return true;
    names_.clear();
    for (const auto& [name, value] : members) names_.emplace_back(name);
    std::sort(names_.begin(), names_.end());
    const auto twice = std::adjacent_find(names_.begin(), names_.end());
    if (twice == names_.end()) return true;
    return fail(twice->size() > 64
                    ? std::string("it has a key twice in one object")
                    : "it has the key \"" + std::string(*twice) + "\" twice in one object");
  }
  /// Where the next value goes.
  JsonValue& place() {
    if (open_.empty()) return root_;
    if (auto* items = std::get_if<JsonArray>(&open_.back()->data)) return items->emplace_back();
    return std::get<JsonObject>(open_.back()->data).back().second;
  }
  template <class T>
  bool add(T value) {
    if (++num_values_ > limits_.max_values) {
      return fail("it has more than " + std::to_string(limits_.max_values) + " values");
    }
    place().data = std::move(value);
    return true;
  }
  template <class T>
  bool open(T container) {
    if (open_.size() >= static_cast<size_t>(limits_.max_depth)) {
      return fail("it is nested deeper than " + std::to_string(limits_.max_depth) + " levels");
    }
    if (++num_values_ > limits_.max_values) {
      return fail("it has more than " + std::to_string(limits_.max_values) + " values");
    }
    JsonValue& value = place();
    value.data = std::move(container);
    open_.push_back(&value);  // its parent does not grow before it is closed
    return true;
  }

  const JsonLimits limits_;
  JsonValue root_;
  std::vector<JsonValue*> open_;
  std::vector<std::string_view> names_;
  size_t num_values_ = 0;
  std::string reason_;
};

}  // namespace

const JsonValue* JsonValue::find(std::string_view key) const {
  const auto* members = as<JsonObject>();
  if (!members) return nullptr;
  for (const auto& [name, value] : *members) {
    if (name == key) return &value;
  }
  return nullptr;
}

const char* JsonValue::kind_name() const {
  static constexpr const char* kNames[] = {"null",     "a boolean", "a number", "a number",
                                           "a string", "an array",  "an object"};
  return kNames[data.index()];
}

Result<JsonValue> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.empty()) return invalid_argument("it is empty");
  if (text.starts_with("\xEF\xBB\xBF")) {
    return invalid_argument("it begins with a byte order mark; JSON has none");
  }
  // The library takes a NUL for the end of the text.
  if (const size_t nul = text.find('\0'); nul != text.npos) {
    return invalid_argument("it is not valid JSON: a NUL at byte " + std::to_string(nul + 1));
  }
  Builder builder(limits);
  if (!nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) {
    return invalid_argument(builder.reason());
  }
  return std::move(builder.root());
}

void append_json(const JsonValue& value, std::string& out) {
  struct Writer {
    std::string& out;
    void operator()(std::nullptr_t) const { out += "null"; }
    void operator()(bool b) const { out += b ? "true" : "false"; }
    void operator()(int64_t i) const { out += std::to_string(i); }
    void operator()(const JsonReal& real) const { out += real.text; }
    void operator()(const std::string& text) const { append_json_quoted(text, out); }
    void operator()(const JsonArray& items) const {
      out += '[';
      for (size_t i = 0; i < items.size(); ++i) {
        if (i > 0) out += ',';
        append_json(items[i], out);
      }
      out += ']';
    }
    void operator()(const JsonObject& members) const {
      out += '{';
      for (size_t i = 0; i < members.size(); ++i) {
        if (i > 0) out += ',';
        append_json_quoted(members[i].first, out);
        out += ':';
        append_json(members[i].second, out);
      }
      out += '}';
    }
  };
  std::visit(Writer{out}, value.data);
}

std::string to_json(const JsonValue& value) {
  std::string out;
  append_json(value, out);
  return out;
}

}  // namespace weft
