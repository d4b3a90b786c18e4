#include "tests/load/client.h"

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <utility>

#include "base/check.h"

namespace weft::load {

void Connection::send(std::string_view bytes) {
  if (fd_ < 0) return;
  out_.append(bytes);
  if (watched_ != 0 && (watched_ & EPOLLOUT) == 0) flush();
  if (fd_ >= 0) watch();
}

void Connection::flush() {
  while (!out_.empty()) {
    const ssize_t n = ::send(fd_, out_.data(), out_.size(), MSG_NOSIGNAL);
    if (n < 0) {
      if (errno == EAGAIN || errno == ENOTCONN) return;
      out_.clear();  // the answer, if there is one, is still read
      return;
    }
    out_.erase(0, static_cast<size_t>(n));
  }
}

/// The first time also for writing: that tells when the connection stands.
void Connection::watch() {
  const bool writing = !out_.empty() || watched_ == 0;
  uint32_t wanted = reading_ ? static_cast<uint32_t>(EPOLLIN) : 0;
  if (writing) wanted |= EPOLLOUT;
  wanted |= EPOLLERR;  // reported in any case
  if (wanted == watched_) return;
  epoll_event event{};
  event.events = wanted;
  event.data.fd = fd_;
  epoll_ctl(loop_.epoll_, watched_ == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, fd_, &event);
  watched_ = wanted;
}

void Connection::set_reading(bool on) {
  reading_ = on;
  if (fd_ >= 0) watch();
}

void Connection::half_close() {
  if (fd_ >= 0) ::shutdown(fd_, SHUT_WR);
}

void Connection::close(bool reset) {
  if (fd_ < 0) return;
  if (reset) {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
  }
  const int fd = std::exchange(fd_, -1);
  ::close(fd);
  loop_.connections_.erase(fd);  // callers hold a reference of their own
}

void Connection::end(End how) {
  if (fd_ < 0) return;
  close();
  if (on_end) on_end(*this, how);
}

void Connection::on_event(uint32_t events) {
  if ((events & EPOLLOUT) != 0) {
    flush();
    if (fd_ >= 0) watch();
  }
  if (fd_ >= 0 && (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) != 0) {
    if (reading_) {
      read_some();
    } else if ((events & (EPOLLHUP | EPOLLERR)) != 0) {
      end(End::kBroken);
    }
  }
}

void Connection::read_some() {
  std::array<char, 16384> buffer;
  while (fd_ >= 0 && reading_) {
    const ssize_t n = ::recv(fd_, buffer.data(), buffer.size(), 0);
    if (n > 0) {
      parse({buffer.data(), static_cast<size_t>(n)});
      if (static_cast<size_t>(n) < buffer.size()) return;
      continue;
    }
    if (n < 0 && errno == EAGAIN) return;
    const bool whole = n == 0 && in_body_ && !chunked_ && !has_length_;
    end(whole ? End::kComplete : End::kBroken);
  }
}

void Connection::parse(std::string_view bytes) {
  if (in_body_) {
    parse_body(bytes);
    return;
  }
  head_.append(bytes);
  const size_t end_of_head = head_.find("\r\n\r\n");
  if (end_of_head == std::string::npos) return;
  const std::string rest = head_.substr(end_of_head + 4);
  head_.resize(end_of_head + 2);
  if (!parse_head()) {
    end(End::kBroken);
    return;
  }
  in_body_ = true;
  if (has_length_ && left_ == 0) {
    end(End::kComplete);
  } else if (!rest.empty()) {
    parse_body(rest);
  }
}

bool Connection::parse_head() {
  if (!head_.starts_with("HTTP/1.1 ") || head_.size() < 12) return false;
  status_ = std::atoi(head_.c_str() + 9);
  chunked_ = header("transfer-encoding") == "chunked";
  const std::string length = header("content-length");
  has_length_ = !length.empty();
  left_ = has_length_ ? std::strtoull(length.c_str(), nullptr, 10) : 0;
  is_stream_ = header("content-type").starts_with("text/event-stream");
  return status_ >= 100;
}

std::string Connection::header(std::string_view name) const {
  for (size_t begin = head_.find("\r\n") + 2; begin < head_.size();) {
    const size_t end = head_.find("\r\n", begin);
    const size_t colon = head_.find(':', begin);
    if (colon < end && colon - begin == name.size() &&
        std::equal(
            name.begin(), name.end(), head_.begin() + static_cast<ptrdiff_t>(begin),
            [](char a, char b) { return a == std::tolower(static_cast<unsigned char>(b)); })) {
      size_t value = colon + 1;
      while (value < end && head_[value] == ' ') ++value;
      return head_.substr(value, end - value);
    }
    begin = end + 2;
  }
  return {};
}

void Connection::take_body(std::string_view bytes) {
  body_.append(bytes);
  if (!is_stream_) return;
  sse_.read(bytes, [this](std::string_view data) {
    if (on_frame && fd_ >= 0) on_frame(*this, data);
  });
}

void Connection::parse_body(std::string_view bytes) {
  if (!chunked_) {
    const size_t n = has_length_ ? std::min<size_t>(bytes.size(), left_) : bytes.size();
    left_ -= has_length_ ? n : 0;
    take_body(bytes.substr(0, n));
    if (has_length_ && left_ == 0) end(End::kComplete);
    return;
  }
  while (!bytes.empty() && fd_ >= 0) {
    if (chunk_ == Chunk::kData) {
      const size_t n = std::min<size_t>(bytes.size(), left_);
      take_body(bytes.substr(0, n));
      bytes.remove_prefix(n);
      left_ -= n;
      if (left_ == 0) chunk_ = Chunk::kEnd;
      continue;
    }
    const char c = bytes.front();
    bytes.remove_prefix(1);
    if (c != '\n') {
      if (c != '\r') line_ += c;
      continue;
    }
    if (chunk_ == Chunk::kEnd) {
      chunk_ = Chunk::kSize;
    } else if (chunk_ == Chunk::kSize) {
      left_ = 0;
      std::from_chars(line_.data(), line_.data() + line_.size(), left_, 16);
      chunk_ = left_ == 0 ? Chunk::kTrailer : Chunk::kData;
    } else if (line_.empty()) {
      end(End::kComplete);
    }
    line_.clear();
  }
}

Loop::Loop(uint16_t port) : port_(port), epoll_(epoll_create1(EPOLL_CLOEXEC)) {
  CHECK(epoll_ >= 0, "epoll");
}

Loop::~Loop() {
  while (!connections_.empty()) {
    const std::shared_ptr<Connection> connection = connections_.begin()->second;
    connection->close();
  }
  ::close(epoll_);
}

std::shared_ptr<Connection> Loop::open(int receive_buffer) {
  const int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
  if (fd < 0) return nullptr;
  const int on = 1;
  setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  if (receive_buffer > 0) {
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
  }
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(port_);
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  const int code = connect(fd, reinterpret_cast<const sockaddr*>(&address), sizeof address);
  if (code != 0 && errno != EINPROGRESS) {
    ::close(fd);
    return nullptr;
  }
  const std::shared_ptr<Connection> connection(new Connection(*this, fd));
  connections_[fd] = connection;
  connection->watch();
  return connection;
}

void Loop::at(Clock::time_point when, std::function<void()> what) {
  timers_.emplace(when, std::move(what));
}

void Loop::run(Clock::time_point until, const std::function<bool()>& done) {
  std::array<epoll_event, 512> events{};
  while (!done()) {
    const Clock::time_point now = Clock::now();
    if (now >= until) return;
    while (!timers_.empty() && timers_.begin()->first <= now) {
      const std::function<void()> what = std::move(timers_.begin()->second);
      timers_.erase(timers_.begin());
      what();
    }
    const Clock::time_point due = timers_.empty() ? until : std::min(until, timers_.begin()->first);
    const auto patience = std::chrono::ceil<milliseconds>(due - Clock::now()).count();
    const int n = epoll_wait(epoll_, events.data(), static_cast<int>(events.size()),
                             static_cast<int>(std::clamp<int64_t>(patience, 0, 1000)));
    for (int i = 0; i < n; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      const auto it = connections_.find(event.data.fd);
      if (it == connections_.end()) continue;
      const std::shared_ptr<Connection> connection = it->second;  // it may end within
      connection->on_event(event.events);
    }
  }
}

std::string request_text(const std::string& path, const std::string& body,
                         const std::string& more_headers) {
  if (body.empty()) return "GET " + path + " HTTP/1.1\r\nHost: load\r\n" + more_headers + "\r\n";
  return "POST " + path + " HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\n" +
         more_headers + "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

Answer ask(Loop& loop, const std::string& request, milliseconds patience) {
  Answer answer;
  const std::shared_ptr<Connection> connection = loop.open();
  if (!connection) return answer;
  bool done = false;
  connection->on_end = [&](Connection&, Connection::End how) {
    answer.complete = how == Connection::End::kComplete;
    done = true;
  };
  connection->send(request);
  loop.run(Clock::now() + patience, [&done] { return done; });
  connection->on_end = nullptr;
  answer.status = connection->status();
  answer.head = connection->head();
  answer.body = connection->body();
  answer.seconds = seconds_between(connection->opened(), Clock::now());
  connection->close();
  return answer;
}

}  // namespace weft::load
