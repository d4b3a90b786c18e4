#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "app/bench_serve_metrics.h"
#include "app/engine_options.h"
#include "sched/speculation_counts.h"

namespace CLI {
class App;
}

namespace weft {

/// `weft bench speculate`: the same requests through the engine under several configurations.
struct BenchSpeculateOptions {
  EngineOptions engine;
  std::vector<std::string> configs = {"none", "ngram-5", "mtp-1", "mtp-3", "hybrid-3-5"};
  std::string dataset_path;  ///< empty: the generated mix
  std::vector<std::string> tasks;
  int64_t num_prompts = 64;
  int64_t num_warmups = 1;  ///< requests before every run, the first of the list
  int64_t max_concurrency = 1;
  int64_t random_input_len = 0;  ///< prompts of so many random tokens instead of texts; 0: none
  int64_t output_len = 0;        ///< 0: the data's own, or 128
  double temperature = 0;
  bool ignore_eos = false;
  int64_t repetitions = 1;
  std::string markdown, json, plot;  ///< files; markdown empty: standard output
};

/// The flags. `options` must outlive `app`.
void add_bench_speculate_options(CLI::App& app, BenchSpeculateOptions& options);
int bench_speculate_command(const BenchSpeculateOptions& options);

/// A configuration by its short name (none, ngram-K, mtp-K, hybrid-STEPS-K) or as JSON.
Result<SpeculationConfig> parse_bench_config(const std::string& text);

/// One request of the data, before it meets a tokenizer.
struct SpeculateItem {
  std::string task;
  std::string messages;  ///< JSON; empty: `prompt` is a plain text
  std::string tools;     ///< JSON or empty
  std::string prompt;
  bool enable_thinking = false;
  std::vector<std::string> images;  ///< paths beside the data file
  int64_t max_tokens = 0;           ///< 0: not said
};

/// JSON lines with `messages` or `prompt`, or a JSON array of ShareGPT conversations; `task`,
/// `max_tokens` (or `output_tokens`), `tools` and `enable_thinking` are read where they are.
Result<std::vector<SpeculateItem>> read_speculate_items(const std::string& path);
/// Chats of four kinds by turns: copying, rewriting, a question on a text, a story.
std::vector<SpeculateItem> generate_speculate_items(int64_t count, uint64_t seed);
/// At most `count` of the wanted tasks (none: all), by turns from each.
std::vector<SpeculateItem> choose_items(const std::vector<SpeculateItem>& items,
                                        const std::vector<std::string>& tasks, int64_t count);

/// What one task, or all, came to under one configuration.
struct SpeculateTotals {
  int64_t requests = 0, prompt_tokens = 0, output_tokens = 0;
  int64_t different = 0;      ///< answers that are not those of `none`
  double seconds = 0;         ///< sum of the requests' times
  double decode_seconds = 0;  ///< of them, behind the first token
  SpeculationCounts counts;
};

struct SpeculateRun {
  std::string name;
  int num_speculative_tokens = 0;
  std::string refused;               ///< why it did not run, or empty
  std::vector<double> output_rates;  ///< tokens a second, one a repetition
  ServeMetrics metrics;              ///< latencies of all repetitions
  SpeculateTotals all;
  std::map<std::string, SpeculateTotals> tasks;
};

struct SpeculateReport {
  std::string model, device, format, data;
  int threads = 0;
  int64_t num_prompts = 0, left_out = 0, num_warmups = 0, max_concurrency = 1;
  double temperature = 0;
  std::vector<std::string> tasks;  ///< in order of appearance
  std::vector<SpeculateRun> runs;
};

/// The middle one of the rates; 0 for none.
double output_rate(const SpeculateRun& run);
std::string speculate_markdown(const SpeculateReport& report);
std::string speculate_json(const SpeculateReport& report);
/// Tokens a second of each configuration, and how often each draft was accepted.
std::string speculate_svg(const SpeculateReport& report);

}  // namespace weft
