// Acceptance point 5 (A70): ten times the load that the server can carry.
#include <algorithm>
#include <random>

#include "app/bench_serve_metrics.h"
#include "tests/load/scenario.h"

namespace weft::load {
namespace {

constexpr int kSlots = 256;

/// Of 10 to 30 tokens: answers of one length would come in waves, a rate of which says little.
std::string body_of(int i) {
  return R"({"prompt": "Question )" + std::to_string(i) + R"(", "max_tokens": )" +
         std::to_string(10 + i * 8 % 21) + R"(, "ignore_eos": true, "stream": true})";
}

struct Tally {
  int64_t good = 0, refused = 0, other = 0, without_retry = 0;
  std::vector<double> refusals;  // s
};

/// Sends a request on a connection of its own; `then` after its end.
void send_one(Loop& loop, Tally& tally, int i, std::function<void()> then) {
  const std::shared_ptr<Connection> c = loop.open();
  if (!c) {
    ++tally.other;
    return;
  }
  c->on_end = [&tally, then = std::move(then)](Connection& self, Connection::End how) {
    const bool whole = how == Connection::End::kComplete;
    if (whole && self.status() == 200 && self.body().ends_with("data: [DONE]\n\n")) {
      ++tally.good;
    } else if (whole && self.status() == 429) {
      ++tally.refused;
      tally.refusals.push_back(seconds_between(self.opened(), Clock::now()));
      if (self.header("retry-after").empty()) ++tally.without_retry;
    } else {
      ++tally.other;
    }
    if (then) then();
  };
  c->send(request_text("/v1/completions", body_of(i)));
}

/// Answers a second when just as many requests are under way as the server takes.
double find_peak(Loop& loop, int in_flight, double seconds) {
  Tally tally;
  bool going = true;
  int sent = 0;
  std::function<void()> next = [&] {
    if (going) send_one(loop, tally, sent++, next);
  };
  for (int i = 0; i < in_flight; ++i) next();
  loop.run_for(milliseconds(3000));
  const int64_t before = tally.good;
  const Clock::time_point begin = Clock::now();
  loop.run_for(milliseconds(static_cast<int64_t>(seconds * 1000)));
  const double peak =
      static_cast<double>(tally.good - before) / seconds_between(begin, Clock::now());
  going = false;
  loop.run(Clock::now() + std::chrono::seconds(20), [&] { return loop.num_open() == 0; });
  return peak;
}

}  // namespace

void run_overload(const Settings& settings, Report& report) {
  const double seconds = settings.full ? 60 : 6;
  WeftServer server(settings.weft,
                    {"--device", "fake", "--fake-tokens-per-second", "10", "--max-num-seqs",
                     std::to_string(kSlots), "--max-waiting", std::to_string(kSlots)});
  Loop loop(server.port());
  const double peak = find_peak(loop, 2 * kSlots, settings.full ? 12 : 3);
  const auto resident_before = static_cast<double>(server.process().resident_bytes());

  Tally tally;
  std::mt19937_64 rng(settings.seed);
  std::exponential_distribution<double> gap(10 * peak);
  const Clock::time_point begin = Clock::now();
  const Clock::time_point end =
      begin + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  Clock::time_point due = begin;
  int sent = 0;
  std::function<void()> arrive = [&] {
    // Open loop: what is due is sent, whatever happened to those before.
    for (const Clock::time_point now = Clock::now(); due <= now;) {
      send_one(loop, tally, sent++, nullptr);
      due += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(gap(rng)));
    }
    if (due < end) loop.at(due, arrive);
  };
  arrive();
  const double warm = 3;  // until the queue is full
  loop.run(begin + std::chrono::seconds(3));
  const int64_t good_before = tally.good;
  const auto resident_early = static_cast<double>(server.process().resident_bytes());
  const Clock::time_point measured = Clock::now();
  loop.run(end);
  const double goodput =
      static_cast<double>(tally.good - good_before) / seconds_between(measured, Clock::now());
  const auto resident_late = static_cast<double>(server.process().resident_bytes());
  loop.run(Clock::now() + std::chrono::seconds(20), [&] { return loop.num_open() == 0; });

  const double refusal_p99 = percentile(tally.refusals, 99) * 1000;
  report.figures("overload", {{"seconds", seconds - warm},
                              {"peak_per_s", peak},
                              {"offered_per_s", sent / seconds},
                              {"goodput_per_s", goodput},
                              {"refused", static_cast<double>(tally.refused)},
                              {"refusal_p50_ms", percentile(tally.refusals, 50) * 1000},
                              {"refusal_p99_ms", refusal_p99},
                              {"resident_mib_before", resident_before / 1048576},
                              {"resident_mib_early", resident_early / 1048576},
                              {"resident_mib_late", resident_late / 1048576}});
  report.check_at_most((settings.full ? 0.95 : 0.8) * peak, goodput,
                       "most of the peak against the goodput");
  report.check(tally.refused > 0, "some requests are refused");
  report.check_equal(static_cast<double>(tally.other), 0, "answers that are neither 200 nor 429");
  report.check_equal(static_cast<double>(tally.without_retry), 0, "429 without Retry-After");
  report.check_at_most(refusal_p99, settings.full ? 20 : kBusyMs, "p99 of a 429, ms");
  report.check_at_most(resident_late / resident_early, 1.02, "memory, late against early");
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left afterwards: " + left);
}

}  // namespace weft::load
