#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <vector>

namespace CLI {
class App;
}

namespace weft {

/// `weft bench serve`: names, defaults and meaning of the flags are those of `vllm bench serve`.
struct BenchServeOptions {
  // The server.
  std::string backend = "openai";  ///< openai, vllm: completions; openai-chat: chat
  std::string base_url;            ///< empty: http://host:port
  std::string host = "127.0.0.1";
  int port = 8000;
  std::string endpoint;           ///< empty: the backend's own
  std::string model;              ///< empty: the first of /v1/models
  std::string served_model_name;  ///< what requests say; empty: model
  std::string tokenizer;          ///< a directory or ORG/NAME; empty: model
  bool skip_tokenizer_init = false;
  std::vector<std::string> headers;  ///< KEY=VALUE
  std::string api_key;               ///< empty: OPENAI_API_KEY
  bool insecure = false;             ///< TLS certificates are not checked
  int ready_check_timeout_s = 0;     ///< 0: no test request

  // What is asked.
  std::string dataset_name = "random";
  std::string dataset_path;
  int64_t num_prompts = 1000;
  std::optional<int64_t> input_len, output_len;  ///< override those of the data set
  int64_t random_input_len = 1024;
  int64_t random_output_len = 128;
  double random_range_ratio = 0;
  int64_t random_prefix_len = 0;
  int64_t repetition_prefix_len = 256;
  int64_t repetition_suffix_len = 256;
  int64_t repetition_num_prefixes = 10;
  int64_t repetition_output_len = 128;
  int64_t custom_output_len = 256;  ///< -1: each line's "output_tokens"
  std::optional<int64_t> sharegpt_output_len;
  bool skip_chat_template = false;
  bool disable_shuffle = false;
  bool no_oversample = false;
  uint64_t seed = 0;
  bool ignore_eos = false;
  std::optional<int64_t> logprobs;
  std::optional<double> temperature, top_p, min_p;
  std::optional<int64_t> top_k;
  std::optional<double> frequency_penalty, presence_penalty, repetition_penalty;
  std::string extra_body;  ///< JSON object
  std::string request_id_prefix;

  // When.
  double request_rate = std::numeric_limits<double>::infinity();  ///< a second
  double burstiness = 1;                                          ///< shape of the gamma intervals
  std::string ramp_up_strategy;                                   ///< linear, exponential, or empty
  std::optional<double> ramp_up_start_rps, ramp_up_end_rps;
  std::optional<int64_t> max_concurrency;
  int64_t num_warmups = 0;

  // What is told.
  std::string percentile_metrics = "ttft,tpot,itl";
  std::string metric_percentiles = "99";
  std::vector<std::string> goodput;  ///< NAME:MILLISECONDS
  bool disable_tqdm = false;
  bool save_result = false, save_detailed = false, append_result = false;
  std::string result_dir, result_filename;
  std::vector<std::string> metadata;  ///< KEY=VALUE
  std::string label;
};

/// The flags. `options` must outlive `app`.
void add_bench_serve_options(CLI::App& app, BenchServeOptions& options);

/// Runs the benchmark, prints the block, returns the exit code: 1 when no request was answered.
/// `openai_api_key`: the environment's, may be null.
int bench_serve_command(const BenchServeOptions& options, const char* openai_api_key);

}  // namespace weft
