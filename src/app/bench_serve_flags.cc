#include <CLI/CLI.hpp>

#include "app/bench_serve.h"

namespace weft {
namespace {

const auto kCount = CLI::Range(int64_t{0}, int64_t{1} << 30);

void add_server_flags(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--backend,--endpoint-type", o.backend,
                 "openai, vllm: the completions API; openai-chat: the chat API")
      ->check(CLI::IsMember({"openai", "vllm", "openai-chat", "sglang", "lmdeploy", "llama.cpp"}))
      ->capture_default_str();
  app.add_option("--base-url", o.base_url, "http(s)://HOST[:PORT], instead of host and port");
  app.add_option("--host", o.host, "Address of the server")->capture_default_str();
  app.add_option("--port", o.port, "Port of the server")
      ->check(CLI::Range(1, 65535))
      ->capture_default_str();
  app.add_option("--endpoint", o.endpoint,
                 "Path of the API; by the backend /v1/completions or /v1/chat/completions");
  app.add_option("--model", o.model, "Name of the model; the server's first when absent");
  app.add_option("--served-model-name", o.served_model_name, "What requests call it, if not so");
  app.add_option("--tokenizer", o.tokenizer,
                 "A directory or ORG/NAME; that of the model when absent");
  app.add_option("--tokenizer-mode")->description("Taken for vLLM's sake; there is one kind");
  app.add_flag("--trust-remote-code")->description("Taken for vLLM's sake; no code is ever run");
  app.add_flag("--skip-tokenizer-init", o.skip_tokenizer_init,
               "No tokenizer: random prompts are made of words");
  app.add_option("--header", o.headers, "KEY=VALUE pairs, sent with each request")->expected(0, -1);
  app.add_option("--api-key", o.api_key,
                 "Bearer token; OPENAI_API_KEY of the environment if absent");
  app.add_flag("--insecure", o.insecure, "Do not check TLS certificates");
  app.add_option("--ready-check-timeout-sec", o.ready_check_timeout_s,
                 "Wait so long for a first answer; 0: start at once")
      ->check(CLI::Range(0, 1 << 20))
      ->capture_default_str();
}

void add_data_flags(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--dataset-name", o.dataset_name, "Where the prompts come from")
      ->check(CLI::IsMember({"random", "custom", "sharegpt", "prefix_repetition"}))
      ->capture_default_str();
  app.add_option("--dataset-path", o.dataset_path,
                 "custom: JSON lines with \"prompt\"; sharegpt: its JSON file");
  app.add_option("--num-prompts", o.num_prompts, "Requests")->capture_default_str();
  app.add_option("--input-len", o.input_len, "Input length of any data set")->check(kCount);
  app.add_option("--output-len", o.output_len, "Output length of any data set")->check(kCount);
  app.add_option("--random-input-len", o.random_input_len, "Prompt tokens of a random request")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--random-output-len", o.random_output_len, "Tokens asked of a random request")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--random-range-ratio", o.random_range_ratio,
                 "Lengths are drawn from [len * (1 - r), len * (1 + r)], r in [0, 1)")
      ->capture_default_str();
  app.add_option("--random-prefix-len", o.random_prefix_len,
                 "Tokens before, the same in each random request")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--prefix-repetition-prefix-len", o.repetition_prefix_len, "Tokens of a prefix")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--prefix-repetition-suffix-len", o.repetition_suffix_len, "Tokens after it")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--prefix-repetition-num-prefixes", o.repetition_num_prefixes, "Prefixes")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30))
      ->capture_default_str();
  app.add_option("--prefix-repetition-output-len", o.repetition_output_len, "Tokens asked")
      ->check(kCount)
      ->capture_default_str();
  app.add_option("--custom-output-len", o.custom_output_len,
                 "Tokens asked of a custom request; -1: \"output_tokens\" of its line")
      ->capture_default_str();
  app.add_option("--sharegpt-output-len", o.sharegpt_output_len,
                 "Tokens asked; those of the recorded answer when absent")
      ->check(kCount);
  app.add_flag("--skip-chat-template", o.skip_chat_template,
               "custom, completions: prompts go out as they stand in the file");
  app.add_flag("--disable-shuffle", o.disable_shuffle, "Keep the order of the file");
  app.add_flag("--no-oversample", o.no_oversample,
               "Send fewer than --num-prompts when the file has fewer");
  app.add_option("--seed", o.seed, "Of prompts, lengths and arrival times")->capture_default_str();
}

void add_sampling_flags(CLI::App& app, BenchServeOptions& o) {
  app.add_flag("--ignore-eos", o.ignore_eos,
               "Ask for answers of full length (random data sets do so anyway)");
  app.add_option("--logprobs", o.logprobs, "Log-probabilities a token");
  app.add_option("--temperature", o.temperature, "0 is greedy; the server's default when absent");
  app.add_option("--top-p", o.top_p, "Sent as it is");
  app.add_option("--top-k", o.top_k, "Sent as it is");
  app.add_option("--min-p", o.min_p, "Sent as it is");
  app.add_option("--frequency-penalty", o.frequency_penalty, "Sent as it is");
  app.add_option("--presence-penalty", o.presence_penalty, "Sent as it is");
  app.add_option("--repetition-penalty", o.repetition_penalty, "Sent as it is");
  app.add_option("--extra-body", o.extra_body, "JSON object: further fields of each request");
  app.add_option("--request-id-prefix", o.request_id_prefix, "X-Request-Id is this and a number");
}

void add_traffic_flags(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--request-rate", o.request_rate, "Requests a second; inf: all at once")
      ->capture_default_str();
  app.add_option("--burstiness", o.burstiness,
                 "1: Poisson arrivals; less: more bursty; more: more even")
      ->capture_default_str();
  app.add_option("--ramp-up-strategy", o.ramp_up_strategy, "How the rate grows over the requests")
      ->check(CLI::IsMember({"linear", "exponential"}));
  app.add_option("--ramp-up-start-rps", o.ramp_up_start_rps, "Rate of the first request");
  app.add_option("--ramp-up-end-rps", o.ramp_up_end_rps, "Rate of the last request");
  app.add_option("--max-concurrency", o.max_concurrency, "Requests under way at once")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 20));
  app.add_option("--num-warmups", o.num_warmups, "Requests before those that count")
      ->check(kCount)
      ->capture_default_str();
}

void add_report_flags(CLI::App& app, BenchServeOptions& o) {
  app.add_option("--percentile-metrics", o.percentile_metrics,
                 "Which times are told, of ttft,tpot,itl,e2el,client_queue_time,"
                 "e2el_including_client_queue")
      ->capture_default_str();
  app.add_option("--metric-percentiles", o.metric_percentiles, "Which percentiles: 25,50,99.9")
      ->capture_default_str();
  app.add_option("--goodput", o.goodput,
                 "NAME:MILLISECONDS of ttft, tpot, e2el: requests within all of them are good")
      ->expected(1, -1);
  app.add_flag("--disable-tqdm", o.disable_tqdm, "No progress line");
  app.add_flag("--save-result", o.save_result, "Write the figures to a JSON file");
  app.add_flag("--save-detailed", o.save_detailed, "With the times, texts, errors of each request");
  app.add_flag("--append-result", o.append_result, "Append a line to the file");
  app.add_option("--result-dir", o.result_dir, "Where the file goes; here when absent");
  app.add_option("--result-filename", o.result_filename,
                 "Its name; LABEL-RATEqps[-concurrencyN]-MODEL-DATE.json when absent");
  app.add_option("--metadata", o.metadata, "KEY=VALUE pairs for the file")->expected(0, -1);
  app.add_option("--label", o.label, "Prefix of the file's name; the backend when absent");
}

}  // namespace

void add_bench_serve_options(CLI::App& app, BenchServeOptions& options) {
  add_server_flags(app, options);
  add_data_flags(app, options);
  add_sampling_flags(app, options);
  add_traffic_flags(app, options);
  add_report_flags(app, options);
}

}  // namespace weft
