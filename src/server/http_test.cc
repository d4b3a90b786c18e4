#include "server/http.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <ctime>
#include <mutex>
#include <stdexcept>
#include <thread>

#include "base/temp_dir.h"

namespace weft {
namespace {

using std::chrono::milliseconds;

/// A raw socket of the test.
class Client {
 public:
  explicit Client(uint16_t port, int receive_buffer = 0) {
    fd_ = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer > 0) {
      setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof receive_buffer);
    }
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connected_ = connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address) == 0;
  }
  ~Client() { ::close(fd_); }
  Client(const Client&) = delete;
  bool connected() const { return connected_; }
  bool send(std::string_view text) {
    while (!text.empty()) {
      const ssize_t n = ::send(fd_, text.data(), text.size(), MSG_NOSIGNAL);
      if (n <= 0) return false;
      text.remove_prefix(static_cast<size_t>(n));
    }
    return true;
  }
  /// Reads until `text` has come, the end or five seconds; what has come is kept for the next call.
  bool read_to(std::string_view text) {
    while (got_.find(text) == got_.npos) {
      if (!read_some()) return false;
    }
    got_.erase(0, got_.find(text) + text.size());
    return true;
  }
  /// Everything up to the end of the connection.
  std::string read_all() {
    while (read_some()) {
    }
    return std::exchange(got_, {});
  }
  bool at_end() { return read_all().empty() && ended_; }
  void half_close() { shutdown(fd_, SHUT_WR); }
  void reset() {
    const linger now{1, 0};
    setsockopt(fd_, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    ::close(std::exchange(fd_, -1));
  }

 private:
  bool read_some() {
    pollfd p{fd_, POLLIN, 0};
    if (poll(&p, 1, 5000) <= 0) return false;
    char buffer[65536];
    const ssize_t n = recv(fd_, buffer, sizeof buffer, 0);
    ended_ = n <= 0;
    if (n > 0) got_.append(buffer, static_cast<size_t>(n));
    return n > 0;
  }
  int fd_ = -1;
  bool connected_ = false;
  bool ended_ = false;
  std::string got_;
};

template <class F>
bool soon(F f, int ms = 5000) {
  for (int i = 0; i < ms / 2; ++i) {
    if (f()) return true;
    std::this_thread::sleep_for(milliseconds(2));
  }
  return f();
}

/// A server whose paths do one thing each; /hold and /stream leave the exchange with the test.
class HttpTest : public testing::Test {
 protected:
  void start(HttpConfig config = {}) {
    config.port = 0;
    auto server = HttpServer::start(config, [this](auto exchange) { handle(std::move(exchange)); });
    ASSERT_TRUE(server.ok()) << server.error().message;
    server_ = std::move(*server);
  }
  void TearDown() override {
    held_.clear();
    server_.reset();
  }
  void handle(std::shared_ptr<HttpExchange> exchange) {
    const HttpRequest& r = exchange->request();
    if (r.path == "/throw") throw std::runtime_error("a secret");
    if (r.path == "/drop") return;
    if (r.path == "/large") return exchange->respond({.body = std::string(8 << 20, 'x')});
    if (r.path == "/hold" || r.path == "/stream") {
      exchange->when_gone([this] { ++gone_; });
      if (r.path == "/stream") exchange->begin_stream(200, "text/event-stream", {});
      const std::lock_guard lock(mutex_);
      held_.push_back(std::move(exchange));
      return;
    }
    exchange->respond({.body = r.method + " " + r.path + " " + r.body});
  }
  std::shared_ptr<HttpExchange> held(size_t i = 0) {
    const bool there = soon([&] {
      const std::lock_guard lock(mutex_);
      return held_.size() > i;
    });
    const std::lock_guard lock(mutex_);
    return there ? held_[i] : nullptr;
  }
  std::string ask(std::string_view text) {
    Client c(server_->port());
    c.send(text);
    return c.read_all();
  }

  std::mutex mutex_;
  std::vector<std::shared_ptr<HttpExchange>> held_;
  std::atomic<int> gone_{0};
  std::unique_ptr<HttpServer> server_;
};

std::string get(const std::string& path, const std::string& more = "") {
  return "GET " + path + " HTTP/1.1\r\nHost: x\r\n" + more + "\r\n";
}

TEST_F(HttpTest, AnswersAndStays) {
  start();
  Client c(server_->port());
  for (int i = 0; i < 3; ++i) {
    c.send(get("/a"));
    ASSERT_TRUE(c.read_to("HTTP/1.1 200 OK\r\nDate: "));
    ASSERT_TRUE(c.read_to("Content-Length: 7\r\n\r\nGET /a "));
  }
  c.send("HEAD /a HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
  const std::string head = c.read_all();
  EXPECT_NE(head.find("Content-Length: 8\r\n"), head.npos);
  EXPECT_EQ(head.substr(head.size() - 4), "\r\n\r\n");
  EXPECT_NE(ask("GET /b HTTP/1.0\r\n\r\n").find("Connection: close\r\n"), std::string::npos);
}

TEST_F(HttpTest, ServesPipelinedRequestsInOrder) {
  start();
  Client c(server_->port());
  std::string all;
  for (int i = 0; i < 2000; ++i) all += get("/" + std::to_string(i));
  std::thread writer([&] { c.send(all); });
  for (int i = 0; i < 2000; ++i) ASSERT_TRUE(c.read_to("GET /" + std::to_string(i) + " ")) << i;
  writer.join();
}

TEST_F(HttpTest, RequestsBehindAStreamAreNoDisconnect) {
  start();
  Client c(server_->port());
  c.send(get("/stream") + get("/second"));
  auto e = held();
  ASSERT_TRUE(e);
  EXPECT_TRUE(e->write("one"));
  EXPECT_TRUE(c.read_to("Transfer-Encoding: chunked\r\n"));
  EXPECT_TRUE(c.read_to("\r\n3\r\none\r\n"));
  EXPECT_EQ(gone_, 0);
  e->end_stream();
  EXPECT_TRUE(c.read_to("0\r\n\r\nHTTP/1.1 200 OK\r\n"));
  EXPECT_TRUE(c.read_to("GET /second "));
}

TEST_F(HttpTest, TellsOfEveryWayToGo) {
  start();
  int expected = 0;
  size_t i = 0;
  for (const char* path : {"/hold", "/stream"}) {
    for (const int way : {0, 1, 2}) {
      Client c(server_->port());
      c.send(get(path));
      auto e = held(i++);
      ASSERT_TRUE(e);
      if (way == 0) c.half_close();
      if (way == 1) c.reset();
      if (way == 2) {  // pipelined rubbish beyond what is read ahead, then the end
        c.send(std::string(300 << 10, 'x'));
        c.reset();
      }
      ++expected;
      EXPECT_TRUE(soon([&] { return gone_ == expected; })) << path << way;
      EXPECT_TRUE(std::string(path) == "/hold" || !e->write("x"));
      std::atomic<bool> late{false};
      e->when_gone([&] { late = true; });
      EXPECT_TRUE(soon([&] { return late.load(); }));
    }
  }
  EXPECT_TRUE(soon([&] { return server_->num_connections() == 0; }));
  EXPECT_EQ(gone_, expected);
}

TEST_F(HttpTest, NobodyIsGoneAfterACompleteAnswer) {
  start();
  Client c(server_->port());
  c.send(get("/hold"));
  auto e = held();
  ASSERT_TRUE(e);
  e->respond({.body = "done"});
  EXPECT_TRUE(c.read_to("done"));
  c.reset();
  EXPECT_TRUE(soon([&] { return server_->num_connections() == 0; }));
  e->when_gone([this] { ++gone_; });
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_EQ(gone_, 0);
}

TEST_F(HttpTest, HandlersThatFailOrForget) {
  start();
  const std::string text = ask(get("/throw", "Connection: close\r\n"));
  EXPECT_NE(text.find("HTTP/1.1 500 "), text.npos);
  EXPECT_EQ(text.find("secret"), text.npos);
  EXPECT_EQ(ask(get("/drop")), "");
}

TEST_F(HttpTest, RefusesAndCloses) {
  start({.max_line = 200, .max_header_bytes = 500, .max_headers = 5, .max_body = 100});
  const std::string post = "POST / HTTP/1.1\r\nHost: x\r\n";
  const std::pair<std::string, const char*> cases[] = {
      {post + "Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", " 400 "},
      {"GET / HTTP/1.1\nHost: x\n\n", " 400 "},
      {"\x16\x03\x01\x02\x00", " 400 "},
      {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", " 400 "},
      {"GET /" + std::string(100'000, 'a'), " 414 "},
      {post + "A: " + std::string(1 << 20, 'a'), " 431 "},
      {post + "Content-Length: 101\r\nExpect: 100-continue\r\n\r\n", " 413 "},
      {post + "Content-Length: 900000\r\n\r\n" + std::string(900'000, 'a'), " 413 "},
      {post + "Content-Encoding: gzip\r\n\r\n", " 415 "}};
  for (const auto& [text, status] : cases) {
    const std::string answer = ask(text);
    EXPECT_EQ(answer.find(status), 8u) << text.substr(0, 80) << answer;
    EXPECT_NE(answer.find("Connection: close\r\n"), answer.npos);
    EXPECT_NE(answer.find("\r\n\r\n{\"error\":{\"message\":"), answer.npos);
  }
  Client c(server_->port());
  c.send(post + "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
  EXPECT_TRUE(c.read_to("HTTP/1.1 100 Continue\r\n\r\n"));
  c.send("ok");
  EXPECT_TRUE(c.read_to("POST / ok"));
}

TEST_F(HttpTest, SlowAndSilentClientsRunOut) {
  start({.header_timeout = milliseconds(100),
         .body_timeout = milliseconds(100),
         .idle_timeout = milliseconds(200)});
  EXPECT_EQ(ask("GET / HTTP/1.1\r\nHo").find("HTTP/1.1 408 "), 0u);
  EXPECT_EQ(ask("POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\na").find("HTTP/1.1 408 "),
            0u);
  EXPECT_EQ(ask(""), "");
  EXPECT_NE(ask(get("/idle")).find("GET /idle"), std::string::npos);
  Client slow(server_->port());
  slow.send("GET / HTTP/1.1\r\n");
  for (int i = 0; i < 20; ++i) {  // a byte now and then buys no time
    slow.send("A");
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_TRUE(slow.read_to("HTTP/1.1 408 "));
}

TEST_F(HttpTest, ReadersThatStallAreBoundedAndClosed) {
  start({.stall_timeout = milliseconds(300)});
  Client stalled(server_->port(), 4096);
  stalled.send(get("/stream"));
  auto e = held();
  ASSERT_TRUE(e);
  const std::string frame(1000, 'x');
  while (e->buffered() < 64 * 1024) ASSERT_TRUE(e->write(frame));
  Client other(server_->port());
  other.send(get("/fast"));
  EXPECT_TRUE(other.read_to("GET /fast "));
  EXPECT_GE(e->buffered(), 0u);
  while (e->write(frame) && gone_ == 0) std::this_thread::sleep_for(milliseconds(5));
  EXPECT_TRUE(soon([&] { return gone_ == 1; }));
}

TEST_F(HttpTest, DrainsAndTells) {
  start();
  Client c(server_->port(), 4096);
  c.send(get("/stream"));
  auto e = held();
  ASSERT_TRUE(e);
  const std::string frame(100'000, 'x');
  while (e->buffered() < 1'000'000) ASSERT_TRUE(e->write(frame));
  std::atomic<int> drained{0};
  e->when_drained(1000, [&] { ++drained; });
  std::thread reader([&] { c.read_all(); });
  EXPECT_TRUE(soon([&] { return drained == 1; }));
  EXPECT_LE(e->buffered(), 1000u);
  e->end_stream();
  c.half_close();
  reader.join();
}

TEST_F(HttpTest, LargeAnswersArriveWhole) {
  start();
  EXPECT_GT(ask(get("/large", "Connection: close\r\n")).size(), 8u << 20);
}

TEST_F(HttpTest, StopsAcceptingWithoutBreakingAnyone) {
  start({.idle_grace = milliseconds(200)});
  Client stream(server_->port());
  stream.send(get("/stream"));
  Client idle(server_->port());
  Client late(server_->port());
  for (Client* c : {&idle, &late}) {
    c->send(get("/a"));
    ASSERT_TRUE(c->read_to("GET /a "));
  }
  auto e = held();
  ASSERT_TRUE(e);
  server_->stop_accepting();
  late.send(get("/late"));
  const std::string answer = late.read_all();
  EXPECT_NE(answer.find("Connection: close"), answer.npos);
  EXPECT_TRUE(idle.at_end());
  EXPECT_FALSE(Client(server_->port()).connected());
  EXPECT_TRUE(e->write("still"));
  EXPECT_TRUE(stream.read_to("still"));
  e->end_stream();
  EXPECT_TRUE(stream.read_to("0\r\n\r\n"));
}

TEST_F(HttpTest, EndsWithExchangesInOtherHands) {
  start();
  Client c(server_->port());
  c.send(get("/stream"));
  auto e = held();
  ASSERT_TRUE(e);
  server_.reset();
  EXPECT_EQ(gone_, 1);
  EXPECT_FALSE(e->write("x"));
  e->when_gone([] {});
  e->end_stream();
}

TEST_F(HttpTest, WritesFromManyThreads) {
  start();
  constexpr int kStreams = 20;
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < kStreams; ++i) {
    clients.push_back(std::make_unique<Client>(server_->port()));
    clients.back()->send(get("/stream"));
    ASSERT_TRUE(held(i));
  }
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int n = 0; n < 50; ++n) {
        for (int i = t; i < kStreams; i += 4) held(i)->write("frame;");
      }
      for (int i = t; i < kStreams; i += 4) held(i)->end_stream();
    });
  }
  for (int i = kStreams; i-- > 0;) {
    if (i % 5 == 0) {
      clients[i].reset();
      continue;
    }
    for (int n = 0; n < 50; ++n) ASSERT_TRUE(clients[i]->read_to("frame;"));
    EXPECT_TRUE(clients[i]->read_to("0\r\n\r\n"));
  }
  for (auto& t : threads) t.join();
}

TEST_F(HttpTest, ConnectionsBeyondTheLimitWait) {
  start({.max_connections = 2});
  auto a = std::make_unique<Client>(server_->port());
  Client b(server_->port());
  a->send(get("/stream"));
  b.send(get("/stream"));
  ASSERT_TRUE(held(1));
  Client c(server_->port());
  c.send(get("/c"));
  std::this_thread::sleep_for(milliseconds(50));
  EXPECT_EQ(server_->num_connections(), 2);
  a.reset();
  EXPECT_TRUE(c.read_to("GET /c "));
}

TEST_F(HttpTest, ManyShortConnectionsLeaveNothing) {
  start();
  for (int i = 0; i < 2000; ++i) {
    Client c(server_->port());
    if (i % 2 == 0) c.send(get("/x").substr(0, i % 30));
    if (i % 3 == 0) c.reset();
  }
  EXPECT_TRUE(soon([&] { return server_->num_connections() == 0; }));
}

#ifndef __SANITIZE_ADDRESS__
/// In a process of its own with few files: the accept loop neither spins nor gives up.
int serve_without_files() {
  const rlimit few{256, 256};  // sanitizers and test runners hold some
  setrlimit(RLIMIT_NOFILE, &few);
  auto server = HttpServer::start({.port = 0}, [](auto e) { e->respond({.body = "served"}); });
  if (!server.ok()) {
    std::fprintf(stderr, "%s\n", server.error().message.c_str());
    return 1;
  }
  Client waiting(server.value()->port());  // accepted while there are files
  if (!soon([&] { return server.value()->num_connections() == 1; })) return 2;
  const int socket_fd = socket(AF_INET, SOCK_STREAM, 0);
  std::vector<int> files;
  for (int fd; (fd = open("/dev/null", O_RDONLY)) >= 0;) files.push_back(fd);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(server.value()->port());
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(socket_fd, reinterpret_cast<sockaddr*>(&address), sizeof address) != 0) return 3;
  const clock_t before = clock();
  std::this_thread::sleep_for(milliseconds(500));
  if (clock() - before > CLOCKS_PER_SEC / 10) return 4;  // it spins
  waiting.send(get("/"));
  if (!waiting.read_to("served")) return 5;
  char first[16] = {};
  if (recv(socket_fd, first, 12, 0) != 12 || std::string_view(first) != "HTTP/1.1 503") return 6;
  for (const int fd : files) ::close(fd);
  Client after(server.value()->port());
  after.send(get("/"));
  return after.read_to("served") ? 0 : 7;
}
#endif

// Not under sanitizers: UBSan's vptr check asks with a pipe whether memory can be read, so without
// descriptors it takes every object for a broken one.
#ifndef __SANITIZE_ADDRESS__
TEST(HttpFiles, RunsOutOfFilesWithoutSpinning) {
  const pid_t child = fork();
  if (child == 0) _exit(serve_without_files());
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
}
#endif

TEST(HttpAddress, SaysWhatIsWrongAndTakesOthers) {
  const auto handler = [](auto e) { e->respond({.body = "ok"}); };
  const auto first = HttpServer::start({.port = 0}, handler);
  ASSERT_TRUE(first.ok());
  const uint16_t port = first.value()->port();
  const auto second = HttpServer::start({.port = port}, handler);
  ASSERT_FALSE(second.ok());
  EXPECT_NE(second.error().message.find(std::to_string(port)), std::string::npos);
  EXPECT_FALSE(HttpServer::start({.host = "no such host"}, handler).ok());
  const TempDir directory;
  const std::string path = directory.file("socket");
  EXPECT_TRUE(HttpServer::start({.unix_socket = path}, handler).ok());
  EXPECT_TRUE(HttpServer::start({.unix_socket = path}, handler).ok());
  EXPECT_NE(access(path.c_str(), F_OK), 0);
}

}  // namespace
}  // namespace weft
