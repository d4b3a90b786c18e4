#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "base/result.h"
#include "checkpoint/hub_session.h"

namespace weft {

/// One file to be fetched into the cache.
struct BlobRequest {
  std::string file;        ///< name, for messages and progress
  std::string url;         ///< at the hub
  std::string etag;        ///< of the hub, without quotes
  std::string sha256;      ///< 64 lower-case hex digits; empty when the hub gives none
  uint64_t size = 0;       ///< bytes
  std::string incomplete;  ///< where the bytes gather; what is there already is kept
  std::string blob;        ///< where the whole file goes
};

/// Fetches all of them over options().num_connections connections. A file longer than
/// options().range_bytes is fetched by several ranges at once; they are put in order in memory, so
/// that `incomplete` is always a prefix of the file (which huggingface_hub can resume as well) and
/// the SHA-256 is computed while the bytes pass. A connection that breaks is resumed at the byte
/// where it broke. The first error ends all transfers; prefixes stay for the next attempt, except
/// that a file of the wrong hash is deleted.
Result<> download_blobs(const std::vector<BlobRequest>& blobs, HubSession& session);

}  // namespace weft
