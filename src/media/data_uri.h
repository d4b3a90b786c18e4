#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

/// The bytes of "data:<type>;base64,<bytes>" (RFC 2397 with base64 alone): the standard alphabet,
/// percent-encoded or not, padding where it belongs or none, white space between. What type it
/// names doesn't matter, as long as it is short. Errors are fixed texts.
Result<std::vector<uint8_t>> decode_data_uri(std::string_view uri, int64_t max_bytes);

}  // namespace weft
