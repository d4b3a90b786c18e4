// Flags that several commands share.
#include <CLI/CLI.hpp>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdlib>

#include "app/flags.h"
#include "app/media_flags.h"
#include "app/prefill_plan.h"
#include "app/speculative_config.h"
#include "base/log.h"
#include "models/prefill.h"

namespace weft {
namespace {

/// What a check tells of a value: CLI11 puts the flag before it, as the parser has.
template <class T>
std::string without_flag(const std::string& flag, const Result<T>& parsed) {
  if (parsed.ok()) return "";
  const std::string& message = parsed.error().message;
  return message.starts_with(flag + ": ") ? message.substr(flag.size() + 2) : message;
}

std::string environment_name(const CLI::Option& option) {
  std::string name = "WEFT_";
  for (char c : option.get_lnames().front()) {
    name += c == '-' ? '_' : static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  }
  return name;
}

/// Replaces "8k" by "8192"; what is no size is left for the number's own error.
CLI::Validator human_size(const std::string& flag) {
  return CLI::Validator(
      [flag](std::string& text) {
        const Result<int64_t> size = parse_size(flag, text);
        if (size.ok()) text = std::to_string(*size);
        return std::string();
      },
      "");
}

/// The same, and 0 for `word`.
CLI::Validator size_or(const std::string& word, const std::string& flag) {
  const CLI::Validator size = human_size(flag);
  return CLI::Validator(
      [word, size](std::string& text) {
        if (text != word) return size(text);
        text = "0";
        return std::string();
      },
      "");
}

template <class T>
bool is_whole_number(std::string_view text) {
  T value = 0;
  const std::string_view digits = text.starts_with('-') ? text.substr(1) : text;
  if (digits.size() > 1 && digits.starts_with('0')) return false;  // CLI11 would read it as octal
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  return error == std::errc() && end == text.data() + text.size();
}

bool is_number(const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  return !text.empty() && end == text.c_str() + text.size() && !std::isnan(value);
}

/// Why a text is not of that type of option ("INT", "UINT", "FLOAT"); empty: it is, or the type is
/// no number's.
std::string not_a_number(const std::string& type, const std::string& text) {
  if (type.starts_with("UINT")) {
    if (is_whole_number<uint64_t>(text)) return {};
    return "'" + text + "' is not a whole number from 0 to 18446744073709551615";
  }
  if (type.starts_with("INT") && !is_whole_number<int64_t>(text)) {
    return "'" + text + "' is not a whole number of 64 bits";
  }
  if (type.starts_with("FLOAT") && !is_number(text)) {
    return "'" + text + "' is not a number";
  }
  return {};
}

}  // namespace

void add_engine_options(CLI::App& app, EngineOptions& o, bool positional_model, bool fake) {
  std::vector<std::string> devices = {"auto", "cpu", "cuda"};
  if (fake) devices.emplace_back("fake");
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
  app.add_option("--quantization,-q", o.quantization, "Quantisation of the weights while loading")
      ->check(CLI::IsMember({"none", "int8", "int4", "fp8"}))
      ->capture_default_str();
  app.add_option("--state-dtype", o.state_dtype,
                 "How recurrent states (gated delta rule) are kept; auto: float32")
      ->check(CLI::IsMember({"auto", "float32", "bfloat16"}))
      ->capture_default_str();
  app.add_option(
         "--kv-cache-dtype", o.kv_cache_dtype,
         "Format of the KV cache; auto: what config.json asks for, else that of the weights")
      ->transform(CLI::Validator(
          [](std::string& text) {
            if (text == "fp8_e4m3") text = "fp8";  // vLLM's other name
            return std::string();
          },
          ""))
      ->check(
          CLI::IsMember({"auto", "bfloat16", "fp8", "fp8_block", "int8", "int8_dynamic", "int4"}))
      ->capture_default_str();
  app.add_option("--kv-scales", o.kv_scales,
                 "Static scales of an int8 or fp8 cache: a file of `weft calibrate`");
  app.add_option("--load-format", o.load_format,
                 "dummy: seeded random weights from config.json alone")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->capture_default_str();
  app.add_option("--max-model-len", o.max_model_len, "Longest sequence in tokens (32k), or auto")
      ->capture_default_str();
  app.add_option("--kv-cache-memory", o.kv_cache_memory, "Bytes of the caches (2G), or auto")
      ->capture_default_str();
  app.add_option("--swap-space", o.swap_space,
                 "GiB of the host's memory for what preempted sequences have computed")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str();
  app.add_option("--max-num-seqs", o.max_num_seqs, "Sequences that run at once")
      ->transform(human_size("--max-num-seqs"))
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-num-batched-tokens", o.max_num_batched_tokens,
                 "Token budget of a step (8k); auto: 2048 on a CPU, 8448 on a GPU (32k for a "
                 "sequence alone whose prompt is sparse by --prefill-attention)")
      ->transform(size_or("auto", "--max-num-batched-tokens"))
      ->check(CLI::Validator(
          [](std::string& text) {
            if (text == "0" || CLI::Range(64, 1 << 20)(text).empty()) return std::string();
            return text + " is not auto or a number from 64 to 1048576";
          },
          "auto or 64 to 1048576"))
      ->default_str("auto");
  app.add_flag("--enable-prefix-caching,!--no-enable-prefix-caching", o.prefix_caching,
               "Reuse the cache of equal prompt prefixes (on by default)");
  app.add_option_function<std::string>(
         "--prefix-cache",
         [&o](const std::string& mode) { o.reuse_generated = mode == "reuse-generated"; },
         "exact: only what a cold run would compute; reuse-generated: also generated tokens of "
         "earlier turns")
      ->check(CLI::IsMember({"exact", "reuse-generated"}));
  app.add_option("--prefill-attention", o.prefill_attention,
                 "What the heads of a prompt see: auto (as the model was trained; of heads that "
                 "choose blocks auto:threshold=0.9,stride=16,thresholds=FILE), dense, or xattn "
                 "(blocks of keys by estimate): "
                 "xattn:threshold=0.9,stride=16,from=10240,thresholds=FILE,heads=FILE")
      ->check([](const std::string& text) {
        return without_flag("--prefill-attention", parse_prefill("--prefill-attention", text));
      })
      ->capture_default_str();
  app.add_option("--prefill-policy", o.prefill_policy,
                 "What a router of heads decides by: exact (the whole prompt), sticky (its first "
                 "2048 tokens; prefixes can be reused) or sticky:tokens=N")
      ->check([](const std::string& text) {
        return without_flag("--prefill-policy", parse_prefill_policy("--prefill-policy", text));
      })
      ->capture_default_str();
  app.add_option(
         "--max-image-tokens", o.max_image_tokens,
         "Larger images are reduced to so many tokens; 0: images are refused and the vision "
         "tower is not loaded")
      ->transform(human_size("--max-image-tokens"))
      ->check(CLI::Range(0, 1 << 16))
      ->capture_default_str();
  app.add_option("--max-images", o.max_images, "Images of one request")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  app.add_option_function<std::vector<std::string>>(
         "--limit-mm-per-prompt",
         [&o](const std::vector<std::string>& objects) {
           for (const std::string& object : objects) {
             const Result<void> done = read_media_limits(object, o);
             if (!done.ok()) throw CLI::ValidationError(done.error().message);
           }
         },
         "The same as --max-images and --max-videos: {\"image\": 16, \"video\": 4}")
      ->allow_extra_args(false);
  app.add_option_function<std::vector<std::string>>(
         "--mm-processor-kwargs",
         [&o](const std::vector<std::string>& objects) {
           for (const std::string& object : objects) {
             const Result<std::string> warning = read_processor_kwargs(object, o);
             if (!warning.ok()) throw CLI::ValidationError(warning.error().message);
             if (!warning->empty()) log_warning(*warning);
           }
         },
         "JSON object: min_pixels and max_pixels of images, instead of the model's own")
      ->allow_extra_args(false);
  app.add_flag_callback(
      "--language-model-only", [&o] { o.max_image_tokens = 0; },
      "The same as --max-image-tokens 0");
  app.add_option("--max-videos", o.max_videos, "Videos of one request; 0: videos are refused")
      ->check(CLI::Range(0, 64))
      ->capture_default_str();
  app.add_option("--max-video-frames", o.max_video_frames, "Frames of one video")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  app.add_option("--max-video-tokens", o.max_video_tokens,
                 "The frames of a video are reduced until all have so many tokens")
      ->transform(human_size("--max-video-tokens"))
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--threads,-t", o.threads, "CPU threads; 0: all that the process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app.add_option("--cpu-isa", o.cpu_isa, "Instruction set of the CPU kernels")
      ->check(CLI::IsMember({"auto", "avx2", "avx512", "avx512_bf16", "amx"}))
      ->capture_default_str();
  app.add_option("--device", o.device, "Where the model runs")
      ->check(CLI::IsMember(devices))
      ->capture_default_str();
  app.add_option("--gpu-memory-utilization", o.gpu_memory_utilization,
                 "Share of the GPU's memory that weft may use")
      ->check(CLI::Range(0.05, 1.0))
      ->capture_default_str();
  app.add_flag("--enforce-eager", o.enforce_eager, "No CUDA graphs: every kernel is launched");
  app.add_option_function<std::vector<std::string>>(
         "--speculative-config",
         [&o](const std::vector<std::string>& objects) {
           Result<ParsedSpeculation> parsed = parse_speculative_config(objects);
           if (!parsed.ok()) throw CLI::ValidationError(parsed.error().message);
           for (const std::string& warning : parsed->warnings) log_warning(warning);
           o.speculation = parsed->config;
         },
         "JSON object: how drafts are made, such as "
         "{\"method\":\"mtp\",\"num_speculative_tokens\":3} "
         "(docs/speculation.md)")
      ->allow_extra_args(false);
  app.add_option("--seed,-s", o.seed, "Seed of sampling and of dummy weights")
      ->capture_default_str();
}

void add_sampling_options(CLI::App& app, SamplingRequest& o) {
  app.add_option("--max-tokens,-n", o.max_tokens,
                 "Tokens to generate; up to the model's length when absent");
  app.add_option("--min-tokens", o.min_tokens, "Tokens before the answer may end");
  app.add_option("--temperature", o.temperature, "0 is greedy");
  app.add_option("--top-k", o.top_k, "Choose among the k most probable tokens; 0: off");
  app.add_option("--top-p", o.top_p, "Choose among the most probable tokens of this mass, (0, 1]");
  app.add_option("--min-p", o.min_p,
                 "Leave out what is less probable than this share of the best, [0, 1]");
  app.add_option("--repetition-penalty", o.repetition_penalty, "[0.01, 100]; 1: off");
  app.add_option("--presence-penalty", o.presence_penalty, "[-2, 2]");
  app.add_option("--frequency-penalty", o.frequency_penalty, "[-2, 2]");
  app.add_option("--stop", o.stop, "A text that ends the answer; may be repeated");
  app.add_flag("--ignore-eos", o.ignore_eos, "Go on after the end-of-sequence token");
}

void require_numbers(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    const std::string type = option->get_type_name();
    option->check(
        CLI::Validator([type](const std::string& text) { return not_a_number(type, text); }, ""));
  }
}

void add_environment_twins(CLI::App& app) {
  for (CLI::Option* option : app.get_options()) {
    if (option->get_lnames().empty() || option->get_lnames().front() == "help") continue;
    if (option->get_group().empty()) continue;  // known to vLLM, of no meaning here
    option->envname(environment_name(*option));
  }
}

}  // namespace weft
