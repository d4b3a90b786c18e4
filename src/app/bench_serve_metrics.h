#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"

namespace weft {

/// What one request of a benchmark came to. Times in seconds; the definitions are those of
/// `vllm bench serve`: a frame counts as token time when it has choices.
struct RequestOutcome {
  bool success = false;
  double start_time = 0;    ///< when it was sent, on any fixed clock
  double ttft = 0;          ///< from there to the first frame
  std::vector<double> itl;  ///< between one frame and the next
  double latency = 0;       ///< from start_time to the last frame
  double queue_time = 0;    ///< waiting for --max-concurrency before start_time
  int64_t prompt_len = 0;
  int64_t output_len = 0;  ///< by the server's usage, else by the tokenizer
  std::string text;
  std::string error;
};

/// Percentile `p` (0 to 100) with linear interpolation, as numpy.percentile; 0 for no values.
double percentile(std::vector<double> values, double p);

struct LatencySummary {
  double mean = 0, median = 0, std = 0;                ///< ms; std of the population
  std::vector<std::pair<double, double>> percentiles;  ///< (p, ms)
};
LatencySummary summarize(const std::vector<double>& seconds,
                         const std::vector<double>& percentiles);

/// What a good request keeps, in ms; absent: any.
struct ServiceLevel {
  std::string name;  ///< ttft, tpot, e2el
  double limit_ms = 0;
};
/// From "NAME:MILLISECONDS" words. Errors name the word and what is allowed.
Result<std::vector<ServiceLevel>> parse_goodput(const std::vector<std::string>& words);
/// From "25,50,99.9". Errors name the flag and the range.
Result<std::vector<double>> parse_percentiles(const std::string& list);

struct ServeMetrics {
  int64_t completed = 0, failed = 0, total_input = 0, total_output = 0;
  double duration = 0;  ///< s
  double request_throughput = 0, request_goodput = 0, output_throughput = 0;
  double total_token_throughput = 0;
  double max_output_tokens_per_s = 0;   ///< in the best second
  int64_t max_concurrent_requests = 0;  ///< at once, of those that succeeded
  LatencySummary ttft, tpot, itl, e2el, queue, e2el_with_queue;
};
ServeMetrics compute_metrics(const std::vector<RequestOutcome>& outcomes, double duration,
                             const std::vector<double>& percentiles,
                             const std::vector<ServiceLevel>& goodput);

}  // namespace weft
