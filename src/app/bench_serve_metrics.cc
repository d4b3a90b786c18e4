#include "app/bench_serve_metrics.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>

namespace weft {
namespace {

double read_number(std::string_view text, bool& ok) {
  double value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  ok = error == std::errc() && end == text.data() + text.size() && std::isfinite(value);
  return value;
}

double sorted_percentile(const std::vector<double>& sorted, double p) {
  if (sorted.empty()) return 0;
  const double rank = p / 100 * static_cast<double>(sorted.size() - 1);
  const auto low = std::min(static_cast<size_t>(rank), sorted.size() - 1);
  const size_t high = std::min(low + 1, sorted.size() - 1);
  return sorted[low] + (sorted[high] - sorted[low]) * (rank - static_cast<double>(low));
}

double tpot_of(const RequestOutcome& o) {
  return o.output_len > 1 ? (o.latency - o.ttft) / static_cast<double>(o.output_len - 1) : 0;
}

/// A request of at most one token has no time per token: it keeps any limit on it.
bool is_good(const RequestOutcome& o, const std::vector<ServiceLevel>& goodput) {
  return std::all_of(goodput.begin(), goodput.end(), [&o](const ServiceLevel& level) {
    const double seconds = level.name == "ttft"   ? o.ttft
                           : level.name == "tpot" ? tpot_of(o)
                                                  : o.latency;
    return seconds <= level.limit_ms / 1000;
  });
}

void find_peaks(const std::vector<const RequestOutcome*>& done, ServeMetrics& m) {
  if (done.empty()) return;
  double first = done[0]->start_time, last = first;
  for (const RequestOutcome* o : done) {
    first = std::min(first, o->start_time);
    last = std::max(last, o->start_time + o->latency);
  }
  std::vector<double> tokens(static_cast<size_t>(std::ceil(last - first)) + 1);
  std::vector<std::pair<double, int>> changes;  // at one time departures come first
  for (const RequestOutcome* o : done) {
    double at = o->start_time - first + o->ttft;
    const auto count = [&] {
      if (at >= 0 && at < static_cast<double>(tokens.size())) ++tokens[static_cast<size_t>(at)];
    };
    count();
    for (const double gap : o->itl) {
      at += gap;
      count();
    }
    changes.emplace_back(o->start_time, 1);
    changes.emplace_back(o->start_time + o->latency, -1);
  }
  m.max_output_tokens_per_s = *std::max_element(tokens.begin(), tokens.end());
  std::sort(changes.begin(), changes.end());
  int64_t now = 0;
  for (const auto& [at, change] : changes) {
    now += change;
    m.max_concurrent_requests = std::max(m.max_concurrent_requests, now);
  }
}

}  // namespace

double percentile(std::vector<double> values, double p) {
  std::sort(values.begin(), values.end());
  return sorted_percentile(values, p);
}

LatencySummary summarize(const std::vector<double>& seconds,
                         const std::vector<double>& percentiles) {
  std::vector<double> ms(seconds.size());
  std::transform(seconds.begin(), seconds.end(), ms.begin(), [](double s) { return s * 1000; });
  std::sort(ms.begin(), ms.end());
  LatencySummary out;
  if (!ms.empty()) {
    const auto n = static_cast<double>(ms.size());
    out.mean = std::accumulate(ms.begin(), ms.end(), 0.0) / n;
    double squares = 0;
    for (const double x : ms) squares += (x - out.mean) * (x - out.mean);
    out.std = std::sqrt(squares / n);
  }
  out.median = sorted_percentile(ms, 50);
  for (const double p : percentiles) out.percentiles.emplace_back(p, sorted_percentile(ms, p));
  return out;
}

Result<std::vector<ServiceLevel>> parse_goodput(const std::vector<std::string>& words) {
  std::vector<ServiceLevel> out;
  for (const std::string& word : words) {
    const size_t colon = word.find(':');
    ServiceLevel level{.name = word.substr(0, colon)};
    bool ok = colon != std::string::npos;
    if (ok) level.limit_ms = read_number(std::string_view(word).substr(colon + 1), ok);
    const bool known = level.name == "ttft" || level.name == "tpot" || level.name == "e2el";
    if (!ok || !known || level.limit_ms < 0) {
      return invalid_argument("--goodput: '" + word +
                              "' is not NAME:MILLISECONDS with NAME one of ttft, tpot, e2el and a "
                              "time that is not negative");
    }
    out.push_back(std::move(level));
  }
  return out;
}

Result<std::vector<double>> parse_percentiles(const std::string& list) {
  std::vector<double> out;
  for (size_t begin = 0; begin <= list.size();) {
    const size_t end = std::min(list.find(',', begin), list.size());
    bool ok = false;
    const double p = read_number(std::string_view(list).substr(begin, end - begin), ok);
    if (!ok || p < 0 || p > 100) {
      return invalid_argument("--metric-percentiles: '" + list.substr(begin, end - begin) +
                              "' is not a number in [0, 100]; write them as 25,50,99.9");
    }
    out.push_back(p);
    begin = end + 1;
  }
  return out;
}

ServeMetrics compute_metrics(const std::vector<RequestOutcome>& outcomes, double duration,
                             const std::vector<double>& percentiles,
                             const std::vector<ServiceLevel>& goodput) {
  ServeMetrics m;
  m.duration = duration;
  std::vector<const RequestOutcome*> done;
  std::vector<double> ttft, tpot, itl, e2el, queue, e2el_with_queue;
  int64_t good = 0;
  for (const RequestOutcome& o : outcomes) {
    if (!o.success) {
      ++m.failed;
      continue;
    }
    done.push_back(&o);
    m.total_input += o.prompt_len;
    m.total_output += o.output_len;
    ttft.push_back(o.ttft);
    if (o.output_len > 1) tpot.push_back(tpot_of(o));
    itl.insert(itl.end(), o.itl.begin(), o.itl.end());
    e2el.push_back(o.latency);
    queue.push_back(o.queue_time);
    e2el_with_queue.push_back(o.latency + o.queue_time);
    if (!goodput.empty() && is_good(o, goodput)) ++good;
  }
  m.completed = static_cast<int64_t>(done.size());
  const auto per_second = [&](int64_t count) {
    return duration > 0 ? static_cast<double>(count) / duration : 0;
  };
  m.request_throughput = per_second(m.completed);
  m.request_goodput = per_second(good);
  m.output_throughput = per_second(m.total_output);
  m.total_token_throughput = per_second(m.total_input + m.total_output);
  find_peaks(done, m);
  m.ttft = summarize(ttft, percentiles);
  m.tpot = summarize(tpot, percentiles);
  m.itl = summarize(itl, percentiles);
  m.e2el = summarize(e2el, percentiles);
  m.queue = summarize(queue, percentiles);
  m.e2el_with_queue = summarize(e2el_with_queue, percentiles);
  return m;
}

}  // namespace weft
