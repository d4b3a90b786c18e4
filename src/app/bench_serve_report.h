#pragma once

#include <optional>
#include <string>
#include <vector>

#include "app/bench_serve.h"
#include "app/bench_serve_drafts.h"
#include "app/bench_serve_metrics.h"

namespace weft {

/// The run as the report knows it.
struct ServeReport {
  const BenchServeOptions& options;
  const ServeMetrics& metrics;
  const std::vector<RequestOutcome>& outcomes;
  std::string model_id, tokenizer_id;  ///< tokenizer_id empty: none
  std::string date;                    ///< YYYYmmdd-HHMMSS, local time
  bool has_goodput = false;
  std::optional<DraftCounts> drafts;  ///< of the server during the run
};

/// The names of --percentile-metrics. Errors name the wrong one.
Result<std::vector<std::string>> parse_metric_names(const std::string& list);

/// The closing block, line by line as `vllm bench serve` prints it.
std::string result_block(const ServeReport& report);

/// The same as one JSON object with vLLM's keys; details of each request with --save-detailed.
std::string result_json(const ServeReport& report);

/// --result-dir and --result-filename, or LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json.
std::string result_path(const ServeReport& report);

}  // namespace weft
