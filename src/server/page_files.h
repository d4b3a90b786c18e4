#pragma once

#include <cstddef>
#include <span>
#include <string_view>

namespace weft {

/// A file of web/, as the build embeds it (cmake/WeftEmbed.cmake).
struct PageFile {
  std::string_view name;  ///< within web/
  std::string_view plain, gzip;
  std::string_view hash;  ///< 16 hex digits of the SHA-256 of `plain`
};

std::span<const PageFile> page_files();

}  // namespace weft
