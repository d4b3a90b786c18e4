#include "text/jinja_interp.h"

#include "text/jinja_scopes.h"

namespace weft::jinja {
Interpreter::Interpreter(const Program& program, const Limits& limits, std::tm now)
    : program_(program), limits_(limits), now_(now), globals_(program.symbol_names.size()) {
  static constexpr std::pair<const char*, Function> kFunctions[] = {
      {"range", Function::kRange},
      {"dict", Function::kDict},
      {"cycler", Function::kCycler},
      {"namespace", Function::kNamespace},
      {"joiner", Function::kJoiner},
      {"raise_exception", Function::kRaise},
      {"strftime_now", Function::kStrftimeNow}};
  for (const auto& [name, function] : kFunctions) {
    Value v = Value::of(Kind::kFunction);
    v.i = static_cast<int64_t>(function);
    define(name, v);
  }
  uses_varargs_ = program.symbol_of.contains("varargs");
  uses_kwargs_ = program.symbol_of.contains("kwargs");
  uses_caller_ = program.symbol_of.contains("caller");
}

Interpreter::~Interpreter() {
  for (const auto& ns : namespaces_) ns->attributes.clear();
}

void Interpreter::define(const std::string& name, Value value) {
  const auto it = program_.symbol_of.find(name);
  if (it != program_.symbol_of.end()) globals_[static_cast<size_t>(it->second)] = std::move(value);
}

void Interpreter::fail(const std::string& message) const {
  throw Failure{message, where_ ? where_->line : 0, where_ ? where_->column : 0};
}

void Interpreter::spend(uint64_t ops) {
  ops_ += ops;
  if (ops_ > limits_.max_ops) {
    fail("the template does more than " + std::to_string(limits_.max_ops) + " steps");
  }
}

Value Interpreter::text(Tagged s) {
  if (s.size() > limits_.max_output_bytes) {
    fail("a string of more than " + std::to_string(limits_.max_output_bytes) + " bytes");
  }
  spend(1 + s.size() / 8);
  return Value::string(std::move(s));
}
Value Interpreter::make_list(std::vector<Value> items) {
  spend(1 + 4 * items.size());
  return Value::list(std::move(items));
}
Value Interpreter::make_iterator(std::vector<Value> items) {
  spend(1 + 4 * items.size());
  auto iterator = std::make_shared<IteratorObject>();
  iterator->items = std::move(items);
  Value v = Value::of_object(Kind::kIterator, std::move(iterator));
  if (depth_of(v) > kMaxValueDepth) fail("value nested too deep");
  return v;
}

Tagged Interpreter::render() {
  Tagged result;
  out_ = &result;
  try {
    ScopeGuard top(*this, nullptr);
    exec(program_.root);
  } catch (Failure& f) {
    if (f.line == 0 && where_) {
      f.line = where_->line;
      f.column = where_->column;
    }
    throw;
  }
  return result;
}

void Interpreter::emit(const Tagged& s) {
  spend(1 + s.size() / 8);
  captured_bytes_ += s.size();
  if (captured_bytes_ > limits_.max_output_bytes) {
    fail("the output is larger than " + std::to_string(limits_.max_output_bytes) + " bytes");
  }
  out_->append(s);
}

// ---- variables

Value Interpreter::lookup(const Node* node) {
  for (const Scope* s = scope_; s; s = s->parent) {
    for (const auto& [symbol, value] : s->variables) {
      if (symbol == node->symbol) return value;
    }
  }
  if (const auto& v = globals_[static_cast<size_t>(node->symbol)]) return *v;
  return Value::undefined("'" + program_.symbol_names[static_cast<size_t>(node->symbol)] +
                          "' is undefined");
}

void Interpreter::set_variable(int symbol, Value value) {
  for (auto& [known, old] : scope_->variables) {
    if (known == symbol) {
      old = std::move(value);
      return;
    }
  }
  scope_->variables.emplace_back(symbol, std::move(value));
}

void Interpreter::assign(const Node* target, const Value& value) {
  if (target->kind == NodeKind::kName) return set_variable(target->symbol, value);
  if (target->kind == NodeKind::kNamespaceRef) {
    const Value ns = lookup(target);
    at(target);
    if (!ns.is(Kind::kNamespace)) fail("cannot assign attribute on non-namespace object");
    auto& attributes = ns.as<NamespaceObject>().attributes;
    for (auto& [name, old] : attributes) {
      if (name == target->name) {
        old = value;
        return;
      }
    }
    spend(4 + attributes.size());
    attributes.emplace_back(target->name, value);
    return;
  }
  at(target);
  const std::vector<Value> items = iterate(value);
  if (value.is_undefined() || items.size() != target->children.size()) {
    fail((items.size() < target->children.size() ? "not enough values to unpack (expected "
                                                 : "too many values to unpack (expected ") +
         std::to_string(target->children.size()) + ")");
  }
  for (size_t i = 0; i < items.size(); ++i) assign(target->children[i], items[i]);
}

// ---- statements

Interpreter::Flow Interpreter::exec(const Node* node) {
  const Guard guard(*this);
  spend(1);
  const auto& c = node->children;
  switch (node->kind) {
    case NodeKind::kBody:
      for (const Node* child : c) {
        if (const Flow flow = exec(child); flow != Flow::kNormal) return flow;
      }
      break;
    case NodeKind::kText:
      at(node);
      emit(node->constant.text());
      break;
    case NodeKind::kOutput: {
      const Value v = eval(c[0]);
      at(c[0]);
      emit(to_text(v));
      break;
    }
    case NodeKind::kIf:
      for (size_t i = 0; i + 1 < c.size(); i += 2) {
        if (truthy(eval(c[i]))) return exec(c[i + 1]);
      }
      if (c.size() % 2 == 1) return exec(c.back());
      break;
    case NodeKind::kFor: return exec_for(node);
    case NodeKind::kSet: {
      const Value v = eval(c[1]);
      assign(c[0], v);
      break;
    }
    case NodeKind::kSetBlock: exec_set_block(node); break;
    case NodeKind::kMacro: set_variable(node->symbol, make_macro(node)); break;
    case NodeKind::kCallBlock: {
      const Value caller = make_macro(node);
      const Value callee = eval(c[0]->children[0]);
      Args args = eval_args(c[0], 1);
      args.keyword.emplace_back("caller", caller);
      at(c[0]);
      const Value result = call(callee, std::move(args));
      emit(to_text(result));
      break;
    }
    case NodeKind::kFilterBlock: {
      Value body;
      {
        Capture capture(*this);
        ScopeGuard scope(*this, scope_);
        exec(c[1]);
        body = Value::string(capture.take());
      }
      const Value result = eval_filter(c[0], &body);
      if (!result.is_string()) {
        fail(std::string("expected str instance, ") + type_name(result) + " found");
      }
      emit(result.text());
      break;
    }
    case NodeKind::kWith: return exec_with(node);
    case NodeKind::kBlock: {
      Scope* top = scope_;
      while (top->parent) top = top->parent;
      ScopeGuard scope(*this, top);
      exec(c[0]);
      break;
    }
    case NodeKind::kBreak: return Flow::kBreak;
    case NodeKind::kContinue: return Flow::kContinue;
    default: fail("not a statement");
  }
  return Flow::kNormal;
}

Interpreter::Flow Interpreter::exec_for(const Node* node) {
  const Value iterable = eval(node->children[1]);
  at(node->children[1]);
  return run_loop(node, iterate(iterable), 0, scope_);
}

std::vector<Value> Interpreter::filtered_items(const Node* node, std::vector<Value> items) {
  if (!node->children[2]) return items;
  std::vector<Value> kept;
  for (Value& item : items) {
    ScopeGuard scope(*this, scope_);
    assign(node->children[0], item);
    if (truthy(eval(node->children[2]))) kept.push_back(std::move(item));
  }
  return kept;
}

Interpreter::Flow Interpreter::run_loop(const Node* node, std::vector<Value> items, int depth,
                                        Scope* around) {
  const auto it = program_.symbol_of.find("loop");
  const int loop_symbol = it == program_.symbol_of.end() ? -1 : it->second;
  auto loop = std::make_shared<LoopObject>();
  loop->items = filtered_items(node, std::move(items));
  loop->depth = depth;
  loop->node = node->flag ? node : nullptr;
  // A recursive loop can be called from wherever its `loop` was carried to.
  for (Scope* s = node->flag ? around : nullptr; s && !s->captured; s = s->parent)
    s->captured = true;
  loop->scope = around;
  const Value loop_value = Value::of_object(Kind::kLoop, loop);
  bool completed = false;
  for (size_t i = 0; i < loop->items.size(); ++i) {
    spend(1);
    loop->index = i;
    ScopeGuard scope(*this, around);
    if (loop_symbol >= 0) set_variable(loop_symbol, loop_value);
    assign(node->children[0], loop->items[i]);
    const Flow flow = exec(node->children[3]);
    if (flow == Flow::kBreak) break;
    completed |= flow == Flow::kNormal;
  }
  // jinja2 takes `else` also where every round ended in break or continue.
  if (completed || !node->children[4]) return Flow::kNormal;
  ScopeGuard scope(*this, around);
  return exec(node->children[4]);
}

void Interpreter::exec_set_block(const Node* node) {
  Value v;
  {
    Capture capture(*this);
    ScopeGuard scope(*this, scope_);
    exec(node->children[1]);
    v = Value::string(capture.take());
  }
  if (node->children[2]) v = eval_filter(node->children[2], &v);
  assign(node->children[0], v);
}

Interpreter::Flow Interpreter::exec_with(const Node* node) {
  std::vector<Value> values;
  for (size_t i = 0; i + 1 < node->children.size(); i += 2)
    values.push_back(eval(node->children[i + 1]));
  ScopeGuard scope(*this, scope_);
  for (size_t i = 0; i < values.size(); ++i) assign(node->children[2 * i], values[i]);
  return exec(node->children.back());
}

// ---- expressions

Value Interpreter::eval(const Node* node) {
  const Guard guard(*this);
  spend(1);
  return eval_kind(node);
}

Value Interpreter::eval_kind(const Node* node) {
  const auto& c = node->children;
  switch (node->kind) {
    case NodeKind::kConstant: return node->constant;
    case NodeKind::kName: return lookup(node);
    case NodeKind::kTuple:
    case NodeKind::kList: {
      std::vector<Value> items;
      for (const Node* child : c) items.push_back(eval(child));
      at(node);
      return node->kind == NodeKind::kTuple ? Value::tuple(std::move(items))
                                            : make_list(std::move(items));
    }
    case NodeKind::kDict: {
      auto dict = std::make_shared<DictObject>();
      for (size_t i = 0; i < c.size(); i += 2) {
        const Value key = eval(c[i]);
        Value value = eval(c[i + 1]);
        at(c[i]);
        dict->set(key, std::move(value));
      }
      return make_dict(std::move(dict));
    }
    case NodeKind::kCondition:
      if (truthy(eval(c[0]))) return eval(c[1]);
      if (c[2]) return eval(c[2]);
      return Value::undefined("the inline if-expression on line " + std::to_string(node->line) +
                              " evaluated to false and no else section was defined.");
    case NodeKind::kAnd:
    case NodeKind::kOr:
    case NodeKind::kBinary: return eval_chain(node);
    case NodeKind::kNot: return Value::boolean(!truthy(eval(c[0])));
    case NodeKind::kCompare: return eval_compare(node);
    case NodeKind::kNegate:
    case NodeKind::kPositive: {
      const Value v = eval(c[0]);
      at(node);
      if (v.is_undefined()) fail(undefined_message(v));
      if (!v.is_number()) {
        fail(std::string("bad operand type for unary ") +
             (node->kind == NodeKind::kNegate ? "-" : "+") + ": '" + type_name(v) + "'");
      }
      if (node->kind == NodeKind::kPositive) return v.is(Kind::kBool) ? Value::integer(v.i) : v;
      return v.is(Kind::kFloat) ? Value::real(-v.d, v.user)
                                : binary('-', Value::integer(0, v.user), v);
    }
    case NodeKind::kConcat: {
      std::vector<Value> parts;
      for (const Node* child : c) parts.push_back(eval(child));
      at(node);
      return join_texts(parts, /*markup=*/false);
    }
    case NodeKind::kAttribute: {
      const Value object = eval(c[0]);
      at(node);
      return attribute(object, node->name);
    }
    case NodeKind::kItem: {
      const Value object = eval(c[0]);
      if (c[1]->kind == NodeKind::kSlice) {
        Value parts[3];
        for (size_t k = 0; k < 3; ++k) {
          parts[k] = c[1]->children[k] ? eval(c[1]->children[k]) : Value::none();
        }
        at(node);
        return slice(object, parts[0], parts[1], parts[2]);
      }
      const Value index = eval(c[1]);
      at(node);
      return item(object, index);
    }
    case NodeKind::kCall: {
      const Value callee = eval(c[0]);
      Args args = eval_args(node, 1);
      at(c[0]);
      return call(callee, std::move(args));
    }
    case NodeKind::kFilter: return eval_filter(node, nullptr);
    case NodeKind::kTest: {
      const Value v = eval(c[0]);
      const Args args = eval_args(node, 1);
      at(node);
      return Value::boolean(test(node->name, v, args) != node->flag);
    }
    default: at(node); fail("not an expression");
  }
}

/// and, or and the arithmetic operators lean to the left: `a + b + c + ...` is walked in a loop.
Value Interpreter::eval_chain(const Node* node) {
  std::vector<const Node*> spine;
  const Node* first = node;
  while (first->kind == node->kind) {
    spine.push_back(first);
    first = first->children[0];
  }
  Value v = eval(first);
  for (size_t i = spine.size(); i-- > 0;) {
    const Node* n = spine[i];
    spend(1);
    if (n->kind == NodeKind::kBinary) {
      const Value right = eval(n->children[1]);
      at(n);
      v = binary(n->name == "//" ? 'd' : n->name == "**" ? 'p' : n->name[0], v, right);
    } else if (truthy(v) == (n->kind == NodeKind::kAnd)) {
      v = eval(n->children[1]);
    }
  }
  return v;
}

Value Interpreter::eval_compare(const Node* node) {
  Value left = eval(node->children[0]);
  for (size_t i = 0; i < node->names.size(); ++i) {
    Value right = eval(node->children[i + 1]);
    at(node);
    const std::string& op = node->names[i];
    bool yes = false;
    if (op == "==" || op == "!=") {
      yes = equals(left, right) == (op == "==");
    } else if (op == "in" || op == "not in") {
      yes = contains(right, left) == (op == "in");
    } else {
      const int order = compare(left, right, op.c_str());
      const bool nan = left.is_number() && right.is_number() &&
                       (left.number() != left.number() || right.number() != right.number());
      yes = !nan && (op == "<"    ? order < 0
                     : op == "<=" ? order <= 0
                     : op == ">"  ? order > 0
                                  : order >= 0);
    }
    if (!yes) return Value::boolean(false);
    left = std::move(right);
  }
  return Value::boolean(true);
}

Args Interpreter::eval_args(const Node* node, size_t first) {
  Args args;
  for (size_t i = 0; i < node->names.size(); ++i) {
    const Node* child = node->children[first + i];
    Value v = eval(child);
    const std::string& kind = node->names[i];
    if (kind.empty()) {
      args.positional.push_back(std::move(v));
    } else if (kind == "*") {
      at(child);
      for (Value& item : iterate(v)) args.positional.push_back(std::move(item));
    } else if (kind == "**") {
      at(child);
      if (!v.is(Kind::kDict)) fail("argument after ** must be a mapping");
      for (const auto& [key, value] : v.as<DictObject>().entries) {
        if (!key.is_string()) fail("keywords must be strings");
        args.keyword.emplace_back(key.text().str(), value);
      }
    } else {
      args.keyword.emplace_back(kind, std::move(v));
    }
  }
  return args;
}

Value Interpreter::eval_filter(const Node* node, const Value* input) {
  const Guard guard(*this);
  const Node* inner = node->children[0];
  const Value v = !inner ? *input : input ? eval_filter(inner, input) : eval(inner);
  const Args args = eval_args(node, 1);
  at(node);
  return filter(node->name, v, args);
}

}  // namespace weft::jinja
