#include "text/jinja_parser.h"

namespace weft::jinja {

Node* ExpressionParser::expression(bool with_condition) {
  const Nested nested(*this);
  return with_condition ? condition() : either();
}

Node* ExpressionParser::condition() {
  const Token at = peek();
  Node* e = either();
  while (take_name("if")) {
    Node* test = either();
    Node* otherwise = take_name("else") ? expression() : nullptr;
    e = make(NodeKind::kCondition, at, {test, e, otherwise});
  }
  return e;
}

Node* ExpressionParser::either() {
  Node* e = both();
  while (is_name("or")) {
    const Token at = next();
    e = make(NodeKind::kOr, at, {e, both()});
  }
  return e;
}

Node* ExpressionParser::both() {
  Node* e = negation();
  while (is_name("and")) {
    const Token at = next();
    e = make(NodeKind::kAnd, at, {e, negation()});
  }
  return e;
}

Node* ExpressionParser::negation() {
  if (is_name("not")) {
    const Nested nested(*this);
    const Token at = next();
    return make(NodeKind::kNot, at, {negation()});
  }
  return comparison();
}

Node* ExpressionParser::comparison() {
  const Token at = peek();
  Node* e = sum();
  Node* chain = nullptr;
  while (true) {
    std::string op;
    for (const char* symbol : {"==", "!=", "<", "<=", ">", ">="}) {
      if (is_op(symbol)) op = symbol;
    }
    if (!op.empty()) {
      next();
    } else if (take_name("in")) {
      op = "in";
    } else if (is_name("not") && is_name("in", 1)) {
      next();
      next();
      op = "not in";
    } else {
      return chain ? chain : e;
    }
    if (!chain) chain = make(NodeKind::kCompare, at, {e});
    chain->names.push_back(op);
    adopt(chain, sum());
  }
}

Node* ExpressionParser::binary(Node* left, const Token& op, Node* right) {
  Node* n = make(NodeKind::kBinary, op, {left, right});
  n->name = op.text;
  return n;
}

Node* ExpressionParser::sum() {
  Node* e = concat();
  while (is_op("+") || is_op("-")) {
    const Token op = next();
    e = binary(e, op, concat());
  }
  return e;
}

Node* ExpressionParser::concat() {
  const Token at = peek();
  Node* e = product();
  if (!is_op("~")) return e;
  Node* n = make(NodeKind::kConcat, at, {e});
  while (take_op("~")) adopt(n, product());
  return n;
}

Node* ExpressionParser::product() {
  Node* e = power();
  while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
    const Token op = next();
    e = binary(e, op, power());
  }
  return e;
}

Node* ExpressionParser::power() {
  Node* e = unary(true);
  while (is_op("**")) {
    const Token op = next();
    e = binary(e, op, unary(true));
  }
  return e;
}

Node* ExpressionParser::unary(bool with_filter) {
  const Token at = peek();
  Node* e = nullptr;
  if (is_op("-") || is_op("+")) {
    const Nested nested(*this);
    next();
    e = make(at.text == "-" ? NodeKind::kNegate : NodeKind::kPositive, at, {unary(false)});
  } else {
    e = primary();
  }
  e = postfix(e);
  return with_filter ? filters_and_tests(e) : e;
}

Node* ExpressionParser::primary() {
  const Token at = peek();
  switch (at.kind) {
    case TokenKind::kName: {
      next();
      if (at.text == "true" || at.text == "True") return constant(Value::boolean(true), at);
      if (at.text == "false" || at.text == "False") return constant(Value::boolean(false), at);
      if (at.text == "none" || at.text == "None") return constant(Value::none(), at);
      Node* n = make(NodeKind::kName, at);
      n->name = at.text;
      n->symbol = program_.intern(at.text);
      return n;
    }
    case TokenKind::kString: {
      std::string s;
      while (peek().kind == TokenKind::kString) s += next().text;
      return constant(Value::string(std::move(s)), at);
    }
    case TokenKind::kInteger: next(); return constant(Value::integer(at.integer), at);
    case TokenKind::kFloat: next(); return constant(Value::real(at.real), at);
    case TokenKind::kOperator: break;
    default: fail("unexpected " + describe(at));
  }
  if (take_op("(")) {
    Node* e = tuple(true, false, true);
    expect_op(")");
    return e;
  }
  if (take_op("[")) {
    Node* n = make(NodeKind::kList, at);
    while (!is_op("]")) {
      if (!n->children.empty()) expect_op(",");
      if (is_op("]")) break;
      adopt(n, expression());
    }
    expect_op("]");
    return n;
  }
  if (take_op("{")) {
    Node* n = make(NodeKind::kDict, at);
    while (!is_op("}")) {
      if (!n->children.empty()) expect_op(",");
      if (is_op("}")) break;
      adopt(n, expression());
      expect_op(":");
      adopt(n, expression());
    }
    expect_op("}");
    return n;
  }
  fail("unexpected " + describe(at));
}

/// One expression, or a tuple of them without brackets. `loop_iterable`: `recursive` ends it.
Node* ExpressionParser::tuple(bool with_condition, bool loop_iterable, bool explicit_brackets) {
  const Token at = peek();
  std::vector<Node*> parts;
  bool is_tuple = false;
  while (true) {
    if (!parts.empty()) {
      if (!take_op(",")) break;
      is_tuple = true;
    }
    const bool ends = peek().kind == TokenKind::kVariableEnd ||
                      peek().kind == TokenKind::kBlockEnd || is_op(")") ||
                      (loop_iterable && is_name("recursive"));
    if (ends) break;
    parts.push_back(expression(with_condition));
  }
  if (!is_tuple) {
    if (!parts.empty()) return parts[0];
    if (!explicit_brackets) fail("expected an expression, got " + describe(peek()));
  }
  Node* n = make(NodeKind::kTuple, at);
  for (Node* p : parts) adopt(n, p);
  return n;
}

Node* ExpressionParser::postfix(Node* e) {
  while (true) {
    if (is_op(".") || is_op("[")) {
      e = subscript(e);
    } else if (is_op("(")) {
      e = call(e);
    } else {
      return e;
    }
  }
}

Node* ExpressionParser::filters_and_tests(Node* e) {
  while (true) {
    if (is_op("|")) {
      e = filters(e, false);
    } else if (is_name("is")) {
      e = test(e);
    } else if (is_op("(")) {
      e = call(e);
    } else {
      return e;
    }
  }
}

Node* ExpressionParser::subscript(Node* object) {
  const Token at = next();
  if (at.text == ".") {
    const Token attribute = next();
    if (attribute.kind == TokenKind::kInteger) {
      return make(NodeKind::kItem, at,
                  {object, constant(Value::integer(attribute.integer), attribute)});
    }
    if (attribute.kind != TokenKind::kName) fail("expected a name after '.'", attribute);
    Node* n = make(NodeKind::kAttribute, attribute, {object});
    n->name = attribute.text;
    return n;
  }
  std::vector<Node*> parts;
  while (!is_op("]")) {
    if (!parts.empty()) expect_op(",");
    parts.push_back(slice_or_index());
  }
  if (parts.empty()) fail("expected an index");
  expect_op("]");
  if (parts.size() == 1) return make(NodeKind::kItem, at, {object, parts[0]});
  Node* index = make(NodeKind::kTuple, at);
  for (Node* p : parts) adopt(index, p);
  return make(NodeKind::kItem, at, {object, index});
}

Node* ExpressionParser::slice_or_index() {
  const Token at = peek();
  Node* parts[3] = {nullptr, nullptr, nullptr};
  if (!is_op(":")) {
    parts[0] = expression();
    if (!is_op(":")) return parts[0];
  }
  for (int k = 1; k < 3 && take_op(":"); ++k) {
    if (!is_op(":") && !is_op("]") && !is_op(",")) parts[k] = expression();
  }
  return make(NodeKind::kSlice, at, {parts[0], parts[1], parts[2]});
}

/// (a, k=v, *list, **dict): values as children, kinds in names.
void ExpressionParser::arguments(Node* n) {
  expect_op("(");
  bool first = true;
  while (!is_op(")")) {
    if (!first) expect_op(",");
    if (is_op(")")) break;
    first = false;
    std::string kind;
    if (take_op("*")) {
      kind = "*";
    } else if (take_op("**")) {
      kind = "**";
    } else if (peek().kind == TokenKind::kName && is_op("=", 1)) {
      kind = next().text;
      next();
    } else if (!n->names.empty() && !n->names.back().empty()) {
      fail("positional argument after a keyword argument");
    }
    n->names.push_back(kind);
    adopt(n, expression());
  }
  expect_op(")");
}

Node* ExpressionParser::call(Node* callee) {
  Node* n = make(NodeKind::kCall, peek(), {callee});
  arguments(n);
  return n;
}

/// | name(args) | ...; `start_inline`: the first name comes without its bar.
Node* ExpressionParser::filters(Node* value, bool start_inline) {
  while (start_inline || is_op("|")) {
    if (!start_inline) next();
    start_inline = false;
    Node* n = make(NodeKind::kFilter, peek(), {value});
    n->name = expect_name();
    while (take_op(".")) n->name += "." + expect_name();
    if (is_op("(")) arguments(n);
    value = n;
  }
  return value;
}

Node* ExpressionParser::test(Node* value) {
  next();
  const bool negated = take_name("not");
  Node* n = make(NodeKind::kTest, peek(), {value});
  n->flag = negated;
  n->name = expect_name();
  while (take_op(".")) n->name += "." + expect_name();
  const Token& t = peek();
  const bool stops = is_name("else") || is_name("or") || is_name("and");
  if (is_op("(")) {
    arguments(n);
  } else if ((t.kind == TokenKind::kName && !stops) || t.kind == TokenKind::kString ||
             t.kind == TokenKind::kInteger || t.kind == TokenKind::kFloat || is_op("[") ||
             is_op("{")) {
    if (is_name("is")) fail("You cannot chain multiple tests with is");
    const Nested nested(*this);
    Node* argument = postfix(primary());
    n->names.emplace_back();
    adopt(n, argument);
  }
  return n;
}

}  // namespace weft::jinja
