#include "app/bench_serve_client.h"

#include <curl/curl.h>
#include <sys/epoll.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <array>
#include <nlohmann/json.hpp>

#include "app/sse_reader.h"
#include "base/check.h"

namespace weft {
namespace {

using Clock = StreamClient::Clock;
using nlohmann::json;

constexpr size_t kMaxErrorBytes = 2048;
constexpr int64_t kMaxIdleHandles = 256;

double seconds_of(Clock::time_point t) {
  return std::chrono::duration<double>(t.time_since_epoch()).count();
}

/// One request under way. Stays where it is: libcurl holds its address.
struct Transfer {
  CURL* easy = nullptr;
  curl_slist* headers = nullptr;
  std::string body;
  RequestOutcome* outcome = nullptr;
  SseReader reader;
  Clock::time_point sent, last_frame;
  bool has_frame = false, is_stream = false;
  std::string plain;  // the body of an answer that is no stream
  std::string error;
};

void take_frame(Transfer& t, std::string_view data, Clock::time_point now) {
  if (data == "[DONE]") return;
  StreamFrame frame = read_frame(data);
  if (!frame.error.empty()) {
    if (t.error.empty()) t.error = std::move(frame.error);
    return;
  }
  RequestOutcome& out = *t.outcome;
  if (frame.prompt_tokens >= 0) out.prompt_len = frame.prompt_tokens;
  if (frame.completion_tokens >= 0) out.output_len = frame.completion_tokens;
  if (!frame.has_choices) return;
  if (!t.has_frame) {
    out.ttft = std::chrono::duration<double>(now - t.sent).count();
  } else {
    out.itl.push_back(std::chrono::duration<double>(now - t.last_frame).count());
  }
  t.has_frame = true;
  t.last_frame = now;
  out.text += frame.text;
}

size_t on_body(char* bytes, size_t, size_t size, void* user) {
  Transfer& t = *static_cast<Transfer*>(user);
  const Clock::time_point now = Clock::now();
  if (!t.is_stream) {
    long status = 0;
    curl_easy_getinfo(t.easy, CURLINFO_RESPONSE_CODE, &status);
    t.is_stream = status == 200;
  }
  if (!t.is_stream) {
    t.plain.append(bytes,
                   std::min(size, kMaxErrorBytes - std::min(kMaxErrorBytes, t.plain.size())));
    return size;
  }
  const bool ok =
      t.reader.read({bytes, size}, [&t, now](std::string_view data) { take_frame(t, data, now); });
  if (!ok) t.error = "an event of the stream is too long";
  return ok ? size : 0;
}

size_t append_to_string(char* bytes, size_t, size_t size, void* user) {
  static_cast<std::string*>(user)->append(bytes, size);
  return size;
}

/// The message of an error body, or its beginning.
std::string error_text(const std::string& body) {
  const json parsed = json::parse(body, nullptr, false);
  if (parsed.is_object() && parsed.contains("error")) {
    const json& error = parsed["error"];
    if (error.is_object() && error.contains("message") && error["message"].is_string()) {
      return error["message"].get<std::string>();
    }
    return error.dump();
  }
  return body;
}

bool is_loopback(const std::string& url) {
  const size_t scheme = url.find("://");
  const std::string host = url.substr(scheme == std::string::npos ? 0 : scheme + 3);
  return host.starts_with("127.") || host.starts_with("localhost") || host.starts_with("[::1]");
}

void set_common(CURL* easy, const std::string& url, bool insecure) {
  curl_easy_setopt(easy, CURLOPT_URL, url.c_str());
  curl_easy_setopt(easy, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(easy, CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
  curl_easy_setopt(easy, CURLOPT_PROTOCOLS_STR, "http,https");
  curl_easy_setopt(easy, CURLOPT_TCP_NODELAY, 1L);
  curl_easy_setopt(easy, CURLOPT_CONNECTTIMEOUT, 60L);
  curl_easy_setopt(easy, CURLOPT_BUFFERSIZE, 8192L);
  if (is_loopback(url)) curl_easy_setopt(easy, CURLOPT_PROXY, "");
  if (insecure) {
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYPEER, 0L);
    curl_easy_setopt(easy, CURLOPT_SSL_VERIFYHOST, 0L);
  }
}

}  // namespace

StreamFrame read_frame(std::string_view text) {
  StreamFrame out;
  const json frame = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!frame.is_object()) {
    out.error = "a frame of the stream is not a JSON object: " + std::string(text.substr(0, 200));
    return out;
  }
  if (frame.contains("error") && !frame["error"].is_null()) {
    out.error = error_text(std::string(text));
    return out;
  }
  if (const auto usage = frame.find("usage"); usage != frame.end() && usage->is_object()) {
    const auto count = [&](const char* name) -> int64_t {
      const auto it = usage->find(name);
      return it != usage->end() && it->is_number_integer() ? it->get<int64_t>() : -1;
    };
    out.prompt_tokens = count("prompt_tokens");
    out.completion_tokens = count("completion_tokens");
  }
  const auto choices = frame.find("choices");
  if (choices == frame.end() || !choices->is_array() || choices->empty()) return out;
  out.has_choices = true;
  const json& choice = choices->front();
  const auto add = [&out](const json& from, const char* name) {
    if (!from.is_object()) return;
    const auto it = from.find(name);
    if (it != from.end() && it->is_string()) out.text += it->get_ref<const std::string&>();
  };
  add(choice, "text");
  if (!choice.is_object() || !choice.contains("delta")) return out;
  const json& delta = choice["delta"];
  if (delta.is_object()) {
    // Servers that know both names send the same text under both.
    add(delta, delta.contains("reasoning") ? "reasoning" : "reasoning_content");
    add(delta, "content");
  }
  return out;
}

struct StreamClient::Impl {
  StreamClientConfig config;
  CURLM* multi = nullptr;
  int epoll = -1, timer = -1;
  Clock::time_point curl_timeout = Clock::time_point::max();
  std::vector<CURL*> idle;
  size_t num_ended = 0;

  ~Impl();
  CURL* take_handle();
  void finish(Transfer& t, CURLcode code);
  void collect();
  void act(curl_socket_t socket, int events);
  static int on_socket(CURL*, curl_socket_t socket, int what, void* user, void* known);
  static int on_timer(CURLM*, long timeout_ms, void* user);
};

StreamClient::Impl::~Impl() {
  for (CURL* easy : idle) curl_easy_cleanup(easy);
  if (multi != nullptr) curl_multi_cleanup(multi);
  if (epoll >= 0) ::close(epoll);
  if (timer >= 0) ::close(timer);
}

int StreamClient::Impl::on_socket(CURL*, curl_socket_t socket, int what, void* user, void* known) {
  Impl& self = *static_cast<Impl*>(user);
  if (what == CURL_POLL_REMOVE) {
    epoll_ctl(self.epoll, EPOLL_CTL_DEL, socket, nullptr);
    return 0;
  }
  epoll_event event{};
  event.data.fd = socket;
  if ((what & CURL_POLL_IN) != 0) event.events |= EPOLLIN;
  if ((what & CURL_POLL_OUT) != 0) event.events |= EPOLLOUT;
  // A socket that libcurl closed and the kernel gave out again is new to epoll whatever we think.
  const int first = known != nullptr ? EPOLL_CTL_MOD : EPOLL_CTL_ADD;
  const int second = known != nullptr ? EPOLL_CTL_ADD : EPOLL_CTL_MOD;
  if (epoll_ctl(self.epoll, first, socket, &event) != 0 &&
      epoll_ctl(self.epoll, second, socket, &event) != 0) {
    return -1;
  }
  curl_multi_assign(self.multi, socket, user);
  return 0;
}

int StreamClient::Impl::on_timer(CURLM*, long timeout_ms, void* user) {
  Impl& self = *static_cast<Impl*>(user);
  self.curl_timeout = timeout_ms < 0 ? Clock::time_point::max()
                                     : Clock::now() + std::chrono::milliseconds(timeout_ms);
  return 0;
}

CURL* StreamClient::Impl::take_handle() {
  if (idle.empty()) {
    CURL* easy = curl_easy_init();
    CHECK(easy != nullptr, "curl_easy_init");
    return easy;
  }
  CURL* easy = idle.back();
  idle.pop_back();
  curl_easy_reset(easy);
  return easy;
}

void StreamClient::Impl::finish(Transfer& t, CURLcode code) {
  RequestOutcome& out = *t.outcome;
  long status = 0;
  curl_easy_getinfo(t.easy, CURLINFO_RESPONSE_CODE, &status);
  t.reader.finish([&t](std::string_view data) { take_frame(t, data, Clock::now()); });
  if (!t.error.empty()) {
    out.error = t.error;
  } else if (code != CURLE_OK) {
    out.error = curl_easy_strerror(code);
  } else if (status != 200) {
    out.error = "HTTP " + std::to_string(status) + ": " + error_text(t.plain);
  } else if (!t.has_frame) {
    out.error = "the answer had no frame with choices";
  }
  out.success = out.error.empty();
  out.latency =
      std::chrono::duration<double>((t.has_frame ? t.last_frame : Clock::now()) - t.sent).count();
  curl_multi_remove_handle(multi, t.easy);
  if (static_cast<int64_t>(idle.size()) < kMaxIdleHandles) {
    idle.push_back(t.easy);
  } else {
    curl_easy_cleanup(t.easy);
  }
  curl_slist_free_all(t.headers);
  delete &t;
  ++num_ended;
}

void StreamClient::Impl::collect() {
  int left = 0;
  while (const CURLMsg* message = curl_multi_info_read(multi, &left)) {
    if (message->msg != CURLMSG_DONE) continue;
    const CURLcode code = message->data.result;  // before the handle goes
    Transfer* transfer = nullptr;
    curl_easy_getinfo(message->easy_handle, CURLINFO_PRIVATE, &transfer);
    finish(*transfer, code);
  }
}

void StreamClient::Impl::act(curl_socket_t socket, int events) {
  int running = 0;
  curl_multi_socket_action(multi, socket, events, &running);
}

StreamClient::StreamClient(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
StreamClient::~StreamClient() = default;

Result<std::unique_ptr<StreamClient>> StreamClient::create(StreamClientConfig config) {
  if (curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK) return unavailable("libcurl can't start");
  auto impl = std::make_unique<Impl>();
  impl->config = std::move(config);
  impl->multi = curl_multi_init();
  impl->epoll = epoll_create1(EPOLL_CLOEXEC);
  impl->timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
  epoll_event event{};
  event.events = EPOLLIN;
  event.data.fd = impl->timer;
  if (impl->multi == nullptr || impl->epoll < 0 || impl->timer < 0 ||
      epoll_ctl(impl->epoll, EPOLL_CTL_ADD, impl->timer, &event) != 0) {
    return exhausted("no file descriptors left for the client");
  }
  curl_multi_setopt(impl->multi, CURLMOPT_SOCKETFUNCTION, &Impl::on_socket);
  curl_multi_setopt(impl->multi, CURLMOPT_SOCKETDATA, impl.get());
  curl_multi_setopt(impl->multi, CURLMOPT_TIMERFUNCTION, &Impl::on_timer);
  curl_multi_setopt(impl->multi, CURLMOPT_TIMERDATA, impl.get());
  curl_multi_setopt(impl->multi, CURLMOPT_PIPELINING, static_cast<long>(CURLPIPE_NOTHING));
  return std::unique_ptr<StreamClient>(new StreamClient(std::move(impl)));
}

void StreamClient::start(std::string body, const std::string& request_id, RequestOutcome& outcome) {
  auto* t = new Transfer;  // finish() deletes it
  t->easy = impl_->take_handle();
  t->outcome = &outcome;
  t->body = std::move(body);
  for (const std::string& header : impl_->config.headers) {
    t->headers = curl_slist_append(t->headers, header.c_str());
  }
  t->headers = curl_slist_append(t->headers, "Content-Type: application/json");
  t->headers = curl_slist_append(t->headers, "Accept: text/event-stream");
  t->headers = curl_slist_append(t->headers, "Expect:");
  if (!request_id.empty()) {
    t->headers = curl_slist_append(t->headers, ("X-Request-Id: " + request_id).c_str());
  }
  set_common(t->easy, impl_->config.url, impl_->config.insecure);
  curl_easy_setopt(t->easy, CURLOPT_HTTPHEADER, t->headers);
  curl_easy_setopt(t->easy, CURLOPT_POSTFIELDS, t->body.data());
  curl_easy_setopt(t->easy, CURLOPT_POSTFIELDSIZE_LARGE, static_cast<curl_off_t>(t->body.size()));
  curl_easy_setopt(t->easy, CURLOPT_WRITEFUNCTION, on_body);
  curl_easy_setopt(t->easy, CURLOPT_WRITEDATA, t);
  curl_easy_setopt(t->easy, CURLOPT_PRIVATE, t);
  t->sent = Clock::now();
  outcome.start_time = seconds_of(t->sent);
  curl_multi_add_handle(impl_->multi, t->easy);
}

size_t StreamClient::wait(Clock::time_point until) {
  Impl& s = *impl_;
  std::array<epoll_event, 256> events{};
  while (s.num_ended == 0) {
    const Clock::time_point due = std::min(until, s.curl_timeout);
    const auto now = Clock::now();
    int patience = -1;
    if (due <= now) {
      patience = 0;
    } else if (due != Clock::time_point::max()) {  // finer than epoll's milliseconds
      const auto ns = std::chrono::duration_cast<std::chrono::nanoseconds>(due - now).count();
      itimerspec spec{};
      spec.it_value.tv_sec = ns / 1'000'000'000;
      spec.it_value.tv_nsec = ns % 1'000'000'000;
      timerfd_settime(s.timer, 0, &spec, nullptr);
    }
    const int n = epoll_wait(s.epoll, events.data(), static_cast<int>(events.size()), patience);
    for (int i = 0; i < n; ++i) {
      const epoll_event& event = events[static_cast<size_t>(i)];
      if (event.data.fd == s.timer) {
        uint64_t expired = 0;
        [[maybe_unused]] const ssize_t got = ::read(s.timer, &expired, sizeof(expired));
        continue;
      }
      int what = (event.events & EPOLLIN) != 0 ? CURL_CSELECT_IN : 0;
      if ((event.events & EPOLLOUT) != 0) what |= CURL_CSELECT_OUT;
      if ((event.events & (EPOLLERR | EPOLLHUP)) != 0) what |= CURL_CSELECT_ERR;
      s.act(event.data.fd, what);
    }
    if (s.curl_timeout <= Clock::now()) {
      s.curl_timeout = Clock::time_point::max();
      s.act(CURL_SOCKET_TIMEOUT, 0);
    }
    s.collect();
    if (Clock::now() >= until) break;
  }
  return std::exchange(s.num_ended, 0);
}

Result<std::string> StreamClient::get(const std::string& url) {
  const std::unique_ptr<CURL, void (*)(CURL*)> easy(curl_easy_init(), curl_easy_cleanup);
  curl_slist* headers = nullptr;
  for (const std::string& header : impl_->config.headers) {
    headers = curl_slist_append(headers, header.c_str());
  }
  std::string body;
  set_common(easy.get(), url, impl_->config.insecure);
  curl_easy_setopt(easy.get(), CURLOPT_HTTPHEADER, headers);
  curl_easy_setopt(easy.get(), CURLOPT_WRITEFUNCTION, append_to_string);
  curl_easy_setopt(easy.get(), CURLOPT_WRITEDATA, &body);
  curl_easy_setopt(easy.get(), CURLOPT_TIMEOUT, 60L);
  const CURLcode code = curl_easy_perform(easy.get());
  long status = 0;
  curl_easy_getinfo(easy.get(), CURLINFO_RESPONSE_CODE, &status);
  curl_slist_free_all(headers);
  if (code != CURLE_OK) return unavailable(url + ": " + curl_easy_strerror(code));
  if (status != 200) {
    return unavailable(url + ": HTTP " + std::to_string(status) + ": " +
                       error_text(body.substr(0, kMaxErrorBytes)));
  }
  return body;
}

}  // namespace weft
