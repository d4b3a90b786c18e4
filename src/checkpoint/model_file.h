#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "base/result.h"

namespace weft {

/// Text from a file or the network, made fit for an error message: control characters and bytes
/// that are not ASCII become "\xNN", long text is cut, and quotes are put around it.
std::string in_quotes(std::string_view text);

/// An open regular file of a model, read with pread: no shared offset, so every method is safe to
/// call from several threads.
///
/// Why pread and not mmap: a mapping of a file that another process truncates (or of a network file
/// system that goes away) raises SIGBUS at some later load instruction, inside a kernel, where it
/// can't be turned into an error; a short mapping reads as zeros up to the page end and gives wrong
/// weights in silence. pread into the caller's buffers returns a count, costs one copy that the
/// packing of weights makes anyway, goes to huge pages, and runs in parallel.
class ModelFile {
 public:
  /// Opens `path` (symbolic links are followed: the user named this very file). Errors: absent, not
  /// readable, not a regular file (a FIFO, a device or a directory is refused without blocking).
  static Result<ModelFile> open(const std::string& path);

  /// Opens the file `name` of the model directory `dir_fd`. `name` must be a plain file name. A
  /// symbolic link is refused unless it is a link of the Hugging Face cache, "../../blobs/HASH",
  /// and the blob itself is a regular file. `dir_name` is for messages.
  static Result<ModelFile> open_in(int dir_fd, const std::string& dir_name,
                                   const std::string& name);

  ModelFile(ModelFile&& other) noexcept;
  ModelFile& operator=(ModelFile&& other) noexcept;
  ~ModelFile();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  ///< bytes, at open

  /// Fills `dst` from byte `offset`. kDataLoss when the file ends early or was changed since it
  /// was opened (its size or modification time differ): what was read can't be trusted then.
  Result<> read(uint64_t offset, std::span<std::byte> dst) const;

  /// The whole file as text; kExhausted when it is larger than `max_bytes`.
  Result<std::string> read_text(uint64_t max_bytes) const;

 private:
  ModelFile(int fd, std::string path);
  static Result<ModelFile> adopt(int fd, std::string path);

  int fd_ = -1;
  std::string path_;
  uint64_t size_ = 0;
  int64_t modified_ns_ = 0;
};

/// A directory handle that model files are opened from.
class ModelDirectory {
 public:
  static Result<ModelDirectory> open(const std::string& path);
  ModelDirectory(ModelDirectory&& other) noexcept;
  ModelDirectory& operator=(ModelDirectory&&) = delete;
  ~ModelDirectory();

  const std::string& path() const { return path_; }
  /// True when an entry of that name exists, whatever it is.
  bool has(const std::string& name) const;
  /// See ModelFile::open_in.
  Result<ModelFile> open_file(const std::string& name) const;

 private:
  ModelDirectory(int fd, std::string path) : fd_(fd), path_(std::move(path)) {}
  int fd_ = -1;
  std::string path_;
};

/// True for a name that stays inside its directory: [A-Za-z0-9._-]+, not starting with a dot, at
/// most 255 bytes.
bool is_plain_file_name(std::string_view name);

}  // namespace weft
