// Methods of str, list, tuple, dict, and of the helper objects.
#include <algorithm>

#include "base/utf8.h"
#include "text/jinja_interp.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

constexpr std::string_view kStringMethods[] = {
    "capitalize",   "casefold",     "center",  "count",     "endswith",   "expandtabs",
    "find",         "format",       "index",   "isalnum",   "isalpha",    "isascii",
    "isdecimal",    "isdigit",      "islower", "isnumeric", "isspace",    "istitle",
    "isupper",      "join",         "ljust",   "lower",     "lstrip",     "partition",
    "removeprefix", "removesuffix", "replace", "rfind",     "rindex",     "rjust",
    "rpartition",   "rsplit",       "rstrip",  "split",     "splitlines", "startswith",
    "strip",        "swapcase",     "title",   "upper",     "zfill"};
constexpr std::string_view kListMethods[] = {"append", "clear",   "copy",   "count",
                                             "extend", "index",   "insert", "pop",
                                             "remove", "reverse", "sort"};
constexpr std::string_view kDictMethods[] = {"clear", "copy",    "get",        "items",  "keys",
                                             "pop",   "popitem", "setdefault", "update", "values"};
constexpr std::string_view kTupleMethods[] = {"count", "index"};
constexpr std::string_view kCyclerMethods[] = {"next", "reset"};

template <size_t N>
bool listed(const std::string_view (&names)[N], std::string_view name) {
  return std::find(std::begin(names), std::end(names), name) != std::end(names);
}

}  // namespace

bool has_method(const Value& v, std::string_view name) {
  switch (v.kind) {
    case Kind::kString: return listed(kStringMethods, name);
    case Kind::kList: return listed(kListMethods, name);
    case Kind::kTuple: return listed(kTupleMethods, name);
    case Kind::kDict: return listed(kDictMethods, name);
    case Kind::kRange: return listed(kTupleMethods, name);
    case Kind::kCycler: return listed(kCyclerMethods, name);
    default: return false;
  }
}

bool is_mutating(const Value& v, std::string_view name) {
  if (v.is(Kind::kList)) return name != "copy" && name != "count" && name != "index";
  static constexpr std::string_view kMutating[] = {"clear", "pop", "popitem", "setdefault",
                                                   "update"};
  return v.is(Kind::kDict) && listed(kMutating, name);
}

Value Interpreter::method(const Value& self, const std::string& name, const Args& args) {
  switch (self.kind) {
    case Kind::kString: return string_method(self, name, args);
    case Kind::kDict: return dict_method(self, name, args);
    case Kind::kList:
    case Kind::kTuple:
    case Kind::kRange: return list_method(self, name, args);
    case Kind::kCycler: {
      auto& cycler = self.as<CyclerObject>();
      const Value now = cycler.items[cycler.position];
      cycler.position = name == "next" ? (cycler.position + 1) % cycler.items.size() : 0;
      return name == "next" ? now : Value::none();
    }
    case Kind::kLoop: {
      auto& loop = self.as<LoopObject>();
      if (name == "cycle") {
        if (args.positional.empty()) fail("no items for cycling given");
        return args.positional[loop.index % args.positional.size()];
      }
      const bool same =
          loop.changed && std::equal(loop.changed->begin(), loop.changed->end(),
                                     args.positional.begin(), args.positional.end(), equals);
      loop.changed = args.positional;
      return Value::boolean(!same);
    }
    default: fail("'" + name + "' is not callable");
  }
}

Value Interpreter::dict_method(const Value& self, const std::string& name, const Args& args) {
  const auto& dict = self.as<DictObject>();
  const std::string where = "dict." + name + "()";
  if (name == "get") {
    const auto a = bind(args, where, {"key", "default"});
    if (!a[0]) fail("get expected at least 1 argument, got 0");
    check_hashable(*a[0]);
    const Value* v = dict.find(*a[0]);
    return v ? *v : a[1] ? *a[1] : Value::none();
  }
  bind(args, where, {});
  if (name == "copy") return self;
  auto view = std::make_shared<DictViewObject>();
  view->dict = self;
  view->which = name == "keys"     ? DictViewObject::kKeys
                : name == "values" ? DictViewObject::kValues
                                   : DictViewObject::kItems;
  Value v = Value::of_object(Kind::kDictView, std::move(view), self.user);
  if (depth_of(v) > kMaxValueDepth) fail("value nested too deep");
  return v;
}

Value Interpreter::list_method(const Value& self, const std::string& name, const Args& args) {
  if (name == "copy") return self;
  const auto a = bind(args, std::string(type_name(self)) + "." + name + "()", {"value"});
  if (!a[0]) fail(name + "() takes exactly one argument (0 given)");
  const std::vector<Value> items = iterate(self);
  int64_t count = 0;
  for (size_t i = 0; i < items.size(); ++i) {
    if (!equals(items[i], *a[0])) continue;
    if (name == "index") return Value::integer(static_cast<int64_t>(i));
    ++count;
  }
  if (name == "index") fail(to_repr(*a[0]).str() + " is not in " + type_name(self));
  return Value::integer(count);
}

/// str.split and str.rsplit; limit < 0: no limit, separator null: runs of whitespace.
std::vector<Value> Interpreter::split(const Tagged& tagged, const Value* separator, int64_t limit,
                                      bool from_right) {
  const std::string& s = tagged.str();
  std::vector<std::pair<size_t, size_t>> parts;
  spend(s.size() / 8);
  const auto more = [&] { return limit < 0 || static_cast<int64_t>(parts.size()) < limit; };
  if (separator) {
    const std::string& by = separator->text().str();
    if (by.empty()) fail("empty separator");
    if (!from_right) {
      size_t begin = 0;
      for (size_t found; more() && (found = s.find(by, begin)) != std::string::npos;
           begin = found + by.size()) {
        parts.emplace_back(begin, found);
      }
      parts.emplace_back(begin, s.size());
    } else {
      size_t end = s.size();
      while (more() && end >= by.size()) {
        const size_t found = s.rfind(by, end - by.size());
        if (found == std::string::npos) break;
        parts.emplace_back(found + by.size(), end);
        end = found;
      }
      parts.emplace_back(0, end);
    }
  } else if (!from_right) {
    size_t i = 0;
    const auto skip = [&](bool spaces) {
      while (i < s.size()) {
        const text::Decoded d = text::decode_valid(s.data() + i);
        if (is_python_space(d.code) != spaces) break;
        i += static_cast<size_t>(d.length);
      }
      return i;
    };
    while (skip(true) < s.size()) {
      const size_t begin = i;
      if (!more()) {
        const Tagged rest = strip(tagged.slice(begin, s.size()), nullptr, false, true);
        parts.emplace_back(begin, begin + rest.size());
        break;
      }
      parts.emplace_back(begin, skip(false));
    }
  } else {
    size_t i = s.size();
    const auto skip = [&](bool spaces) {
      while (i > 0) {
        const text::Decoded d = text::decode_before(s.data(), s.data() + i);
        if (is_python_space(d.code) != spaces) break;
        i -= static_cast<size_t>(d.length);
      }
      return i;
    };
    while (skip(true) > 0) {
      const size_t end = i;
      if (!more()) {
        const Tagged rest = strip(tagged.slice(0, end), nullptr, true, false);
        parts.emplace_back(end - rest.size(), end);
        break;
      }
      const size_t begin = skip(false);
      parts.emplace_back(begin, end);
    }
  }
  if (from_right) std::reverse(parts.begin(), parts.end());
  std::vector<Value> out;
  spend(4 * parts.size());
  for (const auto& [begin, end] : parts) out.push_back(text(tagged.slice(begin, end)));
  return out;
}

namespace {

/// start and end arguments of find, count, startswith, ... as byte offsets.
struct Window {
  size_t begin = 0, end = 0;
  bool valid = true;
};
Window window(const std::string& s, const Value* start, const Value* end) {
  Window w{0, s.size()};
  const auto given = [](const Value* v) { return v && v->is_integral(); };
  if (!given(start) && !given(end)) return w;
  const int64_t n = num_chars(s);
  const auto clip = [&](int64_t i) { return i < 0 ? std::max<int64_t>(0, i + n) : i; };
  const int64_t from = given(start) ? clip(start->i) : 0;
  const int64_t to = given(end) ? std::min(clip(end->i), n) : n;
  w.valid = from <= to && from <= n;
  if (w.valid) {
    w.begin = char_offset(s, static_cast<size_t>(from));
    w.end = char_offset(s, static_cast<size_t>(to));
  }
  return w;
}

bool all_chars(const std::string& s, bool (*predicate)(char32_t)) {
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    if (!predicate(d.code)) return false;
    i += static_cast<size_t>(d.length);
  }
  return !s.empty();
}
bool is_letter(char32_t c) {
  return (text::char_table()(c) & text::kLetter) != 0;
}
bool is_number(char32_t c) {
  return (text::char_table()(c) & text::kNumber) != 0;
}
/// Digits: decimal ones and the superscripts and circles that stand for one digit.
bool is_digit(char32_t c) {
  return text::is_decimal(c) || c == 0xB2 || c == 0xB3 || c == 0xB9 || c == 0x2070 ||
         (c >= 0x2074 && c <= 0x2079) || (c >= 0x2080 && c <= 0x2089) ||
         (c >= 0x2460 && c <= 0x2468) || (c >= 0x2474 && c <= 0x247C);
}

bool predicate(const std::string& name, const std::string& s) {
  if (name == "isspace") return all_chars(s, is_python_space);
  if (name == "isalpha") return all_chars(s, is_letter);
  if (name == "isalnum")
    return all_chars(s, [](char32_t c) { return is_letter(c) || is_number(c); });
  if (name == "isdigit") return all_chars(s, is_digit);
  if (name == "isdecimal") return all_chars(s, text::is_decimal);
  if (name == "isnumeric") return all_chars(s, is_number);
  if (name == "isascii") return s.empty() || all_chars(s, [](char32_t c) { return c < 0x80; });
  bool any = false, inside = false;
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    i += static_cast<size_t>(d.length);
    const bool up = text::is_upper(d.code), low = text::is_lower(d.code),
               head = text::is_title(d.code);
    if (name == "islower" && (up || head)) return false;
    if (name == "isupper" && (low || head)) return false;
    if (name == "istitle" && ((inside && (up || head)) || (!inside && low))) return false;
    inside = up || low || head;
    any |= name == "islower" ? low : name == "isupper" ? up : inside;
  }
  return any;
}

std::string swapcase(const std::string& s) {
  std::string out;
  for (size_t i = 0; i < s.size();) {
    const text::Decoded d = text::decode_valid(s.data() + i);
    const std::string one = s.substr(i, static_cast<size_t>(d.length));
    out += text::is_upper(d.code) ? lower(one) : upper(one);
    i += static_cast<size_t>(d.length);
  }
  return out;
}

}  // namespace

Value Interpreter::string_method(const Value& self, const std::string& name, const Args& args) {
  const Tagged& s = self.text();
  const std::string& bytes = s.str();
  const std::string where = "str." + name + "()";
  spend(1 + s.size() / 16);
  const auto given = [](const Value* v) { return v && !v->is(Kind::kNone); };
  const auto string_argument = [&](const Value* v) -> const Tagged& {
    if (v && v->is_undefined()) fail(undefined_message(*v));
    if (!v || !v->is_string())
      fail(where + " needs a string, not " + (v ? type_name(*v) : "nothing"));
    return v->text();
  };
  if (name.starts_with("is")) {
    bind(args, where, {});
    return Value::boolean(predicate(name, bytes));
  }
  if (name == "strip" || name == "lstrip" || name == "rstrip") {
    const auto a = bind(args, where, {"chars"});
    const std::string* characters = given(a[0]) ? &string_argument(a[0]).str() : nullptr;
    return text(strip(s, characters, name != "rstrip", name != "lstrip"));
  }
  if (name == "split" || name == "rsplit") {
    const auto a = bind(args, where, {"sep", "maxsplit"});
    if (given(a[0])) string_argument(a[0]);
    return Value::list(split(s, given(a[0]) ? a[0] : nullptr,
                             a[1] ? integer(*a[1], "maxsplit") : -1, name == "rsplit"));
  }
  if (name == "startswith" || name == "endswith") {
    const auto a = bind(args, where, {"prefix", "start", "end"});
    const Window w = window(bytes, a[1], a[2]);
    const std::string_view part =
        w.valid ? std::string_view(bytes).substr(w.begin, w.end - w.begin) : std::string_view();
    const auto matches = [&](const Value& v) {
      const std::string& wanted = string_argument(&v).str();
      return w.valid && (name == "startswith" ? part.starts_with(wanted) : part.ends_with(wanted));
    };
    if (a[0] && a[0]->is(Kind::kTuple)) {
      return Value::boolean(std::any_of(a[0]->items().begin(), a[0]->items().end(), matches));
    }
    string_argument(a[0]);
    return Value::boolean(matches(*a[0]));
  }
  if (name == "replace") {
    const auto a = bind(args, where, {"old", "new", "count"});
    return text(replace(s, string_argument(a[0]), string_argument(a[1]),
                        a[2] ? integer(*a[2], "count") : -1, limits_.max_output_bytes));
  }
  if (name == "join") {
    const auto a = bind(args, where, {"iterable"});
    if (!a[0]) fail("str.join() needs an iterable");
    if (a[0]->is_undefined()) return text(Tagged());
    std::vector<Value> parts;
    size_t i = 0;
    for (const Value& item : iterate(*a[0])) {
      if (!item.is_string()) {
        fail("sequence item " + std::to_string(i) + ": expected str instance, " + type_name(item) +
             " found");
      }
      if (i++ > 0) parts.push_back(self);
      parts.push_back(item);
    }
    return join_texts(parts, self.as<StringObject>().markup);
  }
  if (name == "find" || name == "rfind" || name == "index" || name == "rindex" || name == "count") {
    const auto a = bind(args, where, {"sub", "start", "end"});
    const std::string& wanted = string_argument(a[0]).str();
    const Window w = window(bytes, a[1], a[2]);
    const std::string_view part =
        w.valid ? std::string_view(bytes).substr(w.begin, w.end - w.begin) : std::string_view();
    if (name == "count") {
      if (!w.valid) return Value::integer(0);
      if (wanted.empty()) return Value::integer(num_chars(part) + 1);
      int64_t count = 0;
      for (size_t i = 0; (i = part.find(wanted, i)) != std::string_view::npos; i += wanted.size())
        ++count;
      return Value::integer(count);
    }
    const size_t found = !w.valid         ? std::string::npos
                         : name[0] == 'r' ? part.rfind(wanted)
                                          : part.find(wanted);
    if (found != std::string::npos) {
      return Value::integer(num_chars(std::string_view(bytes).substr(0, w.begin + found)));
    }
    if (name.ends_with("index")) fail("substring not found");
    return Value::integer(-1);
  }
  if (name == "partition" || name == "rpartition") {
    const auto a = bind(args, where, {"sep"});
    const std::string& by = string_argument(a[0]).str();
    if (by.empty()) fail("empty separator");
    const size_t found = name[0] == 'r' ? bytes.rfind(by) : bytes.find(by);
    const bool markup = self.as<StringObject>().markup;  // of the whole: of its parts too
    const auto part = [markup](Tagged t) { return Value::string(std::move(t), markup); };
    if (found == std::string::npos) {
      const Value empty = part(Tagged());
      return name[0] == 'r' ? Value::tuple({empty, empty, self})
                            : Value::tuple({self, empty, empty});
    }
    return Value::tuple({part(s.slice(0, found)), part(s.slice(found, found + by.size())),
                         part(s.slice(found + by.size(), s.size()))});
  }
  if (name == "removeprefix" || name == "removesuffix") {
    const auto a = bind(args, where, {"affix"});
    const std::string& affix = string_argument(a[0]).str();
    if (name == "removeprefix")
      return text(bytes.starts_with(affix) ? s.slice(affix.size(), s.size()) : s);
    return text(bytes.ends_with(affix) ? s.slice(0, s.size() - affix.size()) : s);
  }
  if (name == "splitlines") {
    const auto a = bind(args, where, {"keepends"});
    std::vector<Value> lines;
    for (const auto& [begin, end] : line_ranges(bytes, a[0] && truthy(*a[0])))
      lines.push_back(text(s.slice(begin, end)));
    return make_list(std::move(lines));
  }
  if (name == "center" || name == "ljust" || name == "rjust" || name == "zfill") {
    const auto a = bind(args, where, {"width", "fillchar"});
    if (!a[0]) fail(where + " needs a width");
    const int64_t width = integer(*a[0], "width");
    if (width > static_cast<int64_t>(limits_.max_output_bytes) / 4)
      fail(where + ": width too large");
    const Tagged fill = name == "zfill" ? Tagged("0", false)
                        : a[1]          ? string_argument(a[1])
                                        : Tagged(" ", false);
    if (num_chars(fill.str()) != 1) fail("The fill character must be exactly one character long");
    const int64_t pad = std::max<int64_t>(0, width - num_chars(bytes));
    // Python's centre leans left or right depending on both parities.
    const int64_t left = name == "center" ? pad / 2 + (pad & width & 1) : name == "ljust" ? 0 : pad;
    spend(static_cast<uint64_t>(pad));
    Tagged out;
    const bool sign = name == "zfill" && !bytes.empty() && (bytes[0] == '-' || bytes[0] == '+');
    if (sign) out.append(s.slice(0, 1));
    for (int64_t i = 0; i < left; ++i) out.append(fill);
    out.append(s.slice(sign ? 1 : 0, s.size()));
    for (int64_t i = left; i < pad; ++i) out.append(fill);
    return text(std::move(out));
  }
  if (name == "expandtabs") {
    const auto a = bind(args, where, {"tabsize"});
    const int64_t tab = a[0] ? std::clamp<int64_t>(integer(*a[0], "tabsize"), 0, 1000) : 8;
    Tagged out;
    int64_t column = 0;
    for (const Value& c : iterate(self)) {
      if (c.text().str() != "\t") {
        out.append(c.text());
        column = c.text().str() == "\n" || c.text().str() == "\r" ? 0 : column + 1;
        continue;
      }
      const int64_t n = tab == 0 ? 0 : tab - column % tab;
      out.append(std::string(static_cast<size_t>(n), ' '), c.text().any_user());
      column += n;
      spend(static_cast<uint64_t>(n));
    }
    return text(std::move(out));
  }
  if (name == "format")
    return Value::string(string_format(s, args).text(), self.as<StringObject>().markup);
  bind(args, where, {});
  if (name == "upper") return text(s.with_text(upper(bytes)));
  if (name == "lower") return text(s.with_text(lower(bytes)));
  if (name == "casefold") return text(s.with_text(lower(bytes)));
  if (name == "capitalize") return text(s.with_text(capitalize(bytes)));
  if (name == "title") return text(s.with_text(title(bytes)));
  if (name == "swapcase") return text(s.with_text(swapcase(bytes)));
  fail("str has no method '" + name + "'");
}

}  // namespace weft::jinja
