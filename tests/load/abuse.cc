// Clients that behave badly (A13, A15, A74): they cost nobody else, and nothing stays behind.
#include <algorithm>
#include <random>

#include "app/bench_serve_metrics.h"
#include "tests/load/scenario.h"

namespace weft::load {
namespace {

std::string stream_body(const std::string& prompt, int tokens) {
  return R"({"prompt": ")" + prompt +
         R"(", "stream": true, "ignore_eos": true, "seed": 5, "max_tokens": )" +
         std::to_string(tokens) + "}";
}

/// What the server holds, before and after.
struct Holdings {
  int descriptors, threads;
  double resident;
  explicit Holdings(WeftServer& server)
      : descriptors(server.process().num_descriptors()),
        threads(server.process().num_threads()),
        resident(static_cast<double>(server.process().resident_bytes())) {}
};

void check_back(WeftServer& server, const Holdings& before, Report& report,
                const std::string& after) {
  const std::string left = server.leftovers(milliseconds(5000));
  const Clock::time_point end = Clock::now() + std::chrono::seconds(3);
  const auto settled = [&] {  // the server looks at its heap once a second
    return server.process().num_descriptors() <= before.descriptors &&
           static_cast<double>(server.process().resident_bytes()) <= 1.01 * before.resident;
  };
  Loop pause(server.port());
  while (!settled() && Clock::now() < end) pause.run_for(milliseconds(100));
  const Holdings now(server);
  report.figures("after " + after, {{"resident_mib_before", before.resident / 1048576},
                                    {"resident_mib_after", now.resident / 1048576},
                                    {"descriptors", now.descriptors}});
  report.check(left.empty(), "nothing left after " + after + ": " + left);
  report.check_at_most(now.descriptors, before.descriptors, "descriptors after " + after);
  report.check_at_most(now.threads, before.threads, "threads after " + after);
  report.check_at_most(now.resident / before.resident, 1.05, "resident after " + after);
}

using Connections = std::vector<std::shared_ptr<Connection>>;

void close_all(Connections& connections) {
  for (const auto& c : connections) c->close();
  connections.clear();
}

/// `n` connections of which each sends `first`, then a byte each `pause`, all at different times: a
/// burst of thousands of bytes would be the test's own load, not that of slow writers.
Connections drip(Loop& loop, int n, const std::string& first, milliseconds pause,
                 milliseconds time) {
  Connections all;
  int refused = 0;
  for (int i = 0; i < n; ++i) {
    if (auto c = loop.open()) {
      c->on_end = [&refused](Connection&, Connection::End) { ++refused; };
      c->send(first);
      all.push_back(std::move(c));
    }
    if (i % 200 == 199) loop.run_for(milliseconds(5));  // the kernel's queue holds 4,096
  }
  const milliseconds tick(10);
  const Clock::time_point begin = Clock::now();
  int64_t sent = 0;
  while (Clock::now() < begin + time && !all.empty()) {
    loop.run_for(tick);
    const double rounds =
        seconds_between(begin, Clock::now()) * 1000 / static_cast<double>(pause.count());
    const auto due = static_cast<int64_t>(rounds * static_cast<double>(all.size()));
    for (; sent < due; ++sent) all[static_cast<size_t>(sent) % all.size()]->send("a");
  }
  for (const auto& c : all) c->on_end = nullptr;
  return all;
}

void slow_writers(WeftServer& server, const Settings& settings, Report& report) {
  Loop loop(server.port());
  Victim victim(loop, request_text("/v1/completions", stream_body("a victim", 40)));
  victim.start();
  const int n = settings.full ? 15'000 : 3'000;
  {  // What so many connections grow once (Asio keeps the state of a descriptor) is not a leak.
    Connections warm = drip(loop, n, "GET /hea", milliseconds(100), milliseconds(100));
    close_all(warm);
    loop.run_for(milliseconds(1500));
  }
  const Holdings before(server);
  Connections slow = drip(loop, n, "GET /health HTTP/1.1\r\nHost: a\r\nX-Slow: ",
                          milliseconds(settings.full ? 10'000 : 1000),
                          milliseconds(settings.full ? 25'000 : 3000));
  const Holdings during(server);
  report.figures("slow headers",
                 {{"connections", n},
                  {"held", during.descriptors - before.descriptors},
                  {"kib_per_connection", (during.resident - before.resident) / 1024 / n},
                  {"victim_gap_p99_ms_alone", victim.gap_p99_alone() * 1000},
                  {"victim_gap_p99_ms", victim.gap_p99() * 1000}});
  close_all(slow);
  slow =
      drip(loop, 500, "POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100000\r\n\r\n{",
           milliseconds(200), milliseconds(1500));
  for (const auto& c : slow) c->close(/*reset=*/true);
  slow.clear();
  victim.stop();
  report.check_equal(victim.num_different(), 0, "answers of the victim that differ, slow writers");
  const double twice = 2 * std::max(victim.gap_p99_alone(), 0.025);
  report.check_at_most(victim.gap_p99(), settings.full ? twice : std::max(twice, kBusyMs / 1000),
                       "the victim's p99 gap, s, at most twice that alone");
  check_back(server, before, report, "slow writers");
}

/// A reader that stops for a while, with much before it and more to come, gets every byte: what is
/// held back for it is not lost when the engine has finished meanwhile.
void late_readers(WeftServer& server, Report& report) {
  Loop loop(server.port());
  std::string words = "a";
  for (int i = 0; i < 1500; ++i) words += " long prompt";
  const std::string request =
      request_text("/v1/completions",
                   R"({"prompt": ")" + words + R"(", "echo": true, "logprobs": 5, "stream": true,
                             "ignore_eos": true, "seed": 5, "max_tokens": 300})");
  const std::string expected = without_identity(ask(loop, request).body);
  int whole = 0, ended = 0;
  Connections all;
  for (int i = 0; i < 8; ++i) {
    all.push_back(loop.open(/*receive_buffer=*/4096));
    all.back()->on_end = [&](Connection& c, Connection::End how) {
      ++ended;
      whole += how == Connection::End::kComplete && without_identity(c.body()) == expected;
    };
    all.back()->set_reading(false);
    all.back()->send(request);
  }
  loop.run_for(milliseconds(4500));  // 300 tokens at 100 a second, and some
  const auto paused = static_cast<int>(server.metrics()["weft:num_requests_paused"]);
  for (const auto& c : all) c->set_reading(true);
  loop.run(Clock::now() + std::chrono::seconds(20), [&ended] { return ended == 8; });
  report.figures("late readers", {{"bytes", static_cast<double>(expected.size())}});
  report.check(expected.ends_with("data: [DONE]\n\n") && expected.size() > 200'000,
               "an answer of some hundred kilobytes");
  report.check_equal(paused, 8, "late readers for whom nothing is computed meanwhile");
  report.check_equal(whole, 8, "late readers that get the whole answer");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left after late readers: " + left);
}

void odd_endings(WeftServer& server, Report& report) {
  Loop loop(server.port());
  const Holdings before(server);
  Connections all;
  const std::string request = request_text("/v1/completions", stream_body("odd", 1000));
  for (int i = 0; i < 100; ++i) {
    all.push_back(loop.open());
    all.back()->send(request);
  }
  loop.run_for(milliseconds(200));
  for (const auto& c : all) c->half_close();
  loop.run_for(milliseconds(500));
  close_all(all);
  // Ten thousand requests in one go on one connection.
  std::string pipelined;
  for (int i = 0; i < 10'000; ++i) pipelined += request_text("/health", "");
  const auto c = loop.open();
  int ended = 0;
  c->on_end = [&ended](Connection&, Connection::End) { ++ended; };
  c->send(pipelined);
  loop.run(Clock::now() + std::chrono::seconds(10), [&ended] { return ended > 0; });
  report.check_equal(c->status(), 200, "the first of 10,000 pipelined requests");
  c->close();
  report.check_equal(ask(loop, request_text("/health", "")).status, 200, "/health afterwards");
  check_back(server, before, report, "half-closed and pipelined connections");
}

void connect_storm(WeftServer& server, const Settings& settings, Report& report) {
  Loop loop(server.port());
  const Holdings before(server);
  const int n = settings.full ? 100'000 : 10'000;
  const Clock::time_point begin = Clock::now();
  int failed = 0;
  for (int i = 0; i < n; ++i) {
    const auto c = loop.open();
    if (!c) {
      ++failed;
    } else {
      loop.run(Clock::now() + milliseconds(1), [&c] { return c->status() == 0; });
      c->close(i % 2 == 0);
    }
    if (i % 64 == 0) loop.run_for(milliseconds(1));
  }
  report.figures("connect and close", {{"connections", n},
                                       {"per_s", n / seconds_between(begin, Clock::now())},
                                       {"failed", failed}});
  const Answer answer = ask(loop, request_text("/health", ""));
  report.check_equal(answer.status, 200, "/health after a storm of connections");
  check_back(server, before, report, "a storm of connections");
}

/// The server runs out of descriptors: it must not spin, and must come back.
void no_descriptors(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake"}, {.soft = 256, .hard = 256});
  Loop loop(server.port());
  Connections all;
  for (int i = 0; i < 600; ++i) {
    if (auto c = loop.open()) all.push_back(std::move(c));
  }
  loop.run_for(milliseconds(500));
  const double cpu = server.process().cpu_seconds();
  loop.run_for(milliseconds(2000));
  const double used = (server.process().cpu_seconds() - cpu) / 2;
  report.figures("no descriptors left", {{"connections", 600}, {"cpu_share", used}});
  report.check_at_most(used, 0.25, "CPU of a server without descriptors");
  close_all(all);
  report.check_equal(ask(loop, request_text("/health", ""), milliseconds(5000)).status, 200,
                     "/health when descriptors are there again");
}

/// Only one's own request dies when one goes (A74).
void cancel_storm(WeftServer& server, const Settings& settings, Report& report) {
  Loop loop(server.port());
  constexpr int kKept = 24;
  std::vector<std::string> requests, expected;
  for (int i = 0; i < kKept; ++i) {
    requests.push_back(
        request_text("/v1/completions", stream_body("keep " + std::to_string(i), 20 + i % 7)));
    expected.push_back(without_identity(ask(loop, requests.back()).body));
  }
  std::mt19937_64 rng(settings.seed);
  int wrong = 0, finished = 0, cancelled = 0;
  const int rounds = settings.full ? 60 : 6;
  for (int round = 0; round < rounds; ++round) {
    int open = kKept;
    for (size_t i = 0; i < kKept; ++i) {
      const auto c = loop.open();
      c->on_end = [&, i](Connection& self, Connection::End how) {
        --open;
        ++finished;
        wrong += how != Connection::End::kComplete || without_identity(self.body()) != expected[i];
      };
      c->send(requests[i]);
      for (int k = 0; k < 4; ++k) {  // others of the same prompts come and go
        const auto other = loop.open();
        other->send(requests[rng() % kKept]);
        ++cancelled;
        loop.after(milliseconds(rng() % 300), [other, &rng] { other->close(rng() % 2 == 0); });
      }
    }
    loop.run(Clock::now() + std::chrono::seconds(30), [&open] { return open == 0; });
    loop.run_for(milliseconds(300));
  }
  report.figures("cancel storm", {{"kept", rounds * kKept}, {"cancelled", cancelled}});
  report.check_equal(finished, rounds * kKept, "requests that ended beside a storm of cancels");
  report.check_equal(wrong, 0, "of them with another answer than alone");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left after the storm: " + left);
}

}  // namespace

/// Large bodies, faster than they can be read as requests: what waits is bounded.
void large_bodies(const Settings& settings, Report& report) {
  WeftServer server(settings.weft, {"--device", "fake"});
  Loop loop(server.port());
  const double before = static_cast<double>(server.process().resident_bytes());
  const std::string request = request_text(
      "/v1/completions", R"({"max_tokens": 1, "prompt": ")" + std::string(12 << 20, 'a') + "\"}");
  const int n = 80;
  Connections all;
  for (int i = 0; i < n; ++i) {
    if (auto c = loop.open()) {
      c->send(request);
      all.push_back(std::move(c));
    }
  }
  double most = 0;
  const Clock::time_point end = Clock::now() + std::chrono::seconds(60);
  const auto pending = [&] {
    return std::any_of(all.begin(), all.end(), [](const auto& c) { return c->status() == 0; });
  };
  while (pending() && Clock::now() < end) {
    loop.run_for(milliseconds(20));
    most = std::max(most, static_cast<double>(server.process().resident_bytes()) - before);
  }
  std::map<int, int> statuses;
  for (const auto& c : all) ++statuses[c->status()];
  report.figures("large bodies", {{"bodies", n},
                                  {"mib_each", 12},
                                  {"too_long_400", statuses[400]},
                                  {"refused_429", statuses[429]},
                                  {"refused_503", statuses[503]},
                                  {"resident_mib_more", most / 1048576}});
  report.check_equal(statuses[400] + statuses[429] + statuses[503], n, "large bodies answered");
  report.check(statuses[400] > 0, "some of them were read");
  report.check_at_most(most / 1048576, 760, "MiB that large bodies take");
  close_all(all);
}

void run_abuse(const Settings& settings, Report& report) {
  {
    WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "100"});
    slow_writers(server, settings, report);
    late_readers(server, report);
    odd_endings(server, report);
    connect_storm(server, settings, report);
    cancel_storm(server, settings, report);
  }
  large_bodies(settings, report);
  no_descriptors(settings, report);
}

}  // namespace weft::load
