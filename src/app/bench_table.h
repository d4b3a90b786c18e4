#pragma once

#include <string>
#include <vector>

namespace weft {

/// Facts printed in every row.
struct BenchSubject {
  std::string model;
  double bytes = 0;  ///< of the weights in memory
  double params = 0;
  std::string backend;  ///< "cpu amx"
  std::string format;   ///< bf16, int8, ...
  int threads = 0;
};

/// One measured row: tokens per second of each sample.
struct BenchRow {
  std::string test;  ///< pp512, tg128, tg32 @ d4096
  int64_t num_prompt = 0, num_gen = 0, depth = 0;
  std::vector<double> samples;
  /// Of its steps that only decode, as the GPU tells (0: it does not): medians in microseconds.
  double device_step_us = 0, device_idle_us = 0;
  double device_graphs = 0;  ///< captured graphs that such a step launched, on the mean
};

struct SampleStats {
  double mean = 0, stddev = 0, best = 0, median = 0;
};
/// Standard deviation with n - 1; 0 for one sample.
SampleStats sample_stats(std::vector<double> samples);

/// Lines of a Markdown table in the style of llama-bench: model, size, params, backend, threads,
/// test, t/s (mean ± deviation).
std::string bench_table_header(const BenchSubject& subject);
std::string bench_table_row(const BenchSubject& subject, const BenchRow& row);
/// A line for below the table on what the GPU told of the row; empty if nothing.
std::string bench_device_note(const BenchRow& row);
/// One JSON object on one line, with every sample.
std::string bench_json_row(const BenchSubject& subject, const BenchRow& row);

}  // namespace weft
