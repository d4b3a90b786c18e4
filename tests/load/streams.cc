// Acceptance point 4: many live streams, their punctuality and memory, and readers that never read.
#include <algorithm>
#include <cmath>
#include <thread>

#include "app/bench_serve_metrics.h"
#include "tests/load/scenario.h"

namespace weft::load {
namespace {

constexpr double kPeriod = 0.1;  // s between two tokens of a stream: 10 a second

struct Stream {
  std::shared_ptr<Connection> connection;
  std::vector<Clock::time_point> frames;
  std::vector<int64_t> tokens;  // of the answer, up to and with the frame
  bool broken = false, ended = false;
};

/// Lateness of every frame within [begin, end): against the line of one token a period that the
/// stream's most punctual frame lies on. (A token that ends in the middle of a character waits for
/// the next: a frame may bring several tokens, and is due with its last.)
std::vector<double> lateness(const std::vector<std::unique_ptr<Stream>>& streams,
                             Clock::time_point begin, Clock::time_point end) {
  std::vector<double> out;
  for (const auto& stream : streams) {
    std::vector<double> offsets;
    for (size_t i = 0; i < stream->frames.size(); ++i) {
      if (stream->frames[i] < begin || stream->frames[i] >= end) continue;
      offsets.push_back(seconds_between(begin, stream->frames[i]) -
                        static_cast<double>(stream->tokens[i]) * kPeriod);
    }
    if (offsets.empty()) continue;
    const double best = *std::min_element(offsets.begin(), offsets.end());
    for (const double offset : offsets) out.push_back(offset - best);
  }
  return out;
}

/// completion_tokens of a frame's usage, -1: it has none.
int64_t token_count(std::string_view frame) {
  constexpr std::string_view kName = "\"completion_tokens\":";
  const size_t at = frame.find(kName);
  return at == std::string_view::npos ? -1 : std::atoll(frame.data() + at + kName.size());
}

class Streams {
 public:
  Streams(Loop& loop, int tokens) : loop_(loop) {
    body_ = R"({"model": "fake", "prompt": "Tell me a story, number )";
    tail_ = R"(.", "stream": true, "ignore_eos": true, "temperature": 0,
             "stream_options": {"include_usage": true, "continuous_usage_stats": true},
             "max_tokens": )" +
            std::to_string(tokens) + "}";
  }

  /// Opens `n` streams over a second, or more slowly.
  void open(int n) {
    for (int i = 0; i < n; ++i) {
      auto owned = std::make_unique<Stream>();
      Stream* stream = owned.get();
      streams_.push_back(std::move(owned));
      loop_.after(milliseconds(i / 2), [this, stream, i] { begin(*stream, i); });
    }
  }

  std::vector<std::unique_ptr<Stream>>& all() { return streams_; }
  int live() const {
    return static_cast<int>(std::count_if(streams_.begin(), streams_.end(), [](const auto& s) {
      return s->connection && !s->ended && !s->broken && !s->frames.empty();
    }));
  }
  int broken() const {
    return static_cast<int>(
        std::count_if(streams_.begin(), streams_.end(), [](const auto& s) { return s->broken; }));
  }

 private:
  void begin(Stream& stream, int i) {
    stream.connection = loop_.open();
    if (!stream.connection) {
      stream.broken = true;
      return;
    }
    stream.connection->on_frame = [&stream](Connection&, std::string_view data) {
      const int64_t tokens = token_count(data);
      if (tokens < 1) return;
      stream.frames.push_back(Clock::now());
      stream.tokens.push_back(tokens);
    };
    stream.connection->on_end = [&stream](Connection& c, Connection::End how) {
      stream.ended = true;
      stream.broken = how != Connection::End::kComplete || c.status() != 200;
    };
    stream.connection->send(request_text("/v1/completions", body_ + std::to_string(i) + tail_));
  }

  Loop& loop_;
  std::string body_, tail_;
  std::vector<std::unique_ptr<Stream>> streams_;
};

struct Punctuality {
  double p50, p99, worst;
};

Punctuality measure(Streams& streams, Clock::time_point begin, Clock::time_point end) {
  const std::vector<double> late = lateness(streams.all(), begin, end);
  return {percentile(late, 50) * 1000, percentile(late, 99) * 1000, percentile(late, 100) * 1000};
}

/// Connections that ask for a stream and never read it; made, and noticed by the server.
class SilentReaders {
 public:
  SilentReaders(const WeftServer& server, Loop& loop, int n, const std::string& request)
      : loop_(loop) {
    for (int i = 0; i < n; ++i) {
      loop.after(milliseconds(i / 2), [this, request] {
        readers_.push_back(loop_.open(/*receive_buffer=*/2048));
        if (!readers_.back()) return;
        readers_.back()->set_reading(false);
        readers_.back()->send(request);
      });
    }
    const Clock::time_point begin = Clock::now();
    const auto num_paused = [&] { return server.metrics()["weft:num_requests_paused"]; };
    do {
      loop.run_for(milliseconds(500));
    } while (num_paused() < n && seconds_between(begin, Clock::now()) < 30);
    seconds_ = seconds_between(begin, Clock::now());
    paused_ = static_cast<int>(num_paused());
  }
  /// How many have been noticed, and after what time.
  int paused() const { return paused_; }
  double seconds() const { return seconds_; }
  ~SilentReaders() {
    for (const auto& reader : readers_) {
      if (reader) reader->close(/*reset=*/true);
    }
    loop_.run_for(milliseconds(1500));
  }

 private:
  Loop& loop_;
  int paused_ = 0;
  double seconds_ = 0;
  std::vector<std::shared_ptr<Connection>> readers_;
};

/// Of each of some turns the median of its seconds' p99 lateness (ms), and the server's share of a
/// core.
struct Turns {
  std::vector<double> p99, cpu_percent;
};

double median(const std::vector<double>& values) {
  return percentile(values, 50);
}

/// The median of what the turns beside others are against those just before and behind them: what
/// drifts (the texts grow, the machine's neighbours change) is in both.
double paired_ratio(const std::vector<double>& beside, const std::vector<double>& alone) {
  std::vector<double> ratios;
  for (size_t i = 0; i < beside.size(); ++i) {
    ratios.push_back(beside[i] / ((alone[i] + alone[i + 1]) / 2));
  }
  return median(ratios);
}

void take_turn(WeftServer& server, Streams& streams, Loop& loop, int seconds, Turns& out) {
  loop.run_for(milliseconds(500));  // what came while others were measured
  const Clock::time_point begin = Clock::now();
  const double cpu = server.process().cpu_seconds();
  loop.run_for(milliseconds(seconds * 1000));
  const Clock::time_point end = Clock::now();
  const double used = server.process().cpu_seconds() - cpu;
  out.cpu_percent.push_back(100 * used / seconds_between(begin, end));
  std::vector<double> p99;
  for (int i = 0; i < seconds; ++i) {
    const Clock::time_point second = begin + std::chrono::seconds(i);
    p99.push_back(measure(streams, second, second + std::chrono::seconds(1)).p99);
  }
  out.p99.push_back(median(p99));  // a neighbour of the machine disturbs single seconds
}

/// The same streams alone and beside silent readers, by turns that begin and end alone (the test
/// device works more the longer the texts are), each compared with its neighbours.
void compare_with_silent_readers(const Settings& settings, WeftServer& server, Streams& streams,
                                 Loop& loop, const std::string& request, Report& report) {
  const int n = 1000, turns = settings.full ? 7 : 2;  // more would fill the KV cache
  const int seconds = settings.full ? 4 : 3;
  Turns alone, beside;
  double resident = 0, noticed = 0;
  int least_paused = n;
  take_turn(server, streams, loop, seconds, alone);
  for (int turn = 0; turn < turns; ++turn) {
    {
      const SilentReaders silent(server, loop, n, request);
      least_paused = std::min(least_paused, silent.paused());
      noticed = std::max(noticed, silent.seconds());
      take_turn(server, streams, loop, seconds, beside);
      resident = static_cast<double>(server.process().resident_bytes()) / 1048576;
    }
    take_turn(server, streams, loop, seconds, alone);
  }
  const double with = median(beside.p99), without = median(alone.p99);
  report.figures("beside readers that never read",
                 {{"silent", n},
                  {"turns", turns},
                  {"seconds_until_noticed", noticed},
                  {"median_p99_ms", without},
                  {"median_p99_ms_beside_silent", with},
                  {"ratio", with / without},
                  {"paired_ratio", paired_ratio(beside.p99, alone.p99)},
                  {"paired_ratio_of_cpu", paired_ratio(beside.cpu_percent, alone.cpu_percent)},
                  {"server_cpu_percent", median(alone.cpu_percent)},
                  {"server_cpu_percent_beside_silent", median(beside.cpu_percent)},
                  {"resident_mib", resident}});
  report.check_equal(streams.broken(), 0, "streams dropped beside silent readers");
  report.check_equal(least_paused, n, "silent readers for whom nothing is computed");
  report.check_at_most(with, settings.full ? 50 : kBusyMs,
                       "p99 lateness beside silent readers, ms");
  // Two milliseconds are noise: 1,000 idle connections make such a difference, too.
  const double ratio = paired_ratio(beside.p99, alone.p99);
  report.check_at_most(ratio * without,
                       settings.full ? std::max(1.1 * without, without + 2) : without + kBusyMs,
                       "p99 lateness beside silent readers against that without, ms");
  // Time that neighbours take is not in it: what the readers themselves cost.
  report.check_at_most(paired_ratio(beside.cpu_percent, alone.cpu_percent),
                       settings.full ? 1.15 : 1.5, "CPU beside silent readers against without");
}

}  // namespace

void run_streams(const Settings& settings, Report& report) {
  const int n = 2000;
  const int seconds = settings.full ? 60 : 4;
  // A usual shell's soft limit on open files, which the server raises itself.
  WeftServer server(
      settings.weft,
      {"--device", "fake", "--fake-tokens-per-second", "10", "--max-num-seqs", "4096"},
      {.soft = 1024});
  Loop loop(server.port());
  ask(loop, request_text("/v1/completions", R"({"prompt": "warm", "max_tokens": 2})"));
  const auto before = static_cast<double>(server.process().resident_bytes());
  const double cpu_before = server.process().cpu_seconds();

  const int tokens = settings.full ? 2500 : 900;  // more than fit into the time of the test
  Streams streams(loop, tokens);
  streams.open(n);
  loop.run(Clock::now() + std::chrono::seconds(20), [&] { return streams.live() == n; });
  loop.run_for(milliseconds(1500));
  report.check_equal(streams.live(), n, "streams that are live");
  const Clock::time_point begin = Clock::now();
  const double cpu_begin = server.process().cpu_seconds();
  loop.run_for(milliseconds(seconds * 1000));
  const Clock::time_point middle = Clock::now();
  const double cpu_end = server.process().cpu_seconds();
  const double per_stream =
      (static_cast<double>(server.process().resident_bytes()) - before) / n / 1024;
  const Punctuality alone = measure(streams, begin, middle);
  report.figures("live streams", {{"streams", n},
                                  {"seconds", seconds},
                                  {"lateness_p50_ms", alone.p50},
                                  {"lateness_p99_ms", alone.p99},
                                  {"lateness_max_ms", alone.worst},
                                  {"resident_kib_per_stream", per_stream},
                                  {"server_cpu_percent",
                                   100 * (cpu_end - cpu_begin) / seconds_between(begin, middle)},
                                  {"cpu_seconds_to_open", cpu_begin - cpu_before}});
  report.check_equal(streams.broken(), 0, "streams dropped");
  report.check_at_most(alone.p99, settings.full ? 50 : kBusyMs, "p99 lateness of a frame, ms");
  report.check_at_most(per_stream, settings.full ? 16 : 10, "resident KiB a stream");

  const std::string body = R"({"prompt": "For nobody", "stream": true, "ignore_eos": true,
    "stream_options": {"include_usage": true, "continuous_usage_stats": true},
    "max_tokens": )" + std::to_string(tokens) +
                           "}";
  compare_with_silent_readers(settings, server, streams, loop,
                              request_text("/v1/completions", body), report);
  for (const auto& stream : streams.all()) {
    if (stream->connection) stream->connection->close();
  }
  const std::string left = server.leftovers(milliseconds(5000));
  report.check(left.empty(), "nothing left when all have gone: " + left);
}

}  // namespace weft::load
