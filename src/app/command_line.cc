// The commands with their flags; picks the command, turns errors into exit codes.
#include "app/command_line.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <iostream>
#include <memory>
#include <sstream>

#include "app/bench_serve.h"
#include "app/bench_speculate.h"
#include "app/cli.h"
#include "app/config_file.h"
#include "app/version.h"
#include "app/vllm_flags.h"

namespace weft {
namespace {

/// The commands with their options, bound to the structs below.
struct CommandLine {
  CLI::App app{"weft: an inference and serving engine for large language models", "weft"};
  RunOptions run;
  BenchOptions latency, throughput;
  BenchServeOptions bench_serve;
  BenchSpeculateOptions bench_speculate;
  BenchKernelsOptions kernels;
  EvalOptions eval;
  CalibrateOptions calibrate;
  InfoOptions info;
  InspectOptions inspect;
  PullOptions pull;
  ServeArguments serve;
  std::string shell;  // of completion
  CLI::App* run_app = nullptr;
  CLI::App* bench_app = nullptr;
  CLI::App* latency_app = nullptr;
  CLI::App* throughput_app = nullptr;
  CLI::App* bench_serve_app = nullptr;
  CLI::App* bench_speculate_app = nullptr;
  CLI::App* kernels_app = nullptr;
  CLI::App* eval_app = nullptr;
  CLI::App* calibrate_app = nullptr;
  CLI::App* info_app = nullptr;
  CLI::App* inspect_app = nullptr;
  CLI::App* attention_app = nullptr;
  CLI::App* pull_app = nullptr;
  CLI::App* doctor_app = nullptr;
  bool doctor_refusals = false;
  CLI::App* version_app = nullptr;
  CLI::App* serve_app = nullptr;
  CLI::App* completion_app = nullptr;

  CommandLine() {
    app.set_version_flag("--version,-V", std::string("weft ") + kVersion);
    app.require_subcommand(0, 1);
    serve_app = app.add_subcommand("serve", "Serve a model to any OpenAI client over HTTP");
    add_serve_options(*serve_app, serve);
    add_run();
    add_bench();
    add_rest();
    for (CLI::App* command : leaves()) {
      command->allow_extras();
      require_numbers(*command);
      add_environment_twins(*command);
    }
    app.allow_extras();
  }

  std::vector<CLI::App*> leaves() const {
    return {serve_app,           run_app,        latency_app,
            throughput_app,      kernels_app,    bench_serve_app,
            bench_speculate_app, eval_app,       attention_app,
            calibrate_app,       info_app,       pull_app,
            doctor_app,          completion_app, version_app};
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
    run_app->add_option("--video", run.video,
                        "A video to send along: its frames in order, a directory of them, or an "
                        "animated WebP or GIF");
    run_app->add_option("--fps", run.video_fps, "Frames a second of --video (2 unless said)")
        ->check(CLI::Range(0.001, 1000.0));
    run_app->add_flag("--think,!--no-think", run.enable_thinking,
                      "Let the model think first, where it can");
    run_app->add_flag("--verbose,-v", run.verbose,
                      "Print the memory budget, the kernels and the speed");
  }

  void add_bench() {
    bench_app = app.add_subcommand(
        "bench",
        "Measure the engine (latency, throughput, speculate), its kernels, or any OpenAI server "
        "(serve)");
    bench_app->require_subcommand(0, 1);
    bench_app->allow_extras();
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
    kernels_app = bench_app->add_subcommand(
        "kernels", "The kernels alone: the workshops built beside this binary, as JSON lines");
    kernels_app->add_option("only", kernels.only, "Part of a workshop's name (gemm, sample, ...)");
    kernels_app->add_option("--device", kernels.device, "Whose kernels: auto, cpu or cuda")
        ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
        ->capture_default_str();
    kernels_app->add_option("--workshops", kernels.directory,
                            "Directory of the workshops; default: bench beside this binary");
    bench_serve_app = bench_app->add_subcommand(
        "serve", "Load for any OpenAI server, with the flags and figures of `vllm bench serve`");
    add_bench_serve_options(*bench_serve_app, bench_serve);
    bench_speculate_app = bench_app->add_subcommand(
        "speculate", "What drafts bring: the same requests under several --speculative-config");
    add_engine_options(*bench_speculate_app, bench_speculate.engine, true);
    add_bench_speculate_options(*bench_speculate_app, bench_speculate);
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
    eval_app->add_flag("--kl", eval.kl,
                       "Only the KL divergence of --kv-cache-dtype from a bf16 cache, a task");
    calibrate_app = app.add_subcommand(
        "calibrate", "Write static scales of an int8 or fp8 KV cache from sample texts");
    add_engine_options(*calibrate_app, calibrate.engine, true);
    calibrate_app
        ->add_option("--data", calibrate.data,
                     "Sample texts: lines of JSON with messages, prompt or text, or of plain text")
        ->required();
    calibrate_app->add_option("--out", calibrate.out, "The file to write")->capture_default_str();
    calibrate_app->add_option("--limit", calibrate.limit, "Texts at most")
        ->check(CLI::Range(int64_t{1}, int64_t{1} << 20))
        ->capture_default_str();
    info_app =
        app.add_subcommand("info", "What a model is and what it needs, from config.json alone");
    add_engine_options(*info_app, info.engine, true);
    info_app->add_flag("--json", info.json, "JSON on standard output");
    inspect_app = app.add_subcommand("inspect", "What a model does with a prompt");
    inspect_app->require_subcommand(0, 1);
    inspect_app->allow_extras();
    attention_app = inspect_app->add_subcommand(
        "attention", "What the heads see of a prompt: routes and kept blocks, as a page");
    inspect.engine.max_num_seqs = 1;
    add_engine_options(*attention_app, inspect.engine, true);
    attention_app
        ->add_option("--prompt-file,-p", inspect.prompt_file,
                     "The prompt: text, or a JSON array of token ids")
        ->required();
    attention_app->add_option("--output,-o", inspect.output, "Where the page goes")
        ->capture_default_str();
    pull_app =
        app.add_subcommand("pull", "Download a model from the hub into the Hugging Face cache");
    pull_app->add_option("model", pull.model, "ORG/NAME[@revision]")->required();
    doctor_app = app.add_subcommand("doctor", "What this machine offers: CPU, memory, GPU, limits");
    doctor_app->add_flag("--refusals", doctor_refusals,
                         "Print what weft refuses and why, as docs/refusals.md");
    completion_app = app.add_subcommand(
        "completion", "Print the completion script of a shell: source <(weft completion bash)");
    completion_app->add_option("shell", shell, "bash, zsh or fish")
        ->required()
        ->check(CLI::IsMember({"bash", "zsh", "fish"}));
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
  std::string where = command.get_name();
  for (const CLI::App* up = command.get_parent(); up != nullptr; up = up->get_parent()) {
    where = up->get_name() + " " + where;
  }
  const std::string near =
      nearest_name(word, is_flag ? flag_names(command) : line.command_names(command));
  std::string message = is_flag ? "unknown flag '" + word + "'" : "unexpected '" + word + "'";
  message += " for `" + where + "`";
  if (!near.empty()) message += "; did you mean '" + near + "'?";
  message += " (`" + where + " --help` lists what there is)";
  return usage_error(message);
}

/// Help or version was asked for and is printed.
struct HelpWanted {
  int code = kExitOk;
};

void parse(CommandLine& line, std::vector<std::string> words) {
  std::reverse(words.begin(), words.end());  // as CLI11 wants them
  try {
    line.app.parse(std::move(words));
  } catch (const CLI::Success& e) {  // --help, --version
    throw HelpWanted{line.app.exit(e)};
  }
}

/// The words that a configuration file adds: whatever command line and environment leave open.
Result<std::vector<std::string>> config_words(const CommandLine& line) {
  const std::string& path = line.serve.config_file;
  const CLI::App& app = *line.serve_app;
  std::vector<std::string> words;
  for (const ConfigEntry& entry : TRY(read_config_file(path))) {
    const std::string where = path + ":" + std::to_string(entry.line);
    std::vector<std::string> given;
    for (const std::string& value : entry.values) given.push_back(entry.flag + "=" + value);
    Result<std::vector<std::string>> expanded = expand_serve_words(given);
    if (!expanded.ok()) return with_context(expanded.error(), where);
    const std::string flag = expanded->front().substr(0, expanded->front().find('='));
    const CLI::Option* option = flag == "--help" ? nullptr : app.get_option_no_throw(flag);
    if (!option) {
      const std::string near = nearest_name(flag, flag_names(app));
      return invalid_argument(where + ": unknown key '" + entry.flag.substr(2) + "'" +
                              (near.empty() ? "" : "; did you mean '" + near.substr(2) + "'?"));
    }
    const bool is_switch = option->get_items_expected_max() == 0;
    if (is_switch && !entry.is_boolean) {
      return invalid_argument(where + ": '" + entry.flag.substr(2) + "' is true or false");
    }
    const bool model_given = flag == "--model" && app.get_option("model")->count() > 0;
    if (option->count() > 0 || model_given) continue;
    words.insert(words.end(), expanded->begin(), expanded->end());
  }
  return words;
}

/// Parses; for `serve --config` twice, the second time with the file's words.
Result<std::unique_ptr<CommandLine>> parse_words(std::vector<std::string> words) {
  if (!words.empty() && words[0] == "serve") {
    words = TRY(expand_serve_words({words.begin() + 1, words.end()}));
    words.insert(words.begin(), "serve");
  } else {
    words = TRY(expand_engine_words(words));
  }
  auto line = std::make_unique<CommandLine>();
  parse(*line, words);
  if (!line->serve_app->parsed() || line->serve.config_file.empty()) return line;
  const std::vector<std::string> more = TRY(config_words(*line));
  words.insert(std::find(words.begin(), words.end(), "--"), more.begin(), more.end());
  line = std::make_unique<CommandLine>();
  parse(*line, words);
  return line;
}

std::vector<std::string> choices_of(const CLI::Option& option) {
  std::vector<std::string> choices;
  const std::string type = option.get_type_name();  // such as TEXT:{auto,cpu}
  const size_t open = type.find('{'), close = type.rfind('}');
  if (open == std::string::npos || close == std::string::npos) return choices;
  std::istringstream list(type.substr(open + 1, close - open - 1));
  for (std::string choice; std::getline(list, choice, ',');) choices.push_back(choice);
  return choices;
}

CommandInfo describe(const CLI::App& app) {
  CommandInfo info{.name = app.get_name(), .help = app.get_description()};
  for (const CLI::Option* option : app.get_options()) {
    if (option->get_group().empty() || option->get_positional()) continue;
    FlagInfo flag{.takes_value = option->get_items_expected_max() > 0,
                  .choices = choices_of(*option),
                  .help = option->get_description(),
                  .environment = option->get_envname()};
    for (const std::string& name : option->get_lnames()) flag.names.push_back("--" + name);
    for (const std::string& name : option->get_snames()) flag.names.push_back("-" + name);
    info.flags.push_back(std::move(flag));
  }
  for (const CLI::App* command : app.get_subcommands([](const CLI::App*) { return true; })) {
    info.commands.push_back(describe(*command));
  }
  return info;
}

int serve(const CommandLine& line) {
  const Result<FinishedServe> finished = finish_serve(line.serve, std::getenv("VLLM_API_KEY"));
  if (!finished.ok()) return report_error(finished.error());
  set_log_level(finished->options.log_level);
  for (const std::string& warning : finished->warnings) log_warning(warning);
  return serve_command(finished->options);
}

int completion_command(const CommandLine& line) {
  const Result<std::string> script = completion_script(describe(line.app), line.shell);
  if (!script.ok()) return report_error(script.error());
  std::fputs(script->c_str(), stdout);
  return kExitOk;
}

/// A command that is nothing without one of its own commands, such as `weft bench`.
std::optional<int> check_group(const CommandLine& line, const CLI::App& group) {
  if (!group.parsed() || !group.get_subcommands().empty()) return std::nullopt;
  if (auto code = check_extras(line, group)) return code;
  std::string names;
  for (const std::string& name : line.command_names(group)) {
    names += (names.empty() ? "" : ", ") + name;
  }
  return usage_error("`weft " + group.get_name() + "` needs one of its commands: " + names);
}

int run_parsed(const CommandLine& line) {
  if (line.app.get_subcommands().empty()) {
    if (auto code = check_extras(line, line.app)) return *code;
    std::cerr << line.app.help();
    return kExitUsage;
  }
  for (const CLI::App* command : line.leaves()) {
    if (!command->parsed()) continue;
    if (auto code = check_extras(line, *command)) return *code;
  }
  for (const CLI::App* group : {line.bench_app, line.inspect_app}) {
    if (auto code = check_group(line, *group)) return *code;
  }
  if (auto code = check_extras(line, line.app)) return *code;
  if (line.serve_app->parsed()) return serve(line);
  if (line.run_app->parsed()) return run_command(line.run);
  if (line.latency_app->parsed()) return bench_command(line.latency);
  if (line.throughput_app->parsed()) return bench_command(line.throughput);
  if (line.kernels_app->parsed()) return bench_kernels_command(line.kernels);
  if (line.bench_serve_app->parsed()) {
    return bench_serve_command(line.bench_serve, std::getenv("OPENAI_API_KEY"));
  }
  if (line.bench_speculate_app->parsed()) return bench_speculate_command(line.bench_speculate);
  if (line.eval_app->parsed()) return eval_command(line.eval);
  if (line.attention_app->parsed()) return inspect_command(line.inspect);
  if (line.calibrate_app->parsed()) return calibrate_command(line.calibrate);
  if (line.info_app->parsed()) return info_command(line.info);
  if (line.pull_app->parsed()) return pull_command(line.pull);
  if (line.doctor_app->parsed()) return doctor_command(line.doctor_refusals);
  if (line.completion_app->parsed()) return completion_command(line);
  std::printf("weft %s\n", kVersion);
  return kExitOk;
}

}  // namespace

CommandInfo command_tree() {
  return describe(CommandLine().app);
}

Result<FinishedServe> parse_serve(std::vector<std::string> words, const char* vllm_api_key) {
  words.insert(words.begin(), "serve");
  try {
    const auto line = TRY(parse_words(std::move(words)));
    const std::vector<std::string> extras = line->serve_app->remaining();
    if (!extras.empty()) return invalid_argument("unexpected '" + extras.front() + "'");
    return finish_serve(line->serve, vllm_api_key);
  } catch (const CLI::ParseError& e) {
    return invalid_argument(e.what());
  }
}

int run_command_line(int argc, char** argv) {
  try {
    const auto line = parse_words({argv + std::min(argc, 1), argv + argc});
    if (!line.ok()) return report_error(line.error());
    return run_parsed(**line);
  } catch (const HelpWanted& e) {
    return e.code;
  } catch (const CLI::ParseError& e) {
    return usage_error(e.what());
  }
}

}  // namespace weft
