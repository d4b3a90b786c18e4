// weft bench: the engine itself, measured from outside: requests go in, tokens come out.

#include <cstdio>
#include <filesystem>
#include <mutex>
#include <random>

#include "api/answer.h"
#include "app/bench_table.h"
#include "app/cli.h"
#include "app/local_engine.h"

namespace weft {
namespace {

using Clock = Answer::Clock;

/// Random token ids: no two prompts share a prefix, so the prefix cache can't help.
std::vector<int32_t> random_prompt(std::mt19937_64& rng, int64_t len, int64_t vocab) {
  std::vector<int32_t> ids(static_cast<size_t>(len));
  for (int32_t& id : ids) id = static_cast<int32_t>(rng() % static_cast<uint64_t>(vocab));
  return ids;
}

Request greedy_request(std::vector<int32_t> prompt, int64_t num_tokens) {
  Request request;
  request.prompt = std::move(prompt);
  request.sampling.temperature = 0;
  request.sampling.max_tokens = static_cast<int>(num_tokens);
  return request;
}

Result<Answer> run_one(LocalEngine& local, Request request) {
  AnswerStream stream(nullptr, {});
  TRY(local.engine().submit(std::move(request), stream));
  Answer answer = stream.wait();
  if (answer.error) return *answer.error;
  return answer;
}

/// Tokens per second of `num_prompt` prompt tokens after `depth` tokens of context: the time to the
/// first token, less (for depth > 0) the time of a prompt of depth tokens.
Result<double> prompt_speed(LocalEngine& local, std::mt19937_64& rng, int64_t num_prompt,
                            int64_t depth) {
  const int64_t vocab = local.spec().vocab;
  std::vector<int32_t> prompt = random_prompt(rng, depth + num_prompt, vocab);
  double shallow = 0;
  if (depth > 0) {
    const Answer before =
        TRY(run_one(local, greedy_request({prompt.begin(), prompt.begin() + depth}, 1)));
    shallow = seconds_between(before.started, before.first_token);
    prompt = random_prompt(rng, depth + num_prompt, vocab);
  }
  const Answer answer = TRY(run_one(local, greedy_request(std::move(prompt), 1)));
  return static_cast<double>(num_prompt) /
         (seconds_between(answer.started, answer.first_token) - shallow);
}

/// Tokens per second of generating `num_gen` tokens after `depth` (at least 1) tokens of context.
Result<double> generation_speed(LocalEngine& local, std::mt19937_64& rng, int64_t num_gen,
                                int64_t depth) {
  Request request = greedy_request(
      random_prompt(rng, std::max<int64_t>(1, depth), local.spec().vocab), num_gen + 1);
  const Answer answer = TRY(run_one(local, std::move(request)));
  return static_cast<double>(num_gen) / seconds_between(answer.first_token, answer.finished);
}

/// What the steps that only decode took on a GPU, between reset() and put().
class StepMeter {
 public:
  void step(const StepRecord& record) {
    if (record.device_us <= 0 || record.prompt_rows > 0 || record.decode_rows == 0) return;
    const std::lock_guard lock(mutex_);
    device_us_.push_back(record.device_us);
    idle_us_.push_back(record.device_idle_us);
    graphs_.push_back(record.device_graphs);
  }
  void reset() {
    const std::lock_guard lock(mutex_);
    device_us_.clear();
    idle_us_.clear();
    graphs_.clear();
  }
  void put(BenchRow& row) {
    const std::lock_guard lock(mutex_);
    if (device_us_.empty()) return;
    row.device_step_us = sample_stats(device_us_).median;
    row.device_idle_us = sample_stats(idle_us_).median;
    row.device_graphs = sample_stats(graphs_).mean;
  }

 private:
  std::mutex mutex_;
  std::vector<double> device_us_, idle_us_, graphs_;
};

void print_row(const BenchOptions& options, const BenchSubject& subject, const BenchRow& row) {
  const std::string line =
      options.json ? bench_json_row(subject, row) : bench_table_row(subject, row);
  std::fputs(line.c_str(), stdout);
  std::fflush(stdout);
  if (!options.json) std::fputs(bench_device_note(row).c_str(), stderr);
}

std::string test_name(const char* kind, int64_t len, int64_t depth) {
  std::string name = kind + std::to_string(len);
  if (depth > 0) name += " @ d" + std::to_string(depth);
  return name;
}

Result<void> run_latency(const BenchOptions& options, LocalEngine& local,
                         const BenchSubject& subject, StepMeter& meter) {
  std::mt19937_64 rng(options.engine.seed);
  TRY(run_one(local, greedy_request(random_prompt(rng, 64, local.spec().vocab), 4)));  // warm up
  for (int64_t depth : options.depths) {
    for (int64_t len : options.prompt_lens) {
      if (len == 0) continue;
      BenchRow row{.test = test_name("pp", len, depth), .num_prompt = len, .depth = depth};
      for (int64_t i = 0; i < options.repetitions; ++i) {
        row.samples.push_back(TRY(prompt_speed(local, rng, len, depth)));
      }
      print_row(options, subject, row);
    }
    for (int64_t len : options.gen_lens) {
      if (len == 0) continue;
      BenchRow row{.test = test_name("tg", len, depth), .num_gen = len, .depth = depth};
      meter.reset();
      for (int64_t i = 0; i < options.repetitions; ++i) {
        row.samples.push_back(TRY(generation_speed(local, rng, len, depth)));
      }
      meter.put(row);
      print_row(options, subject, row);
    }
  }
  return {};
}

struct ThroughputSample {
  double total = 0;       ///< prompt and generated tokens per second, first to last
  double generation = 0;  ///< generated tokens per second from the last first token to the first
                          ///< end: the time in which all sequences decode together
};

Result<ThroughputSample> run_throughput_once(const BenchOptions& options, LocalEngine& local,
                                             std::mt19937_64& rng) {
  const int64_t in_flight =
      options.max_concurrency > 0 ? options.max_concurrency : options.num_prompts;
  std::vector<std::unique_ptr<AnswerStream>> streams;
  const Clock::time_point start = Clock::now();
  for (int64_t i = 0; i < options.num_prompts; ++i) {
    if (i >= in_flight) streams[static_cast<size_t>(i - in_flight)]->wait();
    streams.push_back(std::make_unique<AnswerStream>(nullptr, TextOptions{}));
    TRY(local.engine().submit(
        greedy_request(random_prompt(rng, options.input_len, local.spec().vocab),
                       options.output_len),
        *streams.back()));
  }
  Clock::time_point last_first = start, first_end = Clock::time_point::max(), end = start;
  for (auto& stream : streams) {
    const Answer& answer = stream->wait();
    if (answer.error) return *answer.error;
    last_first = std::max(last_first, answer.first_token);
    first_end = std::min(first_end, answer.finished);
    end = std::max(end, answer.finished);
  }
  ThroughputSample sample;
  sample.total =
      static_cast<double>(options.num_prompts * (options.input_len + options.output_len)) /
      seconds_between(start, end);
  int64_t together = 0;
  for (auto& stream : streams) {
    for (Clock::time_point time : stream->wait().token_times) {
      if (time > last_first && time <= first_end) ++together;
    }
  }
  const double window = seconds_between(last_first, first_end);
  sample.generation = window > 0 ? static_cast<double>(together) / window : 0;
  return sample;
}

Result<void> run_throughput(const BenchOptions& options, LocalEngine& local,
                            const BenchSubject& subject, StepMeter& meter) {
  std::mt19937_64 rng(options.engine.seed);
  TRY(run_one(local, greedy_request(random_prompt(rng, 64, local.spec().vocab), 4)));  // warm up
  const std::string name = std::to_string(options.num_prompts) + "x" +
                           std::to_string(options.input_len) + "+" +
                           std::to_string(options.output_len);
  BenchRow total{.test = "total " + name,
                 .num_prompt = options.num_prompts * options.input_len,
                 .num_gen = options.num_prompts * options.output_len};
  BenchRow together{.test = "tg " + name, .num_gen = total.num_gen};
  meter.reset();
  for (int64_t i = 0; i < options.repetitions; ++i) {
    const ThroughputSample sample = TRY(run_throughput_once(options, local, rng));
    total.samples.push_back(sample.total);
    if (sample.generation > 0) together.samples.push_back(sample.generation);
  }
  meter.put(together);
  print_row(options, subject, total);
  if (!together.samples.empty()) print_row(options, subject, together);
  return {};
}

Result<void> check_lengths(const BenchOptions& options, const LocalEngine& local) {
  int64_t longest = 0;
  if (options.throughput) {
    longest = options.input_len + options.output_len;
  } else {
    for (int64_t depth : options.depths) {
      for (int64_t len : options.prompt_lens) longest = std::max(longest, depth + len + 1);
      for (int64_t len : options.gen_lens)
        longest = std::max(longest, std::max<int64_t>(1, depth) + len + 1);
    }
  }
  if (longest <= local.plan().memory.max_model_len) return {};
  return invalid_argument("the longest row needs " + std::to_string(longest) +
                          " tokens, and max_model_len is " +
                          std::to_string(local.plan().memory.max_model_len) +
                          "; give shorter lengths or a larger --max-model-len");
}

}  // namespace

int bench_command(const BenchOptions& options) {
  EngineOptions engine_options = options.engine;
  if (options.throughput) {
    engine_options.max_num_seqs = static_cast<int>(std::max<int64_t>(
        engine_options.max_num_seqs, std::min<int64_t>(options.num_prompts, 256)));
  }
  StepMeter meter;  // outlives the engine
  Result<std::unique_ptr<LocalEngine>> local = LocalEngine::start(
      engine_options, {.on_step = [&meter](const StepRecord& record) { meter.step(record); }});
  if (!local) return report_error(local.error());
  LocalEngine& engine = **local;
  if (const auto ok = check_lengths(options, engine); !ok) return report_error(ok.error());
  const BenchSubject subject{.model = engine.plan().name,
                             .bytes = static_cast<double>(engine.weight_bytes()),
                             .params = static_cast<double>(count_parameters(engine.spec())),
                             .backend = engine.plan().device_name,
                             .format = std::string(weight_format_name(engine.plan().load.format)),
                             .threads = engine.plan().threads};
  if (!options.json) std::fputs(bench_table_header(subject).c_str(), stdout);
  const Result<void> done = options.throughput ? run_throughput(options, engine, subject, meter)
                                               : run_latency(options, engine, subject, meter);
  return done ? kExitOk : report_error(done.error());
}

}  // namespace weft
