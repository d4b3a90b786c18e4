#include "text/read_file.h"

#include <fstream>

namespace weft::text {

Result<std::string> read_file(const std::filesystem::path& path, size_t max_bytes) {
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    return not_found(path.string() + ": no such file");
  }
  std::ifstream file(path, std::ios::binary);
  const auto size = std::filesystem::file_size(path, error);
  if (!file || error) return permission_denied(path.string() + ": cannot be read");
  if (size > max_bytes) {
    return invalid_argument(path.string() + ": larger than " + std::to_string(max_bytes) +
                            " bytes");
  }
  std::string text(size, '\0');
  file.read(text.data(), static_cast<std::streamsize>(size));
  if (static_cast<size_t>(file.gcount()) != size) {
    return data_loss(path.string() + ": shrank while it was read");
  }
  return text;
}

}  // namespace weft::text
