#pragma once

#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "base/check.h"

namespace weft {

/// What kind of failure a user or the environment caused. It decides exit codes and HTTP statuses.
enum class ErrorKind {
  kInvalidArgument,  ///< bad input: the message names the field and the allowed values
  kNotFound,         ///< a file, a model, a tensor that is not there
  kPermission,       ///< 401 / 403 / EACCES
  kUnavailable,      ///< network or device trouble; trying again may help
  kExhausted,        ///< memory, disk or a limit
  kUnsupported,      ///< valid, but refused: the message says what is supported
  kDataLoss,         ///< corrupt or truncated data
};

struct Error {
  ErrorKind kind = ErrorKind::kInvalidArgument;
  std::string message;
  std::string_view code = {};  ///< a literal that programs look for, where the kind says too little
};

inline Error invalid_argument(std::string m) {
  return {ErrorKind::kInvalidArgument, std::move(m)};
}
inline Error not_found(std::string m) {
  return {ErrorKind::kNotFound, std::move(m)};
}
inline Error permission_denied(std::string m) {
  return {ErrorKind::kPermission, std::move(m)};
}
inline Error unavailable(std::string m) {
  return {ErrorKind::kUnavailable, std::move(m)};
}
inline Error exhausted(std::string m) {
  return {ErrorKind::kExhausted, std::move(m)};
}
inline Error unsupported(std::string m) {
  return {ErrorKind::kUnsupported, std::move(m)};
}
inline Error data_loss(std::string m) {
  return {ErrorKind::kDataLoss, std::move(m)};
}

/// Prefixes an error with where it happened ("config.json: ...").
inline Error with_context(Error e, const std::string& where) {
  e.message = where + ": " + e.message;
  return e;
}

/// A value or an Error. For failures that a user or the environment can cause; bugs use CHECK.
template <class T = void>
class [[nodiscard]] Result {
 public:
  // NOLINTBEGIN(google-explicit-constructor): `return value;` and `return error;` are the point.
  Result(T value) : state_(std::in_place_index<0>, std::move(value)) {}
  Result(Error error) : state_(std::in_place_index<1>, std::move(error)) {}
  // NOLINTEND(google-explicit-constructor)
  bool ok() const { return state_.index() == 0; }
  explicit operator bool() const { return ok(); }
  T& value() & {
    CHECK(ok(), error_message());
    return std::get<0>(state_);
  }
  const T& value() const& {
    CHECK(ok(), error_message());
    return std::get<0>(state_);
  }
  /// By value: `for (x : f().value())` must not walk a temporary that is gone.
  T value() && {
    CHECK(ok(), error_message());
    return std::get<0>(std::move(state_));
  }
  T& operator*() & { return value(); }
  const T& operator*() const& { return value(); }
  T* operator->() { return &value(); }
  const T* operator->() const { return &value(); }
  const Error& error() const& { return std::get<1>(state_); }
  Error&& error() && { return std::get<1>(std::move(state_)); }

 private:
  std::string error_message() const { return ok() ? std::string() : std::get<1>(state_).message; }
  std::variant<T, Error> state_;
};

template <>
class [[nodiscard]] Result<void> {
 public:
  Result() = default;
  Result(Error error) : error_(std::move(error)) {}  // NOLINT: implicit by design
  bool ok() const { return !error_.has_value(); }
  explicit operator bool() const { return ok(); }
  void value() const { CHECK(ok(), error_ ? error_->message : std::string()); }
  const Error& error() const& { return *error_; }
  Error&& error() && { return std::move(*error_); }

 private:
  std::optional<Error> error_;
};

}  // namespace weft

/// `auto x = TRY(f());` takes the value of a Result or returns its error from the enclosing
/// function. For Result<void>: `TRY(g());`. (A GNU statement expression: g++, clang and nvcc.)
#define TRY(expr)                                                 \
  (__extension__({                                                \
    auto try_result_ = (expr);                                    \
    if (!try_result_.ok()) return std::move(try_result_).error(); \
    std::move(try_result_).value();                               \
  }))
