#pragma once

#include <memory>
#include <utility>

#include "text/jinja_interp.h"

namespace weft::jinja {

constexpr int kMaxDepth = 1200;  ///< frames of exec and eval

/// One level of recursion.
struct Interpreter::Guard {
  explicit Guard(Interpreter& interpreter) : i(interpreter) {
    if (++i.depth_ > kMaxDepth) {
      --i.depth_;
      i.fail("the template recurses too deep");
    }
  }
  ~Guard() { --i.depth_; }
  Guard(const Guard&) = delete;
  Guard& operator=(const Guard&) = delete;
  Interpreter& i;
};

/// Makes a fresh scope below `parent` the current one. Scopes that no macro holds are used again.
struct Interpreter::ScopeGuard {
  ScopeGuard(Interpreter& interpreter, Scope* parent)
      : i(interpreter), previous(interpreter.scope_) {
    if (i.free_scopes_.empty()) {
      own = std::make_unique<Scope>();
    } else {
      own = std::move(i.free_scopes_.back());
      i.free_scopes_.pop_back();
    }
    own->parent = parent;
    i.scope_ = own.get();
  }
  ~ScopeGuard() {
    i.scope_ = previous;
    if (own->captured) {
      i.scopes_.push_back(std::move(own));
    } else {
      own->variables.clear();
      i.free_scopes_.push_back(std::move(own));
    }
  }
  ScopeGuard(const ScopeGuard&) = delete;
  ScopeGuard& operator=(const ScopeGuard&) = delete;
  Interpreter& i;
  Scope* previous;
  std::unique_ptr<Scope> own;
};

struct Interpreter::Capture {
  explicit Capture(Interpreter& interpreter) : i(interpreter), previous(interpreter.out_) {
    i.out_ = &buffer;
  }
  ~Capture() {
    i.out_ = previous;
    i.captured_bytes_ -= buffer_bytes();
  }
  Capture(const Capture&) = delete;
  Capture& operator=(const Capture&) = delete;
  Tagged take() {
    taken += buffer.size();
    return std::move(buffer);
  }
  size_t buffer_bytes() const { return taken > 0 ? taken : buffer.size(); }
  Interpreter& i;
  Tagged* previous;
  Tagged buffer;
  size_t taken = 0;
};

}  // namespace weft::jinja
