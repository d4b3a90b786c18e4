// weft bench serve: load for any OpenAI server, measured as `vllm bench serve` measures it.

#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <ctime>
#include <deque>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <random>

#include "app/bench_serve_client.h"
#include "app/bench_serve_data.h"
#include "app/bench_serve_report.h"
#include "app/cli.h"
#include "app/descriptor_limit.h"
#include "app/model_location.h"

namespace weft {
namespace {

using nlohmann::json;
using Clock = StreamClient::Clock;
using std::chrono::duration;

constexpr auto kReadyPause = std::chrono::seconds(1);  // between two attempts

/// One line on a terminal's standard error, redrawn.
class ProgressLine {
 public:
  ProgressLine(bool wanted, int64_t total)
      : on_(wanted && isatty(STDERR_FILENO) == 1), total_(total) {}
  ~ProgressLine() {
    if (on_) std::fprintf(stderr, "\n");
  }
  void update(int64_t done) {
    const auto now = Clock::now();
    if (!on_ || (done < total_ && now - drawn_ < std::chrono::milliseconds(200))) return;
    drawn_ = now;
    const double seconds = duration<double>(now - started_).count();
    std::fprintf(stderr, "\r%3.0f%% %lld/%lld requests, %.1f s, %.2f req/s ",
                 100.0 * static_cast<double>(done) / static_cast<double>(total_),
                 static_cast<long long>(done), static_cast<long long>(total_), seconds,
                 seconds > 0 ? static_cast<double>(done) / seconds : 0);
  }

 private:
  const bool on_;
  const int64_t total_;
  const Clock::time_point started_ = Clock::now();
  Clock::time_point drawn_{};
};

bool is_chat(const BenchServeOptions& o) {
  return o.backend == "openai-chat";
}

Result<void> check_options(const BenchServeOptions& o) {
  if (!(o.request_rate > 0)) return invalid_argument("--request-rate: it must be more than 0");
  if (!(o.burstiness > 0)) return invalid_argument("--burstiness: it must be more than 0");
  if (!o.ramp_up_strategy.empty()) {
    if (!std::isinf(o.request_rate)) {
      return invalid_argument(
          "--ramp-up-strategy: the ramp sets the rate; leave out --request-rate");
    }
    if (!o.ramp_up_start_rps || !o.ramp_up_end_rps || !(*o.ramp_up_start_rps > 0) ||
        *o.ramp_up_end_rps < *o.ramp_up_start_rps) {
      return invalid_argument(
          "--ramp-up-strategy: it needs 0 < --ramp-up-start-rps <= --ramp-up-end-rps");
    }
  }
  const std::string suffix = is_chat(o) ? "chat/completions" : "completions";
  const bool chat_path = o.endpoint.ends_with("chat/completions");
  if (!o.endpoint.empty() && (!o.endpoint.ends_with(suffix) || chat_path != is_chat(o))) {
    return invalid_argument("--endpoint: for --backend " + o.backend + " it must end with " +
                            suffix);
  }
  for (const auto* list : {&o.headers, &o.metadata}) {
    for (const std::string& pair : *list) {
      if (pair.find('=') != std::string::npos) continue;
      return invalid_argument(std::string(list == &o.headers ? "--header" : "--metadata") + ": '" +
                              pair + "' is not KEY=VALUE");
    }
  }
  return {};
}

std::string base_url(const BenchServeOptions& o) {
  std::string base = o.base_url;
  while (base.ends_with('/')) base.pop_back();
  if (!base.empty()) return base;
  const bool v6 = o.host.find(':') != std::string::npos;
  return "http://" + (v6 ? "[" + o.host + "]" : o.host) + ":" + std::to_string(o.port);
}

std::vector<std::string> headers_of(const BenchServeOptions& o, const char* openai_api_key) {
  std::vector<std::string> out;
  std::string key = o.api_key;
  if (key.empty() && openai_api_key != nullptr) key = openai_api_key;
  if (!key.empty()) out.push_back("Authorization: Bearer " + key);
  for (const std::string& pair : o.headers) {
    const size_t at = pair.find('=');
    out.push_back(pair.substr(0, at) + ": " + pair.substr(at + 1));
  }
  return out;
}

struct ServedModel {
  std::string id, root;
};

Result<ServedModel> first_model(StreamClient& client, const std::string& base) {
  const std::string url = base + "/v1/models";
  const json answer = json::parse(TRY(client.get(url)), nullptr, false);
  if (answer.is_object() && answer.contains("data") && answer["data"].is_array() &&
      !answer["data"].empty() && answer["data"][0].is_object()) {
    const json& model = answer["data"][0];
    ServedModel out{.id = model.value("id", "")};
    out.root = model.contains("root") && model["root"].is_string()
                   ? model["root"].get<std::string>()
                   : out.id;
    if (!out.id.empty()) return out;
  }
  return unavailable(url + ": the answer lists no model; name one with --model");
}

/// Everything of a request but its prompt and length.
Result<json> common_body(const BenchServeOptions& o, const std::string& model) {
  json body = {{"model", model}, {"stream", true}, {"stream_options", {{"include_usage", true}}}};
  const auto add = [&body](const char* name, const auto& value) {
    if (value) body[name] = *value;
  };
  add("temperature", o.temperature);
  add("top_p", o.top_p);
  add("top_k", o.top_k);
  add("min_p", o.min_p);
  add("frequency_penalty", o.frequency_penalty);
  add("presence_penalty", o.presence_penalty);
  add("repetition_penalty", o.repetition_penalty);
  if (o.logprobs && is_chat(o)) {
    body["logprobs"] = true;
    body["top_logprobs"] = *o.logprobs;
  } else if (o.logprobs) {
    body["logprobs"] = *o.logprobs;
  }
  if (o.ignore_eos || o.dataset_name == "random") body["ignore_eos"] = true;
  if (o.extra_body.empty()) return body;
  const json extra = json::parse(o.extra_body, nullptr, false);
  if (!extra.is_object()) return invalid_argument("--extra-body: it must be a JSON object");
  body.update(extra);
  return body;
}

/// The run: who is sent when, what came of it.
class Benchmark {
 public:
  Benchmark(const BenchServeOptions& options, StreamClient& client, json common,
            std::vector<BenchPrompt> prompts)
      : options_(options),
        client_(client),
        common_(std::move(common)),
        prompts_(std::move(prompts)),
        prefix_(options.request_id_prefix) {
    if (prefix_.empty()) prefix_ = "bench-" + std::to_string(std::random_device()()) + "-";
  }

  Result<void> wait_until_ready();
  void warm_up();
  /// Sends everything; returns the seconds it took.
  double run();
  std::vector<RequestOutcome>& outcomes() { return outcomes_; }

 private:
  std::string body_of(const BenchPrompt& prompt) const;

  const BenchServeOptions& options_;
  StreamClient& client_;
  const json common_;
  const std::vector<BenchPrompt> prompts_;
  std::string prefix_;
  std::vector<RequestOutcome> outcomes_;
};

std::string Benchmark::body_of(const BenchPrompt& prompt) const {
  json body = common_;
  if (is_chat(options_)) {
    body["messages"] = {{{"role", "user"}, {"content", prompt.text}}};
    if (!body.contains("max_completion_tokens")) body["max_completion_tokens"] = prompt.output_len;
  } else {
    body["prompt"] = prompt.text;
    if (!body.contains("max_tokens")) body["max_tokens"] = prompt.output_len;
  }
  return body.dump(-1, ' ', false, json::error_handler_t::replace);
}

Result<void> Benchmark::wait_until_ready() {
  if (options_.ready_check_timeout_s == 0) return {};
  std::printf("Starting initial single prompt test run...\n");
  const auto end = Clock::now() + std::chrono::seconds(options_.ready_check_timeout_s);
  while (true) {
    RequestOutcome outcome;
    client_.start(body_of(prompts_.front()), prefix_ + "test", outcome);
    client_.wait(Clock::time_point::max());
    if (outcome.success) break;
    if (Clock::now() + kReadyPause >= end) {
      return unavailable("the server gave no answer within --ready-check-timeout-sec: " +
                         outcome.error);
    }
    const timespec pause{kReadyPause.count(), 0};
    nanosleep(&pause, nullptr);
  }
  std::printf("Initial test run completed.\n");
  return {};
}

void Benchmark::warm_up() {
  const int64_t n = options_.num_warmups;
  if (n == 0) return;
  std::printf("Warming up with %lld requests...\n", static_cast<long long>(n));
  const std::string body = body_of(prompts_.front());
  std::vector<RequestOutcome> outcomes(static_cast<size_t>(n));
  const int64_t at_once = options_.max_concurrency.value_or(n);
  int64_t sent = 0, done = 0;
  while (done < n) {
    for (; sent < n && sent - done < at_once; ++sent) {
      client_.start(body, prefix_ + "warmup-" + std::to_string(sent),
                    outcomes[static_cast<size_t>(sent)]);
    }
    done += static_cast<int64_t>(client_.wait(Clock::time_point::max()));
  }
}

double Benchmark::run() {
  const size_t n = prompts_.size();
  outcomes_.assign(n, {});
  std::vector<std::string> bodies;
  for (size_t i = 0; i < n; ++i) {
    bodies.push_back(body_of(prompts_[i]));
    outcomes_[i].prompt_len = prompts_[i].prompt_len;
  }
  const std::vector<double> due = arrival_times(options_, n);
  const size_t at_once =
      static_cast<size_t>(options_.max_concurrency.value_or(static_cast<int64_t>(n)));
  ProgressLine progress(!options_.disable_tqdm, static_cast<int64_t>(n));
  const Clock::time_point start = Clock::now();
  std::vector<Clock::time_point> at(n);
  for (size_t i = 0; i < n; ++i) {
    at[i] = start + std::chrono::duration_cast<Clock::duration>(duration<double>(due[i]));
  }
  size_t sent = 0, done = 0;
  while (done < n) {
    while (sent < n && sent - done < at_once && at[sent] <= Clock::now()) {
      RequestOutcome& outcome = outcomes_[sent];
      client_.start(std::move(bodies[sent]), prefix_ + std::to_string(sent), outcome);
      outcome.queue_time =
          outcome.start_time - duration<double>(at[sent].time_since_epoch()).count();
      ++sent;
      if (sent % 16 == 0) done += client_.wait(Clock::now());  // answers do not wait for a burst
    }
    const bool may_send = sent < n && sent - done < at_once;
    done += client_.wait(may_send ? at[sent] : Clock::time_point::max());
    progress.update(static_cast<int64_t>(done));
  }
  return duration<double>(Clock::now() - start).count();
}

/// Token counts of servers that tell none: by the tokenizer, or one a frame.
Result<void> count_outputs(std::vector<RequestOutcome>& outcomes, const Tokenizer* tokenizer) {
  for (RequestOutcome& o : outcomes) {
    if (!o.success || o.output_len > 0) continue;
    o.output_len = tokenizer != nullptr
                       ? static_cast<int64_t>(TRY(tokenizer->encode(o.text, false)).size())
                       : static_cast<int64_t>(o.itl.size()) + 1;
  }
  return {};
}

void print_errors(const std::vector<RequestOutcome>& outcomes) {
  int shown = 0;
  for (const RequestOutcome& o : outcomes) {
    if (o.success) continue;
    if (shown == 0) std::printf("Failed requests during benchmark run (the first 10):\n");
    if (shown == 10) break;
    std::printf("Error %d: %s\n", shown++, o.error.c_str());
  }
}

Result<void> save(const ServeReport& report) {
  const BenchServeOptions& o = report.options;
  if (!o.save_result && !o.append_result) return {};
  const std::string path = result_path(report);
  std::error_code error;
  if (!o.result_dir.empty()) std::filesystem::create_directories(o.result_dir, error);
  const bool has_line = o.append_result && std::filesystem::exists(path, error) &&
                        std::filesystem::file_size(path, error) > 0;
  std::ofstream file(path, o.append_result ? std::ios::app : std::ios::trunc);
  if (has_line) file << "\n";
  file << result_json(report);
  file.close();
  if (!file) return unavailable("--result-filename: " + path + " can't be written");
  return {};
}

std::string local_date() {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  char text[32];
  std::strftime(text, sizeof(text), "%Y%m%d-%H%M%S", &parts);
  return text;
}

void print_traffic(const BenchServeOptions& o) {
  std::printf("Starting main benchmark run...\n");
  if (o.ramp_up_strategy.empty()) {
    std::printf("Traffic request rate: %g\n", o.request_rate);
  } else {
    std::printf("Traffic ramp-up strategy: %s, %g to %g requests a second\n",
                o.ramp_up_strategy.c_str(), *o.ramp_up_start_rps, *o.ramp_up_end_rps);
  }
  std::printf("Burstiness factor: %g (%s)\n", o.burstiness,
              o.burstiness == 1 ? "Poisson process" : "Gamma distribution");
  std::printf("Maximum request concurrency: %s\n",
              o.max_concurrency ? std::to_string(*o.max_concurrency).c_str() : "None");
  std::fflush(stdout);
}

struct Texts {
  std::string id;  ///< of the tokenizer; empty: none
  std::optional<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat_template;
};

/// The tokenizer, and the template where prompts of a file are to go through it. A tokenizer that
/// nobody named may be absent.
Result<Texts> load_texts(const BenchServeOptions& o, const std::string& model) {
  Texts out;
  if (o.skip_tokenizer_init) return out;
  const std::string id = o.tokenizer.empty() ? model : o.tokenizer;
  Result<std::string> directory = locate_model(id, ModelParts::kTokenizer);
  Result<Tokenizer> loaded = directory ? Tokenizer::load(*directory) : directory.error();
  if (!loaded && !o.tokenizer.empty()) return with_context(loaded.error(), "--tokenizer");
  if (!loaded) {
    std::fprintf(stderr, "weft: note: no tokenizer (%s): prompts are measured in words\n",
                 loaded.error().message.c_str());
    return out;
  }
  out.id = id;
  out.tokenizer.emplace(std::move(loaded).value());
  if (o.dataset_name == "custom" && !o.skip_chat_template && !is_chat(o)) {
    Result<ChatTemplate> found = ChatTemplate::load(*directory);
    if (found) out.chat_template.emplace(std::move(found).value());
  }
  return out;
}

Result<int> bench_serve(const BenchServeOptions& o, const char* openai_api_key) {
  TRY(check_options(o));
  const std::vector<double> percentiles = TRY(parse_percentiles(o.metric_percentiles));
  const std::vector<ServiceLevel> goodput = TRY(parse_goodput(o.goodput));
  TRY(parse_metric_names(o.percentile_metrics));
  raise_descriptor_limit();
  const std::string base = base_url(o);
  const std::string endpoint = !o.endpoint.empty() ? o.endpoint
                               : is_chat(o)        ? "/v1/chat/completions"
                                                   : "/v1/completions";
  const auto client = TRY(StreamClient::create(
      {.url = base + endpoint, .headers = headers_of(o, openai_api_key), .insecure = o.insecure}));
  ServedModel model{.id = o.model, .root = o.model};
  if (o.model.empty()) {
    model = TRY(first_model(*client, base));
    std::printf("Model: %s, the server's first\n", model.id.c_str());
  }
  const std::string name = o.served_model_name.empty() ? model.id : o.served_model_name;
  const json common = TRY(common_body(o, name));

  const Texts texts = TRY(load_texts(o, model.root));
  const Tokenizer* tokenizer = texts.tokenizer ? &*texts.tokenizer : nullptr;
  const ChatTemplate* chat_template = texts.chat_template ? &*texts.chat_template : nullptr;
  Benchmark benchmark(o, *client, common, TRY(make_bench_prompts(o, tokenizer, chat_template)));
  TRY(benchmark.wait_until_ready());
  benchmark.warm_up();
  print_traffic(o);
  const auto drafted = [&]() -> std::optional<DraftCounts> {  // not every server tells
    const Result<std::string> page = client->get(base + "/metrics");
    return page ? read_draft_counts(*page) : std::nullopt;
  };
  const std::optional<DraftCounts> drafted_before = drafted();
  const double seconds = benchmark.run();
  TRY(count_outputs(benchmark.outcomes(), tokenizer));
  const ServeMetrics metrics = compute_metrics(benchmark.outcomes(), seconds, percentiles, goodput);
  const ServeReport report{.options = o,
                           .metrics = metrics,
                           .outcomes = benchmark.outcomes(),
                           .model_id = model.id,
                           .tokenizer_id = texts.id,
                           .date = local_date(),
                           .has_goodput = !goodput.empty(),
                           .drafts = drafts_between(drafted_before, drafted())};
  print_errors(benchmark.outcomes());
  std::fputs(result_block(report).c_str(), stdout);
  TRY(save(report));
  return metrics.completed > 0 ? kExitOk : kExitRuntime;
}

}  // namespace

int bench_serve_command(const BenchServeOptions& options, const char* openai_api_key) {
  const Result<int> code = bench_serve(options, openai_api_key);
  return code ? *code : report_error(code.error());
}

}  // namespace weft
