// weft: the command line. Parses flags, picks the command, turns errors into exit codes.

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>

#include "app/cli.h"
#include "app/serve_options.h"
#include "app/version.h"
#include "base/check.h"

namespace weft {
namespace {

/// "--max-model-len" -> "WEFT_MAX_MODEL_LEN": every flag has an environment twin.
std::string environment_name(const CLI::Option& option) {
  std::string name = "WEFT_";
  for (char c : option.get_lnames().front()) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

void add_environment_twins(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames().front() == "help") continue;
    option->envname(environment_name(*option));
  }
}

void add_engine_options(CLI::App& app, EngineOptions& o, bool positional_model) {
  if (positional_model) {
    app.add_option(
        "model", o.model,
        "A directory with a Hugging Face checkpoint, or ORG/NAME[@revision]; the bundled "
        "demo model when absent");
  }
  app.add_option("--model,-m", o.model, "The same as the positional MODEL");
  app.add_option("--dtype", o.dtype, "Arithmetic of the weights and the KV cache")
      ->check(CLI::IsMember({"auto", "bfloat16", "float32"}))
      ->capture_default_str();
  app.add_option("--quantization,-q", o.quantization, "Weight-only quantisation while loading")
      ->check(CLI::IsMember({"none", "int8", "int4"}))
      ->capture_default_str();
  app.add_option("--load-format", o.load_format,
                 "dummy: seeded random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str();
  app.add_option("--max-model-len", o.max_model_len, "Longest sequence in tokens (32k), or auto")
      ->capture_default_str();
  app.add_option("--kv-cache-memory", o.kv_cache_memory, "Bytes of the caches (2G), or auto")
      ->capture_default_str();
  app.add_option("--max-num-seqs", o.max_num_seqs, "Sequences that run at once")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", o.max_num_batched_tokens, "Token budget of a step")
      ->check(CLI::Range(64, 1 << 20))
      ->capture_default_str();
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o.prefix_caching,
               "Reuse the cache of equal prompt prefixes (on by default)");
  app.add_option_function<std::string>(
         "--prefix-cache",
         [&o](const std::string& mode) { o.reuse_generated = mode == "reuse-generated"; },
         "exact: only what a cold run would compute; reuse-generated: also generated tokens of "
         "earlier turns")
      ->check(CLI::IsMember({"exact", "reuse-generated"}));
  app.add_option("--threads,-t", o.threads, "CPU threads; 0: all that the process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu-isa", o.cpu_isa, "Instruction set of the CPU kernels")
      ->check(CLI::IsMember({"auto", "avx2", "avx512", "avx512_bf16", "amx"}))
      ->capture_default_str();
  app.add_option("--device", o.device, "Where the model runs")
      ->check(CLI::IsMember({"auto", "cpu", "cuda", "fake"}))
      ->capture_default_str();
  app.add_option("--seed,-s", o.seed, "Seed of sampling and of dummy weights")
      ->capture_default_str();
}

/// Ranges are checked by validate_sampling(), for the command line and the server alike.
void add_sampling_options(CLI::App& app, SamplingRequest& o) {
  app.add_option("--max-tokens,-n", o.max_tokens,
                 "Tokens to generate; up to the model's length when absent");
  app.add_option("--min-tokens", o.min_tokens, "Tokens before the answer may end");
  app.add_option("--temperature", o.temperature, "0 is greedy");
  app.add_option("--top-k", o.top_k, "Choose among the k most probable tokens; 0: off");
  app.add_option("--top-p", o.top_p, "Choose among the most probable tokens of this mass, (0, 1]");
  app.add_option("--min-p", o.min_p,
                 "Leave out what is less probable than this share of the best, [0, 1]");
  app.add_option("--repetition-penalty", o.repetition_penalty, "(0, 100]; 1: off");
  app.add_option("--presence-penalty", o.presence_penalty, "[-2, 2]");
  app.add_option("--frequency-penalty", o.frequency_penalty, "[-2, 2]");
  app.add_option("--stop", o.stop, "A text that ends the answer; may be repeated");
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on after the end-of-sequence token");
}

/// The commands with their options, bound to the structs below.
struct CommandLine {
  CLI::App app{"weft: an inference and serving engine for large language models", "weft"};
  RunOptions run;
  BenchOptions latency, throughput;
  EvalOptions eval;
  InfoOptions info;
  PullOptions pull;
  ServeOptions serve;
  CLI::App* serve_app = nullptr;
  CLI::App* run_app = nullptr;
  CLI::App* bench_app = nullptr;
  CLI::App* latency_app = nullptr;
  CLI::App* throughput_app = nullptr;
  CLI::App* eval_app = nullptr;
  CLI::App* info_app = nullptr;
  CLI::App* pull_app = nullptr;
  CLI::App* doctor_app = nullptr;
  CLI::App* version_app = nullptr;

  CommandLine() {
    app.set_version_flag("--version,-V", std::string("weft ") + kVersion);
    app.require_subcommand(0, 1);
    add_serve();
    add_run();
    add_bench();
    add_rest();
    for (CLI::App* command : leaves()) {
      command->allow_extras();
      add_environment_twins(*command);
    }
    app.allow_extras();
  }

  std::vector<CLI::App*> leaves() const {
    return {serve_app, run_app,  latency_app, throughput_app, eval_app,
            info_app,  pull_app, doctor_app,  version_app};
  }

  void add_serve() {
    serve_app = app.add_subcommand("serve", "The OpenAI server");
    add_engine_options(*serve_app, serve.engine, true);
    serve_app->add_option("--host", serve.host, "Address to listen on")->capture_default_str();
    serve_app->add_option("--port", serve.port, "Port; 0: any free one")->capture_default_str();
    serve_app->add_option("--api-key", serve.api_keys, "A key that requests need; may be repeated");
    serve_app->add_option("--served-model-name", serve.served_model_names, "Names of the model");
    serve_app->add_option("--fake-tokens-per-second", serve.fake_tokens_per_second,
                          "Of the test device (--device fake)");
    serve_app->add_option("--fake-hang-after", serve.fake_hang_after, "Of the test device");
    serve_app->add_option("--shutdown-timeout", serve.shutdown_timeout, "Seconds of grace");
    serve_app->add_option("--max-waiting", serve.max_waiting, "Requests that may wait");
    serve_app->add_option("--trace-file", serve.trace_file, "Chrome trace of steps and requests");
  }

  void add_run() {
    run_app = app.add_subcommand("run", "Chat in the terminal, or answer one prompt (-p)");
    run.engine.max_num_seqs = 1;  // one conversation: no memory for others
    add_engine_options(*run_app, run.engine, true);
    add_sampling_options(*run_app, run.sampling);
    run_app
        ->add_option("--prompt,-p", run.prompt,
                     "Answer this one message on standard output and end")
        ->each([this](const std::string&) { run.has_prompt = true; });
    run_app->add_option("--system", run.system, "System message");
    run_app->add_option("--image", run.images, "A picture to send along; may be repeated");
    run_app->add_flag("--think,!--no-think", run.enable_thinking,
                      "Let the model think first, where it can");
    run_app->add_flag("--verbose,-v", run.verbose,
                      "Print the memory budget, the kernels and the speed");
  }

  void add_bench() {
    bench_app = app.add_subcommand("bench", "Measure the engine: latency or throughput");
    bench_app->require_subcommand(1);
    latency_app = bench_app->add_subcommand(
        "latency",
        "Speed of one sequence: prompt (pp) and generation (tg) rows, as llama-bench does");
    latency.engine.max_num_seqs = 1;
    add_engine_options(*latency_app, latency.engine, true);
    const auto lens = CLI::Range(int64_t{0}, int64_t{1} << 24);
    latency_app
        ->add_option("--prompt-lens,-p", latency.prompt_lens, "Prompt lengths to measure (0: none)")
        ->delimiter(',')
        ->check(lens)
        ->capture_default_str();
    latency_app
        ->add_option("--gen-lens,-n", latency.gen_lens, "Generation lengths to measure (0: none)")
        ->delimiter(',')
        ->check(lens)
        ->capture_default_str();
    latency_app
        ->add_option("--depths,-d", latency.depths, "Context lengths before the measured part")
        ->delimiter(',')
        ->check(lens)
        ->capture_default_str();
    add_bench_common(*latency_app, latency);
    throughput_app =
        bench_app->add_subcommand("throughput", "Many sequences at once: tokens per second in all");
    add_engine_options(*throughput_app, throughput.engine, true);
    throughput.throughput = true;
    const auto positive = CLI::Range(int64_t{1}, int64_t{1} << 24);
    throughput_app->add_option("--num-prompts", throughput.num_prompts, "Requests")
        ->check(positive)
        ->capture_default_str();
    throughput_app->add_option("--input-len", throughput.input_len, "Prompt tokens of each")
        ->check(positive)
        ->capture_default_str();
    throughput_app->add_option("--output-len", throughput.output_len, "Generated tokens of each")
        ->check(positive)
        ->capture_default_str();
    throughput_app
        ->add_option("--max-concurrency", throughput.max_concurrency,
                     "Requests in the engine at once; 0: all")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 20));
    throughput.repetitions = 1;
    add_bench_common(*throughput_app, throughput);
  }

  static void add_bench_common(CLI::App& command, BenchOptions& o) {
    command.add_option("--repetitions,-r", o.repetitions, "Samples of each row")
        ->check(CLI::Range(int64_t{1}, int64_t{10000}))
        ->capture_default_str();
    command.add_flag("--json", o.json, "JSON lines on standard output instead of the table");
  }

  void add_rest() {
    eval_app = app.add_subcommand(
        "eval", "Accuracy on an evaluation set, and exactness against golden outputs");
    eval_app
        ->add_option("directory", eval.directory,
                     "Directory with heldout.jsonl, golden.jsonl, results.json")
        ->required();
    eval.engine.max_num_seqs = 32;
    add_engine_options(*eval_app, eval.engine, false);
    eval_app->add_option("--tasks", eval.tasks, "Only these tasks")->delimiter(',');
    eval_app->add_option("--limit", eval.limit, "Items a task; 0: all")
        ->check(CLI::Range(int64_t{0}, int64_t{1} << 30));
    eval_app->add_flag("--golden-only", eval.golden_only, "Only the comparison with golden.jsonl");
    info_app =
        app.add_subcommand("info", "What a model is and what it needs, from config.json alone");
    add_engine_options(*info_app, info.engine, true);
    info_app->add_flag("--json", info.json, "JSON on standard output");
    pull_app =
        app.add_subcommand("pull", "Download a model from the hub into the Hugging Face cache");
    pull_app->add_option("model", pull.model, "ORG/NAME[@revision]")->required();
    doctor_app = app.add_subcommand("doctor", "What this machine offers: CPU, memory, GPU, limits");
    version_app = app.add_subcommand("version", "Print the version");
  }

  std::vector<std::string> command_names(const CLI::App& parent) const {
    std::vector<std::string> names;
    for (const CLI::App* command : parent.get_subcommands([](const CLI::App*) { return true; })) {
      names.push_back(command->get_name());
    }
    return names;
  }
};

std::vector<std::string> flag_names(const CLI::App& command) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& name : option->get_lnames()) names.push_back("--" + name);
  }
  return names;
}

int usage_error(const std::string& message) {
  std::fprintf(stderr, "weft: error: %s\n", message.c_str());
  return kExitUsage;
}

/// Words that no option took: an unknown flag or command, with the nearest known one.
std::optional<int> check_extras(const CommandLine& line, const CLI::App& command) {
  std::vector<std::string> extras = command.remaining();
  if (extras.empty()) return std::nullopt;
  const std::string word = extras.front().substr(0, extras.front().find('='));
  const bool is_flag = word.size() > 1 && word[0] == '-';
  const std::string where = command.get_name() == "weft" ? "weft" : "weft " + command.get_name();
  const std::string near =
      nearest_name(word, is_flag ? flag_names(command) : line.command_names(command));
  std::string message = is_flag ? "unknown flag '" + word + "'" : "unexpected '" + word + "'";
  message += " for `" + where + "`";
  if (!near.empty()) message += "; did you mean '" + near + "'?";
  message += " (`" + where + " --help` lists what there is)";
  return usage_error(message);
}

int dispatch(int argc, char** argv) {
  CommandLine line;
  try {
    line.app.parse(argc, argv);
  } catch (const CLI::Success& e) {  // --help, --version
    return line.app.exit(e);
  } catch (const CLI::ParseError& e) {
    return usage_error(e.what());
  }
  if (line.app.get_subcommands().empty()) {
    if (auto code = check_extras(line, line.app)) return *code;
    std::cerr << line.app.help();
    return kExitUsage;
  }
  for (const CLI::App* command : line.leaves()) {
    if (!command->parsed()) continue;
    if (auto code = check_extras(line, *command)) return *code;
  }
  if (auto code = check_extras(line, line.app)) return *code;
  if (line.serve_app->parsed()) return serve_command(line.serve);
  if (line.run_app->parsed()) return run_command(line.run);
  if (line.latency_app->parsed()) return bench_command(line.latency);
  if (line.throughput_app->parsed()) return bench_command(line.throughput);
  if (line.eval_app->parsed()) return eval_command(line.eval);
  if (line.info_app->parsed()) return info_command(line.info);
  if (line.pull_app->parsed()) return pull_command(line.pull);
  if (line.doctor_app->parsed()) return doctor_command();
  std::printf("weft %s\n", kVersion);
  return kExitOk;
}

}  // namespace
}  // namespace weft

int main(int argc, char** argv) {
  std::signal(SIGPIPE, SIG_IGN);
  try {
    return weft::dispatch(argc, argv);
  } catch (const weft::Panic& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  } catch (const std::bad_alloc&) {
    std::fprintf(stderr, "weft: error: out of memory\n");
  } catch (const std::exception& e) {
    std::fprintf(stderr, "weft: internal error: %s\n", e.what());
  }
  return weft::kExitRuntime;
}
