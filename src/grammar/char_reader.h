#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "base/result.h"
#include "grammar/rules.h"

namespace weft {

/// Reads the text of a regex or an EBNF grammar by code points; errors say where.
class CharReader {
 public:
  CharReader(std::string_view text, const std::string& field) : text_(text), field_(&field) {}

  bool at_end() const { return at_ >= text_.size(); }
  size_t position() const { return at_; }
  /// The byte here, 0 at the end.
  char peek() const { return at_end() ? '\0' : text_[at_]; }
  bool looking_at(std::string_view s) const { return text_.substr(at_).starts_with(s); }
  bool take(std::string_view s) {
    if (!looking_at(s)) return false;
    at_ += s.size();
    return true;
  }
  void skip(size_t bytes) { at_ += bytes; }
  /// The code point here; call it only where the text has not ended.
  Result<char32_t> code_point();
  /// A decimal number of at most seven digits; nothing where there is none.
  Result<std::optional<int64_t>> number();
  /// `digits` hex digits.
  Result<char32_t> hex(int digits);
  /// "{2}", "{2,}", "{,5}", "{2,5}" behind the '{'.
  Result<std::pair<int64_t, int64_t>> bounds();

  Error error(const std::string& what) const;
  Error not_supported(const std::string& what) const;

 private:
  std::string_view text_;
  const std::string* field_;
  size_t at_ = 0;
};

}  // namespace weft
