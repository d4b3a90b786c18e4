// SIGTERM in every situation, and an engine that hangs.
#include <csignal>
#include <cstdlib>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

struct Open {
  std::shared_ptr<Connection> connection;
  bool ended = false, complete = false;
};

std::vector<std::unique_ptr<Open>> open_streams(Loop& loop, int n, int tokens, bool stream) {
  std::vector<std::unique_ptr<Open>> all;
  for (int i = 0; i < n; ++i) {
    auto owned = std::make_unique<Open>();
    Open* open = owned.get();
    open->connection = loop.open();
    open->connection->on_end = [open](Connection&, Connection::End how) {
      open->ended = true;
      open->complete = how == Connection::End::kComplete;
    };
    open->connection->send(request_text(
        "/v1/completions", R"({"prompt": "go", "ignore_eos": true, "max_tokens": )" +
                               std::to_string(tokens) + (stream ? ", \"stream\": true}" : "}")));
    all.push_back(std::move(owned));
  }
  return all;
}

int count(const std::vector<std::unique_ptr<Open>>& all,
          const std::function<bool(const Open&)>& what) {
  int n = 0;
  for (const auto& open : all) n += what(*open);
  return n;
}

bool is_whole(const Open& open) {
  const std::string& body = open.connection->body();
  return open.complete && open.connection->status() == 200 &&
         (!open.connection->is_stream() || body.ends_with("data: [DONE]\n\n")) &&
         body.find("\"error\"") == std::string::npos;
}

bool ended_by_error_event(const Open& open) {
  const std::string& body = open.connection->body();
  return open.complete && body.ends_with("data: [DONE]\n\n") &&
         body.find("data: {\"error\"") != std::string::npos;
}

void drain_in_time(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "20"});
  Loop loop(server.port());
  const auto idle = loop.open();  // a kept-alive connection does not hold it up
  auto streams = open_streams(loop, 50, 30, true);
  auto whole = open_streams(loop, 20, 30, false);
  loop.run_for(milliseconds(600));
  server.process().signal(SIGTERM);
  loop.run_for(milliseconds(150));
  const Answer refused = ask(loop, request_text("/ready", ""), milliseconds(500));
  report.check(!refused.complete || refused.status == 503, "nobody new is served while draining");
  loop.run(Clock::now() + std::chrono::seconds(10), [&] {
    return count(streams, [](const Open& o) { return o.ended; }) == 50 &&
           count(whole, [](const Open& o) { return o.ended; }) == 20;
  });
  report.check_equal(count(streams, is_whole), 50, "streams finished within the grace time");
  report.check_equal(count(whole, is_whole), 20, "whole answers finished within the grace time");
  const auto code = server.process().wait(milliseconds(3000));
  report.check_equal(code.value_or(-1), 0, "exit code after a drain");
}

void drain_too_long(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "20",
                                    "--shutdown-timeout", "1"});
  Loop loop(server.port());
  auto streams = open_streams(loop, 40, 10'000, true);
  loop.run_for(milliseconds(600));
  const Clock::time_point begin = Clock::now();
  server.process().signal(SIGTERM);
  loop.run(begin + std::chrono::seconds(10),
           [&] { return count(streams, [](const Open& o) { return o.ended; }) == 40; });
  report.check_equal(count(streams, ended_by_error_event), 40,
                     "streams ended by an error event and [DONE] after the grace time");
  const auto code = server.process().wait(milliseconds(5000));
  const double seconds = seconds_between(begin, Clock::now());
  report.figures("drain", {{"grace_s", 1}, {"took_s", seconds}});
  report.check_equal(code.value_or(-1), 0, "exit code when the grace time is over");
  report.check_at_most(seconds, 4, "seconds of a drain of 1 s of grace");
}

void second_signal(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "20"});
  Loop loop(server.port());
  auto streams = open_streams(loop, 10, 10'000, true);
  loop.run_for(milliseconds(500));
  server.process().signal(SIGTERM);
  loop.run_for(milliseconds(300));
  const Clock::time_point begin = Clock::now();
  server.process().signal(SIGTERM);
  loop.run(begin + std::chrono::seconds(10),
           [&] { return count(streams, [](const Open& o) { return o.ended; }) == 10; });
  report.check_equal(count(streams, ended_by_error_event), 10,
                     "streams ended by an error event at the second SIGTERM");
  const auto code = server.process().wait(milliseconds(5000));
  report.check_equal(code.value_or(-1), 0, "exit code after the second SIGTERM");
  report.check_at_most(seconds_between(begin, Clock::now()), 3, "seconds after the second SIGTERM");
}

}  // namespace

void run_drain(const Settings& settings, Report& report) {
  for (int i = 0; i < (settings.full ? 20 : 1); ++i) {
    drain_in_time(settings, report);
    drain_too_long(settings, report);
    second_signal(settings, report);
  }
}

void run_watchdog(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "50",
                                    "--fake-hang-after", "20"});
  Loop loop(server.port());
  report.check_equal(ask(loop, request_text("/health", "")).status, 200, "/health at first");
  auto streams = open_streams(loop, 3, 1000, true);
  const Clock::time_point begin = Clock::now();
  int status = 200;
  while (status == 200 && seconds_between(begin, Clock::now()) < 20) {
    loop.run_for(milliseconds(50));
    status = ask(loop, request_text("/health", "")).status;
  }
  const double seconds = seconds_between(begin, Clock::now());
  report.figures("hung device", {{"found_after_s", seconds}});
  report.check_equal(status, 503, "/health of a hung engine");
  // 20 steps of 20 ms, then 2 s + 10 x the step time, a look every 250 ms, 1 s more.
  report.check_at_most(seconds, 0.4 + 2 + 0.2 + 1 + 0.6, "seconds until /health says so");
  report.check_equal(ask(loop, request_text("/ready", "")).status, 503, "/ready of a hung engine");
  server.process().signal(SIGKILL);
}

}  // namespace weft::load
