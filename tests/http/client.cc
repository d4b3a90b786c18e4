#include "http/client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>

#include "base/check.h"

namespace weft {

std::optional<std::string> WireResponse::header(std::string_view lower_name) const {
  for (const auto& [name, value] : headers) {
    if (name == lower_name) return value;
  }
  return std::nullopt;
}

WireClient::WireClient(uint16_t port, std::chrono::milliseconds patience) {
  socket_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  CHECK(socket_ >= 0, "socket");
  set_patience(patience);
  const int on = 1;
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  CHECK(::connect(socket_, reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0,
        "connect to port " + std::to_string(port));
}

void WireClient::set_patience(std::chrono::milliseconds patience) {
  const timeval limit{.tv_sec = patience.count() / 1000,
                      .tv_usec = (patience.count() % 1000) * 1000};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
  ::setsockopt(socket_, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof(limit));
}

WireClient::~WireClient() {
  ::close(socket_);
}

bool WireClient::send(std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t sent = ::send(socket_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

void WireClient::close_writing() {
  ::shutdown(socket_, SHUT_WR);
}

bool WireClient::fill() {
  char bytes[16384];
  const ssize_t got = ::recv(socket_, bytes, sizeof(bytes), 0);
  if (got < 0) timed_out_ = errno == EAGAIN || errno == EWOULDBLOCK;
  if (got <= 0) return false;
  buffer_.append(bytes, static_cast<size_t>(got));
  return true;
}

bool WireClient::read_line(std::string& line) {
  size_t end;
  while ((end = buffer_.find("\r\n")) == std::string::npos) {
    if (!fill()) return false;
  }
  line = buffer_.substr(0, end);
  buffer_.erase(0, end + 2);
  return true;
}

bool WireClient::read_bytes(size_t count, std::string& out) {
  while (buffer_.size() < count) {
    if (!fill()) {
      out += buffer_;
      buffer_.clear();
      return false;
    }
  }
  out += buffer_.substr(0, count);
  buffer_.erase(0, count);
  return true;
}

bool WireClient::read_chunks(std::string& out) {
  std::string line;
  while (read_line(line)) {
    const size_t size = std::strtoul(line.c_str(), nullptr, 16);
    if (size == 0) {
      while (read_line(line) && !line.empty()) {
      }
      return line.empty();
    }
    if (!read_bytes(size, out) || !read_line(line)) return false;
  }
  return false;
}

std::optional<WireResponse> WireClient::receive_head() {
  std::string line;
  for (;;) {
    WireResponse response;
    if (!read_line(line)) return std::nullopt;
    if (!line.starts_with("HTTP/1.1 ") || line.size() < 12) return std::nullopt;
    response.status = std::atoi(line.c_str() + 9);
    while (read_line(line) && !line.empty()) {
      const size_t colon = line.find(':');
      if (colon == std::string::npos) return std::nullopt;
      std::string name = line.substr(0, colon);
      std::transform(name.begin(), name.end(), name.begin(),
                     [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
      const size_t begin = line.find_first_not_of(' ', colon + 1);
      response.headers.emplace_back(name, begin == std::string::npos ? "" : line.substr(begin));
    }
    if (!line.empty()) return std::nullopt;
    if (response.status >= 200) return response;
  }
}

void WireClient::finish(WireResponse& response) {
  if (response.status == 204 || response.status == 304) {
    response.complete = true;
  } else if (response.header("transfer-encoding") == "chunked") {
    response.complete = read_chunks(response.body);
  } else if (const auto length = response.header("content-length")) {
    response.complete = read_bytes(std::strtoul(length->c_str(), nullptr, 10), response.body);
  } else {
    while (fill()) {
    }
    response.body.swap(buffer_);
    response.complete = !timed_out_;
  }
}

std::optional<WireResponse> WireClient::receive(bool head_only) {
  std::optional<WireResponse> response = receive_head();
  if (!response) return std::nullopt;
  if (head_only) {
    response->complete = true;
  } else {
    finish(*response);
  }
  return response;
}

bool WireClient::closed_by_server() {
  return buffer_.empty() && !fill() && !timed_out_;
}

}  // namespace weft
