#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace weft::text {

/// Turns the JSON that a model writes into valid JSON, byte by byte: what is given out is always
/// the beginning of a valid text, and close() completes it. White space and numbers stay as they
/// were written. Mended: control characters in strings, unknown escapes, halves of surrogate pairs,
/// trailing commas, Python's True, False and None.
/// A key waits for its value's first byte, so that nothing is left open that can't be closed.
class JsonStream {
 public:
  static constexpr int kMaxDepth = 64;
  static constexpr size_t kMaxHeld = size_t{64} << 10;  ///< bytes of white space and key

  enum class Step : uint8_t {
    kMore,
    kEnd,        ///< the value is complete with this byte
    kEndBefore,  ///< a number at the root ended; this byte is not part of it
    kBad,        ///< no JSON goes on with this byte; close() what there is
  };

  /// Takes the next byte and appends what became certain to `out`. Not to be called after an end.
  Step step(char c, std::string& out);
  /// Completes the value at the text's end, or after kBad. False: there was no value at all.
  bool close(std::string& out);

 private:
  enum class State : uint8_t {
    kValue,
    kValueOrEnd,  // after '['
    kKeyOrEnd,    // after '{'
    kKey,         // after ',' in an object
    kInKey,
    kColon,
    kInString,
    kWord,
    kNumber,
    kAfter,
  };
  enum class Digits : uint8_t { kSign, kZero, kWhole, kPoint, kFraction, kE, kESign, kExponent };

  Step value(char c, std::string& out);
  Step open(char c, std::string& out);
  Step after(char c, std::string& out);
  Step close_container(char c, std::string& out);
  Step ended();
  Step number(char c, std::string& out);
  Step word(char c);
  Step hold(char c);
  void string_byte(char c, std::string& target);
  void escape(char c, std::string& target);
  void after_surrogate(char c, std::string& target);
  void end_escape(std::string& target);
  bool after_backslash() const { return escape_.size() == 1 || escape_.size() == 7; }
  bool in_object() const { return (objects_ >> (depth_ - 1) & 1) != 0; }
  void flush(std::string& out);

  State state_ = State::kValue;
  Digits digits_ = Digits::kSign;
  int depth_ = 0;
  uint64_t objects_ = 0;  // bit i: level i is an object
  bool comma_ = false;    // held_ has one
  bool begun_ = false;
  std::string held_;            // white space, comma, key, colon: given with what follows
  std::string escape_;          // the escape that is being read
  const char* rest_ = nullptr;  // of a word
};

/// Text of a JSON string (after its opening quote) to the bytes it stands for.
class JsonStringReader {
 public:
  /// True: `c` is the closing quote. Appends to `out`.
  bool step(char c, std::string& out);

 private:
  void end_unit(std::string& out);

  enum class State : uint8_t { kText, kEscape, kHex };
  State state_ = State::kText;
  int num_digits_ = 0;
  uint32_t unit_ = 0, high_ = 0;
};

bool is_json_space(char c);

}  // namespace weft::text
