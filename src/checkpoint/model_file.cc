#include "checkpoint/model_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/hex.h"

namespace weft {
namespace {

constexpr size_t kMaxQuoted = 200;
constexpr size_t kMaxRead = size_t{1} << 30;  // Linux moves at most 2 GiB - 4 KiB in one pread

Error errno_error(const std::string& path, int code) {
  const std::string message = path + ": " + std::strerror(code);
  if (code == ENOENT || code == ENOTDIR) return not_found(message);
  if (code == EACCES || code == EPERM) return permission_denied(message);
  if (code == EMFILE || code == ENFILE || code == ENOMEM) return exhausted(message);
  return unavailable(message);
}

int64_t modification_ns(const struct stat& info) {
  return info.st_mtim.tv_sec * int64_t{1000000000} + info.st_mtim.tv_nsec;
}

/// The blob's path for a link of the form "../../blobs/HASH", else an error.
Result<std::string> blob_of_link(int dir_fd, const std::string& path, const std::string& name) {
  constexpr std::string_view kBlobs = "../../blobs/";
  char target[512];
  const ssize_t length = readlinkat(dir_fd, name.c_str(), target, sizeof(target));
  if (length < 0) return errno_error(path, errno);
  const std::string_view text(target, static_cast<size_t>(length));
  if (!text.starts_with(kBlobs) || !is_plain_file_name(text.substr(kBlobs.size()))) {
    return unsupported(
        path + ": is a symbolic link to " + in_quotes(text) +
        "; only the links of the Hugging Face cache (../../blobs/HASH) are followed");
  }
  return std::string(text);
}

}  // namespace

std::string in_quotes(std::string_view text) {
  std::string out = "\"";
  for (const char c : text.substr(0, kMaxQuoted)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte >= 0x7f) {
      out += "\\x";
      append_hex(out, byte);
    } else {
      out += c;
    }
  }
  if (text.size() > kMaxQuoted) out += "...";
  return out + "\"";
}

bool is_plain_file_name(std::string_view name) {
  if (name.empty() || name.size() > 255 || name[0] == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '.' ||
           c == '_' || c == '-';
  });
}

ModelFile::ModelFile(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}

ModelFile::ModelFile(ModelFile&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)),
      path_(std::move(other.path_)),
      size_(other.size_),
      modified_ns_(other.modified_ns_) {}

ModelFile& ModelFile::operator=(ModelFile&& other) noexcept {
  std::swap(fd_, other.fd_);
  std::swap(path_, other.path_);
  std::swap(size_, other.size_);
  std::swap(modified_ns_, other.modified_ns_);
  return *this;
}

ModelFile::~ModelFile() {
  if (fd_ >= 0) ::close(fd_);
}

Result<ModelFile> ModelFile::adopt(int fd, std::string path) {
  ModelFile file(fd, std::move(path));
  struct stat info {};
  if (fstat(fd, &info) != 0) return errno_error(file.path_, errno);
  if (!S_ISREG(info.st_mode)) {
    return invalid_argument(file.path_ + ": is not a regular file");
  }
  file.size_ = static_cast<uint64_t>(info.st_size);
  file.modified_ns_ = modification_ns(info);
  return file;
}

Result<ModelFile> ModelFile::open(const std::string& path) {
  // O_NONBLOCK: opening a FIFO must not wait for a writer. It has no effect on regular files.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
  if (fd < 0) return errno_error(path, errno);
  return adopt(fd, path);
}

Result<ModelFile> ModelFile::open_in(int dir_fd, const std::string& dir_name,
                                     const std::string& name) {
  const std::string path = dir_name + "/" + name;
  if (!is_plain_file_name(name)) {
    return invalid_argument("file name " + in_quotes(name) + " in " + dir_name +
                            " is not a plain file name (letters, digits, '.', '_', '-')");
  }
  constexpr int kFlags = O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY | O_NOFOLLOW;
  int fd = openat(dir_fd, name.c_str(), kFlags);
  if (fd < 0 && errno == ELOOP) {
    const std::string blob = TRY(blob_of_link(dir_fd, path, name));
    fd = openat(dir_fd, blob.c_str(), kFlags);
    if (fd < 0 && errno == ELOOP) {
      return unsupported(path + ": its blob is a symbolic link itself; it must be a regular file");
    }
  }
  if (fd < 0) return errno_error(path, errno);
  return adopt(fd, path);
}

Result<> ModelFile::read(uint64_t offset, std::span<std::byte> dst) const {
  size_t done = 0;
  while (done < dst.size()) {
    const ssize_t count = pread(fd_, dst.data() + done, std::min(dst.size() - done, kMaxRead),
                                static_cast<off_t>(offset + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return errno_error(path_, errno);
    if (count == 0) {
      return data_loss(path_ + ": the file ends at byte " + std::to_string(offset + done) +
                       " where " + std::to_string(dst.size() - done) +
                       " more bytes were expected (truncated, or it shrank while it was read)");
    }
    done += static_cast<size_t>(count);
  }
  // A file that was truncated and grown again gives zeros without a short read.
  struct stat info {};
  if (fstat(fd_, &info) != 0) return errno_error(path_, errno);
  if (static_cast<uint64_t>(info.st_size) != size_ || modification_ns(info) != modified_ns_) {
    return data_loss(path_ + ": the file was changed while it was read (size " +
                     std::to_string(size_) + ", now " + std::to_string(info.st_size) + " bytes)");
  }
  return {};
}

Result<std::string> ModelFile::read_text(uint64_t max_bytes) const {
  if (size_ > max_bytes) {
    return exhausted(path_ + ": is " + std::to_string(size_) + " bytes; at most " +
                     std::to_string(max_bytes) + " are accepted");
  }
  std::string text(static_cast<size_t>(size_), '\0');
  TRY(read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

ModelDirectory::ModelDirectory(ModelDirectory&& other) noexcept
    : fd_(std::exchange(other.fd_, -1)), path_(std::move(other.path_)) {}

ModelDirectory::~ModelDirectory() {
  if (fd_ >= 0) ::close(fd_);
}

Result<ModelDirectory> ModelDirectory::open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return errno_error(path, errno);
  return ModelDirectory(fd, path);
}

bool ModelDirectory::has(const std::string& name) const {
  return faccessat(fd_, name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

Result<ModelFile> ModelDirectory::open_file(const std::string& name) const {
  return ModelFile::open_in(fd_, path_, name);
}

}  // namespace weft
