#include "app/bench_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/check.h"

namespace weft {
namespace {

int model_width(const BenchSubject& subject) {
  return std::max<int>(20, static_cast<int>(subject.model.size() + 1 + subject.format.size()));
}

std::string format_line(const char* format, auto... values) {
  char line[512];
  std::snprintf(line, sizeof(line), format, values...);
  return line;
}

}  // namespace

SampleStats sample_stats(std::vector<double> samples) {
  CHECK(!samples.empty());
  std::sort(samples.begin(), samples.end());
  const double n = static_cast<double>(samples.size());
  SampleStats stats;
  stats.mean = std::accumulate(samples.begin(), samples.end(), 0.0) / n;
  stats.best = samples.back();
  const size_t half = samples.size() / 2;
  stats.median = samples.size() % 2 == 1 ? samples[half] : (samples[half - 1] + samples[half]) / 2;
  double squares = 0;
  for (double s : samples) squares += (s - stats.mean) * (s - stats.mean);
  stats.stddev = samples.size() > 1 ? std::sqrt(squares / (n - 1)) : 0;
  return stats;
}

std::string bench_table_header(const BenchSubject& subject) {
  const int width = model_width(subject);
  std::string line = format_line("| %-*s | %10s | %10s | %-15s | %7s | %16s | %20s |\n", width,
                                 "model", "size", "params", "backend", "threads", "test", "t/s");
  return line + "| " + std::string(static_cast<size_t>(width), '-') +
         " | ---------: | ---------: | --------------- | ------: | ---------------: | "
         "-------------------: |\n";
}

std::string bench_table_row(const BenchSubject& subject, const BenchRow& row) {
  const SampleStats stats = sample_stats(row.samples);
  const std::string size = format_line("%.2f MiB", subject.bytes / (1 << 20));
  const std::string params = format_line("%.2f M", subject.params / 1e6);
  const std::string speed = format_line("%.2f ± %.2f", stats.mean, stats.stddev);
  // "±" is two bytes and one column.
  return format_line("| %-*s | %10s | %10s | %-15s | %7d | %16s | %21s |\n", model_width(subject),
                     (subject.model + " " + subject.format).c_str(), size.c_str(), params.c_str(),
                     subject.backend.c_str(), subject.threads, row.test.c_str(), speed.c_str());
}

std::string bench_json_row(const BenchSubject& subject, const BenchRow& row) {
  const SampleStats stats = sample_stats(row.samples);
  nlohmann::ordered_json json = {{"model", subject.model},
                                 {"format", subject.format},
                                 {"model_size", static_cast<int64_t>(subject.bytes)},
                                 {"model_n_params", static_cast<int64_t>(subject.params)},
                                 {"backend", subject.backend},
                                 {"n_threads", subject.threads},
                                 {"test", row.test},
                                 {"n_prompt", row.num_prompt},
                                 {"n_gen", row.num_gen},
                                 {"n_depth", row.depth},
                                 {"avg_ts", stats.mean},
                                 {"stddev_ts", stats.stddev},
                                 {"best_ts", stats.best},
                                 {"median_ts", stats.median},
                                 {"samples_ts", row.samples}};
  if (row.device_step_us > 0) {
    json["device_step_us"] = row.device_step_us;
    json["device_idle_us"] = row.device_idle_us;
    json["device_graphs"] = row.device_graphs;
  }
  return json.dump() + "\n";
}

std::string bench_device_note(const BenchRow& row) {
  if (row.device_step_us <= 0) return "";
  return fmt::format(
      "{}: a step takes {:.3f} ms on the GPU, which idles {:.1f} us before it; it launches {:.2f} "
      "captured graphs\n",
      row.test, row.device_step_us / 1e3, row.device_idle_us, row.device_graphs);
}

}  // namespace weft
