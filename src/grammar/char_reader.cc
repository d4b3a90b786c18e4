#include "grammar/char_reader.h"

#include "base/hex.h"

namespace weft {

Error CharReader::error(const std::string& what) const {
  return invalid_argument(*field_ + ": " + what + " at byte " + std::to_string(at_));
}

Error CharReader::not_supported(const std::string& what) const {
  return unsupported(*field_ + ": " + what + " (at byte " + std::to_string(at_) +
                     ") is not supported");
}

Result<char32_t> CharReader::code_point() {
  const auto lead = static_cast<unsigned char>(text_[at_]);
  const int length = lead < 0x80 ? 1 : lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : lead >= 0xC2 ? 2 : 0;
  if (length == 0 || at_ + static_cast<size_t>(length) > text_.size()) {
    return error("invalid UTF-8");
  }
  char32_t code = length == 1 ? lead : lead & (0xFFU >> (length + 1));
  for (int i = 1; i < length; ++i) {
    const auto next = static_cast<unsigned char>(text_[at_ + static_cast<size_t>(i)]);
    if ((next & 0xC0) != 0x80) return error("invalid UTF-8");
    code = code << 6 | (next & 0x3F);
  }
  at_ += static_cast<size_t>(length);
  return code;
}

Result<std::optional<int64_t>> CharReader::number() {
  int64_t value = 0;
  int digits = 0;
  while (peek() >= '0' && peek() <= '9') {
    if (++digits > 7) return error("a number of more than seven digits");
    value = 10 * value + (text_[at_++] - '0');
  }
  if (digits == 0) return std::optional<int64_t>();
  return std::optional<int64_t>(value);
}

Result<char32_t> CharReader::hex(int digits) {
  char32_t value = 0;
  for (int i = 0; i < digits; ++i, ++at_) {
    const int digit = hex_digit(peek());
    if (digit < 0) return error("a hexadecimal digit is missing");
    value = value << 4 | static_cast<char32_t>(digit);
  }
  if (value > 0x10FFFF) return error("a code point beyond U+10FFFF");
  return value;
}

Result<std::pair<int64_t, int64_t>> CharReader::bounds() {
  const std::optional<int64_t> low = TRY(number());
  std::optional<int64_t> high = low;
  if (take(",")) {
    high = TRY(number());
    if (!low && !high) return error("a repetition without bounds");
  }
  if (!low && !high) return error("a repetition without bounds");
  if (!take("}")) return error("'}' is missing");
  if (high && *high < low.value_or(0)) return error("a repetition whose bounds are reversed");
  return std::pair<int64_t, int64_t>{low.value_or(0), high.value_or(-1)};
}

}  // namespace weft
