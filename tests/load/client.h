#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "app/sse_reader.h"

namespace weft::load {

using Clock = std::chrono::steady_clock;
using std::chrono::milliseconds;

inline double seconds_between(Clock::time_point a, Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

class Loop;

/// One connection with at most one request, bytes as the test wants them. Owned by its Loop until
/// it ends; closing it is always allowed.
class Connection {
 public:
  enum class End { kComplete, kBroken };  ///< kBroken: refused, reset, or closed before the end

  std::function<void(Connection&, std::string_view data)> on_frame;  ///< of an event stream
  std::function<void(Connection&, End)> on_end;  ///< once, unless we close first

  /// Sends bytes as they are, now or when the socket takes them.
  void send(std::string_view bytes);
  /// `reset`: by RST, what is under way is lost.
  void close(bool reset = false);
  void half_close();
  /// False: bytes stay in the kernel, the window closes.
  void set_reading(bool on);

  int status() const { return status_; }  ///< 0: no answer yet
  const std::string& head() const { return head_; }
  /// Value of a header of the answer (name in lower case), "" when absent.
  std::string header(std::string_view name) const;
  const std::string& body() const { return body_; }  ///< as it came, chunks joined
  bool is_stream() const { return is_stream_; }
  Clock::time_point opened() const { return opened_; }
  bool ended() const { return fd_ < 0; }

 private:
  friend class Loop;
  Connection(Loop& loop, int fd) : loop_(loop), fd_(fd) {}
  void on_event(uint32_t events);
  void read_some();
  void parse(std::string_view bytes);
  bool parse_head();
  void parse_body(std::string_view bytes);
  void take_body(std::string_view bytes);
  void flush();
  void watch();
  void end(End how);

  Loop& loop_;
  int fd_;
  std::string out_;
  bool reading_ = true;
  uint32_t watched_ = 0;
  Clock::time_point opened_ = Clock::now();
  std::string head_, body_, line_;
  int status_ = 0;
  bool in_body_ = false, is_stream_ = false, chunked_ = false, has_length_ = false;
  uint64_t left_ = 0;  // of the body, or of the chunk
  enum class Chunk { kSize, kData, kEnd, kTrailer } chunk_ = Chunk::kSize;
  SseReader sse_;
};

/// One thread with epoll and timers.
class Loop {
 public:
  explicit Loop(uint16_t port);
  ~Loop();
  Loop(const Loop&) = delete;
  Loop& operator=(const Loop&) = delete;

  /// A connection under way; `receive_buffer` (SO_RCVBUF) 0: the kernel's choice. Null when there
  /// is no descriptor left.
  std::shared_ptr<Connection> open(int receive_buffer = 0);
  void at(Clock::time_point when, std::function<void()> what);
  void after(milliseconds time, std::function<void()> what) { at(Clock::now() + time, what); }
  /// Until `until`, or until `done` says so.
  void run(
      Clock::time_point until, const std::function<bool()>& done = [] { return false; });
  void run_for(milliseconds time) { run(Clock::now() + time); }
  size_t num_open() const { return connections_.size(); }
  uint16_t port() const { return port_; }

 private:
  friend class Connection;
  const uint16_t port_;
  int epoll_;
  std::unordered_map<int, std::shared_ptr<Connection>> connections_;
  std::multimap<Clock::time_point, std::function<void()>> timers_;
};

/// "POST PATH" with a JSON body, or "GET PATH" where `body` is empty.
std::string request_text(const std::string& path, const std::string& body,
                         const std::string& more_headers = "");

struct Answer {
  bool complete = false;
  int status = 0;
  std::string head, body;
  double seconds = 0;
};
/// Asks and waits; what else the loop has goes on.
Answer ask(Loop& loop, const std::string& request, milliseconds patience = milliseconds(60'000));

}  // namespace weft::load
