#pragma once

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "app/bench_serve_metrics.h"
#include "base/result.h"

namespace weft {

struct StreamClientConfig {
  std::string url;                   ///< of the API: http or https
  std::vector<std::string> headers;  ///< "Name: value", of each request
  bool insecure = false;             ///< TLS certificates are not checked
};

/// Many streamed completions at once, on the caller's thread (libcurl's sockets under one epoll):
/// each request's frames are stamped when they are read. For any OpenAI server.
class StreamClient {
 public:
  using Clock = std::chrono::steady_clock;

  static Result<std::unique_ptr<StreamClient>> create(StreamClientConfig config);
  ~StreamClient();

  /// Sends `body` (JSON). `outcome` gets the result and must stay where it is until then; its
  /// prompt_len stays where the server tells no usage. output_len is 0 there.
  void start(std::string body, const std::string& request_id, RequestOutcome& outcome);
  /// Handles what comes until `until`, or until a request has ended. Returns how many have.
  size_t wait(Clock::time_point until);
  /// A plain GET, waited for. Errors name the URL and the reason.
  Result<std::string> get(const std::string& url);

 private:
  struct Impl;
  explicit StreamClient(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

/// What one frame of a stream says: a pure function of its JSON, for completions and chat.
struct StreamFrame {
  bool has_choices = false;
  std::string text;  ///< of the first choice; reasoning counts as text
  int64_t prompt_tokens = -1, completion_tokens = -1;  ///< of its usage; -1: it has none
  std::string error;                                   ///< of an error event
};
StreamFrame read_frame(std::string_view json);

}  // namespace weft
