#pragma once

#include <condition_variable>
#include <functional>
#include <mutex>
#include <string>
#include <string_view>

#include "base/result.h"
#include "checkpoint/http_client.h"
#include "checkpoint/hub.h"

namespace weft {

/// Talks to one hub about one model: adds the token where it belongs, follows redirects, waits
/// between attempts. Thread-safe; each thread brings its own FetchClient.
class HubSession {
 public:
  HubSession(ModelName model, const HubOptions& options, const ProgressSink& progress);

  const ModelName& model() const { return model_; }
  const HubOptions& options() const { return options_; }

  /// "ENDPOINT/ORG/NAME/resolve/COMMIT/FILE".
  std::string file_url(const std::string& commit, const std::string& file) const;
  /// "ENDPOINT/api/models/ORG/NAME/revision/REVISION".
  std::string info_url() const;

  struct Answer {
    FetchResponse response;
    std::string url;  ///< of the last hop
  };
  /// One attempt, with up to five redirects. The token goes only to the hub's own scheme, host and
  /// port; `request.headers` only to the hub and before any redirect (If-Range names an ETag of the
  /// hub's answer); a step down from https to http is refused. A HEAD request stops where the
  /// headers describe the file (X-Linked-ETag), and at a redirect to another host.
  Result<Answer> send(FetchClient& client, FetchRequest request) const;

  /// send(), repeated while the network or the hub (408, 429, 5xx) fails, not before an answer's
  /// Retry-After. `what` is for notes.
  Result<Answer> send_with_retries(FetchClient& client, const FetchRequest& request,
                                   const std::string& what);

  /// True for a status that may be better next time.
  static bool is_transient(int status);
  /// The message for an answer that is not a success.
  Error error_of(const FetchResponse& response, const std::string& what) const;
  bool is_own_url(const std::string& url) const;

  /// Seconds that an answer asks to wait (Retry-After), at most a minute; 0 where it says none.
  static double retry_after(const FetchResponse& response);

  /// Tells the user why, then sleeps first_backoff x 2^attempt (at most 8 s) or `at_least_s` where
  /// that is longer, less when stop() is called meanwhile. `attempt` counts from 0.
  void wait_before_retry(const std::string& what, const std::string& why, int attempt,
                         double at_least_s);

  void note(const std::string& text);
  void report(const FileProgress& progress);
  /// Ends all waiting, now and later: another part of the download failed.
  void stop();
  bool stopped();

 private:
  const ModelName model_;
  const HubOptions& options_;
  const ProgressSink& progress_;
  const std::string origin_;
  std::mutex progress_mutex_;
  std::mutex stop_mutex_;
  std::condition_variable stop_changed_;
  bool stopped_ = false;
};

}  // namespace weft
