#pragma once

#include <string>
#include <string_view>

namespace weft {

/// Checks a JSON value byte by byte (RFC 8259) and gives out only what can be completed by closing
/// strings, arrays and objects: keys wait for their value's first byte, numbers, literals and
/// escapes for their end. So whatever was given out is valid JSON once completion() follows it.
class JsonStream {
 public:
  enum class Status { kMore, kDone, kBad };

  /// Takes one byte; `out` gets what became certain. kDone: the value is complete with this byte (a
  /// top-level number never is). kBad: this byte can't stand here; it was not taken.
  Status push(char c, std::string& out);
  /// What completes the text given out so far. Nothing was given out: "".
  std::string completion() const;

 private:
  static constexpr size_t kMaxDepth = 64;
  enum class State {
    kValue,       // a value must come
    kFirstValue,  // or the end of the array
    kFirstKey,    // a key, or the end of the object
    kKey,
    kColon,
    kAfterValue,
    kString,
    kEscape,
    kUnicode,
    kScalar,  // a number, true, false, null
    kDone,
  };
  Status push_in_string(char c, std::string& out);
  Status push_structure(char c, std::string& out);
  Status begin_value(char c, std::string& out);
  Status end_value(std::string& out);
  Status close(char c, std::string& out);
  void give(std::string& out);

  State state_ = State::kValue;
  bool in_key_ = false;
  bool string_open_ = false;  // in what was given out
  int unicode_left_ = 0;
  size_t scalar_begin_ = 0;  // in held_
  std::string stack_;        // '{' and '[' that are open
  std::string held_;
};

}  // namespace weft
