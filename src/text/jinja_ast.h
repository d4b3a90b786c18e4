#pragma once

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "text/jinja_value.h"

namespace weft::jinja {

enum class NodeKind : uint8_t {
  // Statements
  kBody,    ///< children
  kText,    ///< constant
  kOutput,  ///< children: one expression
  kIf,      ///< children: test, body, test, body, ..., [else body]
  kFor,     ///< children: target, iterable, test or null, body, else body or null; flag: recursive
  kSet,     ///< children: target, value
  kSetBlock,     ///< children: target, body, filter or null
  kMacro,        ///< name; children: body, then defaults; names: parameters
  kCallBlock,    ///< children: call, body, then defaults; names: parameters
  kFilterBlock,  ///< children: filter, body
  kWith,         ///< children: targets and values alternating, then the body
  kBlock,        ///< children: body, rendered in place
  kBreak,
  kContinue,
  // Expressions
  kConstant,      ///< constant
  kName,          ///< symbol
  kNamespaceRef,  ///< symbol.name, as a target
  kTuple,
  kList,
  kDict,       ///< children: key, value, ...
  kCondition,  ///< children: test, then, else or null
  kAnd,
  kOr,
  kNot,
  kCompare,  ///< children: operands; names: operators between them
  kBinary,   ///< name: operator
  kNegate,
  kPositive,
  kConcat,     ///< children
  kAttribute,  ///< name; children: object
  kItem,       ///< children: object, index
  kSlice,      ///< children: start, stop, step, each may be null
  kCall,    ///< children: callee, then arguments (see names: "" positional, "*", "**" or keyword)
  kFilter,  ///< name; children: value or null, arguments as in kCall
  kTest,    ///< name; flag: negated; children: value, arguments as in kCall
};

struct Node {
  NodeKind kind;
  int line = 1, column = 1;
  int depth = 1;    ///< of the tree below, bounded so that recursion over it is
  int symbol = -1;  ///< interned name
  bool flag = false;
  std::string name;
  std::vector<std::string> names;
  std::vector<int> symbols;  ///< of parameters
  std::vector<Node*> children;
  Value constant;
};

/// A parsed template: nodes in an arena, so that neither parsing nor freeing recurses by size.
struct Program {
  std::deque<Node> nodes;
  Node* root = nullptr;
  std::vector<std::string> symbol_names;
  std::unordered_map<std::string, int> symbol_of;
  int intern(const std::string& name) {
    const auto [it, added] = symbol_of.try_emplace(name, static_cast<int>(symbol_names.size()));
    if (added) symbol_names.push_back(name);
    return it->second;
  }
};

enum class TokenKind : uint8_t {
  kData,
  kVariableBegin,
  kVariableEnd,
  kBlockBegin,
  kBlockEnd,
  kName,
  kString,
  kInteger,
  kFloat,
  kOperator,
  kEnd,
};
struct Token {
  TokenKind kind;
  int line, column;
  std::string text;  ///< data, name, operator, or the value of a string
  int64_t integer = 0;
  double real = 0;
};

constexpr size_t kMaxTemplateBytes = 1 << 20;
constexpr int kMaxNesting = 100;    ///< of brackets and blocks while parsing
constexpr int kMaxTreeDepth = 400;  ///< of the tree, long operator chains included

/// Cuts a template into tokens as jinja2 does with trim_blocks and lstrip_blocks on.
/// Throws Failure with the position.
std::vector<Token> tokenize(std::string_view source);

/// Throws Failure with the position.
Program parse(std::string_view source);

}  // namespace weft::jinja
