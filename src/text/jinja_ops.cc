// What template objects can do: attributes, items, slices, calls, arithmetic.
#include <algorithm>
#include <cmath>

#include "base/utf8.h"
#include "text/jinja_interp.h"
#include "text/unicode.h"

namespace weft::jinja {
namespace {

constexpr int64_t kMaxRange = 100'000;  // the sandbox's own limit

/// How jinja2's error texts name an object.
std::string object_name(const Value& v) {
  if (v.is(Kind::kNone)) return "None";
  return std::string(type_name(v)) + " object";
}

std::string quoted(const std::string& s) {
  return to_repr(Value::string(s)).str();
}

}  // namespace

std::vector<const Value*> bind(const Args& args, const std::string& function,
                               std::initializer_list<std::string_view> parameters) {
  std::vector<const Value*> bound(parameters.size(), nullptr);
  if (args.positional.size() > parameters.size()) {
    throw Failure{function + " takes at most " + std::to_string(parameters.size()) +
                  " argument(s), got " + std::to_string(args.positional.size())};
  }
  for (size_t i = 0; i < args.positional.size(); ++i) bound[i] = &args.positional[i];
  for (const auto& [name, value] : args.keyword) {
    const auto it = std::find(parameters.begin(), parameters.end(), name);
    if (it == parameters.end())
      throw Failure{function + " got an unexpected keyword argument '" + name + "'"};
    const Value*& slot = bound[static_cast<size_t>(it - parameters.begin())];
    if (slot) throw Failure{function + " got multiple values for argument '" + name + "'"};
    slot = &value;
  }
  return bound;
}

int64_t Interpreter::integer(const Value& v, const char* what) {
  if (v.is_undefined()) fail(undefined_message(v));
  if (!v.is_integral()) fail(std::string(what) + " must be an integer, not " + type_name(v));
  return v.i;
}

Value Interpreter::missing(const Value& object, const Value& name) {
  if (name.is_string()) {
    return Value::undefined(quoted(object_name(object)) + " has no attribute " +
                            quoted(name.text().str()));
  }
  return Value::undefined(object_name(object) + " has no element " + to_repr(name).str());
}

Value Interpreter::attribute(const Value& object, const std::string& name) {
  const Value key = Value::string(name);
  switch (object.kind) {
    case Kind::kUndefined:
      if (name.starts_with("__")) return missing(object, key);
      fail(undefined_message(object));
    case Kind::kNamespace:
      for (const auto& [known, value] : object.as<NamespaceObject>().attributes) {
        if (known == name) return value;
      }
      return missing(object, key);
    case Kind::kLoop: return loop_attribute(object, name);
    case Kind::kMacro: {
      const auto& macro = object.as<MacroObject>();
      if (name == "name") return Value::string(macro.node->name);
      if (name == "arguments") {
        std::vector<Value> names;
        for (const std::string& n : macro.node->names) names.push_back(Value::string(n));
        return Value::tuple(std::move(names));
      }
      return missing(object, key);
    }
    case Kind::kCycler:
      if (name == "current") {
        const auto& cycler = object.as<CyclerObject>();
        return cycler.items[cycler.position];
      }
      break;
    case Kind::kTuple:
      if (object.as<ListObject>().named && (name == "grouper" || name == "list")) {
        return object.items()[name == "list"];
      }
      break;
    default: break;
  }
  if (has_method(object, name)) {
    if (is_mutating(object, name)) {
      return Value::undefined("access to attribute " + quoted(name) + " of " +
                              quoted(type_name(object)) + " object is unsafe.");
    }
    auto method = std::make_shared<MethodObject>();
    method->self = object;
    method->name = name;
    Value v = Value::of_object(Kind::kMethod, std::move(method));
    if (depth_of(v) > kMaxValueDepth) fail("value nested too deep");
    return v;
  }
  if (object.is(Kind::kDict)) {
    if (const Value* v = object.as<DictObject>().find(std::string_view(name))) return *v;
  }
  return missing(object, key);
}

Value Interpreter::loop_attribute(const Value& value, const std::string& name) {
  const auto& loop = value.as<LoopObject>();
  const auto index = static_cast<int64_t>(loop.index), n = static_cast<int64_t>(loop.items.size());
  if (name == "index") return Value::integer(index + 1);
  if (name == "index0") return Value::integer(index);
  if (name == "revindex") return Value::integer(n - index);
  if (name == "revindex0") return Value::integer(n - index - 1);
  if (name == "first") return Value::boolean(index == 0);
  if (name == "last") return Value::boolean(index + 1 == n);
  if (name == "length") return Value::integer(n);
  if (name == "depth") return Value::integer(loop.depth + 1);
  if (name == "depth0") return Value::integer(loop.depth);
  if (name == "previtem") {
    return index > 0 ? loop.items[loop.index - 1] : Value::undefined("there is no previous item");
  }
  if (name == "nextitem") {
    return index + 1 < n ? loop.items[loop.index + 1] : Value::undefined("there is no next item");
  }
  if (name == "cycle" || name == "changed") {
    auto method = std::make_shared<MethodObject>();
    method->self = value;
    method->name = name;
    return Value::of_object(Kind::kMethod, std::move(method));
  }
  return missing(value, Value::string(name));
}

Value Interpreter::item(const Value& object, const Value& index) {
  switch (object.kind) {
    case Kind::kUndefined: fail(undefined_message(object));
    case Kind::kDict:
      if (const Value* v = object.as<DictObject>().find(index)) return *v;
      break;
    case Kind::kList:
    case Kind::kTuple: {
      if (!index.is_integral()) break;
      const auto& items = object.items();
      const auto n = static_cast<int64_t>(items.size());
      const int64_t i = index.i < 0 ? index.i + n : index.i;
      if (i >= 0 && i < n) return items[static_cast<size_t>(i)];
      break;
    }
    case Kind::kString: {
      if (!index.is_integral()) break;
      const Tagged& s = object.text();
      spend(s.size() / 64);
      const int64_t n = num_chars(s.str());
      const int64_t i = index.i < 0 ? index.i + n : index.i;
      if (i < 0 || i >= n) break;
      const size_t begin = char_offset(s.str(), static_cast<size_t>(i));
      return text(s.slice(
          begin, begin + static_cast<size_t>(text::decode_valid(s.str().data() + begin).length)));
    }
    case Kind::kRange: {
      if (!index.is_integral()) break;
      const auto& range = object.as<RangeObject>();
      const int64_t n = range.size();
      const int64_t i = index.i < 0 ? index.i + n : index.i;
      if (i >= 0 && i < n) return Value::integer(range.start + i * range.step);
      break;
    }
    default: break;
  }
  if (index.is_string() && !object.is(Kind::kDict)) return attribute(object, index.text().str());
  if (index.is_string() && has_method(object, index.text().str()))
    return attribute(object, index.text().str());
  return missing(object, index);
}

Value Interpreter::slice(const Value& object, const Value& start, const Value& stop,
                         const Value& step) {
  if (object.is_undefined()) fail(undefined_message(object));
  if (object.is(Kind::kDict)) fail("unhashable type: 'slice'");
  if (!object.is_string() && !object.is_sequence() && !object.is(Kind::kRange)) {
    fail(std::string("'") + type_name(object) + "' object is not subscriptable");
  }
  for (const Value* v : {&start, &stop, &step}) {
    if (!v->is(Kind::kNone) && !v->is_integral()) fail("slice indices must be integers or None");
  }
  const int64_t by = step.is(Kind::kNone) ? 1 : step.i;
  if (by == 0) fail("slice step cannot be zero");
  const int64_t n = length(object);
  const auto bound = [&](const Value& v, int64_t fallback) {
    if (v.is(Kind::kNone)) return fallback;
    const int64_t low = by > 0 ? 0 : -1, high = by > 0 ? n : n - 1;
    const int64_t i = v.i < 0 ? std::max(v.i, -n - 1) + n : v.i;
    return std::clamp(i, low, high);
  };
  const int64_t from = bound(start, by > 0 ? 0 : n - 1), to = bound(stop, by > 0 ? n : -1);
  if (object.is_string() && by == 1) {
    const Tagged& s = object.text();
    if (from >= to) return text(Tagged());
    const size_t begin = char_offset(s.str(), static_cast<size_t>(from));
    const size_t count =
        char_offset(std::string_view(s.str()).substr(begin), static_cast<size_t>(to - from));
    return text(s.slice(begin, begin + count));
  }
  const std::vector<Value> items = iterate(object);
  std::vector<Value> picked;
  for (int64_t i = from; by > 0 ? i < to : i > to;) {
    picked.push_back(items[static_cast<size_t>(i)]);
    if (__builtin_add_overflow(i, by, &i)) break;
  }
  if (object.is_string()) {
    Tagged out;
    for (const Value& v : picked) out.append(v.text());
    return text(std::move(out));
  }
  if (object.is(Kind::kTuple)) return Value::tuple(std::move(picked));
  spend(1 + 4 * picked.size());
  return Value::list(std::move(picked), object.user);
}

std::vector<Value> Interpreter::iterate(const Value& v) {
  std::vector<Value> out;
  switch (v.kind) {
    case Kind::kUndefined: break;
    case Kind::kList:
    case Kind::kTuple: out = v.items(); break;
    case Kind::kString: {
      const Tagged& s = v.text();
      spend(4 * s.size());
      for (size_t i = 0; i < s.size();) {
        const auto n = static_cast<size_t>(text::decode_valid(s.str().data() + i).length);
        out.push_back(Value::string(s.slice(i, i + n)));
        i += n;
      }
      break;
    }
    case Kind::kDict:
      for (const auto& [key, value] : v.as<DictObject>().entries) out.push_back(key);
      break;
    case Kind::kDictView: {
      const auto& view = v.as<DictViewObject>();
      for (const auto& [key, value] : view.dict.as<DictObject>().entries) {
        out.push_back(view.which == DictViewObject::kKeys     ? key
                      : view.which == DictViewObject::kValues ? value
                                                              : Value::tuple({key, value}));
      }
      break;
    }
    case Kind::kRange: {
      const auto& range = v.as<RangeObject>();
      spend(4 * static_cast<uint64_t>(range.size()));
      for (int64_t i = 0; i < range.size(); ++i)
        out.push_back(Value::integer(range.start + i * range.step));
      break;
    }
    case Kind::kIterator: {
      auto& iterator = v.as<IteratorObject>();
      out.assign(iterator.items.begin() + static_cast<ptrdiff_t>(iterator.next),
                 iterator.items.end());
      iterator.next = iterator.items.size();
      break;
    }
    default: fail(std::string("'") + type_name(v) + "' object is not iterable");
  }
  spend(1 + out.size());
  return out;
}

int64_t Interpreter::length(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined: return 0;
    case Kind::kString: spend(v.text().size() / 64); return num_chars(v.text().str());
    case Kind::kList:
    case Kind::kTuple: return static_cast<int64_t>(v.items().size());
    case Kind::kDict: return static_cast<int64_t>(v.as<DictObject>().entries.size());
    case Kind::kDictView: return length(v.as<DictViewObject>().dict);
    case Kind::kRange: return v.as<RangeObject>().size();
    case Kind::kLoop: return static_cast<int64_t>(v.as<LoopObject>().items.size());
    default: fail(std::string("object of type '") + type_name(v) + "' has no len()");
  }
}

bool Interpreter::contains(const Value& container, const Value& wanted) {
  switch (container.kind) {
    case Kind::kString: {
      if (wanted.is_undefined()) fail(undefined_message(wanted));
      if (!wanted.is_string()) {
        fail(std::string("'in <string>' requires string as left operand, not ") +
             type_name(wanted));
      }
      spend(container.text().size() / 8);
      return container.text().str().find(wanted.text().str()) != std::string::npos;
    }
    case Kind::kDict:
      check_hashable(wanted);
      return container.as<DictObject>().find(wanted) != nullptr;
    case Kind::kList:
    case Kind::kTuple:
      spend(container.items().size());
      return std::any_of(container.items().begin(), container.items().end(),
                         [&](const Value& v) { return equals(v, wanted); });
    case Kind::kUndefined: return false;
    case Kind::kDictView:
    case Kind::kRange:
    case Kind::kIterator: {
      const std::vector<Value> items = iterate(container);
      return std::any_of(items.begin(), items.end(),
                         [&](const Value& v) { return equals(v, wanted); });
    }
    default: fail(std::string("argument of type '") + type_name(container) + "' is not iterable");
  }
}

// ---- arithmetic

namespace {

bool is_markup(const Value& v) {
  return v.is_string() && v.as<StringObject>().markup;
}

}  // namespace

Value Interpreter::join_texts(const std::vector<Value>& parts, bool markup) {
  Tagged out;
  for (const Value& v : parts) {
    const Tagged s = markup && !is_markup(v) ? escape_html(to_text(v)) : to_text(v);
    if (out.size() + s.size() > limits_.max_output_bytes)
      fail("a string grows beyond the output limit");
    out.append(s);
  }
  spend(1 + out.size() / 8);
  return Value::string(std::move(out), markup);
}

Value Interpreter::add(const Value& a, const Value& b) {
  if (a.is_string() && b.is_string()) return join_texts({a, b}, is_markup(a) || is_markup(b));
  if (a.is_sequence() && a.kind == b.kind) {
    std::vector<Value> items = a.items();
    spend(4 * (items.size() + b.items().size()));
    items.insert(items.end(), b.items().begin(), b.items().end());
    return a.is(Kind::kTuple) ? Value::tuple(std::move(items))
                              : Value::list(std::move(items), a.user && b.user);
  }
  if (a.is_string())
    fail(std::string("can only concatenate str (not \"") + type_name(b) + "\") to str");
  return Value::undefined("");
}

Value Interpreter::repeat(const Value& a, const Value& b) {
  const bool left = b.is_integral();
  const Value& what = left ? a : b;
  const auto times = static_cast<uint64_t>(std::max<int64_t>(0, (left ? b : a).i));
  if (what.is_string()) {
    const Tagged& s = what.text();
    if (s.size() > 0 && times > limits_.max_output_bytes / s.size())
      fail("a repeated string is too long");
    spend(times);
    Tagged out;
    for (uint64_t i = 0; i < times && !s.empty(); ++i) out.append(s);
    return text(std::move(out));
  }
  const auto& items = what.items();
  if (!items.empty() && times > limits_.max_ops / items.size() / 4)
    fail("a repeated list is too long");
  spend(4 * times * items.size());
  std::vector<Value> out;
  for (uint64_t i = 0; i < times && !items.empty(); ++i)
    out.insert(out.end(), items.begin(), items.end());
  return what.is(Kind::kTuple) ? Value::tuple(std::move(out))
                               : Value::list(std::move(out), what.user);
}

Value Interpreter::power(const Value& a, const Value& b) {
  const bool user = a.user || b.user;
  if (!a.is_integral() || !b.is_integral() || b.i < 0) {
    if (a.number() == 0 && b.number() < 0) fail("0.0 cannot be raised to a negative power");
    const double d = std::pow(a.number(), b.number());
    if (std::isnan(d) && !std::isnan(a.number()) && !std::isnan(b.number()))
      fail("complex numbers are not supported");
    if (std::isinf(d) && !std::isinf(a.number()) && !std::isinf(b.number()))
      fail("Numerical result out of range");
    return Value::real(d, user);
  }
  int64_t result = 1, base = a.i;
  for (int64_t e = b.i; e > 0; e >>= 1) {
    if ((e & 1) && __builtin_mul_overflow(result, base, &result)) fail("integer beyond 64 bits");
    if (e > 1 && __builtin_mul_overflow(base, base, &base)) fail("integer beyond 64 bits");
  }
  return Value::integer(result, user);
}

/// op: + - * / % and d for //, p for **.
Value Interpreter::binary(char op, const Value& a, const Value& b) {
  if (op == '%' && a.is_string()) return printf_format(a.text(), b);  // which takes undefined, too
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) fail(undefined_message(*v));
  }
  if (op == '+' && !a.is_number()) {
    Value v = add(a, b);
    if (!v.is_undefined()) return v;
  }
  const bool a_repeats = a.is_string() || a.is_sequence(),
             b_repeats = b.is_string() || b.is_sequence();
  if (op == '*' && ((a_repeats && b.is_integral()) || (b_repeats && a.is_integral())))
    return repeat(a, b);
  if (!a.is_number() || !b.is_number()) {
    const std::string name = op == 'd' ? "//" : op == 'p' ? "** or pow()" : std::string(1, op);
    fail("unsupported operand type(s) for " + name + ": '" + type_name(a) + "' and '" +
         type_name(b) + "'");
  }
  if (op == 'p') return power(a, b);
  const bool user = a.user || b.user;
  const bool whole = a.is_integral() && b.is_integral();
  if ((op == '/' || op == 'd' || op == '%') && b.number() == 0) {
    fail(op == '/' ? (whole ? "division by zero" : "float division by zero")
         : whole   ? "integer division or modulo by zero"
                   : "float floor division by zero");
  }
  if (op == '/') return Value::real(a.number() / b.number(), user);
  if (whole) {
    int64_t r = 0;
    bool overflow = false;
    switch (op) {
      case '+': overflow = __builtin_add_overflow(a.i, b.i, &r); break;
      case '-': overflow = __builtin_sub_overflow(a.i, b.i, &r); break;
      case '*': overflow = __builtin_mul_overflow(a.i, b.i, &r); break;
      default:
        if (b.i == -1) {
          overflow = op == 'd' && __builtin_sub_overflow(int64_t{0}, a.i, &r);
        } else {
          const int64_t quotient = a.i / b.i, remainder = a.i % b.i;
          const bool adjust = remainder != 0 && (remainder < 0) != (b.i < 0);
          r = op == 'd' ? quotient - adjust : remainder + (adjust ? b.i : 0);
        }
    }
    if (overflow) fail("integer beyond 64 bits");
    return Value::integer(r, user);
  }
  const double x = a.number(), y = b.number();
  switch (op) {
    case '+': return Value::real(x + y, user);
    case '-': return Value::real(x - y, user);
    case '*': return Value::real(x * y, user);
    default: {
      double m = std::fmod(x, y);
      if (m != 0 && (m < 0) != (y < 0)) m += y;
      if (op == '%') return Value::real(m == 0 ? std::copysign(0.0, y) : m, user);
      return Value::real(std::round((x - m) / y), user);
    }
  }
}

// ---- calls

Value Interpreter::call(const Value& callee, Args args) {
  spend(4);
  switch (callee.kind) {
    case Kind::kUndefined: fail(undefined_message(callee));
    case Kind::kMacro: return call_macro(callee, std::move(args));
    case Kind::kMethod: {
      const auto& method = callee.as<MethodObject>();
      return this->method(method.self, method.name, args);
    }
    case Kind::kFunction: return call_function(static_cast<Function>(callee.i), std::move(args));
    case Kind::kLoop: return call_loop(callee, args);
    case Kind::kJoiner: {
      auto& joiner = callee.as<JoinerObject>();
      if (!joiner.used) {
        joiner.used = true;
        return Value::string("");
      }
      return Value::string(joiner.separator);
    }
    default: fail(std::string("'") + type_name(callee) + "' object is not callable");
  }
}

Value Interpreter::call_loop(const Value& value, const Args& args) {
  const auto& loop = value.as<LoopObject>();
  if (!loop.node) {
    fail("The loop must have the 'recursive' marker to be called recursively.");
  }
  const auto bound = bind(args, "loop()", {"iterable"});
  if (!bound[0]) fail("loop() needs an iterable");
  if (++calls_ > limits_.max_calls) {
    --calls_;
    fail("the loop calls itself more than " + std::to_string(limits_.max_calls) + " levels deep");
  }
  struct Leave {
    int& calls;
    Interpreter& i;
    Scope* scope;
    Tagged* out;
    ~Leave() {
      --calls;
      i.scope_ = scope;
      i.out_ = out;
    }
  } leave{calls_, *this, scope_, out_};
  Tagged out;
  out_ = &out;
  scope_ = loop.scope;
  run_loop(loop.node, iterate(*bound[0]), loop.depth + 1, loop.scope);
  captured_bytes_ -= out.size();  // counted again where it is written
  return Value::string(std::move(out));
}

Value Interpreter::call_function(Function f, Args args) {
  switch (f) {
    case Function::kRange: {
      if (!args.keyword.empty()) fail("range() takes no keyword arguments");
      if (args.positional.empty() || args.positional.size() > 3)
        fail("range expected 1 to 3 arguments");
      auto range = std::make_shared<RangeObject>();
      int64_t n[3] = {};
      for (size_t i = 0; i < args.positional.size(); ++i)
        n[i] = integer(args.positional[i], "range() argument");
      if (args.positional.size() > 1) range->start = n[0];
      range->stop = args.positional.size() > 1 ? n[1] : n[0];
      if (args.positional.size() > 2) range->step = n[2];
      if (range->step == 0) fail("range() arg 3 must not be zero");
      constexpr int64_t kBig = int64_t{1} << 60;
      for (const int64_t v : {range->start, range->stop, range->step}) {
        if (v > kBig || v < -kBig) fail("range() argument out of range");
      }
      if (range->size() > kMaxRange)
        fail("Range too big. The sandbox blocks ranges larger than 100000.");
      return Value::of_object(Kind::kRange, std::move(range));
    }
    case Function::kDict:
    case Function::kNamespace: {
      auto dict = std::make_shared<DictObject>();
      if (args.positional.size() > 1) fail("dict expected at most 1 argument");
      if (!args.positional.empty()) {
        const Value& from = args.positional[0];
        if (from.is(Kind::kDict)) {
          *dict = from.as<DictObject>();
          spend(4 * dict->entries.size());
        } else {
          for (const Value& pair : iterate(from)) {
            const std::vector<Value> kv = iterate(pair);
            if (kv.size() != 2)
              fail("dictionary update sequence element has the wrong length; 2 is required");
            dict->set(kv[0], kv[1]);
          }
        }
      }
      for (auto& [key, value] : args.keyword) dict->set(Value::string(key), std::move(value));
      if (f == Function::kDict) return make_dict(std::move(dict));
      auto ns = std::make_shared<NamespaceObject>();
      for (auto& [key, value] : dict->entries) {
        if (key.is_string()) ns->attributes.emplace_back(key.text().str(), value);
      }
      namespaces_.push_back(ns);
      return Value::of_object(Kind::kNamespace, std::move(ns));
    }
    case Function::kCycler: {
      if (args.positional.empty()) fail("at least one item has to be provided");
      auto cycler = std::make_shared<CyclerObject>();
      cycler->items = std::move(args.positional);
      Value v = Value::of_object(Kind::kCycler, std::move(cycler));
      if (depth_of(v) > kMaxValueDepth) fail("value nested too deep");
      return v;
    }
    case Function::kJoiner: {
      const auto bound = bind(args, "joiner()", {"sep"});
      auto joiner = std::make_shared<JoinerObject>();
      joiner->separator = bound[0] ? to_text(*bound[0]) : Tagged(", ", false);
      return Value::of_object(Kind::kJoiner, std::move(joiner));
    }
    case Function::kRaise: {
      const auto bound = bind(args, "raise_exception()", {"message"});
      if (!bound[0]) fail("raise_exception() needs a message");
      fail(to_text(*bound[0]).str());
    }
    case Function::kStrftimeNow: {
      const auto bound = bind(args, "strftime_now()", {"format"});
      if (!bound[0] || !bound[0]->is_string()) fail("strftime_now() needs a format string");
      const std::string format = bound[0]->text().str() + " ";  // never empty: 0 means failure
      if (format.size() > 1024) fail("strftime_now(): format longer than 1023 bytes");
      std::string out(16384, '\0');
      const size_t n = std::strftime(out.data(), out.size(), format.c_str(), &now_);
      if (n == 0) fail("strftime_now(): bad format");
      out.resize(n - 1);
      return text(std::move(out), bound[0]->text().any_user());
    }
  }
  fail("unknown function");
}

}  // namespace weft::jinja
