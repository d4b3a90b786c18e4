// "..." % args and "...".format(...).
#include <algorithm>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "base/utf8.h"
#include "text/jinja_interp.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

constexpr int64_t kMaxWidth = 1 << 16;

/// How one value is to be written: the union of printf and str.format.
struct Spec {
  std::string fill = " ";
  char align = '\0';  // < > ^ =
  char sign = '-';
  bool alternate = false;
  char grouping = '\0';
  int64_t width = 0, precision = -1;
  char type = '\0';
};

void group_digits(std::string& digits, char separator) {
  size_t whole = digits.find_first_not_of("0123456789");
  if (whole == std::string::npos) whole = digits.size();
  for (size_t i = whole; i > 3; i -= 3) digits.insert(i - 3, 1, separator);
}

std::string float_text(double d, const Spec& spec) {
  const double size = std::fabs(d);
  char type = spec.type;
  if (!std::isfinite(d)) {
    const std::string s = std::isnan(d) ? "nan" : "inf";
    return type >= 'A' && type <= 'Z' ? (s == "nan" ? "NAN" : "INF") : s;
  }
  if (type == '\0' && spec.precision < 0) return float_repr(size);
  char buffer[800];
  const int precision =
      static_cast<int>(std::min<int64_t>(spec.precision < 0 ? 6 : spec.precision, 300));
  const double shown = type == '%' ? size * 100 : size;
  if (type == '\0' || type == 'n') type = 'g';
  const char format[] = {'%',
                         spec.alternate ? '#' : '.',
                         spec.alternate ? '.' : '*',
                         spec.alternate ? '*' : (type == '%' ? 'f' : type),
                         spec.alternate ? (type == '%' ? 'f' : type) : '\0',
                         '\0'};
  std::snprintf(buffer, sizeof buffer, format, precision, shown);
  std::string out = buffer;
  if (type == '%') out += '%';
  if (spec.type == '\0' && out.find_first_of(".en") == std::string::npos) out += ".0";
  return out;
}

std::string integer_text(uint64_t magnitude, const Spec& spec) {
  const int base = spec.type == 'x' || spec.type == 'X' ? 16
                   : spec.type == 'o'                   ? 8
                   : spec.type == 'b'                   ? 2
                                                        : 10;
  char buffer[64];
  std::string out(buffer, std::to_chars(buffer, buffer + sizeof buffer, magnitude, base).ptr);
  if (spec.type == 'X') {
    for (char& c : out) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  if (spec.grouping) group_digits(out, spec.grouping);
  return out;
}

/// Sign, prefix and digits put to the width.
std::string pad_number(const std::string& sign, const std::string& digits, const Spec& spec) {
  const auto size = static_cast<int64_t>(sign.size() + digits.size());
  const auto missing = static_cast<size_t>(std::max<int64_t>(0, spec.width - size));
  const char align = spec.align ? spec.align : '>';
  std::string fill;
  const auto fills = [&](size_t n) {
    fill.clear();
    for (size_t i = 0; i < n; ++i) fill += spec.fill;
    return fill;
  };
  switch (align) {
    case '<': return sign + digits + fills(missing);
    case '^': return fills(missing / 2) + sign + digits + fills(missing - missing / 2);
    case '=': return sign + fills(missing) + digits;
    default: return fills(missing) + sign + digits;
  }
}

std::string number_text(const Value& v, const Spec& spec) {
  const bool negative = v.is(Kind::kFloat) ? std::signbit(v.d) && !std::isnan(v.d) : v.i < 0;
  std::string sign = negative ? "-" : spec.sign == '-' ? "" : std::string(1, spec.sign);
  const bool real =
      v.is(Kind::kFloat) ||
      (spec.type && std::string_view("eEfFgGn%").find(spec.type) != std::string_view::npos &&
       spec.type != 'n');
  std::string digits;
  if (real) {
    digits = float_text(v.number(), spec);
    if (spec.grouping) group_digits(digits, spec.grouping);
  } else {
    digits =
        integer_text(negative ? 0 - static_cast<uint64_t>(v.i) : static_cast<uint64_t>(v.i), spec);
    if (spec.alternate && spec.type &&
        std::string_view("xXob").find(spec.type) != std::string_view::npos) {
      sign += std::string("0") + spec.type;
    }
    if (spec.precision > static_cast<int64_t>(digits.size())) {
      digits.insert(0, static_cast<size_t>(spec.precision) - digits.size(), '0');
    }
  }
  return pad_number(sign, digits, spec);
}

Tagged string_text(const Tagged& s, const Spec& spec) {
  Tagged cut = spec.precision >= 0
                   ? s.slice(0, char_offset(s.str(), static_cast<size_t>(spec.precision)))
                   : s;
  const int64_t missing = std::max<int64_t>(0, spec.width - num_chars(cut.str()));
  const int64_t left = spec.align == '>' ? missing : spec.align == '^' ? missing / 2 : 0;
  Tagged out;
  for (int64_t i = 0; i < left; ++i) out.append(spec.fill, false);
  out.append(cut);
  for (int64_t i = left; i < missing; ++i) out.append(spec.fill, false);
  return out;
}

int64_t read_number(std::string_view s, size_t& i) {
  int64_t n = 0;
  while (i < s.size() && s[i] >= '0' && s[i] <= '9') {
    n = n * 10 + (s[i++] - '0');
    if (n > kMaxWidth) throw Failure{"format width or precision above 65536"};
  }
  return n;
}

/// [[fill]align][sign][#][0][width][,][.precision][type]
Spec parse_spec(std::string_view s) {
  Spec spec;
  size_t i = 0;
  const auto aligns = [](char c) { return c == '<' || c == '>' || c == '^' || c == '='; };
  if (!s.empty()) {
    const auto first = static_cast<size_t>(text::decode_valid(s.data()).length);
    if (first < s.size() && aligns(s[first])) {
      spec.fill = s.substr(0, first);
      spec.align = s[first];
      i = first + 1;
    } else if (aligns(s[0])) {
      spec.align = s[0];
      i = 1;
    }
  }
  const auto take = [&](char c) { return i < s.size() && s[i] == c && (++i, true); };
  if (take('+'))
    spec.sign = '+';
  else if (take(' '))
    spec.sign = ' ';
  else
    take('-');
  spec.alternate = take('#');
  if (take('0') && !spec.align) {
    spec.fill.assign(1, '0');
    spec.align = '=';
  }
  spec.width = read_number(s, i);
  if (take(','))
    spec.grouping = ',';
  else if (take('_'))
    spec.grouping = '_';
  if (take('.')) {
    if (i >= s.size() || s[i] < '0' || s[i] > '9')
      throw Failure{"Format specifier missing precision"};
    spec.precision = read_number(s, i);
  }
  if (i < s.size()) spec.type = s[i++];
  if (i < s.size()) throw Failure{"Invalid format specifier"};
  return spec;
}

Tagged format_value(const Value& v, std::string_view spec_text) {
  if (spec_text.empty()) return to_text(v);
  const Spec spec = parse_spec(spec_text);
  const auto unknown = [&] {
    return Failure{std::string("Unknown format code '") + spec.type + "' for object of type '" +
                   type_name(v) + "'"};
  };
  if (v.is_string()) {
    if (spec.type != '\0' && spec.type != 's') throw unknown();
    if (spec.align == '=') throw Failure{"'=' alignment not allowed in string format specifier"};
    return string_text(v.text(), spec);
  }
  if (v.is(Kind::kBool) && spec.type == '\0')
    return Tagged(number_text(Value::integer(v.i), spec), v.user);
  if (v.is_number()) {
    const std::string_view allowed = v.is(Kind::kFloat) ? "eEfFgGn%" : "bcdoxXneEfFgG%";
    if (spec.type != '\0' && allowed.find(spec.type) == std::string_view::npos) throw unknown();
    if (v.is_integral() && spec.precision >= 0 &&
        std::string_view("eEfFgG%").find(spec.type) == std::string_view::npos) {
      throw Failure{"Precision not allowed in integer format specifier"};
    }
    return Tagged(number_text(v, spec), v.user);
  }
  throw Failure{std::string("unsupported format string passed to ") + type_name(v) + ".__format__"};
}

}  // namespace

Value Interpreter::string_format(const Tagged& format, const Args& args) {
  const std::string& f = format.str();
  Tagged out;
  size_t next_automatic = 0;
  const auto position = [&](const std::string& name) -> const Value& {
    const bool number = name.find_first_not_of("0123456789") == std::string::npos;
    if (!number) {
      for (const auto& [key, value] : args.keyword) {
        if (key == name) return value;
      }
      fail("format: no argument named '" + name + "'");
    }
    if (name.size() > 6) fail("Replacement index out of range");
    const size_t i = name.empty() ? next_automatic++ : static_cast<size_t>(std::stol(name));
    if (i >= args.positional.size()) {
      fail("Replacement index " + std::to_string(i) + " out of range for positional args tuple");
    }
    return args.positional[i];
  };
  for (size_t i = 0; i < f.size();) {
    const char c = f[i];
    if ((c == '{' || c == '}') && i + 1 < f.size() && f[i + 1] == c) {
      out.append(format.slice(i, i + 1));
      i += 2;
      continue;
    }
    if (c == '}') fail("Single '}' encountered in format string");
    if (c != '{') {
      const size_t end = std::min(f.find_first_of("{}", i), f.size());
      out.append(format.slice(i, end));
      i = end;
      continue;
    }
    size_t end = i + 1;
    for (int level = 1; end < f.size(); ++end) {
      if (f[end] == '{') ++level;
      if (f[end] == '}' && --level == 0) break;
    }
    if (end >= f.size()) fail("expected '}' before end of string");
    std::string field = f.substr(i + 1, end - i - 1), spec;
    i = end + 1;
    if (const size_t colon = field.find(':'); colon != std::string::npos) {
      spec = field.substr(colon + 1);
      field.resize(colon);
      if (spec.find('{') != std::string::npos) fail("nested format fields are not supported");
    }
    char conversion = '\0';
    if (const size_t bang = field.find('!'); bang != std::string::npos) {
      if (bang + 2 != field.size()) fail("expected ':' after conversion specifier");
      conversion = field.back();
      field.resize(bang);
    }
    const size_t name_end = std::min(field.find_first_of(".["), field.size());
    Value v = position(field.substr(0, name_end));
    for (size_t k = name_end; k < field.size();) {
      if (field[k] == '.') {
        const size_t stop = std::min(field.find_first_of(".[", k + 1), field.size());
        v = attribute(v, field.substr(k + 1, stop - k - 1));
        k = stop;
      } else {
        const size_t stop = field.find(']', k);
        if (stop == std::string::npos) fail("Missing ']' in format string");
        const std::string key = field.substr(k + 1, stop - k - 1);
        const bool number =
            !key.empty() && key.size() < 10 && key.find_first_not_of("0123456789") == key.npos;
        v = item(v, number ? Value::integer(std::stol(key)) : Value::string(key));
        k = stop + 1;
        if (k < field.size() && field[k] != '.' && field[k] != '[')
          fail("Only '.' or '[' may follow ']' in format field specifier");
      }
    }
    if (conversion == 'r' || conversion == 'a') v = text(to_repr(v));
    if (conversion == 's') v = text(to_text(v));
    if (v.is_undefined() && !spec.empty()) fail(undefined_message(v));
    const Tagged piece = format_value(v, spec);
    if (out.size() + piece.size() > limits_.max_output_bytes)
      fail("format makes a string beyond the output limit");
    out.append(piece);
    spend(1 + piece.size() / 8);
  }
  return text(std::move(out));
}

Value Interpreter::printf_format(const Tagged& format, const Value& args) {
  const std::string& f = format.str();
  const bool mapping = args.is(Kind::kDict);
  const bool many = args.is(Kind::kTuple);
  size_t used = 0;
  const auto next_argument = [&]() -> Value {
    if (many ? used >= args.items().size() : used >= 1)
      fail("not enough arguments for format string");
    return many ? args.items()[used++] : (++used, args);
  };
  Tagged out;
  for (size_t i = 0; i < f.size();) {
    if (f[i] != '%') {
      const size_t end = std::min(f.find('%', i), f.size());
      out.append(format.slice(i, end));
      i = end;
      continue;
    }
    const size_t begin = i++;
    Value v;
    bool given = false;
    if (i < f.size() && f[i] == '(') {
      const size_t end = f.find(')', i);
      if (end == std::string::npos) fail("incomplete format key");
      if (!mapping) fail("format requires a mapping");
      const Value* found =
          args.as<DictObject>().find(std::string_view(f).substr(i + 1, end - i - 1));
      if (!found) fail("format: no key '" + f.substr(i + 1, end - i - 1) + "'");
      v = *found;
      given = true;
      used = 1;
      i = end + 1;
    }
    Spec spec;
    for (; i < f.size() && std::string_view("-+ #0").find(f[i]) != std::string_view::npos; ++i) {
      if (f[i] == '-') spec.align = '<';
      if (f[i] == '+') spec.sign = '+';
      if (f[i] == ' ' && spec.sign != '+') spec.sign = ' ';
      if (f[i] == '#') spec.alternate = true;
      if (f[i] == '0') spec.fill.assign(1, '0');
    }
    const auto number_or_star = [&]() -> int64_t {
      if (i < f.size() && f[i] == '*') {
        ++i;
        const int64_t n = integer(next_argument(), "* in a format");
        if (n > kMaxWidth || n < -kMaxWidth) fail("format width or precision above 65536");
        return n;
      }
      return read_number(f, i);
    };
    spec.width = number_or_star();
    if (spec.width < 0) {
      spec.align = '<';
      spec.width = -spec.width;
    }
    if (i < f.size() && f[i] == '.') {
      ++i;
      spec.precision = std::max<int64_t>(0, number_or_star());
    }
    while (i < f.size() && (f[i] == 'l' || f[i] == 'h' || f[i] == 'L')) ++i;
    if (i >= f.size()) fail("incomplete format");
    const char type = f[i++];
    if (type == '%') {
      out.append("%", format.user_at(begin));
      continue;
    }
    const bool pads_with_zero = spec.fill == "0" && spec.align != '<';
    if (spec.align == '<') spec.fill.assign(1, ' ');
    if (!given) v = next_argument();
    Tagged piece;
    if (type == 's' || type == 'r' || type == 'a' || type == 'c') {
      spec.fill.assign(1, ' ');
      if (spec.align == '\0') spec.align = '>';
      if (type == 'c' && v.is_integral()) {
        if (v.i < 0 || v.i > 0x10FFFF || (v.i >= 0xD800 && v.i < 0xE000))
          fail("%c arg not in range(0x110000)");
        std::string one;
        text::append_utf8(one, static_cast<char32_t>(v.i));
        piece = string_text(Tagged(one, v.user), spec);
      } else {
        if (type == 'c' && !(v.is_string() && num_chars(v.text().str()) == 1))
          fail("%c requires int or char");
        piece = string_text(type == 's' || type == 'c' ? to_text(v) : to_repr(v), spec);
      }
    } else if (std::string_view("diuxXoeEfFgG").find(type) != std::string_view::npos) {
      if (v.is_undefined()) fail(undefined_message(v));
      const bool integral = std::string_view("diuxXo").find(type) != std::string_view::npos;
      if (!v.is_number() ||
          (integral && !v.is_integral() && type != 'd' && type != 'i' && type != 'u')) {
        fail(std::string("%") + type + " format: a " + (integral ? "real number" : "number") +
             " is required, not " + type_name(v));
      }
      spec.type = integral && type != 'x' && type != 'X' && type != 'o' ? 'd' : type;
      if (pads_with_zero) spec.align = '=';
      Value shown = v;
      if (integral && v.is(Kind::kFloat)) {
        if (!(std::fabs(v.d) < 9.2e18)) fail("cannot convert float to integer");
        shown = Value::integer(static_cast<int64_t>(v.d), v.user);
      }
      piece = Tagged(number_text(shown, spec), v.user);
    } else {
      fail(std::string("unsupported format character '") + type + "'");
    }
    if (out.size() + piece.size() > limits_.max_output_bytes)
      fail("format makes a string beyond the output limit");
    out.append(piece);
    spend(1 + piece.size() / 8);
  }
  if (many ? used < args.items().size() : used < 1 && !mapping) {
    const bool container = args.is(Kind::kList) || args.is_undefined();
    if (!container) fail("not all arguments converted during string formatting");
  }
  return text(std::move(out));
}

}  // namespace weft::jinja
