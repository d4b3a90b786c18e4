#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "server/http.h"

namespace weft {

struct HttpListener {
  int fd = -1;  ///< non-blocking, listening; the caller closes it
  uint16_t port = 0;
  bool tcp = true;
};

/// A listening socket for `config`: its Unix socket if it names one (a file left by a dead server
/// is replaced), else host and port. Errors name the address and the reason.
Result<HttpListener> http_listen(const HttpConfig& config);

/// Takes one connection (non-blocking, tuned for streams) or returns -1 with errno set.
/// `stall_ms`: how long sent bytes may stay unacknowledged. `peer`: its address, for logs.
int http_accept(const HttpListener& listener, unsigned stall_ms, std::string* peer);

/// The most connections that RLIMIT_NOFILE leaves room for.
int connections_within_file_limit(int wanted);

}  // namespace weft
