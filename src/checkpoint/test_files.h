#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <string_view>

#include "base/temp_dir.h"

namespace weft::testing {

using weft::TempDir;

inline void write_file(const std::string& path, std::string_view bytes) {
  std::ofstream out(path, std::ios::binary | std::ios::trunc);
  out.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  ASSERT_TRUE(out.good()) << path;
}

inline std::string read_file(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

/// The bytes of a safetensors file: an arbitrary header length, header and data.
inline std::string raw_safetensors(uint64_t header_length, std::string_view header,
                                   std::string_view data) {
  std::string out(8, '\0');
  std::memcpy(out.data(), &header_length, 8);
  out += header;
  out += data;
  return out;
}

inline std::string raw_safetensors(std::string_view header, std::string_view data) {
  return raw_safetensors(header.size(), header, data);
}

}  // namespace weft::testing
