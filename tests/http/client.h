#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace weft {

/// One answer as it came over the wire.
struct WireResponse {
  int status = 0;
  std::vector<std::pair<std::string, std::string>> headers;  ///< names in lower case
  std::string body;                                          ///< chunks put together
  bool complete = false;                                     ///< the body came to its end

  /// Nothing when it is absent; the first of several.
  std::optional<std::string> header(std::string_view lower_name) const;
};

/// A plain blocking connection that sends exactly the bytes it is given, right or wrong.
class WireClient {
 public:
  /// Connects to 127.0.0.1.
  explicit WireClient(uint16_t port,
                      std::chrono::milliseconds patience = std::chrono::milliseconds(20'000));
  ~WireClient();
  WireClient(const WireClient&) = delete;
  WireClient& operator=(const WireClient&) = delete;

  /// How long a read or write may wait.
  void set_patience(std::chrono::milliseconds patience);
  /// False when the connection is gone.
  bool send(std::string_view bytes);
  /// No more bytes will come from here; answers can still be read.
  void close_writing();
  /// The next answer; 1xx answers are skipped. `head_only`: an answer to HEAD. Nothing when the
  /// connection ended (or nothing came in time) before a whole head.
  std::optional<WireResponse> receive(bool head_only = false);
  /// The next answer without its body, which stays to be read by finish().
  std::optional<WireResponse> receive_head();
  /// Reads the body of what receive_head() gave.
  void finish(WireResponse& response);
  /// Whether the server closes the connection, without a further byte.
  bool closed_by_server();

 private:
  bool fill();
  bool read_line(std::string& line);
  bool read_bytes(size_t count, std::string& out);
  bool read_chunks(std::string& out);

  int socket_ = -1;
  std::string buffer_;
  bool timed_out_ = false;
};

}  // namespace weft
