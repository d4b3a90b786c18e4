// str(), repr() and json.dumps() of template values, tagged byte by byte.
#include <algorithm>
#include <cmath>
#include <cstdio>

#include "base/json_text.h"
#include "text/jinja_value.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

void append_hex(std::string& out, const char* format, char32_t c) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, format, static_cast<unsigned>(c));
  out += buffer;
}

/// Copies `s`, each character rewritten by `escape` (which appends to a buffer), tags kept.
template <class F>
void append_escaped(Tagged& out, const Tagged& s, F&& escape) {
  std::string piece;
  const std::string& bytes = s.str();
  size_t flip = 0;
  bool user = !s.empty() && s.user_at(0);
  for (size_t i = 0; i < bytes.size();) {
    if (flip < s.flips().size() && s.flips()[flip] == i) {
      out.append(piece, user);
      piece.clear();
      user = !user;
      ++flip;
    }
    const text::Decoded d = text::decode_valid(bytes.data() + i);
    escape(d.code, std::string_view(bytes).substr(i, static_cast<size_t>(d.length)), piece);
    i += static_cast<size_t>(d.length);
  }
  out.append(piece, user);
}

void append_string_repr(Tagged& out, const Tagged& s) {
  const bool single = s.str().find('\'') != std::string::npos;
  const char quote = single && s.str().find('"') == std::string::npos ? '"' : '\'';
  const bool user = s.any_user();
  out.append({&quote, 1}, user);
  append_escaped(out, s, [&](char32_t c, std::string_view bytes, std::string& to) {
    if (c == static_cast<unsigned char>(quote) || c == '\\') {
      to += '\\';
      to += static_cast<char>(c);
    } else if (c == '\n') {
      to += "\\n";
    } else if (c == '\r') {
      to += "\\r";
    } else if (c == '\t') {
      to += "\\t";
    } else if (text::is_printable(c)) {
      to += bytes;
    } else if (c < 0x100) {
      append_hex(to, "\\x%02x", c);
    } else if (c < 0x10000) {
      append_hex(to, "\\u%04x", c);
    } else {
      append_hex(to, "\\U%08x", c);
    }
  });
  out.append({&quote, 1}, user);
}

void append_repr(Tagged& out, const Value& v, int depth);

void append_items(Tagged& out, const std::vector<Value>& items, bool user, int depth) {
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out.append(", ", user);
    append_repr(out, items[i], depth + 1);
  }
}

void append_dict(Tagged& out, const DictObject& dict, bool user, int depth) {
  out.append("{", user);
  bool first = true;
  for (const auto& [key, value] : dict.entries) {
    if (!first) out.append(", ", user);
    first = false;
    append_repr(out, key, depth + 1);
    out.append(": ", user);
    append_repr(out, value, depth + 1);
  }
  out.append("}", user);
}

void append_repr(Tagged& out, const Value& v, int depth) {
  if (depth > kMaxValueDepth + 8)
    throw Failure{"value nested too deep"};  // a namespace inside itself
  switch (v.kind) {
    case Kind::kUndefined: return out.append("Undefined", false);
    case Kind::kNone: return out.append("None", v.user);
    case Kind::kBool: return out.append(v.i ? "True" : "False", v.user);
    case Kind::kInt: return out.append(std::to_string(v.i), v.user);
    case Kind::kFloat: return out.append(float_repr(v.d), v.user);
    case Kind::kString: {
      const bool markup = v.as<StringObject>().markup;
      if (markup) out.append("Markup(", false);
      append_string_repr(out, v.text());
      if (markup) out.append(")", false);
      return;
    }
    case Kind::kList:
      out.append("[", v.user);
      append_items(out, v.items(), v.user, depth);
      return out.append("]", v.user);
    case Kind::kTuple:
      out.append("(", v.user);
      append_items(out, v.items(), v.user, depth);
      return out.append(v.items().size() == 1 ? ",)" : ")", v.user);
    case Kind::kDict: return append_dict(out, v.as<DictObject>(), v.user, depth);
    case Kind::kRange: {
      const auto& r = v.as<RangeObject>();
      std::string s = "range(" + std::to_string(r.start) + ", " + std::to_string(r.stop);
      if (r.step != 1) s += ", " + std::to_string(r.step);
      return out.append(s + ")", false);
    }
    case Kind::kDictView: {
      const auto& view = v.as<DictViewObject>();
      out.append(std::string(type_name(v)) + "([", v.user);
      bool first = true;
      for (const auto& [key, value] : view.dict.as<DictObject>().entries) {
        if (!first) out.append(", ", v.user);
        first = false;
        if (view.which == DictViewObject::kItems) out.append("(", v.user);
        if (view.which != DictViewObject::kValues) append_repr(out, key, depth + 1);
        if (view.which == DictViewObject::kItems) out.append(", ", v.user);
        if (view.which != DictViewObject::kKeys) append_repr(out, value, depth + 1);
        if (view.which == DictViewObject::kItems) out.append(")", v.user);
      }
      return out.append("])", v.user);
    }
    case Kind::kNamespace: {
      out.append("<Namespace {", false);
      bool first = true;
      for (const auto& [key, value] : v.as<NamespaceObject>().attributes) {
        if (!first) out.append(", ", false);
        first = false;
        append_string_repr(out, Tagged(key, false));
        out.append(": ", false);
        append_repr(out, value, depth + 1);
      }
      return out.append("}>", false);
    }
    default: return out.append(std::string("<") + type_name(v) + " object>", false);
  }
}

void append_json_string(Tagged& out, const Tagged& s, bool user, bool ensure_ascii) {
  user = user || s.any_user();
  out.append("\"", user);
  append_escaped(out, s, [&](char32_t c, std::string_view bytes, std::string& to) {
    if (ensure_ascii && c >= 0x10000) {
      append_hex(to, "\\u%04x", 0xD800 + ((c - 0x10000) >> 10));
      append_hex(to, "\\u%04x", 0xDC00 + ((c - 0x10000) & 0x3FF));
    } else if (ensure_ascii && c >= 0x7F) {
      append_hex(to, "\\u%04x", c);
    } else if (c < 0x80) {
      append_json_escaped(static_cast<char>(c), to, JsonControls::kShort);
    } else {
      to += bytes;
    }
  });
  out.append("\"", user);
}

std::string json_float(double d) {
  if (std::isnan(d)) return "NaN";
  if (std::isinf(d)) return d < 0 ? "-Infinity" : "Infinity";
  return float_repr(d);
}

class JsonWriter {
 public:
  explicit JsonWriter(const JsonStyle& style) : style_(style) {}
  void write(const Value& v, int level) {
    switch (v.kind) {
      case Kind::kNone: return out.append("null", v.user);
      case Kind::kBool: return out.append(v.i ? "true" : "false", v.user);
      case Kind::kInt: return out.append(std::to_string(v.i), v.user);
      case Kind::kFloat: return out.append(json_float(v.d), v.user);
      case Kind::kString: return append_json_string(out, v.text(), v.user, style_.ensure_ascii);
      case Kind::kList:
      case Kind::kTuple: {
        if (v.items().empty()) return out.append("[]", v.user);
        out.append("[", v.user);
        bool first = true;
        for (const Value& item : v.items()) {
          separate(first, level + 1, v.user);
          write(item, level + 1);
        }
        return close("]", level, v.user);
      }
      case Kind::kDict: {
        auto entries = v.as<DictObject>().entries;
        if (entries.empty()) return out.append("{}", v.user);
        if (style_.sort_keys) {
          std::stable_sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
            return compare(a.first, b.first) < 0;
          });
        }
        out.append("{", v.user);
        bool first = true;
        for (const auto& [key, value] : entries) {
          separate(first, level + 1, v.user);
          append_json_string(out, key_text(key), v.user, style_.ensure_ascii);
          out.append(style_.key_separator, v.user);
          write(value, level + 1);
        }
        return close("}", level, v.user);
      }
      default:
        throw Failure{std::string("Object of type ") + type_name(v) + " is not JSON serializable"};
    }
  }
  Tagged out;

 private:
  void newline(int level, bool user) {
    if (style_.indent < 0) return;
    out.append("\n" + std::string(static_cast<size_t>(style_.indent * level), ' '), user);
  }
  void separate(bool& first, int level, bool user) {
    if (!first) out.append(style_.item_separator, user);
    first = false;
    newline(level, user);
  }
  void close(std::string_view bracket, int level, bool user) {
    newline(level, user);
    out.append(bracket, user);
  }
  static Tagged key_text(const Value& key) {
    switch (key.kind) {
      case Kind::kString: return key.text();
      case Kind::kNone: return Tagged("null", key.user);
      case Kind::kBool: return Tagged(key.i ? "true" : "false", key.user);
      case Kind::kInt: return Tagged(std::to_string(key.i), key.user);
      case Kind::kFloat: return Tagged(json_float(key.d), key.user);
      default:
        throw Failure{std::string("keys must be str, int, float, bool or None, not ") +
                      type_name(key)};
    }
  }
  const JsonStyle& style_;
};

}  // namespace

Tagged to_repr(const Value& v) {
  Tagged out;
  append_repr(out, v, 0);
  return out;
}

Tagged to_text(const Value& v) {
  if (v.is_string()) return v.text();
  if (v.is_undefined()) return {};
  return to_repr(v);
}

Tagged to_json(const Value& v, const JsonStyle& style) {
  JsonWriter writer(style);
  writer.write(v, 0);
  return std::move(writer.out);
}

}  // namespace weft::jinja
