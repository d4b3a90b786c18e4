// weft bench speculate: what drafts bring, on the same requests under several configurations.
#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <random>
#include <thread>

#include "api/answer.h"
#include "api/chat.h"
#include "app/bench_speculate.h"
#include "app/cli.h"
#include "app/eval_prompt.h"
#include "app/local_engine.h"
#include "app/speculative_config.h"

namespace weft {
namespace {

using Clock = Answer::Clock;

constexpr int64_t kDefaultOutput = 128;

struct PlannedRequest {
  std::string task;
  Request request;
};

/// Text in, requests out; made with the first engine, used by all.
struct Requests {
  std::vector<PlannedRequest> list;
  std::vector<std::string> tasks;  // in order of appearance
  int64_t left_out = 0;
};

Result<void> add_request(const BenchSpeculateOptions& options, const LocalEngine& local,
                         const GenerationDefaults& defaults, const SpeculateItem& item,
                         PlannedRequest planned, Requests& out) {
  Request& request = planned.request;
  const int64_t wanted = options.output_len > 0 ? options.output_len
                         : item.max_tokens > 0  ? item.max_tokens
                                                : kDefaultOutput;
  const auto length = static_cast<int64_t>(request.prompt.size());
  const int64_t room = local.limits().max_model_len - length;
  const SamplingRequest sampling{.temperature = options.temperature,
                                 .max_tokens = std::max<int64_t>(1, std::min(wanted, room)),
                                 .ignore_eos = options.ignore_eos || options.random_input_len > 0};
  // A seed for each, so that sampled answers are the same under every configuration.
  request.sampling = TRY(validate_sampling(sampling, defaults, local.limits(), length,
                                           options.engine.seed + out.list.size() + 1));
  if (std::find(out.tasks.begin(), out.tasks.end(), item.task) == out.tasks.end()) {
    out.tasks.push_back(item.task);
  }
  out.list.push_back(std::move(planned));
  return {};
}

Result<Requests> random_requests(const BenchSpeculateOptions& options, const LocalEngine& local) {
  std::mt19937_64 rng(options.engine.seed);
  Requests out;
  const SpeculateItem item{.task = "random"};
  for (int64_t i = 0; i < options.num_prompts; ++i) {
    PlannedRequest planned{.task = item.task, .request = {}};
    for (int64_t k = 0; k < options.random_input_len; ++k) {
      planned.request.prompt.push_back(
          static_cast<int32_t>(rng() % static_cast<uint64_t>(local.spec().vocab)));
    }
    TRY(add_request(options, local, local.defaults(), item, std::move(planned), out));
  }
  return out;
}

Result<Requests> text_requests(const BenchSpeculateOptions& options, const LocalEngine& local,
                               const std::vector<SpeculateItem>& items) {
  const ChatFrontend chat = TRY(ChatFrontend::load(local.plan().directory));
  const GenerationDefaults defaults = with_eos_of(chat.tokenizer(), local.defaults());
  const EvalImages images{
      .reader = image_reader_of(local.plan()),
      .directory = std::filesystem::path(options.dataset_path).parent_path().string()};
  Requests out;
  for (const SpeculateItem& item : items) {
    if (!item.images.empty() && !images.reader) {
      ++out.left_out;
      continue;
    }
    std::vector<int32_t> ids;
    if (item.messages.empty()) {
      ids = TRY(chat.encode_text(item.prompt));
    } else {
      const ChatRequest request{
          .messages = item.messages,
          .tools = item.tools,
          .template_kwargs = {{"enable_thinking", item.enable_thinking ? "true" : "false"}}};
      ids = TRY(chat.encode(request)).ids;
    }
    PlannedRequest planned{.task = item.task, .request = {}};
    TRY(set_eval_prompt(images, ids, item.images, planned.request));
    TRY(add_request(options, local, defaults, item, std::move(planned), out));
  }
  return out;
}

/// Sends every request, so many at once, and waits for all; answers in the order of the requests.
Result<std::vector<Answer>> answer_all(Engine& engine, const std::vector<PlannedRequest>& list,
                                       int64_t at_once) {
  std::vector<Answer> answers(list.size());
  std::atomic<size_t> next{0};
  std::mutex mutex;
  std::optional<Error> failed;
  const auto work = [&] {
    for (size_t i = next++; i < list.size(); i = next++) {
      AnswerStream stream(nullptr, {});
      const Result<SeqId> id = engine.submit(list[i].request, stream);
      if (id.ok()) answers[i] = stream.wait();
      const std::lock_guard lock(mutex);
      if (!id.ok()) failed = id.error();
      if (id.ok() && answers[i].error) failed = *answers[i].error;
      if (failed) return;
    }
  };
  std::vector<std::thread> workers;
  const size_t count = std::min(static_cast<size_t>(at_once), list.size());
  for (size_t i = 0; i < count; ++i) workers.emplace_back(work);
  for (std::thread& worker : workers) worker.join();
  if (failed) return *failed;
  return answers;
}

RequestOutcome outcome_of(const Answer& answer, Clock::time_point start) {
  RequestOutcome out{.success = true, .start_time = seconds_between(start, answer.started)};
  out.ttft = seconds_between(answer.started, answer.first_token);
  out.latency = seconds_between(answer.started, answer.token_times.back());
  for (size_t i = 1; i < answer.token_times.size(); ++i) {
    out.itl.push_back(seconds_between(answer.token_times[i - 1], answer.token_times[i]));
  }
  out.prompt_len = answer.usage.prompt_tokens;
  out.output_len = static_cast<int64_t>(answer.tokens.size());
  return out;
}

void add_answer(SpeculateTotals& totals, const Answer& answer, const std::vector<int32_t>* plain) {
  ++totals.requests;
  totals.prompt_tokens += answer.usage.prompt_tokens;
  totals.output_tokens += static_cast<int64_t>(answer.tokens.size());
  totals.seconds += seconds_between(answer.started, answer.finished);
  totals.decode_seconds += seconds_between(answer.first_token, answer.token_times.back());
  totals.counts.add(answer.speculation);
  if (plain != nullptr && *plain != answer.tokens) ++totals.different;
}

/// The benchmark as it goes: configurations by turns, `repetitions` times.
class Bench {
 public:
  Bench(const BenchSpeculateOptions& options, std::vector<SpeculationConfig> configs,
        std::vector<SpeculateItem> items)
      : options_(options), configs_(std::move(configs)), items_(std::move(items)) {}

  Result<SpeculateReport> run() {
    for (size_t i = 0; i < configs_.size(); ++i) {
      const SpeculationConfig& config = configs_[i];
      report_.runs.push_back(
          {.name = short_name(config),
           .num_speculative_tokens = config.on() ? config.num_speculative_tokens : 0});
    }
    outcomes_.resize(configs_.size());
    for (int64_t r = 0; r < options_.repetitions; ++r) {
      for (size_t i = 0; i < configs_.size(); ++i) {
        if (report_.runs[i].refused.empty()) TRY(run_once(i));
      }
    }
    finish();
    return std::move(report_);
  }

 private:
  Result<void> prepare(const LocalEngine& local) {
    requests_ = options_.random_input_len > 0 ? TRY(random_requests(options_, local))
                                              : TRY(text_requests(options_, local, items_));
    if (requests_->list.empty()) return invalid_argument("--tasks: no request of these tasks");
    const EnginePlan& plan = local.plan();
    report_.model = plan.name;
    report_.device = plan.device_name;
    report_.format = std::string(weight_format_name(plan.load.format));
    report_.threads = plan.threads;
    report_.data = options_.random_input_len > 0
                       ? std::to_string(options_.random_input_len) + " random tokens"
                   : options_.dataset_path.empty() ? std::string("a generated mix")
                                                   : options_.dataset_path;
    report_.num_prompts = static_cast<int64_t>(requests_->list.size());
    report_.left_out = requests_->left_out;
    report_.num_warmups = std::min(options_.num_warmups, report_.num_prompts);
    report_.max_concurrency = options_.max_concurrency;
    report_.temperature = options_.temperature;
    report_.tasks = requests_->tasks;
    return {};
  }

  Result<void> run_once(size_t index) {
    EngineOptions engine = options_.engine;
    engine.speculation = configs_[index];
    engine.prefix_caching = false;  // equal prompts must cost the same every time
    engine.max_num_seqs = std::max(engine.max_num_seqs, static_cast<int>(options_.max_concurrency));
    SpeculateRun& run = report_.runs[index];
    std::fprintf(stderr, "%s\n", run.name.c_str());
    const Result<std::unique_ptr<LocalEngine>> local = LocalEngine::start(engine);
    if (!local.ok()) {
      if (!configs_[index].on()) return local.error();
      run.refused = local.error().message;
      std::fprintf(stderr, "%s: %s\n", run.name.c_str(), run.refused.c_str());
      return {};
    }
    if (!requests_) TRY(prepare(**local));
    const std::vector<PlannedRequest>& list = requests_->list;
    TRY(answer_all((*local)->engine(), {list.begin(), list.begin() + report_.num_warmups},
                   options_.max_concurrency));
    const Clock::time_point start = Clock::now();
    const std::vector<Answer> answers =
        TRY(answer_all((*local)->engine(), list, options_.max_concurrency));
    const double seconds = seconds_between(start, Clock::now());
    if (!configs_[index].on() && plain_.empty()) {
      for (const Answer& answer : answers) plain_.push_back(answer.tokens);
    }
    int64_t tokens = 0;
    for (size_t i = 0; i < answers.size(); ++i) {
      const std::vector<int32_t>* plain = plain_.empty() ? nullptr : &plain_[i];
      add_answer(run.all, answers[i], plain);
      add_answer(run.tasks[list[i].task], answers[i], plain);
      outcomes_[index].push_back(outcome_of(answers[i], start));
      tokens += static_cast<int64_t>(answers[i].tokens.size());
    }
    run.output_rates.push_back(static_cast<double>(tokens) / seconds);
    return {};
  }

  void finish() {
    for (size_t i = 0; i < configs_.size(); ++i) {
      report_.runs[i].metrics = compute_metrics(outcomes_[i], 0, {50, 90, 99}, {});
    }
  }

  const BenchSpeculateOptions& options_;
  const std::vector<SpeculationConfig> configs_;
  const std::vector<SpeculateItem> items_;
  std::optional<Requests> requests_;
  std::vector<std::vector<int32_t>> plain_;  // the answers without drafts
  std::vector<std::vector<RequestOutcome>> outcomes_;
  SpeculateReport report_;
};

Result<void> write_file(const char* flag, const std::string& path, const std::string& text) {
  if (path.empty()) return {};
  std::ofstream file(path, std::ios::binary);
  file << text;
  if (!file.flush()) return unavailable(std::string(flag) + ": cannot write '" + path + "'");
  return {};
}

Result<void> bench(const BenchSpeculateOptions& options) {
  if (options.engine.speculation.on()) {
    return invalid_argument("--speculative-config: this benchmark takes it as one of --configs");
  }
  std::vector<SpeculationConfig> configs;
  for (const std::string& text : options.configs) {
    configs.push_back(TRY(parse_bench_config(text)));
  }
  std::vector<SpeculateItem> items;
  if (options.random_input_len == 0) {
    items = options.dataset_path.empty()
                ? generate_speculate_items(options.num_prompts, options.engine.seed)
                : TRY(read_speculate_items(options.dataset_path));
    items = choose_items(items, options.tasks, options.num_prompts);
    if (items.empty()) return invalid_argument("--tasks: the data has no request of these tasks");
  }
  const SpeculateReport report = TRY(Bench(options, std::move(configs), std::move(items)).run());
  if (options.markdown.empty()) std::fputs(speculate_markdown(report).c_str(), stdout);
  TRY(write_file("--markdown", options.markdown, speculate_markdown(report)));
  TRY(write_file("--json", options.json, speculate_json(report)));
  TRY(write_file("--plot", options.plot, speculate_svg(report)));
  return {};
}

}  // namespace

Result<SpeculationConfig> parse_bench_config(const std::string& text) {
  const Error bad = invalid_argument(
      "--configs: '" + text +
      "' is none of: none, ngram-K, mtp-K, hybrid-STEPS-K (such as hybrid-3-5), or the JSON of "
      "--speculative-config");
  if (text == "none") return SpeculationConfig{};
  std::string object = text;
  if (text.empty() || text.front() != '{') {
    const size_t first = text.find('-'), second = text.find('-', first + 1);
    const std::string method = text.substr(0, first);
    const auto number = [&](size_t from, size_t to) -> std::string {
      const std::string digits =
          from == std::string::npos ? "" : text.substr(from + 1, to - from - 1);
      const bool fits = !digits.empty() && digits.size() < 4 &&
                        digits.find_first_not_of("0123456789") == std::string::npos;
      return fits ? digits : "";
    };
    const std::string one = number(first, second);
    const std::string two = first == std::string::npos ? "" : number(second, std::string::npos);
    if ((method == "ngram" || method == "mtp") && second == std::string::npos && !one.empty()) {
      object = R"({"method":")" + method + R"(","num_speculative_tokens":)" + one + "}";
    } else if (method == "hybrid" && !one.empty() && !two.empty()) {
      object = R"({"method":"hybrid_mtp_ngram","num_model_steps":)" + one +
               R"(,"num_speculative_tokens":)" + two + "}";
    } else {
      return bad;
    }
  }
  Result<ParsedSpeculation> parsed = parse_speculative_config({object});
  if (!parsed.ok()) return with_context(parsed.error(), "--configs: " + text);
  return parsed->config;
}

void add_bench_speculate_options(CLI::App& app, BenchSpeculateOptions& o) {
  const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 24);
  app.add_option("--configs", o.configs,
                 "What is compared: none, ngram-K, mtp-K, hybrid-STEPS-K, or the JSON of "
                 "--speculative-config")
      ->capture_default_str();
  app.add_option("--dataset-path", o.dataset_path,
                 "JSON lines with messages or prompt (and task, max_tokens), or ShareGPT; a "
                 "generated mix when absent");
  app.add_option("--tasks", o.tasks, "Only these tasks of the data")->delimiter(',');
  app.add_option("--num-prompts", o.num_prompts, "Requests, by turns from each task")
      ->check(positive)
      ->capture_default_str();
  app.add_option("--num-warmups", o.num_warmups,
                 "Requests before those of a run, the first of them; "
                 "on a GPU shapes that come again are captured meanwhile")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  app.add_option("--max-concurrency", o.max_concurrency, "Requests in the engine at once")
      ->check(CLI::Range(int64_t{1}, int64_t{1024}))
      ->capture_default_str();
  app.add_option("--random-input-len", o.random_input_len,
                 "Prompts of so many random tokens instead of texts; no tokenizer is needed")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app.add_option("--output-len", o.output_len,
                 "Tokens of an answer at most; 0: the data's max_tokens, or 128")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 24));
  app.add_option("--temperature", o.temperature, "0 is greedy")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on after the end-of-sequence token");
  app.add_option("--repetitions,-r", o.repetitions, "Rounds over all configurations")
      ->check(CLI::Range(int64_t{1}, int64_t{1000}))
      ->capture_default_str();
  app.add_option("--markdown", o.markdown, "Write the tables there; standard output when absent");
  app.add_option("--json", o.json, "Write all figures there");
  app.add_option("--plot", o.plot, "Write an SVG there");
}

int bench_speculate_command(const BenchSpeculateOptions& options) {
  const Result<void> done = bench(options);
  return done.ok() ? kExitOk : report_error(done.error());
}

}  // namespace weft
