#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/result.h"
#include "engine/step_record.h"
#include "server/request_record.h"

namespace weft {

/// The caller's place in a distributed trace (W3C Trace Context, level 1).
struct TraceContext {
  std::string trace_id;   ///< 32 lower-case hex digits, not all zero
  std::string parent_id;  ///< 16
  bool sampled = false;
};

/// Reads a `traceparent` header strictly; nothing when it is malformed (it is then ignored, as the
/// standard asks).
std::optional<TraceContext> parse_traceparent(std::string_view header);

/// Writes a Chrome trace (JSON array format; Perfetto and chrome://tracing load it): steps on one
/// track, each request as nested asynchronous spans queued, prefill, decode. Calls only append to
/// a bounded buffer; a thread writes it out four times a second. Whatever kills the process, the
/// file is a prefix that the viewers load (they need no closing bracket).
class TraceWriter {
 public:
  static Result<std::unique_ptr<TraceWriter>> open(const std::string& path);
  /// Writes what is buffered and closes the array.
  ~TraceWriter();

  void step(const StepRecord& record);
  void request(const RequestRecord& record);
  /// Events lost because the buffer was full (the disk was too slow).
  uint64_t dropped() const;

 private:
  struct Impl;
  explicit TraceWriter(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
