#pragma once

#include <algorithm>
#include <cstdint>
#include <string_view>

namespace weft {

/// The number of characters (code points) of valid UTF-8.
inline int64_t num_chars(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(),
                       [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

}  // namespace weft
