#pragma once

#include <ctime>
#include <initializer_list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"
#include "text/jinja_value.h"

namespace weft::jinja {

struct Limits {
  uint64_t max_ops = 50'000'000;  ///< steps; 8 bytes copied or a quarter element are one
  size_t max_output_bytes = size_t{64} << 20;  ///< of the result and of any string
  int max_calls = 64;                          ///< macros inside macros
};

struct Args {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> keyword;
};

struct Scope {
  Scope* parent = nullptr;
  bool captured = false;  ///< a macro holds it: it lives as long as the rendering
  std::vector<std::pair<int, Value>> variables;
};

struct MacroObject : Object {
  const Node* node = nullptr;  ///< kMacro or kCallBlock
  Scope* closure = nullptr;
};

struct LoopObject : Object {
  std::vector<Value> items;
  size_t index = 0;
  int depth = 0;
  const Node* node = nullptr;  ///< of a recursive loop
  Scope* scope = nullptr;      ///< around it
  std::optional<std::vector<Value>> changed;
};

enum class Function : int64_t { kRange, kDict, kNamespace, kCycler, kJoiner, kRaise, kStrftimeNow };

/// Runs one rendering of a parsed template. Semantics of jinja2's ImmutableSandboxedEnvironment as
/// transformers sets it up. Throws Failure with the position.
class Interpreter {
 public:
  Interpreter(const Program& program, const Limits& limits, std::tm now);
  ~Interpreter();
  Interpreter(const Interpreter&) = delete;
  Interpreter& operator=(const Interpreter&) = delete;

  void define(const std::string& name, Value value);
  Tagged render();

 private:
  enum class Flow { kNormal, kBreak, kContinue };
  struct Guard;       // one level of recursion
  struct ScopeGuard;  // a scope for a block
  struct Capture;     // output into a buffer

  [[noreturn]] void fail(const std::string& message) const;
  void at(const Node* node) { where_ = node; }
  void spend(uint64_t ops);
  Value text(Tagged s);
  Value text(std::string s, bool user = false) { return text(Tagged(std::move(s), user)); }
  Value make_list(std::vector<Value> items);
  Value make_iterator(std::vector<Value> items);

  // jinja_interp.cc: statements and expressions
  Flow exec(const Node* node);
  Flow exec_for(const Node* node);
  Flow run_loop(const Node* node, std::vector<Value> items, int depth, Scope* around);
  std::vector<Value> filtered_items(const Node* node, std::vector<Value> items);
  void exec_set_block(const Node* node);
  Flow exec_with(const Node* node);
  Value eval(const Node* node);
  Value eval_kind(const Node* node);
  Value eval_chain(const Node* node);
  Value eval_compare(const Node* node);
  Value eval_filter(const Node* node, const Value* input);
  Args eval_args(const Node* node, size_t first);
  void assign(const Node* target, const Value& value);
  void set_variable(int symbol, Value value);
  Value lookup(const Node* node);
  void emit(const Tagged& s);
  Value make_macro(const Node* node);
  Value call_macro(const Value& macro, Args args);

  // jinja_ops.cc: what objects can do
  Value call(const Value& callee, Args args);
  Value call_function(Function f, Args args);
  Value call_loop(const Value& loop, const Args& args);
  Value attribute(const Value& object, const std::string& name);
  Value loop_attribute(const Value& loop, const std::string& name);
  Value item(const Value& object, const Value& index);
  Value slice(const Value& object, const Value& start, const Value& stop, const Value& step);
  Value missing(const Value& object, const Value& name);
  std::vector<Value> iterate(const Value& v);
  int64_t length(const Value& v);
  bool contains(const Value& container, const Value& item);
  Value binary(char op, const Value& a, const Value& b);
  Value add(const Value& a, const Value& b);
  Value repeat(const Value& a, const Value& b);
  Value power(const Value& a, const Value& b);
  /// The parts behind each other; as `markup`, those that are no markup are escaped. (Only `+` and
  /// a markup's own join() do that: `~` and the filter are those of an environment that escapes
  /// nothing.)
  Value join_texts(const std::vector<Value>& parts, bool markup);
  int64_t integer(const Value& v, const char* what);

  // jinja_filters.cc, jinja_text_filters.cc, jinja_tests.cc
  Value filter(const std::string& name, const Value& v, const Args& args);
  bool text_filter(const std::string& name, const Value& v, const Args& args, Value* result);
  bool sequence_filter(const std::string& name, const Value& v, const Args& args, Value* result);
  Value select_or_reject(const std::string& name, const Value& v, const Args& args);
  Value map(const Value& v, const Args& args);
  Value sort(const Value& v, const Args& args);
  Value group_by(const Value& v, const Args& args);
  Value unique(const Value& v, const Args& args);
  Value batch(const Value& v, const Args& args);
  Value slices(const Value& v, const Args& args);
  Value attribute_path(const Value& v, const Value& path, const Value* fallback);
  Value to_integer(const Value& v, const Args& args);
  Value to_float(const Value& v, const Args& args);
  Value round(const Value& v, const Args& args);
  bool test(const std::string& name, const Value& v, const Args& args);

  // jinja_methods.cc
  Value method(const Value& self, const std::string& name, const Args& args);
  Value string_method(const Value& self, const std::string& name, const Args& args);
  Value dict_method(const Value& self, const std::string& name, const Args& args);
  Value list_method(const Value& self, const std::string& name, const Args& args);
  Value string_format(const Tagged& format, const Args& args);   // str.format
  Value printf_format(const Tagged& format, const Value& args);  // %
  std::vector<Value> split(const Tagged& s, const Value* separator, int64_t limit, bool from_right);

  const Program& program_;
  const Limits limits_;
  const std::tm now_;
  const Node* where_ = nullptr;
  uint64_t ops_ = 0;
  int depth_ = 0, calls_ = 0;
  Tagged* out_ = nullptr;
  size_t captured_bytes_ = 0;
  std::vector<std::optional<Value>> globals_;  // by symbol
  std::vector<std::unique_ptr<Scope>> scopes_, free_scopes_;
  Scope* scope_ = nullptr;
  std::vector<std::shared_ptr<NamespaceObject>>
      namespaces_;  // cleared at the end: they may form cycles
  bool uses_varargs_ = false, uses_kwargs_ = false, uses_caller_ = false;
};

/// Arguments bound to parameter names as Python would; null where not given.
/// Failure: too many, unknown, or given twice.
std::vector<const Value*> bind(const Args& args, const std::string& function,
                               std::initializer_list<std::string_view> parameters);

/// Whether `name` is a method that values of this kind have.
bool has_method(const Value& v, std::string_view name);
/// ... and one that would change the value, which the sandbox forbids.
bool is_mutating(const Value& v, std::string_view name);

/// Whitespace as Python's str.strip() sees it, case mappings as str.upper() etc. do.
bool is_python_space(char32_t c);
std::string upper(std::string_view s);
std::string lower(std::string_view s);
std::string capitalize(std::string_view s);
std::string title(std::string_view s);
/// "word by word" title case of the title filter.
std::string title_words(std::string_view s);
/// str.splitlines() as byte ranges.
std::vector<std::pair<size_t, size_t>> line_ranges(std::string_view s, bool keep_ends);
Tagged strip(const Tagged& s, const std::string* characters, bool left, bool right);
Tagged replace(const Tagged& s, const Tagged& from, const Tagged& to, int64_t limit,
               size_t max_bytes);
Tagged escape_html(const Tagged& s);
/// int(text) and float(text) of Python.
std::optional<int64_t> parse_int(std::string_view s, int base);
std::optional<double> parse_float(std::string_view s);

}  // namespace weft::jinja
