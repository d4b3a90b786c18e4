#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "checkpoint/hub.h"

namespace weft {

/// The folder of one model in a cache of huggingface_hub's layout:
///   models--ORG--NAME/refs/REVISION          the commit, as text
///   models--ORG--NAME/blobs/ETAG             the bytes; ETAG.incomplete while they arrive
///   models--ORG--NAME/snapshots/COMMIT/FILE  -> ../../blobs/ETAG
///   .locks/models--ORG--NAME/ETAG.lock       flock while a blob is written
class HubCache {
 public:
  HubCache(const ModelName& model, std::string cache_dir);

  std::string folder() const { return root_ + "/" + folder_name_; }
  std::string snapshot(const std::string& commit) const {
    return folder() + "/snapshots/" + commit;
  }
  std::string blob(const std::string& etag) const { return folder() + "/blobs/" + etag; }
  std::string incomplete(const std::string& etag) const { return blob(etag) + ".incomplete"; }
  std::string lock_file(const std::string& etag) const {
    return root_ + "/.locks/" + folder_name_ + "/" + etag + ".lock";
  }

  /// The commit that `revision` meant when it was last asked for: a ref, or a commit itself that
  /// has a snapshot. Empty when unknown.
  std::string cached_commit(const std::string& revision) const;
  Result<> write_ref(const std::string& revision, const std::string& commit) const;

  /// Makes the folders for blobs, one snapshot and the locks.
  Result<> make_folders(const std::string& commit) const;

  /// Points snapshots/COMMIT/FILE at the blob.
  Result<> link(const std::string& commit, const std::string& file, const std::string& etag) const;

 private:
  std::string root_;
  std::string folder_name_;
};

/// Empty when `snapshot` has config.json and all the weights that it names; else what is missing.
std::string missing_from_snapshot(const std::string& snapshot);

/// Links are followed; anything that can't be looked at is none.
bool is_regular_file(const std::string& path);
bool is_directory(const std::string& path);

/// Size of a regular file, or 0 when there is none.
uint64_t file_size_or_zero(const std::string& path);

/// Bytes that an unprivileged process can still write under `dir` (or its nearest parent that
/// exists).
Result<uint64_t> free_space(const std::string& dir);

/// An exclusive flock on a file, as huggingface_hub takes it; freed by the destructor, and by the
/// kernel if the process dies.
class FileLock {
 public:
  /// Waits for the lock; `on_wait` is called once if another process has it.
  static Result<FileLock> acquire(const std::string& path, const std::function<void()>& on_wait);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&&) = delete;
  ~FileLock();

 private:
  explicit FileLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

}  // namespace weft
