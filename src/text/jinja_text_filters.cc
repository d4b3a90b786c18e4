// Filters on text, and the tests of `is`.
#include <algorithm>
#include <cctype>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja_interp.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

bool line_end(char32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 ||
         c == 0x2029;
}

}  // namespace

/// str.splitlines() as byte ranges without their ends.
std::vector<std::pair<size_t, size_t>> line_ranges(std::string_view s, bool keep_ends) {
  std::vector<std::pair<size_t, size_t>> out;
  size_t begin = 0;
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    size_t next = i + static_cast<size_t>(d.length);
    if (line_end(d.code)) {
      if (d.code == '\r' && next < s.size() && s[next] == '\n') ++next;
      out.emplace_back(begin, keep_ends ? next : i);
      begin = next;
    }
    i = next;
  }
  if (begin < s.size()) out.emplace_back(begin, s.size());
  return out;
}

namespace {

Tagged indent(const Tagged& s, const Tagged& by, bool first, bool blank, size_t max_bytes) {
  Tagged source = s;
  source.append("\n", false);  // as jinja2 does, for the sake of splitlines
  const auto lines = line_ranges(source.str(), false);
  Tagged out;
  if (first) out.append(by);
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) {
      out.append("\n", s.any_user());
      if (blank || lines[i].first < lines[i].second) out.append(by);
    }
    out.append(source.slice(lines[i].first, lines[i].second));
    if (out.size() > max_bytes) throw Failure{"indent makes a string beyond the output limit"};
  }
  return out;
}

/// Of a path ('/' stays), or of a query's key or value (a space becomes '+').
std::string urlencode(const std::string& s, bool query) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string out;
  for (const char c : s) {
    if (std::isalnum(static_cast<unsigned char>(c)) || c == '_' || c == '.' || c == '-' ||
        c == '~' || (c == '/' && !query)) {
      out += c;
    } else if (c == ' ' && query) {
      out += '+';
    } else {
      out += '%';
      out += kHex[static_cast<unsigned char>(c) >> 4];
      out += kHex[c & 15];
    }
  }
  return out;
}

int64_t count_words(std::string_view s) {
  int64_t words = 0;
  bool inside = false;
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    const uint8_t bits = text::char_table()(d.code);
    // \w of Python: letters, numbers and the underscore, no marks.
    const bool word = (bits & (text::kLetter | text::kNumber)) || d.code == '_';
    words += word && !inside;
    inside = word;
    i += static_cast<size_t>(d.length);
  }
  return words;
}

}  // namespace

bool Interpreter::text_filter(const std::string& name, const Value& v, const Args& args,
                              Value* result) {
  const std::string where = "filter '" + name + "'";
  const auto given = [](const Value* x) { return x && !x->is(Kind::kNone); };
  using CaseMap = std::string (*)(std::string_view);
  static constexpr std::pair<const char*, CaseMap> kMaps[] = {
      {"upper", upper}, {"lower", lower}, {"capitalize", capitalize}, {"title", title_words}};
  for (const auto& [map_name, map] : kMaps) {
    if (name != map_name) continue;
    bind(args, where, {});
    const Tagged s = to_text(v);
    *result = text(s.with_text(map(s.str())));
    return true;
  }
  if (name == "trim") {
    const auto a = bind(args, where, {"chars"});
    const std::string characters = given(a[0]) ? to_text(*a[0]).str() : "";
    *result = text(strip(to_text(v), given(a[0]) ? &characters : nullptr, true, true));
  } else if (name == "string") {
    bind(args, where, {});
    *result = v.is_string() ? v : text(to_text(v));
  } else if (name == "replace") {
    const auto a = bind(args, where, {"old", "new", "count"});
    if (!a[0] || !a[1]) fail("filter 'replace' needs two strings");
    const int64_t limit = given(a[2]) ? integer(*a[2], "count") : -1;
    *result =
        text(replace(to_text(v), to_text(*a[0]), to_text(*a[1]), limit, limits_.max_output_bytes));
  } else if (name == "e" || name == "escape" || name == "forceescape") {
    bind(args, where, {});
    const bool already = v.is_string() && v.as<StringObject>().markup && name != "forceescape";
    *result = already ? v : Value::string(escape_html(to_text(v)), true);
    spend(result->text().size() / 8);
  } else if (name == "safe") {
    bind(args, where, {});
    *result = Value::string(to_text(v), true);
  } else if (name == "indent") {
    const auto a = bind(args, where, {"width", "first", "blank"});
    if (v.is_undefined()) fail(undefined_message(v));
    if (!v.is_string()) fail(std::string("can't indent a '") + type_name(v) + "'");
    Tagged by(std::string(4, ' '), false);
    if (a[0] && a[0]->is_string()) {
      by = a[0]->text();
    } else if (a[0]) {
      const int64_t width = integer(*a[0], "width");
      if (width > 10'000) fail("indent width must be at most 10000");
      by = Tagged(std::string(static_cast<size_t>(std::max<int64_t>(0, width)), ' '), false);
    }
    *result = text(indent(to_text(v), by, a[1] && truthy(*a[1]), a[2] && truthy(*a[2]),
                          limits_.max_output_bytes));
  } else if (name == "format") {
    if (!args.positional.empty() && !args.keyword.empty()) {
      fail("can't handle positional and keyword arguments at the same time");
    }
    if (args.keyword.empty()) {
      *result = printf_format(to_text(v), Value::tuple(args.positional));
    } else {
      auto dict = std::make_shared<DictObject>();
      for (const auto& [key, value] : args.keyword) dict->set(Value::string(key), value);
      *result = printf_format(to_text(v), make_dict(dict));
    }
  } else if (name == "truncate") {
    const auto a = bind(args, where, {"length", "killwords", "end", "leeway"});
    const int64_t size = a[0] ? integer(*a[0], "length") : 255;
    const Tagged end = a[2] ? to_text(*a[2]) : Tagged("...", false);
    const int64_t leeway = given(a[3]) ? integer(*a[3], "leeway") : 5;
    const int64_t end_size = num_chars(end.str());
    if (size < end_size) {
      fail("expected length >= " + std::to_string(end_size) + ", got " + std::to_string(size));
    }
    if (leeway < 0) fail("expected leeway >= 0, got " + std::to_string(leeway));
    if (length(v) <= size + std::min<int64_t>(leeway, 1 << 30)) {
      *result = v;
      return true;
    }
    if (!v.is_string()) fail(std::string("can't truncate a '") + type_name(v) + "'");
    const Tagged& s = v.text();
    size_t cut = char_offset(s.str(), static_cast<size_t>(size - end_size));
    if (!(a[1] && truthy(*a[1]))) {
      const size_t space = std::string_view(s.str()).substr(0, cut).rfind(' ');
      if (space != std::string::npos) cut = space;
    }
    Tagged out = s.slice(0, cut);
    out.append(end);
    *result = text(std::move(out));
  } else if (name == "wordcount") {
    bind(args, where, {});
    *result = Value::integer(count_words(to_text(v).str()));
  } else if (name == "center") {
    const auto a = bind(args, where, {"width"});
    Args width;
    width.positional.push_back(a[0] ? *a[0] : Value::integer(80));
    *result = string_method(text(to_text(v)), "center", width);
  } else if (name == "urlencode") {
    bind(args, where, {});
    if (v.is(Kind::kDict) || v.is_sequence()) {
      std::vector<Value> pairs = v.is(Kind::kDict) ? std::vector<Value>() : iterate(v);
      if (v.is(Kind::kDict)) {
        for (const auto& [key, value] : v.as<DictObject>().entries)
          pairs.push_back(Value::tuple({key, value}));
      }
      Tagged out;
      for (const Value& pair : pairs) {
        const std::vector<Value> kv = iterate(pair);
        if (kv.size() != 2) fail("urlencode needs pairs");
        if (!out.empty()) out.append("&", false);
        const Tagged key = to_text(kv[0]), value = to_text(kv[1]);
        out.append(urlencode(key.str(), /*query=*/true), key.any_user());
        out.append("=", false);
        out.append(urlencode(value.str(), /*query=*/true), value.any_user());
      }
      *result = text(std::move(out));
    } else {
      const Tagged s = to_text(v);
      *result = text(s.with_text(urlencode(s.str(), /*query=*/false)));
    }
  } else {
    return false;
  }
  return true;
}

bool Interpreter::test(const std::string& name, const Value& v, const Args& args) {
  spend(2);
  const std::string where = "test '" + name + "'";
  const auto argument = [&]() -> const Value& {
    const auto a = bind(args, where, {"other"});
    if (!a[0]) fail(where + " needs an argument");
    return *a[0];
  };
  const auto is = [&](std::initializer_list<std::string_view> names) {
    return std::find(names.begin(), names.end(), name) != names.end();
  };
  if (is({"eq", "equalto", "=="})) return equals(v, argument());
  if (is({"ne", "!="})) return !equals(v, argument());
  if (is({"lt", "lessthan", "<"})) return compare(v, argument(), "<") < 0;
  if (is({"le", "<="})) return compare(v, argument(), "<=") <= 0;
  if (is({"gt", "greaterthan", ">"})) return compare(v, argument(), ">") > 0;
  if (is({"ge", ">="})) return compare(v, argument(), ">=") >= 0;
  if (name == "in") return contains(argument(), v);
  if (name == "sameas") {
    const Value& other = argument();
    return v.kind == other.kind &&
           (v.object || other.object ? v.object == other.object : equals(v, other));
  }
  if (name == "divisibleby") {
    const Value& by = argument();
    return !truthy(binary('%', v, by));
  }
  bind(args, where, {});
  if (name == "defined") return !v.is_undefined();
  if (name == "undefined") return v.is_undefined();
  if (name == "none") return v.is(Kind::kNone);
  if (name == "true") return v.is(Kind::kBool) && v.i == 1;
  if (name == "false") return v.is(Kind::kBool) && v.i == 0;
  if (name == "boolean") return v.is(Kind::kBool);
  if (name == "integer") return v.is(Kind::kInt);
  if (name == "float") return v.is(Kind::kFloat);
  if (name == "number") return v.is_number();
  if (name == "string") return v.is_string();
  if (name == "mapping") return v.is(Kind::kDict);
  if (name == "sequence") {
    return v.is_string() || v.is_sequence() || v.is(Kind::kDict) || v.is(Kind::kRange) ||
           v.is_undefined();
  }
  if (name == "iterable") {
    return v.is_string() || v.is_sequence() || v.is(Kind::kDict) || v.is(Kind::kRange) ||
           v.is(Kind::kDictView) || v.is(Kind::kIterator) || v.is(Kind::kLoop) || v.is_undefined();
  }
  if (name == "callable") {
    return v.is(Kind::kMacro) || v.is(Kind::kFunction) || v.is(Kind::kMethod) ||
           v.is(Kind::kJoiner) || v.is(Kind::kLoop) || v.is_undefined();
  }
  if (name == "even") return !truthy(binary('%', v, Value::integer(2)));
  if (name == "odd") return equals(binary('%', v, Value::integer(2)), Value::integer(1));
  if (name == "lower" || name == "upper") {
    bool any = false;
    const Tagged s = to_text(v);
    for (size_t i = 0; i < s.size();) {
      const text::Decoded d = text::decode_valid(s.str().data() + i);
      i += static_cast<size_t>(d.length);
      const bool up = text::is_upper(d.code), low = text::is_lower(d.code);
      if (name == "lower" ? up || text::is_title(d.code) : low || text::is_title(d.code))
        return false;
      any |= up || low;
    }
    return any;
  }
  if (name == "escaped") return v.is_string() && v.as<StringObject>().markup;
  fail("test '" + name + "' is not known");
}

}  // namespace weft::jinja
