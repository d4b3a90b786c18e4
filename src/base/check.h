#pragma once

#include <source_location>
#include <stdexcept>
#include <string>

namespace weft {

/// A broken invariant of ours. Thrown by CHECK, caught in one place (the engine thread) and at the
/// top of main; never used for anything that a user or the environment can cause.
class Panic : public std::logic_error {
 public:
  using std::logic_error::logic_error;
};

[[noreturn]] void panic(const char* condition, const std::string& message,
                        std::source_location where = std::source_location::current());

}  // namespace weft

/// CHECK(condition) or CHECK(condition, "message"): throws Panic with the place. Always on.
#define CHECK(condition, ...)                              \
  do {                                                     \
    if (!(condition)) [[unlikely]]                         \
      ::weft::panic(#condition, std::string{__VA_ARGS__}); \
  } while (false)

#ifdef NDEBUG
#define DCHECK(condition, ...) \
  do {                         \
  } while (false)
#else
#define DCHECK(condition, ...) CHECK(condition, __VA_ARGS__)
#endif
