#include "http/pattern.h"

#include <cstdlib>

namespace weft {
namespace {

std::string shown(const JsonValue& value) {
  const std::string text = to_json(value);
  return text.size() <= 300 ? text : text.substr(0, 300) + "...";
}

std::string differs(const std::string& path, const std::string& wanted, const JsonValue& got) {
  return (path.empty() ? "the whole" : path) + ": wanted " + wanted + ", got " + shown(got);
}

double number_of(const JsonValue& value) {
  if (const auto* i = value.as<int64_t>()) return static_cast<double>(*i);
  return value.as<JsonReal>()->value;
}

bool is_number(const JsonValue& value) {
  return value.as<int64_t>() || value.as<JsonReal>();
}

/// "NAME:ARGUMENT" of "<NAME:ARGUMENT>".
struct Placeholder {
  std::string name, argument;
};

bool read_placeholder(const JsonValue& pattern, Placeholder& out) {
  const auto* text = pattern.as<std::string>();
  if (!text || text->size() < 3 || text->front() != '<' || text->back() != '>') return false;
  const std::string inside = text->substr(1, text->size() - 2);
  const size_t colon = inside.find(':');
  out.name = inside.substr(0, colon);
  out.argument = colon == std::string::npos ? "" : inside.substr(colon + 1);
  return true;
}

size_t length_of(const JsonValue& value) {
  if (const auto* items = value.as<JsonArray>()) return items->size();
  if (const auto* text = value.as<std::string>()) return text->size();
  return SIZE_MAX;
}

bool text_fits(const Placeholder& p, const JsonValue& value) {
  const auto* text = value.as<std::string>();
  if (!text) return false;
  if (p.name == "begins") return text->starts_with(p.argument);
  return (text->find(p.argument) != std::string::npos) == (p.name == "has");
}

bool in_range(const std::string& range, const JsonValue& value) {
  const size_t dots = range.find("..");
  if (dots == std::string::npos || !is_number(value)) return false;
  const double number = number_of(value);
  return number >= std::strtod(range.c_str(), nullptr) &&
         number <= std::strtod(range.c_str() + dots + 2, nullptr);
}

/// -1: no such placeholder, the text is meant.
int fits(const Placeholder& p, const JsonValue& value, ScriptMemory& memory) {
  if (p.name == "any") return 1;
  if (p.name == "null") return value.is_null();
  if (p.name == "bool") return value.as<bool>() != nullptr;
  if (p.name == "number") return is_number(value);
  if (p.name == "integer") return value.as<int64_t>() != nullptr;
  if (p.name == "string") return value.as<std::string>() != nullptr;
  if (p.name == "array") return value.as<JsonArray>() != nullptr;
  if (p.name == "object") return value.as<JsonObject>() != nullptr;
  if (p.name == "has" || p.name == "begins" || p.name == "lacks") return text_fits(p, value);
  if (p.name == "len") return length_of(value) == std::strtoul(p.argument.c_str(), nullptr, 10);
  if (p.name == "range") return in_range(p.argument, value);
  if (p.name == "keep") {
    memory[p.argument] = to_json(value);
    return 1;
  }
  if (p.name == "same") {
    const auto it = memory.find(p.argument);
    return it != memory.end() && it->second == to_json(value);
  }
  return -1;
}

std::string compare(const JsonValue& pattern, const JsonValue& value, const std::string& path,
                    ScriptMemory& memory);

std::string compare_objects(const JsonObject& wanted, const JsonValue& value,
                            const std::string& path, ScriptMemory& memory) {
  if (!value.as<JsonObject>()) return differs(path, "an object", value);
  for (const auto& [name, inner] : wanted) {
    const std::string at = path.empty() ? name : path + "." + name;
    const JsonValue* found = value.find(name);
    if (const auto* text = inner.as<std::string>(); text && *text == "<absent>") {
      if (found) return differs(at, "nothing", *found);
      continue;
    }
    if (!found) return at + ": absent from " + shown(value);
    const std::string why = compare(inner, *found, at, memory);
    if (!why.empty()) return why;
  }
  return {};
}

std::string compare_arrays(const JsonArray& wanted, const JsonValue& value, const std::string& path,
                           ScriptMemory& memory) {
  const auto* items = value.as<JsonArray>();
  if (!items) return differs(path, "an array", value);
  size_t count = wanted.size();
  const auto* last = wanted.empty() ? nullptr : wanted.back().as<std::string>();
  const bool more = last && *last == "<more>";
  if (more) --count;
  if (more ? items->size() < count : items->size() != count) {
    return differs(path, (more ? "at least " : "") + std::to_string(count) + " elements", value);
  }
  for (size_t i = 0; i < count; ++i) {
    const std::string why =
        compare(wanted[i], (*items)[i], path + "[" + std::to_string(i) + "]", memory);
    if (!why.empty()) return why;
  }
  return {};
}

std::string compare(const JsonValue& pattern, const JsonValue& value, const std::string& path,
                    ScriptMemory& memory) {
  if (const auto* members = pattern.as<JsonObject>()) {
    return compare_objects(*members, value, path, memory);
  }
  if (const auto* items = pattern.as<JsonArray>()) {
    return compare_arrays(*items, value, path, memory);
  }
  Placeholder placeholder;
  if (read_placeholder(pattern, placeholder)) {
    const int fit = fits(placeholder, value, memory);
    if (fit == 1) return {};
    if (fit == 0) {
      std::string wanted = to_json(pattern);
      if (placeholder.name == "same") wanted += " = " + memory[placeholder.argument];
      return differs(path, wanted, value);
    }
  }
  const bool equal = is_number(pattern) && is_number(value) ? number_of(pattern) == number_of(value)
                                                            : to_json(pattern) == to_json(value);
  return equal ? "" : differs(path, to_json(pattern), value);
}

}  // namespace

std::string mismatch(const JsonValue& pattern, const JsonValue& value, ScriptMemory& memory) {
  return compare(pattern, value, "", memory);
}

const JsonValue* value_at(const JsonValue& value, const std::string& path) {
  const JsonValue* at = &value;
  for (size_t begin = 0; at && begin < path.size();) {
    const size_t end = std::min(path.find('.', begin), path.size());
    const std::string step = path.substr(begin, end - begin);
    if (const auto* items = at->as<JsonArray>()) {
      const size_t index = std::strtoul(step.c_str(), nullptr, 10);
      at = index < items->size() ? &(*items)[index] : nullptr;
    } else {
      at = at->find(step);
    }
    begin = end + 1;
  }
  return at;
}

}  // namespace weft
