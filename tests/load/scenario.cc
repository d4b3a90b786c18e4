#include "tests/load/scenario.h"

#include <cstdio>
#include <nlohmann/json.hpp>

#include "app/bench_serve_metrics.h"
#include "base/check.h"

namespace weft::load {
namespace {

/// Takes out `"NAME":VALUE` wherever it stands; values are numbers or strings without escapes.
void drop_field(std::string& text, const std::string& name) {
  const std::string key = "\"" + name + "\":";
  for (size_t at = text.find(key); at != std::string::npos; at = text.find(key, at)) {
    size_t end = at + key.size();
    if (text[end] == '"') {
      end = text.find('"', end + 1) + 1;
    } else {
      end = text.find_first_of(",}", end);
    }
    text.erase(at, end - at);
  }
}

}  // namespace

void Report::figures(const std::string& what, const Figures& figures) {
  nlohmann::ordered_json line = {{"scenario", scenario_}, {"what", what}};
  for (const auto& [name, value] : figures) line[name] = value;
  std::printf("%s\n", line.dump().c_str());
  std::fflush(stdout);
}

void Report::check(bool ok, const std::string& what) {
  ++(ok ? passed_ : failed_);
  std::printf("%s %s: %s\n", ok ? "ok    " : "FAILED", scenario_.c_str(), what.c_str());
  std::fflush(stdout);
}

void Report::check_equal(double got, double wanted, const std::string& what) {
  char text[64];
  std::snprintf(text, sizeof text, ": %.10g, wanted %.10g", got, wanted);
  check(got == wanted, what + text);
}

void Report::check_at_most(double got, double bound, const std::string& what) {
  char text[64];
  std::snprintf(text, sizeof text, ": %.4g, at most %.4g", got, bound);
  check(got <= bound, what + text);
}

std::string without_identity(std::string body) {
  for (const char* name : {"id", "created", "cached_tokens"}) drop_field(body, name);
  return body;
}

Victim::Victim(Loop& loop, std::string request) : loop_(loop), request_(std::move(request)) {}

void Victim::start() {
  next();
  loop_.run(Clock::now() + std::chrono::seconds(60), [this] { return num_answers_ > 0; });
  CHECK(num_answers_ > 0, "the victim's reference did not come");
  gap_p99_alone_ = gap_p99();
  gaps_.clear();
}

void Victim::next() {
  if (stopping_) return;
  connection_ = loop_.open();
  if (!connection_) {
    ++num_different_;
    return;
  }
  last_frame_ = {};
  connection_->on_frame = [this](Connection&, std::string_view) {
    const Clock::time_point now = Clock::now();
    if (last_frame_ != Clock::time_point()) gaps_.push_back(seconds_between(last_frame_, now));
    last_frame_ = now;
  };
  connection_->on_end = [this](Connection& c, Connection::End how) {
    const std::string body = without_identity(c.body());
    if (num_answers_ == 0) reference_ = body;
    ++num_answers_;
    if (how != Connection::End::kComplete || c.status() != 200 || body != reference_) {
      ++num_different_;
    }
    next();
  };
  connection_->send(request_);
}

void Victim::stop() {
  stopping_ = true;
  loop_.run(Clock::now() + std::chrono::seconds(60), [this] { return connection_->ended(); });
}

double Victim::gap_p99() const {
  return percentile(gaps_, 99);
}

Usage usage_of(const Answer& answer) {
  const auto body = nlohmann::json::parse(answer.body, nullptr, /*allow_exceptions=*/false);
  if (answer.status != 200 || !body.is_object()) return {};
  const auto& usage = body["usage"];
  return {usage["prompt_tokens"].get<int64_t>(),
          usage["prompt_tokens_details"]["cached_tokens"].get<int64_t>()};
}

}  // namespace weft::load
