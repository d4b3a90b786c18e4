#include <algorithm>
#include <initializer_list>

#include "text/jinja_ast.h"

namespace weft::jinja {
namespace {

/// Recursive descent after jinja2's grammar; `nesting_` bounds the recursion.
class Parser {
 public:
  Parser(std::vector<Token> tokens, Program& program)
      : tokens_(std::move(tokens)), program_(program) {}

  Node* run() {
    Node* body = statements({});
    if (peek().kind != TokenKind::kEnd) fail("unexpected end tag");
    return body;
  }

 private:
  struct Nested {
    explicit Nested(Parser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting) parser.fail("nested too deep (at most 100 levels)");
    }
    ~Nested() { --parser.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    Parser& parser;
  };

  const Token& peek(size_t ahead = 0) const {
    return tokens_[std::min(at_ + ahead, tokens_.size() - 1)];
  }
  const Token& next() {
    const Token& t = peek();
    if (at_ + 1 < tokens_.size()) ++at_;
    return t;
  }
  [[noreturn]] void fail(const std::string& message) const { fail(message, peek()); }
  [[noreturn]] static void fail(const std::string& message, const Token& at) {
    throw Failure{message, at.line, at.column};
  }
  static std::string describe(const Token& t) {
    switch (t.kind) {
      case TokenKind::kData: return "template data";
      case TokenKind::kVariableBegin: return "'{{'";
      case TokenKind::kVariableEnd: return "'}}'";
      case TokenKind::kBlockBegin: return "'{%'";
      case TokenKind::kBlockEnd: return "'%}'";
      case TokenKind::kEnd: return "end of template";
      default: return "'" + t.text.substr(0, 60) + "'";
    }
  }
  bool is_op(std::string_view op, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kOperator && peek(ahead).text == op;
  }
  bool is_name(std::string_view name, size_t ahead = 0) const {
    return peek(ahead).kind == TokenKind::kName && peek(ahead).text == name;
  }
  bool take_op(std::string_view op) { return is_op(op) && (next(), true); }
  bool take_name(std::string_view name) { return is_name(name) && (next(), true); }
  void expect_op(std::string_view op) {
    if (!take_op(op)) fail("expected '" + std::string(op) + "', got " + describe(peek()));
  }
  void expect(TokenKind kind, const char* what) {
    if (peek().kind != kind) fail(std::string("expected ") + what + ", got " + describe(peek()));
    next();
  }
  std::string expect_name() {
    if (peek().kind != TokenKind::kName) fail("expected a name, got " + describe(peek()));
    return next().text;
  }

  Node* make(NodeKind kind, const Token& at) {
    program_.nodes.push_back({});
    Node* n = &program_.nodes.back();
    n->kind = kind;
    n->line = at.line;
    n->column = at.column;
    return n;
  }
  Node* make(NodeKind kind, const Token& at, std::initializer_list<Node*> children) {
    Node* n = make(kind, at);
    for (Node* c : children) adopt(n, c);
    return n;
  }
  void adopt(Node* parent, Node* child) {
    parent->children.push_back(child);
    if (!child) return;
    parent->depth = std::max(parent->depth, child->depth + 1);
    if (parent->depth > kMaxTreeDepth) {
      throw Failure{"expression too long (more than 400 steps deep)", parent->line, parent->column};
    }
  }
  Node* constant(Value v, const Token& at) {
    Node* n = make(NodeKind::kConstant, at);
    n->constant = std::move(v);
    return n;
  }

  // ---- statements

  /// Up to `{% name` with one of `ends` (not consumed; the tag's name is the next token) or the
  /// end.
  Node* statements(std::initializer_list<std::string_view> ends) {
    const Nested nested(*this);
    Node* body = make(NodeKind::kBody, peek());
    while (true) {
      const Token& t = peek();
      if (t.kind == TokenKind::kEnd) {
        if (ends.size() > 0)
          fail("unexpected end of template, expected '" + std::string(*(ends.end() - 1)) + "'");
        return body;
      }
      if (t.kind == TokenKind::kData) {
        Node* n = make(NodeKind::kText, t);
        n->constant = Value::string(t.text);
        next();
        adopt(body, n);
      } else if (t.kind == TokenKind::kVariableBegin) {
        next();
        Node* e = tuple(true, false, false);
        expect(TokenKind::kVariableEnd, "'}}'");
        adopt(body, make(NodeKind::kOutput, t, {e}));
      } else {
        expect(TokenKind::kBlockBegin, "a tag");
        if (peek().kind == TokenKind::kName &&
            std::find(ends.begin(), ends.end(), peek().text) != ends.end()) {
          return body;
        }
        if (Node* s = statement()) adopt(body, s);
      }
    }
  }
  void end_block() { expect(TokenKind::kBlockEnd, "'%}'"); }
  /// The body of a tag up to its end tag, which is consumed whole.
  Node* body_until(std::string_view end) {
    end_block();
    Node* body = statements({end});
    next();
    end_block();
    return body;
  }

  Node* statement() {
    const Token tag = peek();
    const std::string name = expect_name();
    if (name == "if") return if_tag(tag);
    if (name == "for") return for_tag(tag);
    if (name == "set") return set_tag(tag);
    if (name == "macro") return macro_tag(tag);
    if (name == "call") return call_tag(tag);
    if (name == "filter") {
      Node* filter = filters(nullptr, true);
      return make(NodeKind::kFilterBlock, tag, {filter, body_until("endfilter")});
    }
    if (name == "with") return with_tag(tag);
    if (name == "generation")
      return body_until("endgeneration");  // marks assistant text for training
    if (name == "print") {
      Node* e = tuple(true, false, false);
      end_block();
      return make(NodeKind::kOutput, tag, {e});
    }
    if (name == "block") {
      expect_name();
      take_name("scoped");
      take_name("required");
      end_block();
      Node* body = statements({"endblock"});
      next();
      if (peek().kind == TokenKind::kName) next();
      end_block();
      return make(NodeKind::kBlock, tag, {body});
    }
    if (name == "break" || name == "continue") {
      if (loops_ == 0) fail("'" + name + "' outside of a loop", tag);
      end_block();
      return make(name == "break" ? NodeKind::kBreak : NodeKind::kContinue, tag);
    }
    for (const char* other : {"extends", "include", "import", "from", "autoescape"}) {
      if (name == other) fail("tag '" + name + "' is not supported in chat templates", tag);
    }
    fail("unknown tag '" + name + "'", tag);
  }

  Node* if_tag(const Token& tag) {
    Node* n = make(NodeKind::kIf, tag);
    while (true) {
      adopt(n, tuple(false, false, false));
      end_block();
      adopt(n, statements({"elif", "else", "endif"}));
      const std::string name = next().text;
      if (name == "elif") continue;
      if (name == "else") adopt(n, body_until("endif"));
      if (name == "endif") end_block();
      return n;
    }
  }
  Node* for_tag(const Token& tag) {
    Node* n = make(NodeKind::kFor, tag);
    adopt(n, target(true));
    if (!take_name("in")) fail("expected 'in', got " + describe(peek()));
    adopt(n, tuple(false, true, false));
    adopt(n, take_name("if") ? expression() : nullptr);
    n->flag = take_name("recursive");
    end_block();
    ++loops_;
    adopt(n, statements({"endfor", "else"}));
    --loops_;
    if (next().text == "endfor") {
      end_block();
      adopt(n, nullptr);
    } else {
      adopt(n, body_until("endfor"));
    }
    return n;
  }
  Node* set_tag(const Token& tag) {
    Node* to = target(false);
    if (take_op("=")) {
      Node* value = tuple(true, false, false);
      end_block();
      return make(NodeKind::kSet, tag, {to, value});
    }
    Node* filter = is_op("|") ? filters(nullptr, false) : nullptr;
    Node* body = body_until("endset");
    return make(NodeKind::kSetBlock, tag, {to, body, filter});
  }
  /// name, name.attribute, or a tuple of names.
  Node* target(bool for_loop) {
    const Token first = peek();
    if (!for_loop && peek(1).kind == TokenKind::kOperator && is_op(".", 1)) {
      Node* n = make(NodeKind::kNamespaceRef, first);
      n->symbol = program_.intern(expect_name());
      next();
      n->name = expect_name();
      return n;
    }
    std::vector<Node*> parts;
    bool is_tuple = false;
    do {
      if (!parts.empty()) {
        is_tuple = true;
        if (is_name("in") || is_op("=") || is_op(")") || peek().kind == TokenKind::kBlockEnd) break;
      }
      if (take_op("(")) {
        const Nested nested(*this);
        parts.push_back(target(for_loop));
        expect_op(")");
      } else {
        Node* n = make(NodeKind::kName, peek());
        static constexpr std::string_view kReserved[] = {"true", "false", "none",
                                                         "True", "False", "None"};
        const std::string name = expect_name();
        if (std::find(std::begin(kReserved), std::end(kReserved), name) != std::end(kReserved)) {
          fail("can't assign to '" + name + "'", first);
        }
        n->symbol = program_.intern(name);
        parts.push_back(n);
      }
    } while (take_op(","));
    if (!is_tuple) return parts[0];
    Node* n = make(NodeKind::kTuple, first);
    for (Node* p : parts) adopt(n, p);
    return n;
  }
  /// (a, b=1, ...): names to n, defaults as further children.
  void signature(Node* n) {
    expect_op("(");
    bool defaults = false;
    while (!is_op(")")) {
      if (!n->names.empty()) expect_op(",");
      if (is_op(")")) break;
      const std::string name = expect_name();
      n->names.push_back(name);
      n->symbols.push_back(program_.intern(name));
      if (take_op("=")) {
        defaults = true;
        adopt(n, expression());
      } else if (defaults) {
        fail("parameter without a default after one with a default");
      }
    }
    expect_op(")");
  }
  /// Bodies of macros are no place for the `break` of a loop around them.
  Node* closed_body(std::string_view end) {
    const int loops = loops_;
    loops_ = 0;
    Node* body = body_until(end);
    loops_ = loops;
    return body;
  }
  Node* macro_tag(const Token& tag) {
    Node* n = make(NodeKind::kMacro, tag, {nullptr});
    n->name = expect_name();
    n->symbol = program_.intern(n->name);
    signature(n);
    set_body(n, 0, closed_body("endmacro"));
    return n;
  }
  Node* call_tag(const Token& tag) {
    Node* n = make(NodeKind::kCallBlock, tag, {nullptr, nullptr});
    n->name = "caller";
    if (is_op("(")) signature(n);
    Node* call = expression();
    if (call->kind != NodeKind::kCall) fail("expected a call", tag);
    set_body(n, 0, call);
    set_body(n, 1, closed_body("endcall"));
    return n;
  }
  void set_body(Node* n, size_t i, Node* child) {
    adopt(n, child);
    n->children.pop_back();
    n->children[i] = child;
  }
  Node* with_tag(const Token& tag) {
    Node* n = make(NodeKind::kWith, tag);
    while (peek().kind != TokenKind::kBlockEnd) {
      if (!n->children.empty()) expect_op(",");
      adopt(n, target(false));
      expect_op("=");
      adopt(n, expression());
    }
    adopt(n, body_until("endwith"));
    return n;
  }

  // ---- expressions

  Node* expression(bool with_condition = true) {
    const Nested nested(*this);
    return with_condition ? condition() : either();
  }
  Node* condition() {
    const Token at = peek();
    Node* e = either();
    while (take_name("if")) {
      Node* test = either();
      Node* otherwise = take_name("else") ? expression() : nullptr;
      e = make(NodeKind::kCondition, at, {test, e, otherwise});
    }
    return e;
  }
  Node* either() {
    Node* e = both();
    while (is_name("or")) {
      const Token at = next();
      e = make(NodeKind::kOr, at, {e, both()});
    }
    return e;
  }
  Node* both() {
    Node* e = negation();
    while (is_name("and")) {
      const Token at = next();
      e = make(NodeKind::kAnd, at, {e, negation()});
    }
    return e;
  }
  Node* negation() {
    if (is_name("not")) {
      const Nested nested(*this);
      const Token at = next();
      return make(NodeKind::kNot, at, {negation()});
    }
    return comparison();
  }
  Node* comparison() {
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
  Node* binary(Node* left, const Token& op, Node* right) {
    Node* n = make(NodeKind::kBinary, op, {left, right});
    n->name = op.text;
    return n;
  }
  Node* sum() {
    Node* e = concat();
    while (is_op("+") || is_op("-")) {
      const Token op = next();
      e = binary(e, op, concat());
    }
    return e;
  }
  Node* concat() {
    const Token at = peek();
    Node* e = product();
    if (!is_op("~")) return e;
    Node* n = make(NodeKind::kConcat, at, {e});
    while (take_op("~")) adopt(n, product());
    return n;
  }
  Node* product() {
    Node* e = power();
    while (is_op("*") || is_op("/") || is_op("//") || is_op("%")) {
      const Token op = next();
      e = binary(e, op, power());
    }
    return e;
  }
  Node* power() {
    Node* e = unary(true);
    while (is_op("**")) {
      const Token op = next();
      e = binary(e, op, unary(true));
    }
    return e;
  }
  Node* unary(bool with_filter) {
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
  Node* primary() {
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
  Node* tuple(bool with_condition, bool loop_iterable, bool explicit_brackets) {
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
  Node* postfix(Node* e) {
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
  Node* filters_and_tests(Node* e) {
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
  Node* subscript(Node* object) {
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
  Node* slice_or_index() {
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
  void arguments(Node* n) {
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
  Node* call(Node* callee) {
    Node* n = make(NodeKind::kCall, peek(), {callee});
    arguments(n);
    return n;
  }
  /// | name(args) | ...; `start_inline`: the first name comes without its bar.
  Node* filters(Node* value, bool start_inline) {
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
  Node* test(Node* value) {
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

  std::vector<Token> tokens_;
  Program& program_;
  size_t at_ = 0;
  int nesting_ = 0;
  int loops_ = 0;
};

}  // namespace

Program parse(std::string_view source) {
  Program program;
  program.root = Parser(tokenize(source), program).run();
  return program;
}

}  // namespace weft::jinja
