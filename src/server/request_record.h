#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

namespace weft {

/// What one request (one choice of one prompt: one sequence of the engine) was and when. A time
/// that never came is left at its default.
struct RequestRecord {
  using Clock = std::chrono::steady_clock;
  std::string id;        ///< X-Request-Id, or the server's own
  std::string trace_id;  ///< of W3C traceparent, 32 hex digits; empty: none
  Clock::time_point arrival;
  Clock::time_point scheduled;    ///< TokenSink::on_scheduled()
  Clock::time_point first_token;  ///< when the prompt was done
  Clock::time_point last_token;
  Clock::time_point finished;
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;  ///< of the prompt
  int64_t max_tokens = 0;     ///< asked for
  int64_t n = 1;              ///< choices of the request it belongs to
  /// Of the last of the n choices of a prompt to end: the most tokens that one of them has.
  std::optional<int64_t> most_generated;
  std::string finish_reason;  ///< stop, length, tool_calls, abort, error
};

}  // namespace weft
