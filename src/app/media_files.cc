#include "app/media_files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>
#include <optional>

#include "base/hex.h"

namespace weft {
namespace {

constexpr int64_t kMaxBytes = int64_t{32} << 20;

Error bad_url() {
  return invalid_argument("the URL must be file:///PATH");
}
Error not_readable() {
  return invalid_argument("the file can't be read, or is not below the directory that is allowed");
}

/// The path of "file:///path" or "file://localhost/path"; none: it is no such URL.
std::optional<std::string> path_of(const std::string& url) {
  constexpr size_t kScheme = 7;  // file://
  if (url.size() > kMaxUrl || url.size() < kScheme) return std::nullopt;
  const size_t slash = url.find('/', kScheme);
  if (slash == std::string::npos) return std::nullopt;
  const std::string host = url.substr(kScheme, slash - kScheme);
  if (!host.empty() && host != "localhost") return std::nullopt;
  std::string out;
  for (size_t i = slash; i < url.size(); ++i) {
    if (url[i] == '?' || url[i] == '#') return std::nullopt;
    char c = url[i];
    if (c == '%') {
      const int byte = escaped_byte(url, i);
      if (byte < 0) return std::nullopt;
      c = static_cast<char>(byte);
      i += 2;
    }
    if (c == 0) return std::nullopt;
    out += c;
  }
  return out;
}

/// The path without symbolic links; "" where nothing is.
std::string resolved(const std::string& path) {
  struct Free {
    void operator()(char* text) const { std::free(text); }
  };
  const std::unique_ptr<char, Free> real(realpath(path.c_str(), nullptr));
  return real ? real.get() : "";
}

struct File {
  int descriptor = -1;
  ~File() {
    if (descriptor >= 0) close(descriptor);
  }
};

}  // namespace

Result<std::vector<uint8_t>> read_media_file(const std::string& url, const std::string& directory,
                                             int64_t max_bytes) {
  const std::optional<std::string> path = path_of(url);
  if (!path) return bad_url();
  std::string root = resolved(directory);
  const std::string real = resolved(*path);
  if (root.empty() || real.empty()) return not_readable();
  if (root.back() != '/') root += '/';
  if (!real.starts_with(root)) return not_readable();
  // A pipe or a device would block; what became a link meanwhile is not followed.
  const File file{open(real.c_str(), O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY)};
  struct stat status = {};
  if (file.descriptor < 0 || fstat(file.descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    return not_readable();
  }
  if (resolved("/proc/self/fd/" + std::to_string(file.descriptor)) != real) return not_readable();
  if (status.st_size > max_bytes) return invalid_argument("the image file is too large");
  std::vector<uint8_t> out(static_cast<size_t>(status.st_size));
  size_t at = 0;
  while (at < out.size()) {
    const ssize_t count = read(file.descriptor, out.data() + at, out.size() - at);
    if (count < 0) return not_readable();
    if (count == 0) break;  // it was made shorter
    at += static_cast<size_t>(count);
  }
  out.resize(at);
  return out;
}

std::function<Result<std::vector<uint8_t>>(const std::string& url)> media_file_reader(
    const std::string& directory) {
  if (directory.empty()) return {};
  return [directory](const std::string& url) { return read_media_file(url, directory, kMaxBytes); };
}

}  // namespace weft
