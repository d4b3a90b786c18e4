// Acceptance point 6 (A71, A74): clients that go away at every phase of a request.
#include <array>
#include <random>

#include "tests/load/scenario.h"

namespace weft::load {
namespace {

enum Phase {
  kConnected,  // nothing sent
  kInHeaders,
  kInBody,
  kSent,        // all sent: parsing, queued
  kSoon,        // a moment later: queued, prefill, decode
  kStreaming,   // after some frames
  kFinished,    // the last token is here, [DONE] is not
  kWhole,       // a request without a stream
  kHalfClosed,  // only the sending side
  kNumPhases
};
constexpr std::array<const char*, kNumPhases> kNames = {"connected", "in headers", "in body",
                                                        "sent",      "soon after", "streaming",
                                                        "finished",  "no stream",  "half closed"};

/// Clients of which each leaves at a random moment.
class Leavers {
 public:
  Leavers(Loop& loop, uint64_t seed, int max_delay_ms, int long_prompt)
      : loop_(loop), rng_(seed), max_delay_ms_(max_delay_ms), long_prompt_(long_prompt) {}

  /// Until `n` have left, at most `at_once` at a time.
  void run(int64_t n, int at_once) {
    wanted_ = n;
    for (int i = 0; i < at_once; ++i) next();
    loop_.run(Clock::now() + std::chrono::minutes(20), [this] { return left_ >= wanted_; });
  }
  int64_t left() const { return left_; }
  const std::array<int64_t, kNumPhases>& by_phase() const { return by_phase_; }

 private:
  int draw(int low, int high) { return std::uniform_int_distribution<int>(low, high)(rng_); }

  std::string make_request(bool stream) {
    const bool chat = draw(0, 1) == 1;
    std::string words = "Hello " + std::to_string(draw(0, 1000));
    if (draw(0, 9) == 0) {
      for (int i = draw(0, long_prompt_); i > 0; --i) words += " and more";
    }
    std::string body = chat ? R"({"messages": [{"role": "user", "content": ")" + words + "\"}]"
                            : R"({"prompt": ")" + words + "\"";
    body += R"(, "ignore_eos": true, "max_tokens": )" + std::to_string(draw(1, 24));
    if (draw(0, 5) == 0) body += ", \"n\": 3, \"temperature\": 1";
    if (draw(0, 5) == 0) body += chat ? ", \"logprobs\": true" : ", \"logprobs\": 2";
    body += stream ? ", \"stream\": true}" : "}";
    return request_text(chat ? "/v1/chat/completions" : "/v1/completions", body);
  }

  void leave(const std::shared_ptr<Connection>& c, Phase phase) {
    if (c->ended()) return;
    c->on_end = nullptr;
    c->on_frame = nullptr;
    c->close(draw(0, 1) == 1);
    gone(phase);
  }

  void gone(Phase phase) {
    ++left_;
    ++by_phase_[phase];
    // Not from within a callback of the connection that has just gone.
    loop_.after(milliseconds(0), [this] { next(); });
  }

  void next() {
    if (started_ >= wanted_) return;
    const std::shared_ptr<Connection> c = loop_.open();
    if (!c) {
      loop_.after(milliseconds(5), [this] { next(); });
      return;
    }
    ++started_;
    const auto phase = static_cast<Phase>(draw(0, kNumPhases - 1));
    const std::string request = make_request(phase != kWhole);
    const size_t head = request.find("\r\n\r\n") + 4;
    size_t length = request.size();
    if (phase == kConnected) length = 0;
    if (phase == kInHeaders) length = static_cast<size_t>(draw(1, static_cast<int>(head) - 1));
    if (phase == kInBody) {
      length = static_cast<size_t>(draw(static_cast<int>(head), static_cast<int>(length) - 1));
    }
    // One that ends by itself (a short answer, a 429) counts as well: the phase was over.
    c->on_end = [this, phase](Connection&, Connection::End) { gone(phase); };
    if (length > 0) c->send(std::string_view(request).substr(0, length));
    switch (phase) {
      case kStreaming: {
        auto frames = std::make_shared<int>(draw(1, 12));
        c->on_frame = [this, frames](Connection& self, std::string_view) {
          if (--*frames == 0) defer(self, kStreaming);
        };
        break;
      }
      case kFinished:
        c->on_frame = [this](Connection& self, std::string_view data) {
          const size_t at = data.find("\"finish_reason\":\"");
          if (at != std::string_view::npos) defer(self, kFinished);
        };
        break;
      default: {
        const int delay = phase == kSent ? 0 : draw(0, max_delay_ms_);
        loop_.after(milliseconds(delay), [this, c, phase] {
          if (phase == kHalfClosed && !c->ended()) {
            c->half_close();
            loop_.after(milliseconds(draw(0, 20)), [this, c] { leave(c, kHalfClosed); });
          } else {
            leave(c, phase);
          }
        });
      }
    }
  }

  /// Leaves at once, in the middle of a frame's callback.
  void defer(Connection& c, Phase phase) {
    c.on_end = nullptr;
    const bool reset = draw(0, 1) == 1;
    c.close(reset);
    gone(phase);
  }

  Loop& loop_;
  std::mt19937_64 rng_;
  const int max_delay_ms_, long_prompt_;
  int64_t wanted_ = 0, started_ = 0, left_ = 0;
  std::array<int64_t, kNumPhases> by_phase_{};
};

/// Waits until no more of an idle server is resident: processors with nothing else to do touch the
/// pages of its caches.
void settle(Loop& loop, WeftServer& server) {
  const Clock::time_point deadline = Clock::now() + milliseconds(20'000);
  int64_t before = -1;
  for (int64_t now = 0; now != before && Clock::now() < deadline;) {
    before = now;
    loop.run_for(milliseconds(300));
    now = server.process().resident_bytes();
  }
}

void disconnect_from(WeftServer& server, const Settings& settings, Report& report,
                     const std::string& name, int64_t n) {
  const bool demo = name == "demo model";
  Loop loop(server.port());
  const std::string victim_request =
      request_text("/v1/completions",
                   R"({"prompt": "The victim counts: one, two,", "stream": true, "max_tokens": 40,
                       "ignore_eos": true, "temperature": 0.8, "seed": 7, "logprobs": 2})");
  Victim victim(loop, victim_request);
  settle(loop, server);
  victim.start();
  loop.run_for(milliseconds(300));
  {  // What the first of them grow is not a leak: the index of the prefix cache, until it is full.
    Leavers warm(loop, settings.seed + 1, demo ? 200 : 60, demo ? 200 : 2000);
    warm.run(demo ? n / 2 : n * 3 / 10, demo ? 16 : 400);
  }
  loop.run_for(milliseconds(500));
  const int descriptors = server.process().num_descriptors();
  const int threads = server.process().num_threads();
  const auto resident = static_cast<double>(server.process().resident_bytes());
  const Clock::time_point begin = Clock::now();
  Leavers leavers(loop, settings.seed, demo ? 200 : 60, demo ? 200 : 2000);
  leavers.run(n, demo ? 16 : 400);
  const double seconds = seconds_between(begin, Clock::now());
  report.check_equal(static_cast<double>(leavers.left()), static_cast<double>(n),
                     "disconnects, " + name);
  victim.stop();
  const std::string left = server.leftovers(milliseconds(10'000));
  loop.run_for(milliseconds(500));
  const auto resident_after = static_cast<double>(server.process().resident_bytes());
  Report::Figures figures = {{"disconnects", static_cast<double>(n)},
                             {"seconds", seconds},
                             {"per_s", static_cast<double>(n) / seconds},
                             {"victim_answers", victim.num_answers()},
                             {"victim_gap_p99_ms_alone", victim.gap_p99_alone() * 1000},
                             {"victim_gap_p99_ms", victim.gap_p99() * 1000},
                             {"resident_mib_before", resident / 1048576},
                             {"resident_mib_after", resident_after / 1048576}};
  for (size_t i = 0; i < kNumPhases; ++i) {
    figures.emplace_back(std::string(kNames[i]), static_cast<double>(leavers.by_phase()[i]));
  }
  report.figures("disconnects, " + name, figures);
  report.check(left.empty(), "no block, slot or stream is left, " + name + ": " + left);
  // The victim's connection was open when the baseline was taken.
  report.check_at_most(server.process().num_descriptors(), descriptors, "descriptors, " + name);
  report.check_at_most(server.process().num_threads(), threads, "threads, " + name);
  report.check_at_most(resident_after / resident, 1.05, "resident, after against before, " + name);
  report.check(victim.num_answers() >= 2, "the victim went on, " + name);
  report.check_equal(victim.num_different(), 0, "answers of the victim that differ, " + name);
}

}  // namespace

void run_disconnects(const Settings& settings, Report& report) {
  {
    WeftServer server(settings.weft, {"--device", "fake", "--fake-tokens-per-second", "100",
                                      "--max-num-seqs", "128"});
    disconnect_from(server, settings, report, "fake engine", settings.full ? 100'000 : 10'000);
  }
  WeftServer server(settings.weft, {"--max-num-seqs", "16", "--max-model-len", "4096"});
  disconnect_from(server, settings, report, "demo model", settings.full ? 1'000 : 100);
}

}  // namespace weft::load
