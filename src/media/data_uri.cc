#include "media/data_uri.h"

#include <array>

#include "base/hex.h"
#include "media/image_errors.h"

namespace weft {
namespace {

constexpr size_t kMaxHeader = 256;
constexpr uint8_t kNone = 255;

constexpr std::array<uint8_t, 256> kDigits = [] {
  std::array<uint8_t, 256> out{};
  out.fill(kNone);
  constexpr std::string_view kAlphabet =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  for (size_t i = 0; i < kAlphabet.size(); ++i) {
    out[static_cast<uint8_t>(kAlphabet[i])] = static_cast<uint8_t>(i);
  }
  return out;
}();

/// What the base64 of a data: URI may be broken by.
bool is_space(char c) {
  return c == ' ' || (c >= '\t' && c <= '\r');
}

/// The character at `at`, which moves on; "%2B" is '+'.
char next_char(std::string_view text, size_t& at) {
  const int byte = escaped_byte(text, at);
  if (byte < 0) return text[at++];
  at += 3;
  return static_cast<char>(byte);
}

bool equal_ignoring_case(std::string_view a, std::string_view lower) {
  if (a.size() != lower.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    const char c = a[i] >= 'A' && a[i] <= 'Z' ? static_cast<char>(a[i] - 'A' + 'a') : a[i];
    if (c != lower[i]) return false;
  }
  return true;
}

Error bad_uri() {
  return invalid_argument("it must be a data: URI with base64 (\"data:image/png;base64,...\")");
}
Error bad_base64() {
  return invalid_argument("the base64 of the data: URI is not valid");
}

}  // namespace

Result<std::vector<uint8_t>> decode_data_uri(std::string_view uri, int64_t max_bytes) {
  const size_t comma = uri.substr(0, kMaxHeader).find(',');
  if (comma == uri.npos) return bad_uri();
  const std::string_view header = uri.substr(0, comma);
  constexpr std::string_view kScheme = "data:", kEncoding = ";base64";
  if (header.size() < kScheme.size() + kEncoding.size() ||
      !equal_ignoring_case(header.substr(0, kScheme.size()), kScheme) ||
      !equal_ignoring_case(header.substr(header.size() - kEncoding.size()), kEncoding)) {
    return bad_uri();
  }
  const std::string_view text = uri.substr(comma + 1);
  // With line breaks and some escapes; the bytes themselves are counted below.
  if (static_cast<int64_t>(text.size() / 4 * 3) > max_bytes + max_bytes / 8) {
    return image_error::too_many_bytes();
  }
  std::vector<uint8_t> out;
  out.reserve(text.size() / 4 * 3 + 3);
  uint32_t bits = 0;
  size_t digits = 0, padding = 0;
  for (size_t at = 0; at < text.size();) {
    const char c = next_char(text, at);
    if (is_space(c)) continue;
    if (c == '=') {
      ++padding;
      continue;
    }
    const uint8_t digit = kDigits[static_cast<uint8_t>(c)];
    if (digit == kNone || padding > 0) return bad_base64();
    bits = bits << 6 | digit;
    if (++digits % 4 != 0) continue;
    for (const int shift : {16, 8, 0}) out.push_back(static_cast<uint8_t>(bits >> shift));
  }
  const size_t rest = digits % 4;
  if (rest == 1 || (padding > 0 && (rest == 0 || padding != 4 - rest))) return bad_base64();
  if (rest == 3) bits >>= 2;
  if (rest == 2) bits >>= 4;
  for (size_t i = rest; i-- > 1;) out.push_back(static_cast<uint8_t>(bits >> (8 * (i - 1))));
  if (static_cast<int64_t>(out.size()) > max_bytes) return image_error::too_many_bytes();
  return out;
}

}  // namespace weft
