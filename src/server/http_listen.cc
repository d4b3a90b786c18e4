#include "server/http_listen.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <memory>

namespace weft {
namespace {

// Bytes that the kernel takes beyond what it may send at once: little, so that buffered() tells of
// a slow reader soon, and a thousand of them hold little memory.
constexpr int kUnsentBytes = 4 << 10;
constexpr int kBacklog = 4096;
constexpr int kKeptFiles = 64;  // for everything but connections

void set_option(int fd, int level, int name, int value) {
  setsockopt(fd, level, name, &value, sizeof value);
}

Error cannot_listen(const std::string& where) {
  const int code = errno;
  const std::string message = fmt::format("cannot listen on {}: {}", where, std::strerror(code));
  if (code == EACCES || code == EPERM) return permission_denied(message);
  return unavailable(message);
}

Result<HttpListener> listen_unix(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof address.sun_path) {
    return invalid_argument(fmt::format("unix socket: a path of at most {} bytes, not \"{}\"",
                                        sizeof address.sun_path - 1, path));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  const auto* raw = reinterpret_cast<const sockaddr*>(&address);
  // A socket file that nobody listens on is what a killed server leaves.
  const int probe = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
  if (probe < 0) return cannot_listen(path);
  if (connect(probe, raw, sizeof address) != 0 && errno == ECONNREFUSED) unlink(path.c_str());
  close(probe);
  const int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return cannot_listen(path);
  if (bind(fd, raw, sizeof address) != 0 || listen(fd, kBacklog) != 0) {
    const Error error = cannot_listen(path);
    close(fd);
    return error;
  }
  return HttpListener{.fd = fd, .port = 0, .tcp = false};
}

int listen_on(const addrinfo& info) {
  const int fd = socket(info.ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  set_option(fd, SOL_SOCKET, SO_REUSEADDR, 1);
  if (info.ai_family == AF_INET6) set_option(fd, IPPROTO_IPV6, IPV6_V6ONLY, 0);
  if (bind(fd, info.ai_addr, info.ai_addrlen) == 0 && listen(fd, kBacklog) == 0) return fd;
  const int code = errno;
  close(fd);
  errno = code;
  return -1;
}

std::string address_text(const sockaddr_storage& address) {
  std::array<char, INET6_ADDRSTRLEN> text{};
  if (address.ss_family == AF_INET) {
    const auto& v4 = reinterpret_cast<const sockaddr_in&>(address);
    inet_ntop(AF_INET, &v4.sin_addr, text.data(), text.size());
    return fmt::format("{}:{}", text.data(), ntohs(v4.sin_port));
  }
  if (address.ss_family == AF_INET6) {
    const auto& v6 = reinterpret_cast<const sockaddr_in6&>(address);
    inet_ntop(AF_INET6, &v6.sin6_addr, text.data(), text.size());
    return fmt::format("[{}]:{}", text.data(), ntohs(v6.sin6_port));
  }
  return "unix";
}

uint16_t bound_port(int fd) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

}  // namespace

Result<HttpListener> http_listen(const HttpConfig& config) {
  if (!config.unix_socket.empty()) return listen_unix(config.unix_socket);
  std::string host = config.host;
  if (host.size() > 2 && host.front() == '[' && host.back() == ']') {
    host = host.substr(1, host.size() - 2);
  }
  const std::string where = fmt::format("{}:{}", config.host, config.port);
  addrinfo hints{};
  hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
  hints.ai_socktype = SOCK_STREAM;
  addrinfo* found = nullptr;
  const int code = getaddrinfo(host.empty() ? nullptr : host.c_str(),
                               std::to_string(config.port).c_str(), &hints, &found);
  if (code != 0) {
    return invalid_argument(
        fmt::format("host: cannot resolve \"{}\": {}", config.host, gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, decltype(&freeaddrinfo)> list(found, &freeaddrinfo);
  for (const addrinfo* info = found; info != nullptr; info = info->ai_next) {
    const int fd = listen_on(*info);
    if (fd >= 0) return HttpListener{.fd = fd, .port = bound_port(fd), .tcp = true};
  }
  return cannot_listen(where);
}

int http_accept(const HttpListener& listener, unsigned stall_ms, std::string* peer) {
  sockaddr_storage address{};
  socklen_t size = sizeof address;
  const int fd = accept4(listener.fd, reinterpret_cast<sockaddr*>(&address), &size,
                         SOCK_NONBLOCK | SOCK_CLOEXEC);
  if (fd < 0) return -1;
  if (listener.tcp) {
    set_option(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    set_option(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, kUnsentBytes);
    // A peer that vanished without a word: found by probes while nothing is sent, by missing
    // acknowledgements while something is.
    set_option(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_option(fd, IPPROTO_TCP, TCP_KEEPIDLE, 30);
    set_option(fd, IPPROTO_TCP, TCP_KEEPINTVL, 10);
    set_option(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
    set_option(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, static_cast<int>(stall_ms));
  }
  *peer = listener.tcp ? address_text(address) : "unix";
  return fd;
}

int connections_within_file_limit(int wanted) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == RLIM_INFINITY) return wanted;
  const auto files = static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, 1 << 30));
  const int64_t room = std::max(files - kKeptFiles, files / 2);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, std::max<int64_t>(room, 1)));
}

}  // namespace weft
