#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"
#include "server/http.h"

namespace weft {

/// One breach of the protocol: what the client is told before the connection is closed.
struct HttpFault {
  int status = 0;  ///< 0: none
  std::string_view code;
  std::string_view message;
};

/// The parts of HttpConfig that a request is measured with.
struct HttpLimits {
  size_t max_line = 8 << 10;
  size_t max_header_bytes = 32 << 10;
  int max_headers = 64;
  size_t max_body = 16 << 20;
};

/// An incremental parser of one HTTP/1.1 or 1.0 request (RFC 9112), strict: where the RFC lets a
/// server choose between repairing and refusing, this one refuses. Every byte is looked at a fixed
/// number of times; what is held is bounded by the limits plus one line. docs/server.md lists the
/// refusals.
class HttpParser {
 public:
  explicit HttpParser(const HttpLimits& limits) : limits_(limits) {}

  /// Takes bytes up to the end of the request and returns how many: fewer than given only when the
  /// request is complete or refused.
  size_t feed(std::string_view bytes);

  bool done() const { return state_ == State::kDone; }
  bool failed() const { return fault_.status != 0; }
  const HttpFault& fault() const { return fault_; }
  /// Some byte of a request has come.
  bool begun() const { return begun_; }
  /// The header section is complete and accepted.
  bool in_body() const { return state_ > State::kHeaderLine; }
  /// The client waits for "100 Continue": true once, when the headers are complete and no byte of
  /// the body has been taken.
  bool take_expect_continue();
  size_t body_bytes() const { return request_.body.size(); }

  // Of a complete request:
  HttpRequest take_request() { return std::move(request_); }
  bool keep_alive() const { return keep_alive_; }
  bool http10() const { return http10_; }

 private:
  // In the order of their coming; the later states are those of a body.
  enum class State {
    kRequestLine,
    kHeaderLine,
    kBody,
    kChunkSize,
    kChunk,
    kChunkEnd,
    kTrailer,
    kDone
  };
  struct Framing {
    bool has_host = false;
    bool has_length = false;
    bool chunked = false;
    bool close = false;
    bool persist = false;
    bool expect = false;
  };

  void fail(int status, std::string_view code, std::string_view message);
  void bad(std::string_view code, std::string_view message) { fail(400, code, message); }
  size_t feed_line(std::string_view bytes);
  size_t feed_data(std::string_view bytes);
  bool check_line_bytes(std::string_view piece);
  void check_line_length();
  void on_line(std::string_view line);
  void on_request_line(std::string_view line);
  void on_header(std::string_view line, bool trailer);
  void on_known_header(std::string_view name, std::string_view value, std::string_view raw);
  void on_content_length(std::string_view value);
  void on_headers_end();
  void on_chunk_size(std::string_view line);

  HttpLimits limits_;
  State state_ = State::kRequestLine;
  HttpFault fault_;
  HttpRequest request_;
  Framing framing_;
  std::string line_;  // the line that has not ended yet, without its CRLF
  bool cr_ = false;   // the last byte was a CR: LF has to follow
  bool begun_ = false;
  bool empty_line_ = false;  // the one empty line allowed before a request has been seen
  bool http10_ = false;
  bool keep_alive_ = true;
  int num_headers_ = 0;
  size_t header_bytes_ = 0;    // of the header section, then of the trailers
  size_t remaining_ = 0;       // of the body or the chunk
  size_t chunk_overhead_ = 0;  // bytes of the chunk framing
};

/// The path and query of a request target in origin form, the path as
/// HttpRequest::path. Refuses whatever two readers could take for two different paths
/// (kInvalidArgument).
Result<std::pair<std::string, std::string>> parse_http_target(std::string_view target);

}  // namespace weft
