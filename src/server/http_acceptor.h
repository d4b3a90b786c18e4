#pragma once

#include <functional>
#include <memory>
#include <string>

#include "server/http_listen.h"

namespace boost::asio {
class io_context;
}

namespace weft {

/// Takes connections from a listening socket on the I/O thread, without spinning when there is no
/// room for them: no place (they wait in the kernel's queue until resume()) or no file descriptor
/// (it tries again a little later).
class HttpAcceptor {
 public:
  struct Callbacks {
    std::function<bool()> has_room;
    std::function<void(int fd, std::string peer)> add;
  };
  HttpAcceptor(boost::asio::io_context& io, const HttpListener& listener, unsigned stall_ms,
               Callbacks callbacks);
  ~HttpAcceptor();
  /// Waits for connections; also after has_room() has become true again.
  void resume();
  /// Somebody waits in the queue.
  bool queued() const;
  /// Closes the socket; with `take_queue` only after those who wait, who believe that they are
  /// connected, have been taken.
  void stop(bool take_queue);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace weft
