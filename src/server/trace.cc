#include "server/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <iterator>
#include <mutex>
#include <string>
#include <thread>
#include <variant>
#include <vector>

#include "base/hex.h"
#include "base/json_text.h"
#include "base/log.h"

namespace weft {
namespace {

using Clock = RequestRecord::Clock;

constexpr size_t kMaxPending = 1 << 15;  // events; some 10 MB at most
constexpr std::chrono::milliseconds kWriteEvery{250};

bool lower_hex(std::string_view text) {
  return std::all_of(text.begin(), text.end(),
                     [](char c) { return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f'); });
}

/// An id as a client may have sent it, fit for JSON: no byte that might break UTF-8.
std::string ascii(std::string_view text) {
  std::string out(text);
  std::replace_if(
      out.begin(), out.end(), [](char c) { return c < ' ' || c > '~'; }, '?');
  return out;
}

bool all_zero(std::string_view text) {
  return text.find_first_not_of('0') == std::string_view::npos;
}

}  // namespace

std::optional<TraceContext> parse_traceparent(std::string_view header) {
  // version "-" trace-id "-" parent-id "-" flags; a later version may go on after another "-".
  constexpr size_t kLen = 2 + 1 + 32 + 1 + 16 + 1 + 2;
  if (header.size() < kLen) return std::nullopt;
  const std::string_view version = header.substr(0, 2), trace = header.substr(3, 32),
                         parent = header.substr(36, 16), flags = header.substr(53, 2);
  if (header[2] != '-' || header[35] != '-' || header[52] != '-') return std::nullopt;
  if (!lower_hex(version) || !lower_hex(trace) || !lower_hex(parent) || !lower_hex(flags)) {
    return std::nullopt;
  }
  if (version == "ff" || all_zero(trace) || all_zero(parent)) return std::nullopt;
  if (header.size() > kLen && (version == "00" || header[kLen] != '-')) return std::nullopt;
  const bool sampled = (hex_digit(flags[1]) & 1) != 0;
  return TraceContext{std::string(trace), std::string(parent), sampled};
}

struct TraceWriter::Impl {
  std::FILE* file = nullptr;
  const Clock::time_point start = Clock::now();
  bool broken = false;  // writing failed; the writer's thread alone
  uint64_t next_request = 1;

  std::mutex mutex;  // guards the next three
  std::vector<std::variant<StepRecord, RequestRecord>> pending;
  uint64_t dropped = 0;
  bool stopping = false;
  std::condition_variable changed;
  std::thread thread;

  template <class Record>
  void push(const Record& record) {
    const std::lock_guard lock(mutex);
    if (pending.size() >= kMaxPending) {
      ++dropped;
      return;
    }
    pending.emplace_back(record);
  }

  /// Microseconds since the trace began.
  double micros(Clock::time_point t) const {
    return std::max(0.0, std::chrono::duration<double, std::micro>(t - start).count());
  }

  void append(const StepRecord& r, std::string& out) const {
    fmt::format_to(std::back_inserter(out),
                   ",\n{{\"name\":\"step\",\"cat\":\"engine\",\"ph\":\"X\",\"pid\":1,\"tid\":1,"
                   "\"ts\":{:.1f},\"dur\":{:.1f},\"args\":{{\"step\":{},\"sequences\":{},"
                   "\"prompt_rows\":{},\"decode_rows\":{},\"image_tokens\":{},\"preempted\":{}}}}}",
                   micros(r.start), micros(r.end) - micros(r.start), r.step, r.sequences,
                   r.prompt_rows, r.decode_rows, r.image_tokens, r.preempted);
    fmt::format_to(std::back_inserter(out),
                   ",\n{{\"name\":\"requests\",\"ph\":\"C\",\"pid\":1,\"ts\":{:.1f},\"args\":{{"
                   "\"running\":{},\"waiting\":{}}}}}",
                   micros(r.start), r.running, r.waiting);
    if (r.device_us == 0) return;
    fmt::format_to(std::back_inserter(out),
                   ",\n{{\"name\":\"gpu\",\"cat\":\"device\",\"ph\":\"X\",\"pid\":1,\"tid\":3,"
                   "\"ts\":{:.1f},\"dur\":{:.1f},\"args\":{{\"step\":{},\"idle_before_us\":{:.1f},"
                   "\"graphs\":{}}}}}",
                   micros(r.end) - r.device_us, r.device_us, r.step, r.device_idle_us,
                   r.device_graphs);
  }

  void span(std::string_view name, Clock::time_point from, Clock::time_point to,
            const std::string& args, std::string& out) const {
    const auto event = [&](char phase, Clock::time_point when, std::string_view with) {
      fmt::format_to(std::back_inserter(out),
                     ",\n{{\"name\":\"{}\",\"cat\":\"request\",\"ph\":\"{}\",\"id\":{},\"pid\":1,"
                     "\"tid\":2,\"ts\":{:.1f}{}}}",
                     name, phase, next_request, micros(when), with);
    };
    event('b', from, args);
    event('e', to, "");
  }

  void append(const RequestRecord& r, std::string& out) {
    const auto happened = [](Clock::time_point t) { return t != Clock::time_point(); };
    std::string args = ",\"args\":{\"id\":";
    append_json_quoted(ascii(r.id), args);
    if (!r.trace_id.empty()) {
      args += ",\"trace_id\":";
      append_json_quoted(ascii(r.trace_id), args);
    }
    args += ",\"finish_reason\":";
    append_json_quoted(ascii(r.finish_reason), args);
    fmt::format_to(std::back_inserter(args),
                   ",\"prompt_tokens\":{},\"generated_tokens\":{},\"cached_tokens\":{}}}",
                   r.prompt_tokens, r.generated_tokens, r.cached_tokens);
    span("request", r.arrival, r.finished, args, out);
    span("queued", r.arrival, happened(r.scheduled) ? r.scheduled : r.finished, "", out);
    if (happened(r.scheduled)) {
      span("prefill", r.scheduled, happened(r.first_token) ? r.first_token : r.finished, "", out);
    }
    if (happened(r.first_token)) {
      span("decode", r.first_token, happened(r.last_token) ? r.last_token : r.finished, "", out);
    }
    ++next_request;
  }

  void write(std::string_view text) {
    if (broken) return;
    if (std::fwrite(text.data(), 1, text.size(), file) == text.size() && std::fflush(file) == 0) {
      return;
    }
    broken = true;
    log_warning("trace: cannot write to the trace file; the rest of the trace is lost");
  }

  void thread_main() {
    std::vector<std::variant<StepRecord, RequestRecord>> events;
    std::string text;
    for (bool last = false; !last;) {
      {
        std::unique_lock lock(mutex);
        changed.wait_for(lock, kWriteEvery, [this] { return stopping; });
        last = stopping;
        events.swap(pending);
      }
      for (const auto& event : events) {
        std::visit([&](const auto& record) { append(record, text); }, event);
      }
      if (last) text += "\n]\n";
      if (!text.empty()) write(text);
      events.clear();
      text.clear();
    }
  }
};

TraceWriter::TraceWriter(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Result<std::unique_ptr<TraceWriter>> TraceWriter::open(const std::string& path) {
  auto impl = std::make_unique<Impl>();
  impl->file = std::fopen(path.c_str(), "we");
  if (!impl->file) return invalid_argument("trace_file: cannot write '" + path + "'");
  impl->write(
      "[\n{\"name\":\"process_name\",\"ph\":\"M\",\"pid\":1,\"args\":{\"name\":\"weft\"}},\n"
      "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":1,\"args\":{\"name\":\"steps\"}},\n"
      "{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":2,\"args\":{\"name\":\"requests\"}"
      "},\n{\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":1,\"tid\":3,\"args\":{\"name\":\"gpu\"}"
      "}");
  Impl& running = *impl;
  std::unique_ptr<TraceWriter> writer(new TraceWriter(std::move(impl)));
  running.thread = std::thread([&running] { running.thread_main(); });
  return writer;
}

TraceWriter::~TraceWriter() {
  {
    const std::lock_guard lock(impl_->mutex);
    impl_->stopping = true;
    impl_->changed.notify_one();
  }
  if (impl_->thread.joinable()) impl_->thread.join();
  std::fclose(impl_->file);
}

void TraceWriter::step(const StepRecord& record) {
  impl_->push(record);
}

void TraceWriter::request(const RequestRecord& record) {
  impl_->push(record);
}

uint64_t TraceWriter::dropped() const {
  const std::lock_guard lock(impl_->mutex);
  return impl_->dropped;
}

}  // namespace weft
