#include "checkpoint/blob_download.h"

#include <fmt/format.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

#include "checkpoint/blob_writer.h"
#include "checkpoint/model_file.h"

namespace weft {
namespace {

/// A blob on its way. Fields are guarded by the pool's mutex, `request` never changes.
struct Blob {
  const BlobRequest& request;
  BlobWriter writer;
  uint64_t next_claim;     // first byte that no worker has taken
  uint64_t received;       // bytes that are here, for progress
  std::string direct_url;  // where the hub's redirect led last time; signed, so it may expire
};

/// Bytes [begin, end) of a blob, one worker's job.
struct Range {
  Blob* blob;
  uint64_t begin;
  uint64_t end;
};

/// Why an attempt failed that may do better next time, and how long the server asks to wait.
struct Trouble {
  std::string why;
  double wait_s = 0;
};

/// "bytes 5-9/20": the first byte and the total, when they are as expected.
bool content_range_fits(const std::string& text, uint64_t begin, uint64_t size) {
  return text.starts_with(fmt::format("bytes {}-", begin)) &&
         (text.ends_with(fmt::format("/{}", size)) || text.ends_with("/*"));
}

std::string without_quotes(std::string etag) {
  if (etag.starts_with("W/")) etag.erase(0, 2);
  std::erase(etag, '"');
  return etag;
}

class Pool {
 public:
  Pool(HubSession& session, std::vector<Blob>& blobs) : session_(session), blobs_(blobs) {}

  void run(int num_workers) {
    std::vector<std::thread> threads;
    for (int i = 1; i < num_workers; ++i) threads.emplace_back([this] { work(); });
    work();
    for (std::thread& thread : threads) thread.join();
  }

  const std::optional<Error>& error() const { return error_; }

 private:
  void work() {
    FetchClient client(session_.options().timeout_s);
    while (const auto range = claim()) {
      std::vector<std::byte> bytes;
      auto fetched = fetch(client, *range, bytes);
      store(*range, std::move(bytes), std::move(fetched));
    }
  }

  /// The next range whose bytes may be held in memory, or nothing when all are taken.
  std::optional<Range> claim() {
    const uint64_t step = session_.options().range_bytes;
    const uint64_t window = step * static_cast<uint64_t>(session_.options().num_connections);
    std::unique_lock lock(mutex_);
    for (;;) {
      if (error_) return std::nullopt;
      bool unclaimed = false;
      for (Blob& blob : blobs_) {
        const uint64_t begin = blob.next_claim;
        if (begin >= blob.request.size) continue;
        unclaimed = true;
        if (begin >= blob.writer.written() + window) continue;
        blob.next_claim = std::min(begin + step, blob.request.size);
        return Range{&blob, begin, blob.next_claim};
      }
      if (!unclaimed) return std::nullopt;
      changed_.wait(lock);
    }
  }

  void store(const Range& range, std::vector<std::byte> bytes, Result<> fetched) {
    const std::lock_guard lock(mutex_);
    Blob& blob = *range.blob;
    auto done = blob.writer.put(range.begin, std::move(bytes));  // also what a failure left
    if (fetched.ok()) fetched = std::move(done);
    if (fetched.ok() && blob.writer.written() == blob.request.size) fetched = finish(blob);
    if (!fetched.ok() && !error_) {
      error_ = std::move(fetched).error();
      session_.stop();
    }
    changed_.notify_all();
  }

  Result<> finish(Blob& blob) {
    TRY(blob.writer.finish());
    session_.report({blob.request.file, blob.request.size, blob.request.size, true});
    return {};
  }

  std::string url_of(Blob& blob) {
    const std::lock_guard lock(mutex_);
    return blob.direct_url.empty() ? blob.request.url : blob.direct_url;
  }

  void set_direct_url(Blob& blob, std::string url) {
    const std::lock_guard lock(mutex_);
    blob.direct_url = std::move(url);
  }

  void count_received(Blob& blob, size_t bytes) {
    uint64_t received = 0;
    {
      const std::lock_guard lock(mutex_);
      received = blob.received += bytes;
    }
    session_.report({blob.request.file, received, blob.request.size, false});
  }

  /// Fills `bytes` with the range, over as many attempts as it takes.
  Result<> fetch(FetchClient& client, const Range& range, std::vector<std::byte>& bytes) {
    bytes.reserve(range.end - range.begin);
    const uint64_t wanted = range.end - range.begin;
    for (int attempt = 0; bytes.size() < wanted;) {
      const size_t before = bytes.size();
      const std::string url = url_of(*range.blob);
      Trouble trouble;
      TRY(attempt_once(client, range, url, bytes, trouble));
      if (bytes.size() == wanted) break;
      if (bytes.size() > before) attempt = 0;
      if (session_.stopped()) return unavailable(range.blob->request.file + ": stopped");
      if (attempt >= session_.options().num_retries) {
        return unavailable(range.blob->request.file + ": the download failed after " +
                           std::to_string(attempt + 1) +
                           " attempts without a new byte: " + trouble.why);
      }
      session_.wait_before_retry(range.blob->request.file, trouble.why, attempt++, trouble.wait_s);
    }
    return {};
  }

  /// One attempt. An error is final; what may be better next time goes into `trouble`.
  Result<> attempt_once(FetchClient& client, const Range& range, const std::string& url,
                        std::vector<std::byte>& bytes, Trouble& trouble) {
    Blob& blob = *range.blob;
    const uint64_t begin = range.begin + bytes.size();
    std::optional<Error> refused;
    std::optional<uint64_t> skip;  // bytes before `begin` when the server ignores ranges
    FetchRequest request{.url = url};
    request.range = {begin, range.end - 1};
    if (begin > 0) request.headers.push_back("If-Range: \"" + blob.request.etag + "\"");
    request.on_body = [&](const FetchResponse& response, std::span<const std::byte> piece) {
      if (!skip) {
        refused = check_answer(response, blob.request, begin);
        if (refused) return false;
        skip = response.status == 206 ? 0 : begin;
      }
      const size_t skipped = std::min<uint64_t>(*skip, piece.size());
      *skip -= skipped;
      piece = piece.subspan(skipped);
      const size_t room = range.end - range.begin - bytes.size();
      const bool whole = piece.size() <= room;
      piece = piece.first(std::min(piece.size(), room));
      bytes.insert(bytes.end(), piece.begin(), piece.end());
      if (!piece.empty()) count_received(blob, piece.size());
      return whole && !session_.stopped();
    };
    const auto answer = session_.send(client, request);
    if (refused) return *refused;
    if (!answer.ok()) {
      trouble.why = answer.error().message;
      return {};
    }
    const int status = answer->response.status;
    trouble.wait_s = HubSession::retry_after(answer->response);
    if (status >= 200 && status < 300) {
      if (!session_.is_own_url(answer->url)) set_direct_url(blob, answer->url);
      trouble.why = "the connection was closed early";
      return {};
    }
    if (!session_.is_own_url(answer->url)) {  // a storage server: its link may have expired
      set_direct_url(blob, "");
      trouble.why = "the storage server answered with HTTP status " + std::to_string(status);
      return {};
    }
    const Error error = session_.error_of(answer->response, blob.request.file);
    if (!HubSession::is_transient(status)) return error;
    trouble.why = error.message;
    return {};
  }

  /// A 2xx answer must be about the file that was asked for, from the byte that was asked for.
  std::optional<Error> check_answer(const FetchResponse& response, const BlobRequest& request,
                                    uint64_t begin) const {
    const bool partial = response.status == 206;
    if (partial && !content_range_fits(response.header("content-range"), begin, request.size)) {
      return data_loss(request.file + ": asked from byte " + std::to_string(begin) + " of " +
                       std::to_string(request.size) + ", the server sent " +
                       in_quotes(response.header("content-range")));
    }
    const std::string length = response.header("content-length");
    if (!partial && !length.empty() && length != std::to_string(request.size)) {
      return data_loss(request.file + ": should have " + std::to_string(request.size) +
                       " bytes, the server sends " + in_quotes(length));
    }
    // The hub's own answer to If-Range: the whole file, because it is another one now.
    const std::string etag = without_quotes(response.header("etag"));
    if (!partial && begin > 0 && !etag.empty() && etag.size() == request.etag.size() &&
        etag != request.etag) {
      return data_loss(request.file +
                       ": was changed on the hub while it was downloaded; try again");
    }
    return std::nullopt;
  }

  HubSession& session_;
  std::vector<Blob>& blobs_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Error> error_;
};

}  // namespace

Result<> download_blobs(const std::vector<BlobRequest>& requests, HubSession& session) {
  std::vector<Blob> blobs;
  blobs.reserve(requests.size());
  for (const BlobRequest& request : requests) {
    BlobWriter writer = TRY(BlobWriter::open(request));
    const uint64_t begin = writer.written();
    if (begin == request.size) {  // empty, or an earlier attempt got it all
      TRY(writer.finish());
      session.report({request.file, request.size, request.size, true});
      continue;
    }
    blobs.push_back({request, std::move(writer), begin, begin, {}});
  }
  Pool pool(session, blobs);
  pool.run(session.options().num_connections);
  if (pool.error()) return *pool.error();
  return {};
}

}  // namespace weft
