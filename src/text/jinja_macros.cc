#include <algorithm>

#include "text/jinja_interp.h"
#include "text/jinja_scopes.h"

namespace weft::jinja {

Value Interpreter::make_macro(const Node* node) {
  for (Scope* s = scope_; s && !s->captured; s = s->parent) s->captured = true;
  auto macro = std::make_shared<MacroObject>();
  macro->node = node;
  macro->closure = scope_;
  return Value::of_object(Kind::kMacro, std::move(macro));
}

Value Interpreter::call_macro(const Value& value, Args args) {
  const auto& macro = value.as<MacroObject>();
  const Node* node = macro.node;
  const bool is_caller = node->kind == NodeKind::kCallBlock;
  const Node* body = node->children[is_caller ? 1 : 0];
  const size_t num_defaults = node->children.size() - (is_caller ? 2 : 1);
  const size_t num_parameters = node->names.size();
  const std::string name = "macro '" + node->name + "'";
  if (++calls_ > limits_.max_calls) {
    --calls_;
    fail("macros call each other more than " + std::to_string(limits_.max_calls) + " levels deep");
  }
  struct Leave {
    int& calls;
    ~Leave() { --calls; }
  } leave{calls_};
  Capture capture(*this);
  ScopeGuard scope(*this, macro.closure);
  std::vector<std::optional<Value>> given(num_parameters);
  std::vector<Value> extra;
  for (size_t i = 0; i < args.positional.size(); ++i) {
    if (i < num_parameters) {
      given[i] = std::move(args.positional[i]);
    } else {
      extra.push_back(std::move(args.positional[i]));
    }
  }
  if (!extra.empty() && !uses_varargs_) {
    fail(name + " takes not more than " + std::to_string(num_parameters) + " argument(s)");
  }
  auto kwargs = std::make_shared<DictObject>();
  std::optional<Value> caller;
  for (auto& [key, v] : args.keyword) {
    const auto it = std::find(node->names.begin(), node->names.end(), key);
    if (it != node->names.end()) {
      auto& slot = given[static_cast<size_t>(it - node->names.begin())];
      if (slot) fail(name + " got multiple values for argument '" + key + "'");
      slot = std::move(v);
    } else if (key == "caller" && uses_caller_) {
      caller = std::move(v);
    } else if (uses_kwargs_) {
      kwargs->set(Value::string(key), std::move(v));
    } else {
      fail(name + " takes no keyword argument '" + key + "'");
    }
  }
  for (size_t i = 0; i < num_parameters; ++i) {
    const size_t first_default = num_parameters - num_defaults;
    if (!given[i] && i >= first_default) {
      given[i] = eval(node->children[node->children.size() - num_defaults + (i - first_default)]);
    }
    set_variable(node->symbols[i], given[i] ? *given[i]
                                            : Value::undefined("parameter '" + node->names[i] +
                                                               "' was not provided"));
  }
  const auto special = [&](const char* symbol, Value v) {
    const auto it = program_.symbol_of.find(symbol);
    if (it != program_.symbol_of.end()) set_variable(it->second, std::move(v));
  };
  if (uses_varargs_) special("varargs", Value::tuple(std::move(extra)));
  if (uses_kwargs_) special("kwargs", make_dict(kwargs));
  if (uses_caller_ && !is_caller)
    special("caller", caller ? *caller : Value::undefined("No caller defined"));
  exec(body);
  return Value::string(capture.take());
}

}  // namespace weft::jinja
