#include "text/jinja_parser.h"

namespace weft::jinja {
namespace {

class Parser : ExpressionParser {
 public:
  Parser(std::vector<Token> tokens, Program& program)
      : ExpressionParser(std::move(tokens), program) {}

  Node* run() {
    Node* body = statements({});
    if (peek().kind != TokenKind::kEnd) fail("unexpected end tag");
    return body;
  }

 private:
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
    // Marks assistant text for training; transformers renders the body in a scope of its own.
    if (name == "generation") return make(NodeKind::kWith, tag, {body_until("endgeneration")});
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

  int loops_ = 0;
};

}  // namespace

Program parse(std::string_view source) {
  Program program;
  program.root = Parser(tokenize(source), program).run();
  return program;
}

}  // namespace weft::jinja
