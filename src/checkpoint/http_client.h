#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace weft {

struct FetchRequest {
  std::string url;
  bool head = false;
  std::vector<std::string> headers;  ///< "Name: value"
  /// First and last byte wanted, both inclusive.
  std::optional<std::pair<uint64_t, uint64_t>> range;
  /// Takes the body of a 2xx answer piece by piece; returning false ends the transfer, which is not
  /// an error. `response` has the status and headers.
  std::function<bool(const struct FetchResponse& response, std::span<const std::byte>)> on_body;
};

struct FetchResponse {
  int status = 0;
  std::map<std::string, std::string> headers;  ///< names in lower case
  std::string text;       ///< the body of an answer that is not 2xx, cut at 64 KiB
  bool complete = false;  ///< false when on_body ended it

  /// The header's value, or empty.
  std::string header(const std::string& lower_case_name) const;
};

/// Scheme, host and port of an absolute http(s) URL, in a form that can be compared; empty when it
/// is not one.
std::string url_origin(std::string_view url);

/// One connection that is kept alive between requests. It never follows redirects itself: the
/// caller decides what may be sent to another host. Not thread-safe: one client per thread.
class FetchClient {
 public:
  /// `timeout_s`: for connecting, and for a transfer that stands still.
  explicit FetchClient(double timeout_s);
  FetchClient(FetchClient&&) noexcept;
  ~FetchClient();

  /// Sends the request. Any HTTP status is a response; kUnavailable when none arrived or the body
  /// broke off (on_body has then seen what did arrive).
  Result<FetchResponse> perform(const FetchRequest& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
