#include "checkpoint/safetensors_writer.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

namespace weft {
namespace {

/// The temporary file beside the target; removed unless it was renamed.
class PendingFile {
 public:
  explicit PendingFile(const std::string& path) : path_(path), temporary_(path + ".incomplete") {
    fd_ = ::open(temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  }
  PendingFile(const PendingFile&) = delete;
  PendingFile& operator=(const PendingFile&) = delete;
  ~PendingFile() {
    if (fd_ < 0) return;
    ::close(fd_);
    if (!renamed_) ::unlink(temporary_.c_str());
  }

  bool is_open() const { return fd_ >= 0; }
  Error error() const { return unavailable(temporary_ + ": " + std::strerror(errno)); }

  Result<> write(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const ssize_t count = ::write(fd_, bytes.data(), bytes.size());
      if (count < 0 && errno == EINTR) continue;
      if (count < 0) return error();
      bytes = bytes.subspan(static_cast<size_t>(count));
    }
    return {};
  }

  Result<> finish() {
    if (fsync(fd_) != 0 || ::rename(temporary_.c_str(), path_.c_str()) != 0) return error();
    renamed_ = true;
    return {};
  }

 private:
  const std::string path_;
  const std::string temporary_;
  int fd_ = -1;
  bool renamed_ = false;
};

}  // namespace

Result<> write_safetensors(const std::string& path, const std::vector<TensorToWrite>& tensors,
                           const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  uint64_t offset = 0;
  for (const TensorToWrite& tensor : tensors) {
    uint64_t bytes = static_cast<uint64_t>(dtype_size(tensor.dtype));
    for (const int64_t extent : tensor.shape) bytes *= static_cast<uint64_t>(extent);
    CHECK(bytes == tensor.data.size(), "shape and data of " + tensor.name + " differ");
    CHECK(!header.contains(tensor.name), "tensor " + tensor.name + " is given twice");
    header[tensor.name] = {{"dtype", dtype_name(tensor.dtype)},
                           {"shape", tensor.shape},
                           {"data_offsets", {offset, offset + bytes}}};
    offset += bytes;
  }
  std::string json = header.dump();
  json.append((8 - json.size() % 8) % 8, ' ');  // the data section begins aligned to 8 bytes

  PendingFile file(path);
  if (!file.is_open()) return file.error();
  const uint64_t length = json.size();
  TRY(file.write(std::as_bytes(std::span(&length, 1))));
  TRY(file.write(std::as_bytes(std::span(json))));
  for (const TensorToWrite& tensor : tensors) TRY(file.write(tensor.data));
  return file.finish();
}

}  // namespace weft
