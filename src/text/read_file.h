#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

#include "base/result.h"

namespace weft::text {

/// The content of a regular file of at most `max_bytes`; errors name the path.
Result<std::string> read_file(const std::filesystem::path& path, size_t max_bytes);

}  // namespace weft::text
