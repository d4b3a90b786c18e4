#include "server/http_answer.h"

#include <fmt/format.h>

#include <array>
#include <ctime>
#include <utility>

#include "base/check.h"
#include "base/log.h"
#include "server/api_error.h"

namespace weft {
namespace {

// Strings up to this size are copied behind one another, so that frames queued in one turn leave
// in one piece; longer ones are moved.
constexpr size_t kCopyBelow = 4 << 10;
constexpr size_t kMaxSegment = 16 << 10;

std::string_view reason_phrase(int status) {
  switch (status) {
    case 200: return "OK";
    case 204: return "No Content";
    case 304: return "Not Modified";
    case 400: return "Bad Request";
    case 401: return "Unauthorized";
    case 403: return "Forbidden";
    case 404: return "Not Found";
    case 405: return "Method Not Allowed";
    case 408: return "Request Timeout";
    case 409: return "Conflict";
    case 413: return "Content Too Large";
    case 414: return "URI Too Long";
    case 415: return "Unsupported Media Type";
    case 417: return "Expectation Failed";
    case 422: return "Unprocessable Content";
    case 429: return "Too Many Requests";
    case 431: return "Request Header Fields Too Large";
    case 499: return "Client Closed Request";
    case 500: return "Internal Server Error";
    case 501: return "Not Implemented";
    case 503: return "Service Unavailable";
    case 504: return "Gateway Timeout";
    default: return "Status";
  }
}

/// RFC 9110 5.6.7, without the locale that strftime would ask.
std::string date_header() {
  static constexpr std::array kDays = {"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"};
  static constexpr std::array kMonths = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                         "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  const std::time_t now = std::time(nullptr);
  std::tm t{};
  gmtime_r(&now, &t);
  return fmt::format("{}, {:02} {} {} {:02}:{:02}:{:02} GMT", kDays[t.tm_wday], t.tm_mday,
                     kMonths[t.tm_mon], t.tm_year + 1900, t.tm_hour, t.tm_min, t.tm_sec);
}

/// A header line; bytes that could end it are left out of the value (some values are echoes).
void append_header(std::string* out, std::string_view name, std::string_view value) {
  out->append(name).append(": ");
  for (const char c : value) {
    if ((static_cast<uint8_t>(c) >= 0x20 && c != 0x7f) || c == '\t') *out += c;
  }
  out->append("\r\n");
}

bool has_body(int status) {
  return status >= 200 && status != 204 && status != 304;
}

}  // namespace

void HttpOutbox::post(std::function<void()> work) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  const bool first = batch_.empty();
  batch_.work.push_back(std::move(work));
  if (first) wake_();
}

void HttpOutbox::post(std::shared_ptr<HttpAnswer> answer) {
  const std::lock_guard lock(mutex_);
  if (closed_) return;
  const bool first = batch_.empty();
  batch_.answers.push_back(std::move(answer));
  if (first) wake_();
}

HttpOutbox::Batch HttpOutbox::take() {
  const std::lock_guard lock(mutex_);
  return std::exchange(batch_, {});
}

HttpOutbox::Batch HttpOutbox::take_last() {
  const std::lock_guard lock(mutex_);
  closed_ = batch_.empty();
  return std::exchange(batch_, {});
}

std::string HttpAnswer::head(int status, std::string_view content_type, const HttpHeaders& headers,
                             std::string_view length) const {
  std::string out = fmt::format("HTTP/1.1 {} {}\r\n", status, reason_phrase(status));
  append_header(&out, "Date", date_header());
  if (!content_type.empty() && has_body(status)) append_header(&out, "Content-Type", content_type);
  out += length;
  if (!traits_.keep_alive) {
    append_header(&out, "Connection", "close");
  } else if (traits_.http10) {
    append_header(&out, "Connection", "keep-alive");
  }
  for (const auto& [name, value] : headers) append_header(&out, name, value);
  out += "\r\n";
  return out;
}

void HttpAnswer::append(std::string bytes) {
  buffered_.fetch_add(bytes.size(), std::memory_order_relaxed);
  if (!output_.empty() && bytes.size() < kCopyBelow && output_.back().size() < kMaxSegment) {
    output_.back() += bytes;
  } else if (!bytes.empty()) {
    output_.push_back(std::move(bytes));
  }
  if (!posted_) {
    posted_ = true;
    outbox_->post(shared_from_this());
  }
}

void HttpAnswer::append_chunk(std::string bytes) {
  std::array<char, 20> size{};
  char* end = fmt::format_to(size.data(), "{:x}\r\n", bytes.size());
  const std::string_view line(size.data(), static_cast<size_t>(end - size.data()));
  if (bytes.size() < kCopyBelow) {
    std::string chunk;
    chunk.reserve(line.size() + bytes.size() + 2);
    chunk.append(line).append(bytes).append("\r\n");
    return append(std::move(chunk));
  }
  append(std::string(line));
  append(std::move(bytes));
  append("\r\n");
}

// The callbacks go with the lock released: what they hold may be this answer's exchange.
void HttpAnswer::finish(std::unique_lock<std::mutex> lock) {
  state_ = State::kComplete;
  const auto drained = std::exchange(drained_, nullptr);
  const auto gone = std::exchange(gone_, nullptr);
  append({});
  lock.unlock();
}

void HttpAnswer::respond(HttpResponse response) {
  std::unique_lock lock(mutex_);
  if (over()) return;
  CHECK(state_ == State::kPending, "a second answer to one request");
  traits_.keep_alive &= !outbox_->draining;
  const std::string length =
      has_body(response.status) ? fmt::format("Content-Length: {}\r\n", response.body.size()) : "";
  append(head(response.status, response.content_type, response.headers, length));
  if (!traits_.head && has_body(response.status)) append(std::move(response.body));
  finish(std::move(lock));
}

void HttpAnswer::begin_stream(int status, const std::string& content_type,
                              const HttpHeaders& headers) {
  const std::lock_guard lock(mutex_);
  if (over()) return;
  CHECK(state_ == State::kPending, "a second answer to one request");
  // HTTP/1.0 knows no chunks: there the end of the connection is the end of the body.
  chunked_ = !traits_.http10;
  traits_.keep_alive &= !outbox_->draining && chunked_;
  append(head(status, content_type, headers, chunked_ ? "Transfer-Encoding: chunked\r\n" : ""));
  state_ = State::kStreaming;
}

bool HttpAnswer::write(std::string bytes) {
  const std::lock_guard lock(mutex_);
  if (over()) return false;
  CHECK(state_ == State::kStreaming, "write() outside of a stream");
  if (bytes.empty() || traits_.head) return true;  // an empty chunk would end the body
  if (chunked_) {
    append_chunk(std::move(bytes));
  } else {
    append(std::move(bytes));
  }
  return true;
}

void HttpAnswer::end_stream() {
  std::unique_lock lock(mutex_);
  if (over()) return;
  CHECK(state_ == State::kStreaming, "end_stream() outside of a stream");
  if (chunked_ && !traits_.head) append("0\r\n\r\n");
  finish(std::move(lock));
}

void HttpAnswer::when_drained(size_t low_water, std::function<void()> callback) {
  std::unique_lock lock(mutex_);
  if (over() || state_ == State::kComplete) return;
  if (buffered() <= low_water) {
    drained_.swap(callback);
    outbox_->post(std::exchange(drained_, nullptr));
  } else {
    low_water_ = low_water;
    drained_.swap(callback);
  }
  lock.unlock();  // before an earlier callback is destroyed
}

void HttpAnswer::when_gone(std::function<void()> callback) {
  std::unique_lock lock(mutex_);
  if (state_ == State::kGone) {
    outbox_->post(std::move(callback));
  } else if (!over() && state_ != State::kComplete) {
    gone_.swap(callback);
  }
  lock.unlock();
}

void HttpAnswer::abandon() {
  std::unique_lock lock(mutex_);
  if (over() || state_ == State::kComplete) return;
  state_ = State::kAbandoned;
  const auto drained = std::exchange(drained_, nullptr);
  const auto gone = std::exchange(gone_, nullptr);
  append({});
  lock.unlock();
}

void HttpAnswer::overrule(HttpResponse response) {
  const bool pending = [&] {
    const std::lock_guard lock(mutex_);
    return state_ == State::kPending;
  }();
  if (!pending) return abandon();
  respond(std::move(response));
  const std::lock_guard lock(mutex_);
  overruled_ = true;
}

void HttpAnswer::take_output(std::vector<std::string>* output) {
  const std::lock_guard lock(mutex_);
  posted_ = false;
  if (output->empty()) {
    output->swap(output_);
    return;
  }
  for (std::string& bytes : output_) output->push_back(std::move(bytes));
  output_.clear();
}

std::function<void()> HttpAnswer::on_sent(size_t bytes) {
  const std::lock_guard lock(mutex_);
  buffered_.fetch_sub(bytes, std::memory_order_relaxed);
  if (!drained_ || buffered() > low_water_) return nullptr;
  return std::exchange(drained_, nullptr);
}

std::function<void()> HttpAnswer::on_gone() {
  std::unique_lock lock(mutex_);
  if (over() || state_ == State::kComplete) return nullptr;
  state_ = State::kGone;
  const auto drained = std::exchange(drained_, nullptr);
  const auto output = std::exchange(output_, {});
  auto gone = std::exchange(gone_, nullptr);
  lock.unlock();
  return gone;
}

bool HttpAnswer::complete() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::kComplete;
}
bool HttpAnswer::abandoned() const {
  const std::lock_guard lock(mutex_);
  return state_ == State::kAbandoned;
}
bool HttpAnswer::keep_alive() const {
  const std::lock_guard lock(mutex_);
  return traits_.keep_alive;
}

HttpResponse to_response(const HttpFault& fault, const HttpHeaders& headers) {
  return to_response(ApiError{.status = fault.status,
                              .message = std::string(fault.message),
                              .type = "invalid_request_error",
                              .param = "",
                              .code = std::string(fault.code),
                              .headers = headers});
}

HttpExchange::HttpExchange(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
HttpExchange::~HttpExchange() {
  impl_->answer->abandon();
}
const HttpRequest& HttpExchange::request() const {
  return impl_->request;
}
void HttpExchange::drop_request() {
  HttpHeaders().swap(impl_->request.headers);
  std::string().swap(impl_->request.body);
}
void HttpExchange::respond(HttpResponse response) {
  impl_->answer->respond(std::move(response));
}
void HttpExchange::begin_stream(int status, const std::string& content_type,
                                const HttpHeaders& headers) {
  impl_->answer->begin_stream(status, content_type, headers);
}
bool HttpExchange::write(std::string bytes) {
  return impl_->answer->write(std::move(bytes));
}
void HttpExchange::end_stream() {
  impl_->answer->end_stream();
}
size_t HttpExchange::buffered() const {
  return impl_->answer->buffered();
}
void HttpExchange::when_drained(size_t low_water, std::function<void()> callback) {
  impl_->answer->when_drained(low_water, std::move(callback));
}
void HttpExchange::when_gone(std::function<void()> callback) {
  impl_->answer->when_gone(std::move(callback));
}

void guarded(const std::function<void()>& callback) {
  if (!callback) return;
  try {
    callback();
  } catch (const std::exception& e) {
    log_error(fmt::format("http: a callback threw: {}", e.what()));
  }
}

}  // namespace weft
