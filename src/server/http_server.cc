#include <fmt/format.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <cerrno>
#include <thread>
#include <utility>

#include "base/log.h"
#include "server/api_error.h"
#include "server/http_acceptor.h"
#include "server/http_answer.h"
#include "server/http_listen.h"
#include "server/http_parser.h"

namespace weft {
namespace {

namespace asio = boost::asio;
using asio::posix::stream_descriptor;
using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

constexpr size_t kReadSize = 64 << 10;   // one buffer, shared by all connections
constexpr size_t kReadAhead = 64 << 10;  // taken of a connection while its answer is pending
constexpr size_t kBodyBytesPerSecond = 16 << 10;  // slower bodies run into body_timeout
constexpr int kMaxSegments = 16;                  // of one gathering write
// What one connection may do in one turn of the loop before the others have theirs.
constexpr int kWritesPerTurn = 8;
constexpr int kStepsPerTurn = 16;
constexpr milliseconds kLingerTime{2'000};

}  // namespace

struct HttpServer::Impl {
  Impl(const HttpConfig& c, Handler h, HttpListener l);
  void run();
  void run_outbox();
  bool has_room() const { return static_cast<int>(connections.size()) < config.max_connections; }
  void add(int fd, std::string peer);
  void remove(HttpConnection* connection);
  void wait_tick();
  void on_tick();
  void close_idle_for_newcomers();
  void stop_accepting();
  void shut_down();

  HttpConfig config;
  HttpLimits limits;
  Handler handler;
  HttpListener listening;
  asio::io_context io{1};
  asio::executor_work_guard<asio::io_context::executor_type> guard{io.get_executor()};
  asio::steady_timer tick{io};
  HttpAcceptor acceptor;
  milliseconds period{0};
  std::shared_ptr<HttpOutbox> outbox;
  std::vector<std::shared_ptr<HttpConnection>> connections;
  std::atomic<int> num_connections{0};
  std::vector<char> scratch = std::vector<char>(kReadSize);
  size_t receiving = 0;  // bytes of incomplete bodies
  bool stopping = false;
  bool ended = false;
  std::thread thread;
};

/// One connection; on the I/O thread only. While its answer is pending it costs no buffer.
class HttpConnection : public std::enable_shared_from_this<HttpConnection> {
 public:
  HttpConnection(HttpServer::Impl& server, int fd, std::string peer)
      : server_(server), fd_(server.io, fd), peer_(std::move(peer)) {
    begin_phase(Phase::kFresh, server.config.header_timeout);
  }
  void start() { wait_readable(); }
  /// Something of the answer is to be sent, or it has been abandoned.
  void on_output();
  void on_tick(Clock::time_point now);
  /// The server drains: an idle connection has config.idle_grace left.
  void on_drain();
  /// The client has gone, or has to go.
  void lose();
  bool idle() const { return phase_ == Phase::kIdle; }
  Clock::time_point deadline() const { return deadline_; }

  size_t index = 0;  // in Impl::connections

 private:
  enum class Phase {
    kFresh,      // no byte yet
    kIdle,       // kept alive
    kReading,    // a request on its way in
    kAnswering,  // with the handler, or its answer on its way out
    kNext,       // an answer is through; the next request comes from ahead_ or the socket
    kLingering,  // our half is closed; what still comes is thrown away
    kClosed,
  };

  void begin_phase(Phase phase, milliseconds limit);
  void wait_readable();
  void wait_writable();
  void on_readable();
  void read_request();
  void read_ahead();
  void read_and_discard();
  size_t parse(std::string_view bytes);
  void account_body();
  void dispatch();
  void refuse(HttpFault fault, const HttpHeaders& headers = {});
  void flush();
  bool send_some();
  void finish_answer();
  void go_on();
  void linger();
  void forget_ahead() { std::string().swap(ahead_), ahead_pos_ = 0; }
  void close();

  HttpServer::Impl& server_;
  stream_descriptor fd_;
  std::string peer_;
  Phase phase_ = Phase::kFresh;
  bool wait_read_ = false;
  bool wait_write_ = false;
  bool eof_ = false;
  Clock::time_point deadline_;  // of the phase; while sending, of the next progress
  Clock::time_point body_since_;
  std::unique_ptr<HttpParser> parser_;  // while a request comes in
  size_t accounted_ = 0;                // bytes of its body in server_.receiving
  std::shared_ptr<HttpAnswer> answer_;  // null when the transport itself answers
  std::vector<std::string> sending_;
  size_t sent_ = 0;  // of sending_.front()
  std::string ahead_;
  size_t ahead_pos_ = 0;
};

void HttpConnection::begin_phase(Phase phase, milliseconds limit) {
  phase_ = phase;
  deadline_ = Clock::now() + limit;
}

void HttpConnection::wait_readable() {
  if (wait_read_ || eof_ || phase_ == Phase::kClosed) return;
  wait_read_ = true;
  fd_.async_wait(stream_descriptor::wait_read, [self = shared_from_this()](auto error) {
    self->wait_read_ = false;
    if (!error && self->phase_ != Phase::kClosed) self->on_readable();
  });
}

void HttpConnection::wait_writable() {
  if (wait_write_ || phase_ == Phase::kClosed) return;
  wait_write_ = true;
  fd_.async_wait(stream_descriptor::wait_write, [self = shared_from_this()](auto error) {
    self->wait_write_ = false;
    if (!error && self->phase_ != Phase::kClosed) self->on_output();
  });
}

void HttpConnection::on_readable() {
  switch (phase_) {
    case Phase::kLingering: return read_and_discard();
    case Phase::kAnswering:
    case Phase::kNext: return read_ahead();
    default: return read_request();
  }
}

void HttpConnection::read_request() {
  const ssize_t n = recv(fd_.native_handle(), server_.scratch.data(), kReadSize, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return wait_readable();
  if (n <= 0) return close();
  const std::string_view bytes(server_.scratch.data(), static_cast<size_t>(n));
  const size_t taken = parse(bytes);
  if (phase_ == Phase::kAnswering || phase_ == Phase::kNext) ahead_ = bytes.substr(taken);
  if (phase_ == Phase::kNext) return go_on();
  wait_readable();
}

// Bytes behind a request whose answer is pending: the next requests, or the news that the client
// has gone. Beyond the bound nothing is read; then on_tick() looks for the latter.
void HttpConnection::read_ahead() {
  const size_t room = kReadAhead - std::min(kReadAhead, ahead_.size());
  if (room == 0) return;
  const ssize_t n = recv(fd_.native_handle(), server_.scratch.data(), room, 0);
  if (n < 0 && (errno == EAGAIN || errno == EINTR)) return wait_readable();
  if (n < 0) return lose();
  if (n == 0) {
    eof_ = true;
    if (answer_ && !answer_->complete()) lose();
    return;  // a complete answer is still sent
  }
  ahead_.append(server_.scratch.data(), static_cast<size_t>(n));
  wait_readable();
}

void HttpConnection::read_and_discard() {
  for (int i = 0; i < kStepsPerTurn; ++i) {
    const ssize_t n = recv(fd_.native_handle(), server_.scratch.data(), kReadSize, 0);
    if (n > 0) continue;
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) break;
    return close();
  }
  wait_readable();
}

// Takes bytes of one request and acts on what it has become. Returns how many were taken.
size_t HttpConnection::parse(std::string_view bytes) {
  if (!parser_) {
    parser_ = std::make_unique<HttpParser>(server_.limits);
    begin_phase(Phase::kReading, server_.config.header_timeout);
  }
  const bool was_in_body = parser_->in_body();
  const size_t taken = parser_->feed(bytes);
  account_body();
  if (parser_->failed()) {
    refuse(parser_->fault());
    return taken;
  }
  if (parser_->done()) {
    dispatch();
    return taken;
  }
  if (server_.receiving > server_.config.max_receiving) {
    refuse({503, "server_overloaded", "The server is receiving too much at once."},
           {{"Retry-After", "1"}});
    return taken;
  }
  if (parser_->in_body()) {
    if (!was_in_body) body_since_ = Clock::now();
    deadline_ = body_since_ + server_.config.body_timeout +
                milliseconds(parser_->body_bytes() * 1000 / kBodyBytesPerSecond);
    if (parser_->take_expect_continue()) {
      // It fits, unless the client reads nothing of what it was sent before.
      static constexpr std::string_view kText = "HTTP/1.1 100 Continue\r\n\r\n";
      const ssize_t n =
          send(fd_.native_handle(), kText.data(), kText.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
      if (n != static_cast<ssize_t>(kText.size())) close();
    }
  }
  return taken;
}

void HttpConnection::account_body() {
  const size_t bytes =
      parser_ && !parser_->done() && !parser_->failed() ? parser_->body_bytes() : 0;
  server_.receiving += bytes - accounted_;
  accounted_ = bytes;
}

void HttpConnection::dispatch() {
  HttpRequest request = parser_->take_request();
  request.peer = peer_;
  answer_ = std::make_shared<HttpAnswer>(server_.outbox,
                                         HttpAnswer::Traits{.head = request.method == "HEAD",
                                                            .http10 = parser_->http10(),
                                                            .keep_alive = parser_->keep_alive()});
  parser_.reset();
  answer_->connection = this;
  begin_phase(Phase::kAnswering, server_.config.stall_timeout);
  {
    const auto exchange = std::make_shared<HttpExchange>(
        std::make_unique<HttpExchange::Impl>(std::move(request), answer_));
    try {
      server_.handler(exchange);
    } catch (const std::exception& e) {
      log_error(fmt::format("http: {} {} threw: {}", exchange->request().method,
                            exchange->request().path, e.what()));
      answer_->overrule(to_response(internal_error()));
    }
  }
  flush();
}

// The transport's own answer to what is no acceptable request; the connection ends with it.
void HttpConnection::refuse(HttpFault fault, const HttpHeaders& headers) {
  parser_.reset();
  account_body();
  forget_ahead();
  answer_ = std::make_shared<HttpAnswer>(server_.outbox, HttpAnswer::Traits{.keep_alive = false});
  answer_->respond(to_response(fault, headers));
  answer_->connection = this;
  begin_phase(Phase::kAnswering, server_.config.stall_timeout);
  flush();
}

void HttpConnection::on_output() {
  const auto self = shared_from_this();
  if (phase_ != Phase::kAnswering) return;
  flush();
  if (phase_ == Phase::kNext) go_on();
}

// Sends what there is, as far as the kernel takes it. May leave the phase kNext or kClosed.
void HttpConnection::flush() {
  for (int i = 0; i < kWritesPerTurn; ++i) {
    if (answer_->abandoned()) return close();
    // Asked before the output is taken: what is complete then has nothing behind it.
    const bool complete = answer_->complete();
    if (sending_.empty()) deadline_ = Clock::now() + server_.config.stall_timeout;
    answer_->take_output(&sending_);
    if (sending_.empty()) {
      if (complete) finish_answer();
      return;
    }
    if (wait_write_ || !send_some()) return;
  }
  wait_writable();
}

// One write to the socket. True if all that was asked for has been taken.
bool HttpConnection::send_some() {
  std::array<iovec, kMaxSegments> parts;
  const size_t num_parts = std::min<size_t>(sending_.size(), kMaxSegments);
  size_t asked = 0;
  for (size_t i = 0; i < num_parts; ++i) {
    const size_t skip = i == 0 ? sent_ : 0;
    parts[i] = {sending_[i].data() + skip, sending_[i].size() - skip};
    asked += parts[i].iov_len;
  }
  msghdr message{};
  message.msg_iov = parts.data();
  message.msg_iovlen = num_parts;
  const ssize_t n = sendmsg(fd_.native_handle(), &message, MSG_NOSIGNAL | MSG_DONTWAIT);
  if (n < 0) {
    if (errno == EAGAIN || errno == EINTR || errno == ENOBUFS) {
      wait_writable();
    } else {
      lose();
    }
    return false;
  }
  size_t left = static_cast<size_t>(n);
  size_t whole = 0;
  while (whole < num_parts && left >= parts[whole].iov_len) left -= parts[whole++].iov_len;
  sent_ = whole == 0 ? sent_ + left : left;
  if (whole == sending_.size()) {
    std::vector<std::string>().swap(sending_);
  } else {
    sending_.erase(sending_.begin(), sending_.begin() + static_cast<ptrdiff_t>(whole));
  }
  deadline_ = Clock::now() + server_.config.stall_timeout;
  guarded(answer_->on_sent(static_cast<size_t>(n)));
  if (static_cast<size_t>(n) == asked) return true;
  wait_writable();
  return false;
}

void HttpConnection::finish_answer() {
  const bool keep = answer_->keep_alive() && !eof_;
  answer_->connection = nullptr;
  answer_.reset();
  if (keep) {
    phase_ = Phase::kNext;
  } else {
    linger();
  }
}

// Serves what has been read ahead; with nothing left the connection is idle.
void HttpConnection::go_on() {
  for (int i = 0; phase_ == Phase::kNext; ++i) {
    if (eof_) return close();
    const std::string_view bytes = std::string_view(ahead_).substr(ahead_pos_);
    if (bytes.empty()) {
      forget_ahead();
      begin_phase(Phase::kIdle,
                  server_.stopping ? server_.config.idle_grace : server_.config.idle_timeout);
      break;
    }
    if (i == kStepsPerTurn) {
      asio::post(server_.io, [self = shared_from_this()] { self->go_on(); });
      break;
    }
    ahead_pos_ += parse(bytes);
    if (phase_ == Phase::kReading) {  // all has been taken
      forget_ahead();
    } else if (phase_ == Phase::kAnswering) {
      ahead_.erase(0, ahead_pos_);
      ahead_pos_ = 0;
    }
  }
  wait_readable();
}

// Closes our half and waits for the client's, for a while: closing at once with bytes of the
// client unread would make the kernel throw away the answer.
void HttpConnection::linger() {
  forget_ahead();
  if (eof_) return close();
  shutdown(fd_.native_handle(), SHUT_WR);
  begin_phase(Phase::kLingering, kLingerTime);
  wait_readable();
}

void HttpConnection::on_drain() {
  if (phase_ != Phase::kIdle && phase_ != Phase::kFresh) return;
  deadline_ = std::min(deadline_, Clock::now() + server_.config.idle_grace);
}

void HttpConnection::lose() {
  if (phase_ == Phase::kClosed) return;
  const auto answer = std::exchange(answer_, nullptr);
  close();
  if (!answer) return;
  answer->connection = nullptr;
  guarded(answer->on_gone());
}

void HttpConnection::close() {
  if (phase_ == Phase::kClosed) return;
  const auto self = shared_from_this();
  phase_ = Phase::kClosed;
  parser_.reset();
  account_body();
  if (answer_) answer_->connection = nullptr;
  answer_.reset();
  boost::system::error_code ignored;
  fd_.close(ignored);
  server_.remove(this);
}

void HttpConnection::on_tick(Clock::time_point now) {
  const auto self = shared_from_this();
  if (phase_ == Phase::kAnswering) {
    if (ahead_.size() >= kReadAhead && answer_ && !answer_->complete()) {
      pollfd state{.fd = fd_.native_handle(), .events = POLLRDHUP, .revents = 0};
      if (poll(&state, 1, 0) > 0) return lose();
    }
    if (sending_.empty() || now < deadline_) return;
    const ::linger reset{.l_onoff = 1, .l_linger = 0};  // nor keep what the kernel holds for it
    setsockopt(fd_.native_handle(), SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    return lose();
  }
  if (phase_ == Phase::kNext || now < deadline_) return;
  if (phase_ == Phase::kReading) {
    return refuse({408, "request_timeout", "The request took too long to arrive."});
  }
  close();
}

HttpServer::Impl::Impl(const HttpConfig& c, Handler h, HttpListener l)
    : config(c),
      limits{c.max_line, c.max_header_bytes, c.max_headers, c.max_body},
      handler(std::move(h)),
      listening(l),
      acceptor(io, l, static_cast<unsigned>(c.stall_timeout.count()),
               {.has_room = [this] { return has_room(); },
                .add = [this](int fd, std::string peer) { add(fd, std::move(peer)); }}) {
  outbox = std::make_shared<HttpOutbox>([this] { asio::post(io, [this] { run_outbox(); }); });
  const milliseconds shortest =
      std::min({c.header_timeout, c.body_timeout, c.idle_timeout, c.stall_timeout, c.idle_grace});
  period = std::clamp(shortest / 8, milliseconds(5), milliseconds(250));
  const int wanted = config.max_connections;
  config.max_connections = connections_within_file_limit(wanted);
  if (config.max_connections < wanted) {
    log_warning(fmt::format("http: at most {} connections: the limit of open files (ulimit -n)",
                            config.max_connections));
  }
}

void HttpServer::Impl::run() {
  pthread_setname_np(pthread_self(), "weft-http");
  acceptor.resume();
  wait_tick();
  for (;;) {
    try {
      io.run();
      return;
    } catch (const std::exception& e) {
      log_error(fmt::format("http: {}", e.what()));
    }
  }
}

void HttpServer::Impl::run_outbox() {
  for (HttpOutbox::Batch batch = outbox->take(); !batch.empty();) {
    for (const auto& work : batch.work) guarded(work);
    for (const auto& answer : batch.answers) {
      if (answer->connection != nullptr) answer->connection->on_output();
    }
    batch = ended ? outbox->take_last() : HttpOutbox::Batch();
  }
}

void HttpServer::Impl::add(int fd, std::string peer) {
  auto connection = std::make_shared<HttpConnection>(*this, fd, std::move(peer));
  connection->index = connections.size();
  connections.push_back(connection);
  num_connections = static_cast<int>(connections.size());
  connection->start();
}

void HttpServer::Impl::remove(HttpConnection* connection) {
  const size_t index = connection->index;
  if (index + 1 < connections.size()) {
    connections[index] = std::move(connections.back());
    connections[index]->index = index;
  }
  connections.pop_back();
  num_connections = static_cast<int>(connections.size());
  if (!ended) acceptor.resume();
}

void HttpServer::Impl::wait_tick() {
  tick.expires_after(period);
  tick.async_wait([this](auto error) {
    if (error || ended) return;
    on_tick();
    wait_tick();
  });
}

void HttpServer::Impl::on_tick() {
  const Clock::time_point now = Clock::now();
  // From the end: one that is closed is replaced by the last, which has had its turn.
  for (size_t i = connections.size(); i-- > 0;) {
    if (i < connections.size()) connections[i]->on_tick(now);
  }
  close_idle_for_newcomers();
}

// All places taken: the idle connections that have been so for longest give way, a few a tick.
void HttpServer::Impl::close_idle_for_newcomers() {
  if (has_room() || !acceptor.queued()) return;
  std::vector<std::shared_ptr<HttpConnection>> idle;
  for (const auto& connection : connections) {
    if (connection->idle()) idle.push_back(connection);
  }
  const size_t n = std::min(idle.size(), connections.size() / 16 + 1);
  std::partial_sort(idle.begin(), idle.begin() + static_cast<ptrdiff_t>(n), idle.end(),
                    [](const auto& a, const auto& b) { return a->deadline() < b->deadline(); });
  for (size_t i = 0; i < n; ++i) idle[i]->lose();
}

void HttpServer::Impl::stop_accepting() {
  if (stopping || ended) return;
  stopping = true;
  acceptor.stop(true);
  for (const auto& connection : connections) connection->on_drain();
}

void HttpServer::Impl::shut_down() {
  ended = true;
  stopping = true;
  acceptor.stop(false);
  if (!config.unix_socket.empty()) unlink(config.unix_socket.c_str());
  tick.cancel();
  while (!connections.empty()) std::shared_ptr(connections.back())->lose();
  guard.reset();
}

HttpServer::HttpServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<HttpServer>> HttpServer::start(const HttpConfig& config, Handler handler) {
  const HttpListener listener = TRY(http_listen(config));
  auto impl = std::make_unique<Impl>(config, std::move(handler), listener);
  impl->thread = std::thread([raw = impl.get()] { raw->run(); });
  return std::unique_ptr<HttpServer>(new HttpServer(std::move(impl)));
}

HttpServer::~HttpServer() {
  close();
}

void HttpServer::close() {
  if (!impl_->thread.joinable()) return;
  impl_->outbox->post([this] { impl_->shut_down(); });
  impl_->thread.join();
}

uint16_t HttpServer::port() const {
  return impl_->listening.port;
}
void HttpServer::post(std::function<void()> work) {
  impl_->outbox->post(std::move(work));
}

void HttpServer::stop_accepting() {
  impl_->outbox->draining = true;
  impl_->outbox->post([this] { impl_->stop_accepting(); });
}

int HttpServer::num_connections() const {
  return impl_->num_connections;
}

}  // namespace weft
