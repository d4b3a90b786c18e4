#include "checkpoint/hub_cache.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <cctype>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <set>
#include <utility>

#include "checkpoint/config_json.h"
#include "checkpoint/model_file.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

Error system_error(const std::string& path, int code) {
  const std::string message = path + ": " + std::strerror(code);
  if (code == ENOSPC || code == EDQUOT) return exhausted(message);
  if (code == EACCES || code == EPERM || code == EROFS) return permission_denied(message);
  return unavailable(message);
}

Result<> make_directories(const std::string& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) return system_error(path, error.value());
  return {};
}

/// Replaces `path` by a new file with that text, whole or not at all. (The temporary has the thread
/// in its name: two downloads may run in one process.)
Result<> replace_file(const std::string& path, const std::string& text) {
  const std::string temporary = path + "." + std::to_string(::gettid()) + ".tmp";
  const int fd = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (fd < 0) return system_error(temporary, errno);
  const bool written = ::write(fd, text.data(), text.size()) == static_cast<ssize_t>(text.size());
  const int code = errno;
  ::close(fd);
  if (written && ::rename(temporary.c_str(), path.c_str()) == 0) return {};
  const Error error = system_error(path, written ? errno : code);
  ::unlink(temporary.c_str());
  return error;
}

}  // namespace

HubCache::HubCache(const ModelName& model, std::string cache_dir)
    : root_(std::move(cache_dir)), folder_name_("models--" + model.org + "--" + model.name) {}

std::string HubCache::cached_commit(const std::string& revision) const {
  if (const auto ref = ModelFile::open(folder() + "/refs/" + revision); ref.ok()) {
    auto text = ref->read_text(256);
    if (!text.ok()) return {};
    while (!text->empty() && std::isspace(static_cast<unsigned char>(text->back()))) {
      text->pop_back();
    }
    return is_plain_file_name(*text) ? *text : std::string();
  }
  const bool is_commit = is_plain_file_name(revision) && is_directory(snapshot(revision));
  return is_commit ? revision : std::string();
}

Result<> HubCache::write_ref(const std::string& revision, const std::string& commit) const {
  if (revision == commit) return {};
  const std::string path = folder() + "/refs/" + revision;
  TRY(make_directories(fs::path(path).parent_path().string()));
  return replace_file(path, commit);
}

Result<> HubCache::make_folders(const std::string& commit) const {
  TRY(make_directories(folder() + "/blobs"));
  TRY(make_directories(snapshot(commit)));
  return make_directories(root_ + "/.locks/" + folder_name_);
}

Result<> HubCache::link(const std::string& commit, const std::string& file,
                        const std::string& etag) const {
  const std::string path = snapshot(commit) + "/" + file;
  const std::string temporary = path + "." + std::to_string(::gettid()) + ".tmp";
  std::string blobs = "../../blobs/";
  if (file.find('/') != file.npos) {  // at most one folder (is_needed_model_file)
    TRY(make_directories(fs::path(path).parent_path().string()));
    blobs = "../" + blobs;
  }
  ::unlink(temporary.c_str());
  if (::symlink((blobs + etag).c_str(), temporary.c_str()) == 0) {
    if (::rename(temporary.c_str(), path.c_str()) == 0) return {};
    const Error error = system_error(path, errno);
    ::unlink(temporary.c_str());
    return error;
  }
  if (errno != EPERM && errno != ENOTSUP && errno != ENOSYS) return system_error(path, errno);
  // A file system without symbolic links: the file itself, as huggingface_hub does it.
  if (::rename(blob(etag).c_str(), path.c_str()) != 0) return system_error(path, errno);
  return {};
}

std::string missing_from_snapshot(const std::string& snapshot) {
  if (!is_regular_file(snapshot + "/config.json")) return "config.json";
  if (is_regular_file(snapshot + "/model.safetensors")) return {};
  const auto dir = ModelDirectory::open(snapshot);
  if (!dir.ok()) return "the directory";
  constexpr const char* kIndex = "model.safetensors.index.json";
  if (!dir->has(kIndex)) return "model.safetensors";
  constexpr ConfigJsonLimits kLimits{.max_bytes = uint64_t{64} << 20, .max_values = 8000000};
  const auto index = ConfigJson::load(*dir, kIndex, kLimits);
  if (!index.ok()) return kIndex;
  const auto map = index->object("weight_map");
  if (!map.ok()) return kIndex;
  std::set<std::string> shards;
  for (const std::string& tensor : map->names()) {
    if (auto shard = map->string(tensor); shard.ok()) shards.insert(std::move(shard).value());
  }
  for (const std::string& shard : shards) {
    if (!is_plain_file_name(shard) || !is_regular_file(snapshot + "/" + shard)) {
      return in_quotes(shard);
    }
  }
  return {};
}

bool is_regular_file(const std::string& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

bool is_directory(const std::string& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

uint64_t file_size_or_zero(const std::string& path) {
  std::error_code error;
  const uintmax_t size = fs::file_size(path, error);
  return error ? 0 : static_cast<uint64_t>(size);
}

Result<uint64_t> free_space(const std::string& dir) {
  std::error_code error;
  fs::path path = fs::absolute(dir, error);
  while (!fs::exists(path, error) && path.has_parent_path() && path != path.parent_path()) {
    path = path.parent_path();
  }
  struct statvfs info {};
  if (statvfs(path.c_str(), &info) != 0) return system_error(path.string(), errno);
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

FileLock::FileLock(FileLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}

FileLock::~FileLock() {
  if (fd_ >= 0) ::close(fd_);  // closing the only descriptor frees the lock
}

Result<FileLock> FileLock::acquire(const std::string& path, const std::function<void()>& on_wait) {
  for (bool waited = false;;) {
    const int fd = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
    if (fd < 0) return system_error(path, errno);
    FileLock lock(fd);
    if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
      if (errno == EWOULDBLOCK && on_wait && !waited) on_wait();
      waited = true;
      while (flock(fd, LOCK_EX) != 0) {
        if (errno != EINTR) return system_error(path, errno);
      }
    }
    // The holder before us may have removed the file; then others lock a new one of that name.
    struct stat held {};
    struct stat named {};
    if (fstat(fd, &held) == 0 && ::stat(path.c_str(), &named) == 0 && held.st_ino == named.st_ino) {
      return lock;
    }
  }
}

}  // namespace weft
