#include "tests/support/oracle.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>

namespace weft {

std::string oracle_dir() {
  if (const char* dir = std::getenv("WEFT_ORACLE_DIR"); dir != nullptr && *dir != '\0') return dir;
  if (std::filesystem::is_directory(WEFT_SHARED_ORACLE "/models")) return WEFT_SHARED_ORACLE;
  return WEFT_UNPACKED_ORACLE;
}

bool oracle_has(const std::string& folder) {
  return std::filesystem::is_directory(oracle_dir() + "/" + folder);
}

std::string file_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

}  // namespace weft
