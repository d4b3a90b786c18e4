#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace weft::jinja {

/// What ends a rendering. Thrown and caught inside the interpreter only (ChatTemplate turns it into
/// an Error): every one of its steps can fail, and the position is known to the caller alone.
struct Failure {
  std::string message;
  int line = 0, column = 0;
};

/// A UTF-8 string that knows which of its bytes came from the user. Stored as the tag of the first
/// byte and the offsets where the tag flips.
class Tagged {
 public:
  Tagged() = default;
  Tagged(std::string s, bool user) : bytes_(std::move(s)), first_user_(user) {}
  const std::string& str() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  void append(const Tagged& other);
  void append(std::string_view s, bool user);
  Tagged slice(size_t begin, size_t end) const;
  bool user_at(size_t i) const;
  bool any_user() const { return !bytes_.empty() && (first_user_ || !flips_.empty()); }
  /// The same tags for a new text of equal meaning: trusted only if all of this is.
  Tagged with_text(std::string s) const { return Tagged(std::move(s), any_user()); }
  /// Offsets where the tag flips; the first run has user_at(0).
  const std::vector<size_t>& flips() const { return flips_; }

 private:
  bool last_user() const { return first_user_ != (flips_.size() % 2 == 1); }
  std::string bytes_;
  std::vector<size_t> flips_;
  bool first_user_ = false;
};

enum class Kind : uint8_t {
  kUndefined,
  kNone,
  kBool,
  kInt,
  kFloat,
  kString,
  kList,
  kTuple,
  kDict,
  kRange,
  kDictView,
  kIterator,
  kNamespace,
  kMacro,
  kLoop,
  kMethod,
  kFunction,
  kCycler,
  kJoiner,
};

struct Object {
  virtual ~Object() = default;
};

/// A template value. Copies are cheap; strings, lists and dicts are immutable, so that there are no
/// cycles (namespaces, the only thing that can be assigned to, belong to the interpreter).
struct Value {
  Kind kind = Kind::kUndefined;
  bool user = false;  ///< came from the user (for strings, the string itself knows better)
  union {
    int64_t i = 0;  // kBool, kInt, kFunction
    double d;       // kFloat
  };
  std::shared_ptr<Object> object;

  static Value none() { return of(Kind::kNone); }
  static Value boolean(bool b) {
    Value v = of(Kind::kBool);
    v.i = b;
    return v;
  }
  static Value integer(int64_t i, bool user = false) {
    Value v = of(Kind::kInt, user);
    v.i = i;
    return v;
  }
  static Value real(double d, bool user = false) {
    Value v = of(Kind::kFloat, user);
    v.d = d;
    return v;
  }
  static Value string(Tagged s, bool markup = false);
  static Value string(std::string s) { return string(Tagged(std::move(s), false)); }
  static Value list(std::vector<Value> items, bool user = false);
  static Value tuple(std::vector<Value> items, bool named = false);
  static Value undefined(std::string message);
  static Value of(Kind kind, bool user = false) {
    Value v;
    v.kind = kind;
    v.user = user;
    return v;
  }
  template <class T>
  static Value of_object(Kind kind, std::shared_ptr<T> object, bool user = false) {
    Value v = of(kind, user);
    v.object = std::move(object);
    return v;
  }

  bool is(Kind k) const { return kind == k; }
  bool is_undefined() const { return kind == Kind::kUndefined; }
  bool is_string() const { return kind == Kind::kString; }
  bool is_integral() const { return kind == Kind::kInt || kind == Kind::kBool; }
  bool is_number() const { return is_integral() || kind == Kind::kFloat; }
  bool is_sequence() const { return kind == Kind::kList || kind == Kind::kTuple; }
  double number() const { return kind == Kind::kFloat ? d : static_cast<double>(i); }
  template <class T>
  T& as() const {
    return static_cast<T&>(*object);
  }
  const Tagged& text() const;               ///< kString
  const std::vector<Value>& items() const;  ///< kList, kTuple
};

/// Containers may nest so deep; a deeper one is an error where it is made.
constexpr int kMaxValueDepth = 200;

struct StringObject : Object {
  Tagged text;
  bool markup = false;  ///< the result of escape or safe
};
struct UndefinedObject : Object {
  std::string message;
};
struct ListObject : Object {
  std::vector<Value> items;
  int depth = 1;
  bool named = false;  ///< the (grouper, list) pairs of groupby
};
struct DictObject : Object {
  std::vector<std::pair<Value, Value>> entries;  // in order of insertion
  int depth = 1;
  /// Sets or replaces; keys must be hashable (else Failure).
  void set(const Value& key, Value value);
  const Value* find(const Value& key) const;
  const Value* find(std::string_view key) const;

 private:
  std::unordered_map<std::string, size_t> index_;  // string keys
};
struct RangeObject : Object {
  int64_t start = 0, stop = 0, step = 1;
  int64_t size() const;
};
struct DictViewObject : Object {
  enum Which { kKeys, kValues, kItems } which = kItems;
  Value dict;
};
/// What the lazy filters (map, select, ...) give: it can be walked once.
struct IteratorObject : Object {
  std::vector<Value> items;
  size_t next = 0;
};
struct NamespaceObject : Object {
  std::vector<std::pair<std::string, Value>> attributes;
};
struct MethodObject : Object {
  Value self;
  std::string name;
};
struct CyclerObject : Object {
  std::vector<Value> items;
  size_t position = 0;
};
struct JoinerObject : Object {
  Tagged separator;
  bool used = false;
};

int depth_of(const Value& v);
/// Failure if `key` cannot be a key of a dict.
void check_hashable(const Value& key);
Value make_dict(std::shared_ptr<DictObject> dict, bool user = false);
bool truthy(const Value& v);
bool equals(const Value& a, const Value& b);
/// Three-way order of Python's `<`; Failure (with `op` in the text) for types without one.
int compare(const Value& a, const Value& b, const char* op = "<");
/// Python's type name: "str", "int", "dict", ...
const char* type_name(const Value& v);
std::string undefined_message(const Value& v);

/// str(v) and repr(v), tagged.
Tagged to_text(const Value& v);
Tagged to_repr(const Value& v);
/// repr() of a Python float.
std::string float_repr(double d);

struct JsonStyle {
  bool ensure_ascii = false, sort_keys = false;
  int indent = -1;  ///< -1: on one line
  std::string item_separator = ", ", key_separator = ": ";
};
/// json.dumps. Failure for what Python cannot serialise.
Tagged to_json(const Value& v, const JsonStyle& style);

/// Byte offset of character `n`, or the size.
size_t char_offset(std::string_view s, size_t n);

}  // namespace weft::jinja
