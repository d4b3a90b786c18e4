#include "checkpoint/blob_writer.h"

#include <fcntl.h>
#include <openssl/evp.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "base/hex.h"
#include "checkpoint/hub_cache.h"

namespace weft {

void BlobWriter::FreeHash::operator()(EVP_MD_CTX* context) const {
  EVP_MD_CTX_free(context);
}

BlobWriter::BlobWriter(BlobWriter&& other) noexcept
    : request_(other.request_),
      fd_(std::exchange(other.fd_, -1)),
      written_(other.written_),
      waiting_(std::move(other.waiting_)),
      hash_(std::move(other.hash_)) {}

BlobWriter::~BlobWriter() {
  if (fd_ >= 0) ::close(fd_);
}

Error BlobWriter::system_error(const char* action) const {
  const int code = errno;
  const std::string message =
      request_->file + ": can't " + action + " " + request_->incomplete + ": " + strerror(code);
  return code == ENOSPC || code == EDQUOT ? exhausted(message) : unavailable(message);
}

Result<BlobWriter> BlobWriter::open(const BlobRequest& request) {
  BlobWriter writer(request);
  writer.fd_ = ::open(request.incomplete.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (writer.fd_ < 0) return writer.system_error("open");
  if (!request.sha256.empty()) {
    writer.hash_.reset(EVP_MD_CTX_new());
    CHECK(writer.hash_ && EVP_DigestInit_ex(writer.hash_.get(), EVP_sha256(), nullptr) == 1);
  }
  uint64_t size = file_size_or_zero(request.incomplete);
  if (size > request.size) size = 0;  // not a prefix of this file
  if (ftruncate(writer.fd_, static_cast<off_t>(size)) != 0) return writer.system_error("cut");
  TRY(writer.hash_prefix(size));
  return writer;
}

Result<> BlobWriter::hash_prefix(uint64_t size) {
  std::vector<std::byte> buffer(size_t{1} << 20);
  while (written_ < size) {
    const size_t wanted = std::min<uint64_t>(buffer.size(), size - written_);
    const ssize_t count = pread(fd_, buffer.data(), wanted, static_cast<off_t>(written_));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return system_error("read");
    if (hash_) EVP_DigestUpdate(hash_.get(), buffer.data(), static_cast<size_t>(count));
    written_ += static_cast<uint64_t>(count);
  }
  return {};
}

Result<> BlobWriter::append(const std::vector<std::byte>& bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t count =
        pwrite(fd_, bytes.data() + done, bytes.size() - done, static_cast<off_t>(written_ + done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error("write");
    done += static_cast<size_t>(count);
  }
  if (hash_) EVP_DigestUpdate(hash_.get(), bytes.data(), bytes.size());
  written_ += bytes.size();
  return {};
}

Result<> BlobWriter::put(uint64_t offset, std::vector<std::byte> bytes) {
  if (!bytes.empty()) waiting_.emplace(offset, std::move(bytes));
  while (!waiting_.empty() && waiting_.begin()->first == written_) {
    const auto node = waiting_.extract(waiting_.begin());
    TRY(append(node.mapped()));
  }
  return {};
}

Result<> BlobWriter::finish() {
  CHECK(written_ == request_->size && waiting_.empty());
  if (hash_) {
    unsigned char digest[EVP_MAX_MD_SIZE];
    unsigned length = 0;
    CHECK(EVP_DigestFinal_ex(hash_.get(), digest, &length) == 1);
    std::string hex;
    for (unsigned i = 0; i < length; ++i) append_hex(hex, digest[i]);
    if (hex != request_->sha256) {
      ::unlink(request_->incomplete.c_str());
      return data_loss(request_->file + ": the SHA-256 of what arrived is " + hex +
                       ", the hub says " + request_->sha256 + "; the file was deleted, try again");
    }
  }
  if (fdatasync(fd_) != 0) return system_error("flush");
  if (::rename(request_->incomplete.c_str(), request_->blob.c_str()) != 0) {
    return system_error("rename");
  }
  return {};
}

}  // namespace weft
