#include <charconv>

#include "text/tokenizer_parts.h"

namespace weft {
namespace text {
namespace {

constexpr size_t kMaxDecodedBytes = size_t{1} << 30;

/// Code point -> byte of GPT-2's alphabet, or -1.
int byte_of(char32_t c) {
  const auto printable = [](char32_t b) {
    return (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || (b >= 174 && b <= 255);
  };
  if (c < 256) return printable(c) ? static_cast<int>(c) : -1;
  if (c > 323) return -1;
  char32_t next = 256;  // the other 68 bytes, in order
  for (char32_t b = 0; b < 256; ++b) {
    if (!printable(b) && next++ == c) return static_cast<int>(b);
  }
  return -1;
}

/// 0-255 for <0xHH>, else -1.
int named_byte(std::string_view name) {
  int byte = 0;
  if (name.size() != 6 || !name.starts_with("<0x") || name[5] != '>') return -1;
  const auto [end, error] = std::from_chars(name.data() + 3, name.data() + 5, byte, 16);
  return error == std::errc() && end == name.data() + 5 && byte >= 0 ? byte : -1;
}

}  // namespace

ByteAlphabet::ByteAlphabet() {
  for (char32_t c = 0; c < 324; ++c) byte_of_.push_back(static_cast<int16_t>(byte_of(c)));
}

std::optional<std::string> ByteAlphabet::spelled(std::string_view token) const {
  std::string out;
  for (size_t i = 0; i < token.size();) {
    const Decoded d = decode_valid(token.data() + i);
    if (d.code >= byte_of_.size() || byte_of_[d.code] < 0) return std::nullopt;
    out.push_back(static_cast<char>(byte_of_[d.code]));
    i += static_cast<size_t>(d.length);
  }
  return out;
}

}  // namespace text

Result<void> Tokenizer::Parts::build(const text::TokenTables& tables) {
  for (const text::AddedToken& token : tables.added) {
    if (token.normalized && !normalizers.empty()) {
      std::string pattern = token.content;
      text::normalize(normalizers, pattern, nullptr);
      normalized_matcher.add(token, pattern);
    } else {
      (token.normalized ? normalized_matcher : raw_matcher).add(token, token.content);
    }
  }
  const text::ByteAlphabet alphabet;
  const size_t n = names.num_ids();
  flags.assign(n, 0);
  starts.assign(1, 0);
  for (size_t i = 0; i < n; ++i) {
    const auto id = static_cast<int32_t>(i);
    std::string name(names.token(id));
    if (names.has(id)) flags[i] |= kPresent;
    if (tables.byte_level) {
      if (auto bytes = alphabet.spelled(name)) name = std::move(*bytes);
    } else {
      if (!tables.replaces.empty()) text::normalize(tables.replaces, name, nullptr);
      if (const int byte = tables.byte_tokens ? text::named_byte(name) : -1; byte >= 0) {
        flags[i] |= kByte;
        name.assign(1, static_cast<char>(byte));
      }
    }
    if (text::is_valid_utf8(name)) flags[i] |= kWhole;
    bytes += name;
    if (bytes.size() > text::kMaxDecodedBytes) {
      return invalid_argument("decoder: the tokens decode to more than 1 GiB");
    }
    starts.push_back(static_cast<uint32_t>(bytes.size()));
  }
  for (const text::AddedToken& token : tables.added) {
    flags[static_cast<size_t>(token.id)] |= kAdded | (token.special ? kSpecial : 0);
  }
  return {};
}

}  // namespace weft
