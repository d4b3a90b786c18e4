#include "text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "text/unicode.h"

namespace weft::jinja {

void Tagged::append(const Tagged& other) {
  if (other.bytes_.empty()) return;
  if (bytes_.empty()) {
    first_user_ = other.first_user_;
    flips_.clear();
  } else if (last_user() != other.first_user_) {
    flips_.push_back(bytes_.size());
  }
  const size_t base = bytes_.size();
  const size_t count = other.flips_.size();  // (other may be *this)
  for (size_t k = 0; k < count; ++k) flips_.push_back(base + other.flips_[k]);
  bytes_.append(other.bytes_);
}

void Tagged::append(std::string_view s, bool user) {
  if (s.empty()) return;
  if (bytes_.empty()) {
    first_user_ = user;
    flips_.clear();
  } else if (last_user() != user) {
    flips_.push_back(bytes_.size());
  }
  bytes_.append(s);
}

bool Tagged::user_at(size_t i) const {
  const auto passed = std::upper_bound(flips_.begin(), flips_.end(), i) - flips_.begin();
  return first_user_ != (passed % 2 == 1);
}

Tagged Tagged::slice(size_t begin, size_t end) const {
  end = std::min(end, bytes_.size());
  if (begin >= end) return {};
  Tagged out(bytes_.substr(begin, end - begin), user_at(begin));
  for (auto it = std::upper_bound(flips_.begin(), flips_.end(), begin);
       it != flips_.end() && *it < end; ++it) {
    out.flips_.push_back(*it - begin);
  }
  return out;
}

Value Value::string(Tagged s, bool markup) {
  auto object = std::make_shared<StringObject>();
  object->text = std::move(s);
  object->markup = markup;
  return of_object(Kind::kString, std::move(object));
}

namespace {
Value sequence(Kind kind, std::vector<Value> items, bool user, bool named) {
  auto object = std::make_shared<ListObject>();
  for (const Value& v : items) object->depth = std::max(object->depth, depth_of(v) + 1);
  if (object->depth > kMaxValueDepth) throw Failure{"value nested too deep"};
  object->items = std::move(items);
  object->named = named;
  return Value::of_object(kind, std::move(object), user);
}
}  // namespace

Value Value::list(std::vector<Value> items, bool user) {
  return sequence(Kind::kList, std::move(items), user, false);
}
Value Value::tuple(std::vector<Value> items, bool named) {
  return sequence(Kind::kTuple, std::move(items), false, named);
}
Value Value::undefined(std::string message) {
  auto object = std::make_shared<UndefinedObject>();
  object->message = std::move(message);
  return of_object(Kind::kUndefined, std::move(object));
}
const Tagged& Value::text() const {
  return as<StringObject>().text;
}
const std::vector<Value>& Value::items() const {
  return as<ListObject>().items;
}

int depth_of(const Value& v) {
  switch (v.kind) {
    case Kind::kList:
    case Kind::kTuple: return v.as<ListObject>().depth;
    case Kind::kDict: return v.as<DictObject>().depth;
    case Kind::kDictView: return depth_of(v.as<DictViewObject>().dict) + 1;
    case Kind::kMethod: return depth_of(v.as<MethodObject>().self) + 1;
    // What holds values and is made in one step counts as deep as it could be made of: walk it.
    case Kind::kIterator: {
      int depth = 1;
      for (const Value& item : v.as<IteratorObject>().items)
        depth = std::max(depth, depth_of(item) + 1);
      return depth;
    }
    case Kind::kCycler: {
      int depth = 1;
      for (const Value& item : v.as<CyclerObject>().items)
        depth = std::max(depth, depth_of(item) + 1);
      return depth;
    }
    default: return 1;
  }
}

namespace {
bool hashable(const Value& v) {
  if (v.is(Kind::kList) || v.is(Kind::kDict)) return false;
  if (v.is(Kind::kTuple)) return std::all_of(v.items().begin(), v.items().end(), hashable);
  return true;
}
}  // namespace

void check_hashable(const Value& key) {
  if (!hashable(key)) throw Failure{std::string("unhashable type: '") + type_name(key) + "'"};
}

void DictObject::set(const Value& key, Value value) {
  check_hashable(key);
  depth = std::max({depth, depth_of(value) + 1, depth_of(key) + 1});
  if (depth > kMaxValueDepth) throw Failure{"value nested too deep"};
  if (const Value* old = find(key)) {
    const_cast<Value&>(*old) = std::move(value);
    return;
  }
  if (key.is_string()) index_.emplace(key.text().str(), entries.size());
  entries.emplace_back(key, std::move(value));
}

const Value* DictObject::find(std::string_view key) const {
  const auto it = index_.find(std::string(key));
  return it == index_.end() ? nullptr : &entries[it->second].second;
}
const Value* DictObject::find(const Value& key) const {
  if (key.is_string()) return find(std::string_view(key.text().str()));
  if (index_.size() == entries.size()) return nullptr;
  for (const auto& [k, v] : entries) {
    if (!k.is_string() && equals(k, key)) return &v;
  }
  return nullptr;
}

int64_t RangeObject::size() const {
  if (step > 0) return start < stop ? (stop - start - 1) / step + 1 : 0;
  return start > stop ? (start - stop - 1) / -step + 1 : 0;
}

Value make_dict(std::shared_ptr<DictObject> dict, bool user) {
  return Value::of_object(Kind::kDict, std::move(dict), user);
}

bool truthy(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined:
    case Kind::kNone: return false;
    case Kind::kBool:
    case Kind::kInt: return v.i != 0;
    case Kind::kFloat: return v.d != 0;
    case Kind::kString: return !v.text().empty();
    case Kind::kList:
    case Kind::kTuple: return !v.items().empty();
    case Kind::kDict: return !v.as<DictObject>().entries.empty();
    case Kind::kRange: return v.as<RangeObject>().size() > 0;
    case Kind::kDictView: return truthy(v.as<DictViewObject>().dict);
    default: return true;
  }
}

bool equals(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) {
    return a.is_integral() && b.is_integral() ? a.i == b.i : a.number() == b.number();
  }
  if (a.kind != b.kind) return false;
  switch (a.kind) {
    case Kind::kUndefined:
    case Kind::kNone: return true;
    case Kind::kString: return a.text().str() == b.text().str();
    case Kind::kList:
    case Kind::kTuple:
      return a.object == b.object || std::equal(a.items().begin(), a.items().end(),
                                                b.items().begin(), b.items().end(), equals);
    case Kind::kDict: {
      const auto &x = a.as<DictObject>(), &y = b.as<DictObject>();
      if (x.entries.size() != y.entries.size()) return false;
      for (const auto& [key, value] : x.entries) {
        const Value* other = y.find(key);
        if (!other || !equals(value, *other)) return false;
      }
      return true;
    }
    case Kind::kRange: {
      const auto &x = a.as<RangeObject>(), &y = b.as<RangeObject>();
      return x.size() == y.size() &&
             (x.size() == 0 || (x.start == y.start && (x.size() == 1 || x.step == y.step)));
    }
    case Kind::kFunction: return a.i == b.i;
    default: return a.object == b.object;
  }
}

int compare(const Value& a, const Value& b, const char* op) {
  if (a.is_number() && b.is_number()) {
    if (a.is_integral() && b.is_integral()) return a.i < b.i ? -1 : a.i > b.i;
    return a.number() < b.number() ? -1 : a.number() > b.number();
  }
  if (a.is_string() && b.is_string()) {
    const int c = a.text().str().compare(b.text().str());
    return c < 0 ? -1 : c > 0;
  }
  if (a.is_sequence() && a.kind == b.kind) {
    const auto &x = a.items(), &y = b.items();
    for (size_t i = 0; i < std::min(x.size(), y.size()); ++i) {
      if (!equals(x[i], y[i])) return compare(x[i], y[i], op);
    }
    return x.size() < y.size() ? -1 : x.size() > y.size();
  }
  for (const Value* v : {&a, &b}) {
    if (v->is_undefined()) throw Failure{undefined_message(*v)};
  }
  throw Failure{std::string("'") + op + "' not supported between instances of '" + type_name(a) +
                "' and '" + type_name(b) + "'"};
}

const char* type_name(const Value& v) {
  switch (v.kind) {
    case Kind::kUndefined: return "Undefined";
    case Kind::kNone: return "NoneType";
    case Kind::kBool: return "bool";
    case Kind::kInt: return "int";
    case Kind::kFloat: return "float";
    case Kind::kString: return v.as<StringObject>().markup ? "Markup" : "str";
    case Kind::kList: return "list";
    case Kind::kTuple: return v.as<ListObject>().named ? "_GroupTuple" : "tuple";
    case Kind::kDict: return "dict";
    case Kind::kRange: return "range";
    case Kind::kDictView: {
      static constexpr const char* kNames[] = {"dict_keys", "dict_values", "dict_items"};
      return kNames[v.as<DictViewObject>().which];
    }
    case Kind::kIterator: return "generator";
    case Kind::kNamespace: return "Namespace";
    case Kind::kMacro: return "Macro";
    case Kind::kLoop: return "LoopContext";
    case Kind::kMethod: return "builtin_function_or_method";
    case Kind::kFunction: return "function";
    case Kind::kCycler: return "Cycler";
    case Kind::kJoiner: return "Joiner";
  }
  return "object";
}

std::string undefined_message(const Value& v) {
  return v.object ? v.as<UndefinedObject>().message : "value is undefined";
}

size_t char_offset(std::string_view s, size_t n) {
  for (size_t i = 0; i < s.size(); ++i) {
    if ((static_cast<unsigned char>(s[i]) & 0xC0) != 0x80 && n-- == 0) return i;
  }
  return s.size();
}

std::string float_repr(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[64];
  // Python switches to exponents below 1e-4 and from 1e16 on.
  const double size = std::fabs(d);
  const bool scientific = size != 0 && (size < 1e-4 || size >= 1e16);
  const auto format = scientific ? std::chars_format::scientific : std::chars_format::fixed;
  std::string out(buffer, std::to_chars(buffer, buffer + sizeof buffer, d, format).ptr);
  if (!scientific && out.find('.') == std::string::npos) out += ".0";
  return out;
}

}  // namespace weft::jinja
