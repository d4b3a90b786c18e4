#include "server/http_acceptor.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <chrono>
#include <string_view>
#include <utility>

namespace weft {
namespace {

constexpr int kAcceptsPerTurn = 64;
constexpr int kAcceptsWhenStopping = 8192;  // the whole queue
constexpr std::chrono::milliseconds kRetry{50};

}  // namespace

struct HttpAcceptor::Impl {
  Impl(boost::asio::io_context& io, const HttpListener& l, unsigned stall, Callbacks c)
      : listener(l), stall_ms(stall), callbacks(std::move(c)), socket(io, l.fd), retry(io) {}

  void wait() {
    if (pending || stopping) return;
    pending = true;
    socket.async_wait(socket.wait_read, [this](auto error) {
      pending = false;
      if (!error && !stopping) take(kAcceptsPerTurn);
    });
  }

  void take(int at_most) {
    for (int i = 0; i < at_most; ++i) {
      if (!callbacks.has_room()) return;  // resume() goes on with it
      std::string peer;
      const int fd = http_accept(listener, stall_ms, &peer);
      if (fd >= 0) {
        callbacks.add(fd, std::move(peer));
        continue;
      }
      if (errno == EAGAIN || errno == EWOULDBLOCK) break;
      const bool no_file = errno == EMFILE || errno == ENFILE;
      if (!no_file && errno != ENOBUFS && errno != ENOMEM) continue;  // that one is gone already
      // The queue stays readable: waiting for it at once would spin.
      if (no_file) shed();
      if (!stopping) wait_for_files();
      return;
    }
    wait();
  }

  void wait_for_files() {
    pending = true;
    retry.expires_after(kRetry);
    retry.async_wait([this](auto error) {
      pending = false;
      if (!error && !stopping) take(kAcceptsPerTurn);
    });
  }

  // No file is left: tells one client so, with the file kept for that, so that not all wait.
  void shed() {
    if (reserve_fd >= 0) close(reserve_fd);
    std::string peer;
    const int fd = http_accept(listener, stall_ms, &peer);
    if (fd >= 0) {
      static constexpr std::string_view kText =
          "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\n"
          "Connection: close\r\n\r\n";
      send(fd, kText.data(), kText.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      shutdown(fd, SHUT_WR);
      // A request that is here already is read, lest the close become a reset.
      std::array<char, 4096> unread;
      recv(fd, unread.data(), unread.size(), MSG_DONTWAIT);
      close(fd);
    }
    reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  }

  HttpListener listener;
  unsigned stall_ms;
  Callbacks callbacks;
  boost::asio::posix::stream_descriptor socket;
  boost::asio::steady_timer retry;
  int reserve_fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
  bool pending = false;  // an event will come that takes connections
  bool stopping = false;
};

HttpAcceptor::HttpAcceptor(boost::asio::io_context& io, const HttpListener& listener,
                           unsigned stall_ms, Callbacks callbacks)
    : impl_(std::make_unique<Impl>(io, listener, stall_ms, std::move(callbacks))) {}

HttpAcceptor::~HttpAcceptor() {
  if (impl_->reserve_fd >= 0) close(impl_->reserve_fd);
}

void HttpAcceptor::resume() {
  impl_->wait();
}

bool HttpAcceptor::queued() const {
  pollfd queue{.fd = impl_->listener.fd, .events = POLLIN, .revents = 0};
  return !impl_->stopping && poll(&queue, 1, 0) > 0;
}

void HttpAcceptor::stop(bool take_queue) {
  if (std::exchange(impl_->stopping, true)) return;
  if (take_queue) impl_->take(kAcceptsWhenStopping);
  boost::system::error_code ignored;
  impl_->socket.close(ignored);
  impl_->retry.cancel();
}

}  // namespace weft
