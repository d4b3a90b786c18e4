#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/blob_download.h"

struct evp_md_ctx_st;  // OpenSSL's EVP_MD_CTX

namespace weft {

/// The growing file of one blob: takes pieces in any order, writes and hashes them in file order.
/// Not thread-safe.
class BlobWriter {
 public:
  /// Opens `incomplete` and hashes what an earlier attempt left there.
  static Result<BlobWriter> open(const BlobRequest& request);
  BlobWriter(BlobWriter&& other) noexcept;
  BlobWriter& operator=(BlobWriter&&) = delete;
  ~BlobWriter();

  uint64_t written() const { return written_; }  ///< the prefix that is in the file
  /// Takes the bytes from `offset` on; what continues the prefix is written.
  Result<> put(uint64_t offset, std::vector<std::byte> bytes);
  /// Checks size and hash and moves the file to its place. On a wrong hash the file is deleted.
  Result<> finish();

 private:
  struct FreeHash {
    void operator()(evp_md_ctx_st* context) const;
  };

  explicit BlobWriter(const BlobRequest& request) : request_(&request) {}
  Result<> hash_prefix(uint64_t size);
  Result<> append(const std::vector<std::byte>& bytes);
  Error system_error(const char* action) const;

  const BlobRequest* request_;
  int fd_ = -1;
  uint64_t written_ = 0;
  std::map<uint64_t, std::vector<std::byte>> waiting_;  // pieces that came early
  std::unique_ptr<evp_md_ctx_st, FreeHash> hash_;       // null when the hub gives no SHA-256
};

}  // namespace weft
