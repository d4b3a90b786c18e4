#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "base/result.h"

namespace weft {

constexpr size_t kMaxUrl = 8192;  ///< bytes of a URL that names a file or an image

/// The bytes of the file that "file:///path" names, when it is a regular file below `directory`
/// once every symbolic link is followed. Errors are fixed texts: they don't tell whether something
/// outside is there.
Result<std::vector<uint8_t>> read_media_file(const std::string& url, const std::string& directory,
                                             int64_t max_bytes);

/// read_media_file() below this directory (`--allowed-local-media-path`); empty when that is.
std::function<Result<std::vector<uint8_t>>(const std::string& url)> media_file_reader(
    const std::string& directory);

}  // namespace weft
