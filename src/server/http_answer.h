#pragma once

#include <atomic>
#include <cstddef>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "server/http.h"
#include "server/http_parser.h"

namespace weft {

class HttpAnswer;
class HttpConnection;

/// Calls `callback`, if there is one; what it throws is logged.
void guarded(const std::function<void()>& callback);

/// The way from any thread to the I/O thread: work to run there and answers with something to send.
/// However many come within one turn, the thread is woken once.
class HttpOutbox {
 public:
  struct Batch {
    std::vector<std::function<void()>> work;
    std::vector<std::shared_ptr<HttpAnswer>> answers;
    bool empty() const { return work.empty() && answers.empty(); }
  };

  /// `wake` makes the I/O thread call take(); it must not block.
  explicit HttpOutbox(std::function<void()> wake) : wake_(std::move(wake)) {}
  void post(std::function<void()> work);
  void post(std::shared_ptr<HttpAnswer> answer);
  Batch take();
  /// take(); when there is nothing to take, no further call has an effect or wakes anyone.
  Batch take_last();

  /// Every answer from now on says "Connection: close".
  std::atomic<bool> draining{false};

 private:
  std::mutex mutex_;
  Batch batch_;
  bool closed_ = false;
  std::function<void()> wake_;
};

/// The answer to one request, between the threads that write it and the I/O thread that sends it.
class HttpAnswer : public std::enable_shared_from_this<HttpAnswer> {
 public:
  struct Traits {
    bool head = false;  ///< HEAD: headers only
    bool http10 = false;
    bool keep_alive = true;  ///< the client's wish
  };
  HttpAnswer(std::shared_ptr<HttpOutbox> outbox, Traits traits)
      : outbox_(std::move(outbox)), traits_(traits) {}

  // What HttpExchange offers; any thread.
  void respond(HttpResponse response);
  void begin_stream(int status, const std::string& content_type, const HttpHeaders& headers);
  bool write(std::string bytes);
  void end_stream();
  size_t buffered() const { return buffered_.load(std::memory_order_relaxed); }
  void when_drained(size_t low_water, std::function<void()> callback);
  void when_gone(std::function<void()> callback);
  /// The last HttpExchange has been dropped: an incomplete answer stays so.
  void abandon();
  /// The handler threw: answers with `response` if nothing has been answered, and gives up if a
  /// stream has begun. Whatever is called from now on does nothing.
  void overrule(HttpResponse response);

  // The I/O thread's side.
  HttpConnection* connection = nullptr;  ///< read and written on the I/O thread only
  /// Moves what is to be sent to the end of `output`.
  void take_output(std::vector<std::string>* output);
  /// `bytes` of it are the kernel's now. Gives the callback of when_drained() if it is due.
  std::function<void()> on_sent(size_t bytes);
  /// The client has gone: gives the callback of when_gone(), if the answer was not complete.
  std::function<void()> on_gone();
  bool complete() const;
  bool abandoned() const;
  /// Of a complete answer: the connection may serve another request.
  bool keep_alive() const;

 private:
  enum class State { kPending, kStreaming, kComplete, kGone, kAbandoned };
  bool over() const { return state_ == State::kGone || state_ == State::kAbandoned || overruled_; }
  std::string head(int status, std::string_view content_type, const HttpHeaders& headers,
                   std::string_view length) const;
  void append(std::string bytes);
  void append_chunk(std::string bytes);
  void finish(std::unique_lock<std::mutex> lock);

  const std::shared_ptr<HttpOutbox> outbox_;
  mutable std::mutex mutex_;
  Traits traits_;
  State state_ = State::kPending;
  bool overruled_ = false;
  bool chunked_ = false;
  bool posted_ = false;  // in the outbox, not yet taken
  std::vector<std::string> output_;
  std::atomic<size_t> buffered_{0};
  size_t low_water_ = 0;
  std::function<void()> drained_;
  std::function<void()> gone_;
};

/// The transport's own answer to what is no acceptable request: fixed text.
HttpResponse to_response(const HttpFault& fault, const HttpHeaders& headers);

/// What an HttpExchange holds.
class HttpExchange::Impl {
 public:
  Impl(HttpRequest r, std::shared_ptr<HttpAnswer> a)
      : request(std::move(r)), answer(std::move(a)) {}
  HttpRequest request;
  std::shared_ptr<HttpAnswer> answer;
};

}  // namespace weft
