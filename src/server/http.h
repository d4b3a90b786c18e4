#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/result.h"

namespace weft {

/// One request, complete and checked: HTTP/1.1 (RFC 9112), strict.
struct HttpRequest {
  static constexpr std::string_view kEncodedSlash = "%2F";

  std::string method;  ///< upper case
  /// From the request line alone, "/" first, no query; percent-decoded but for encoded slashes,
  /// which stand as kEncodedSlash: they belong to a name and separate nothing.
  std::string path;
  std::string query;                                         ///< after '?', as it came
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;
  std::string peer;  ///< address of the client, for logs

  /// The value of a header (name in lower case), "" when it is absent.
  std::string_view header(std::string_view name) const;
};

using HttpHeaders = std::vector<std::pair<std::string, std::string>>;

struct HttpResponse {
  int status = 200;
  std::string body;
  std::string content_type = "application/json";
  HttpHeaders headers;
};

/// One request and its answer. The answer is either respond() once, or begin_stream(), any number
/// of write(), end_stream(). Functions may be called from any thread; after the client has gone
/// they do nothing. Keep the shared_ptr as long as the answer is not complete; dropping the last
/// one before that closes the connection.
class HttpExchange {
 public:
  class Impl;  // in the .cc file that knows the sockets
  explicit HttpExchange(std::unique_ptr<Impl> impl);
  ~HttpExchange();
  const HttpRequest& request() const;
  /// Frees the headers and the body of the request, which a stream would hold for minutes. Only
  /// while no other thread reads request().
  void drop_request();
  void respond(HttpResponse response);
  /// Headers go out at once; the body follows in chunks (SSE: content type "text/event-stream").
  void begin_stream(int status, const std::string& content_type, const HttpHeaders& headers);
  /// Queues bytes of the body; they leave without delay. False when the client has gone.
  bool write(std::string bytes);
  void end_stream();
  /// Bytes that write() took and the kernel has not: the caller stops at a bound of its own.
  size_t buffered() const;
  /// Called once on the I/O thread when buffered() has fallen to `low_water` or less; replaces an
  /// earlier one. Forgotten when the client goes or the answer is complete.
  void when_drained(size_t low_water, std::function<void()> callback);
  /// Called once on the I/O thread when the client has gone before the answer was complete (also
  /// when it had gone before this call). Never called after a complete answer, nor when the server
  /// has been destroyed before this call. A client that closes its sending half has gone.
  void when_gone(std::function<void()> callback);

 private:
  std::unique_ptr<Impl> impl_;
};

/// Limits are part of the contract with clients (docs/server.md); each breach has a status.
struct HttpConfig {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;                ///< 0: any free one
  std::string unix_socket;             ///< a path instead of host and port
  size_t max_line = 8 << 10;           ///< request line: 414
  size_t max_header_bytes = 32 << 10;  ///< 431
  int max_headers = 64;                ///< 431
  size_t max_body = 16 << 20;          ///< 413
  size_t max_receiving = 256 << 20;    ///< bodies on their way in, all connections together: 503
  /// Further ones wait in the kernel's queue. Never more than RLIMIT_NOFILE leaves room for.
  int max_connections = 16384;
  std::chrono::milliseconds header_timeout{
      20'000};                                      ///< from the first byte to the last header: 408
  std::chrono::milliseconds body_timeout{60'000};   ///< and one second more each 16 KiB: 408
  std::chrono::milliseconds idle_timeout{75'000};   ///< a kept-alive connection: closed
  std::chrono::milliseconds stall_timeout{60'000};  ///< a reader that takes nothing: closed
  /// How long stop_accepting() leaves idle connections to a request that may be under way.
  std::chrono::milliseconds idle_grace{1'000};
};

/// An HTTP/1.1 server on one I/O thread of its own.
class HttpServer {
 public:
  /// Called on the I/O thread: must not block; long work goes to other threads.
  using Handler = std::function<void(std::shared_ptr<HttpExchange>)>;

  /// Binds, listens and starts the thread. Errors name the address and the reason.
  static Result<std::unique_ptr<HttpServer>> start(const HttpConfig& config, Handler handler);
  ~HttpServer();  ///< close()
  /// Closes every connection at once and joins the thread. What is posted later is dropped.
  void close();

  uint16_t port() const;
  /// Runs `work` on the I/O thread, in order of the calls.
  void post(std::function<void()> work);
  /// Accepts no further connections (those in the kernel's queue are still taken); every answer
  /// from now on says "Connection: close". Idle connections are closed after config.idle_grace: at
  /// once would break requests that a proxy is just sending. Drained: num_connections() is 0.
  void stop_accepting();
  int num_connections() const;

 private:
  friend class HttpConnection;
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
