#pragma once

#include <algorithm>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/jinja_ast.h"

namespace weft::jinja {

/// The expressions of jinja2's grammar, by recursive descent; `nesting_` bounds the recursion. The
/// statements stand on top of it (jinja_parser.cc).
class ExpressionParser {
 protected:
  ExpressionParser(std::vector<Token> tokens, Program& program)
      : tokens_(std::move(tokens)), program_(program) {}

  struct Nested {
    explicit Nested(ExpressionParser& p) : parser(p) {
      if (++parser.nesting_ > kMaxNesting) parser.fail("nested too deep (at most 100 levels)");
    }
    ~Nested() { --parser.nesting_; }
    Nested(const Nested&) = delete;
    Nested& operator=(const Nested&) = delete;
    ExpressionParser& parser;
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

  Node* expression(bool with_condition = true);
  Node* condition();
  Node* either();
  Node* both();
  Node* negation();
  Node* comparison();
  Node* binary(Node* left, const Token& op, Node* right);
  Node* sum();
  Node* concat();
  Node* product();
  Node* power();
  Node* unary(bool with_filter);
  Node* primary();
  Node* tuple(bool with_condition, bool loop_iterable, bool explicit_brackets);
  Node* postfix(Node* e);
  Node* filters_and_tests(Node* e);
  Node* subscript(Node* object);
  Node* slice_or_index();
  void arguments(Node* n);
  Node* call(Node* callee);
  Node* filters(Node* value, bool start_inline);
  Node* test(Node* value);

  std::vector<Token> tokens_;
  Program& program_;
  size_t at_ = 0;
  int nesting_ = 0;
};

}  // namespace weft::jinja
