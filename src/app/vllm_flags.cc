#include "app/vllm_flags.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

namespace weft {
namespace {

using enum FlagArity;

// From the documentation of vLLM 0.5 to 0.11 and its sources. A flag that weft has itself is not
// here; an alias of one is in kAliases.
constexpr KnownFlag kIgnored[] = {
    {"--additional-config", kValue, ""},
    {"--aggregate-engine-logging", kSwitch, ""},
    {"--all2all-backend", kValue, ""},
    {"--allow-credentials", kSwitch, ""},
    {"--allow-deprecated-quantization", kSwitch, ""},
    {"--allowed-headers", kValue, "[\"*\"]"},
    {"--allowed-methods", kValue, "[\"*\"]"},
    {"--api-server-count", kValue, "1"},
    {"--async-scheduling", kSwitch, ""},
    {"--attention-backend", kValue, ""},
    {"--attention-config", kValue, ""},
    {"--block-size", kValue, "64"},
    {"--calculate-kv-scales", kSwitch, ""},
    {"--chat-template-content-format", kValue, "auto"},
    {"--code-revision", kValue, ""},
    {"--collect-detailed-traces", kMany, ""},
    {"--compilation-config", kValue, ""},
    {"--config-format", kValue, "auto hf"},
    {"--cpu-offload-gb", kValue, "0"},
    {"--cpu-offload-params", kMany, ""},
    {"--cuda-graph-sizes", kMany, ""},
    {"--cudagraph-capture-sizes", kMany, ""},
    {"--cudagraph-metrics", kSwitch, ""},
    {"--data-parallel-address", kValue, ""},
    {"--data-parallel-backend", kValue, ""},
    {"--data-parallel-rpc-port", kValue, ""},
    {"--default-mm-loras", kValue, ""},
    {"--disable-access-log-for-endpoints", kValue, ""},
    {"--disable-async-output-proc", kSwitch, ""},
    {"--disable-cascade-attn", kSwitch, ""},
    {"--disable-chunked-mm-input", kSwitch, ""},
    {"--disable-custom-all-reduce", kSwitch, ""},
    {"--disable-fastapi-docs", kSwitch, ""},
    {"--disable-frontend-multiprocessing", kSwitch, ""},
    {"--disable-hybrid-kv-cache-manager", kSwitch, ""},
    {"--disable-log-requests", kSwitch, "true"},
    {"--disable-logprobs-during-spec-decoding", kOptional, ""},
    {"--disable-mm-preprocessor-cache", kSwitch, ""},
    {"--disable-nccl-for-dp-synchronization", kSwitch, ""},
    {"--disable-sliding-window", kSwitch, ""},
    {"--disable-uvicorn-access-log", kSwitch, "true"},
    {"--distributed-executor-backend", kValue, "mp uni"},
    {"--download-dir", kValue, ""},
    {"--enable-auto-tool-choice", kSwitch, "true"},
    {"--enable-chunked-prefill", kOptional, "true True"},
    {"--enable-dbo", kSwitch, ""},
    {"--enable-eplb", kSwitch, ""},
    {"--enable-expert-parallel", kSwitch, ""},
    {"--enable-force-include-usage", kSwitch, ""},
    {"--enable-layerwise-nvtx-tracing", kSwitch, ""},
    {"--enable-log-deltas", kSwitch, ""},
    {"--enable-log-outputs", kSwitch, ""},
    {"--enable-logging-iteration-details", kSwitch, ""},
    {"--enable-mfu-metrics", kSwitch, ""},
    {"--enable-mm-embeds", kSwitch, ""},
    {"--enable-multimodal-encoder-data-parallel", kSwitch, ""},
    {"--enable-offline-docs", kSwitch, ""},
    {"--enable-per-request-metrics", kSwitch, ""},
    {"--enable-prompt-embeds", kSwitch, ""},
    {"--enable-prompt-tokens-details", kSwitch, "true"},
    {"--enable-reasoning", kSwitch, "true"},
    {"--enable-request-id-headers", kSwitch, "true"},
    {"--enable-return-routed-experts", kSwitch, ""},
    {"--enable-server-load-tracking", kSwitch, ""},
    {"--enable-sleep-mode", kSwitch, ""},
    {"--enable-tokenizer-info-endpoint", kSwitch, ""},
    {"--eplb-config", kValue, ""},
    {"--exclude-tools-when-tool-choice-none", kSwitch, ""},
    {"--expert-placement-strategy", kValue, ""},
    {"--fail-on-environ-validation", kSwitch, ""},
    {"--fingerprint-mode", kValue, ""},
    {"--fingerprint-value", kValue, ""},
    {"--fully-sharded-loras", kSwitch, ""},
    {"--gdn-prefill-backend", kValue, ""},
    {"--guided-decoding-backend", kValue, "auto"},
    {"--guided-decoding-disable-additional-properties", kSwitch, ""},
    {"--guided-decoding-disable-any-whitespace", kSwitch, ""},
    {"--guided-decoding-disable-fallback", kSwitch, "true"},
    {"--h11-max-header-count", kValue, ""},
    {"--h11-max-incomplete-event-size", kValue, ""},
    {"--hf-token", kOptional, ""},
    {"--ignore-patterns", kMany, ""},
    {"--interleave-mm-strings", kSwitch, ""},
    {"--ir-op-priority", kValue, ""},
    {"--kernel-config", kValue, ""},
    {"--kv-cache-metrics", kSwitch, ""},
    {"--kv-cache-metrics-sample", kValue, ""},
    {"--kv-offloading-backend", kValue, ""},
    {"--kv-offloading-size", kValue, "0"},
    {"--kv-sharing-fast-prefill", kSwitch, ""},
    {"--log-config-file", kValue, ""},
    {"--log-error-stack", kSwitch, ""},
    {"--logits-processor-pattern", kValue, ""},
    {"--logprobs-mode", kValue, "raw_logprobs"},
    {"--long-prefill-token-threshold", kValue, "0"},
    {"--lora-dtype", kValue, ""},
    {"--lora-extra-vocab-size", kValue, ""},
    {"--lora-target-modules", kMany, ""},
    {"--mamba-block-size", kValue, ""},
    {"--mamba-cache-dtype", kValue, "auto float32"},
    {"--mamba-cache-mode", kValue, ""},
    {"--master-addr", kValue, ""},
    {"--master-port", kValue, ""},
    {"--max-cpu-loras", kValue, ""},
    {"--max-cudagraph-capture-size", kValue, ""},
    {"--max-log-len", kValue, ""},
    {"--max-logprobs", kValue, "20"},
    {"--max-long-partial-prefills", kValue, "1"},
    {"--max-lora-rank", kValue, ""},
    {"--max-loras", kValue, ""},
    {"--max-num-partial-prefills", kValue, "1"},
    {"--max-parallel-loading-workers", kValue, ""},
    {"--max-prompt-adapter-token", kValue, ""},
    {"--max-prompt-adapters", kValue, ""},
    {"--max-seq-len-to-capture", kValue, ""},
    {"--mm-encoder-attn-backend", kValue, ""},
    {"--mm-encoder-only", kSwitch, ""},
    {"--mm-encoder-tp-mode", kValue, ""},
    {"--mm-processor-cache-gb", kValue, ""},
    {"--mm-processor-cache-type", kValue, ""},
    {"--mm-shm-cache-max-object-size-mb", kValue, ""},
    {"--mm-tensor-ipc", kValue, ""},
    {"--model-impl", kValue, "auto vllm"},
    {"--model-loader-extra-config", kValue, ""},
    {"--moe-backend", kValue, ""},
    {"--multi-step-stream-outputs", kOptional, ""},
    {"--num-gpu-blocks-override", kValue, ""},
    {"--num-lookahead-slots", kValue, "0"},
    {"--num-scheduler-steps", kValue, "1"},
    {"--numa-bind", kSwitch, ""},
    {"--optimization-level", kValue, ""},
    {"--otlp-traces-endpoint", kValue, ""},
    {"--override-attention-dtype", kValue, ""},
    {"--override-neuron-config", kValue, ""},
    {"--override-pooler-config", kValue, ""},
    {"--performance-mode", kValue, ""},
    {"--pooler-config", kValue, ""},
    {"--preemption-mode", kValue, "recompute"},
    {"--prefix-caching-hash-algo", kValue, ""},
    {"--profiler-config", kValue, ""},
    {"--pt-load-map-location", kValue, ""},
    {"--quantization-param-path", kValue, ""},
    {"--ray-workers-use-nsight", kSwitch, ""},
    {"--reasoning-config", kValue, ""},
    {"--renderer-num-workers", kValue, ""},
    {"--return-tokens-as-token-ids", kSwitch, ""},
    {"--safetensors-load-strategy", kValue, ""},
    {"--scheduler-delay-factor", kValue, "0"},
    {"--scheduler-reserve-full-isl", kSwitch, "true"},
    {"--scheduling-policy", kValue, "fcfs priority"},
    {"--show-hidden-metrics-for-version", kValue, ""},
    {"--skip-mm-profiling", kSwitch, ""},
    {"--spec-decoding-acceptance-method", kValue, ""},
    {"--stream-interval", kValue, "1"},
    {"--structured-outputs-config", kValue, ""},
    {"--tokenizer-pool-extra-config", kValue, ""},
    {"--tokenizer-pool-size", kValue, "0"},
    {"--tokenizer-pool-type", kValue, ""},
    {"--tokens-only", kSwitch, ""},
    {"--trust-remote-code", kSwitch, ""},
    {"--trust-request-chat-template", kSwitch, ""},
    {"--ubatch-size", kValue, ""},
    {"--use-tqdm-on-load", kSwitch, ""},
    {"--use-v2-block-manager", kSwitch, "true"},
    {"--video-pruning-rate", kValue, ""},
    {"--weight-transfer-config", kValue, ""},
    {"--worker-use-ray", kSwitch, ""},
};

constexpr KnownFlag kRefused[] = {
    {"--ssl-keyfile", kValue, ""},
    {"--ssl-certfile", kValue, ""},
    {"--ssl-ca-certs", kValue, ""},
    {"--ssl-cert-reqs", kValue, "0"},
    {"--ssl-ciphers", kValue, ""},
    {"--enable-ssl-refresh", kSwitch, ""},
    {"--tensor-parallel-size", kValue, "1"},
    {"--pipeline-parallel-size", kValue, "1"},
    {"--data-parallel-size", kValue, "1"},
    {"--data-parallel-size-local", kValue, "1"},
    {"--data-parallel-rank", kValue, "0"},
    {"--data-parallel-start-rank", kValue, "0"},
    {"--data-parallel-hybrid-lb", kSwitch, ""},
    {"--data-parallel-external-lb", kSwitch, ""},
    {"--decode-context-parallel-size", kValue, "1"},
    {"--prefill-context-parallel-size", kValue, "1"},
    {"--nnodes", kValue, "1"},
    {"--node-rank", kValue, "0"},
    {"--headless", kSwitch, ""},
    {"--speculative-model", kValue, ""},
    {"--num-speculative-tokens", kValue, "0"},
    {"--enable-lora", kSwitch, ""},
    {"--lora-modules", kMany, ""},
    {"--enable-prompt-adapter", kSwitch, ""},
    {"--prompt-adapters", kMany, ""},
    {"--qlora-adapter-name-or-path", kValue, ""},
    {"--kv-transfer-config", kMany, ""},
    {"--kv-events-config", kMany, ""},
    {"--ec-transfer-config", kMany, ""},
    {"--hf-overrides", kMany, ""},
    {"--hf-config-path", kValue, ""},
    {"--rope-scaling", kValue, ""},
    {"--rope-theta", kValue, ""},
    {"--tokenizer", kValue, ""},
    {"--tokenizer-revision", kValue, ""},
    {"--tokenizer-mode", kValue, "auto hf slow"},
    {"--skip-tokenizer-init", kSwitch, ""},
    {"--task", kValue, "auto generate"},
    {"--runner", kValue, "auto generate"},
    {"--convert", kValue, "auto none"},
    {"--response-role", kValue, "assistant"},
    {"--middleware", kMany, ""},
    {"--tool-parser-plugin", kValue, ""},
    {"--reasoning-parser-plugin", kValue, ""},
    {"--logits-processors", kMany, ""},
    {"--io-processor-plugin", kValue, ""},
    {"--worker-cls", kValue, "auto"},
    {"--worker-extension-cls", kValue, ""},
    {"--tool-server", kValue, ""},
};

struct Alias {
  std::string_view from, to;
};

constexpr Alias kAliases[] = {
    {"--model-path", "--model"},
    {"--alias", "--served-model-name"},
    {"-c", "--max-model-len"},
    {"--ctx-size", "--max-model-len"},
    {"--context-length", "--max-model-len"},
    {"-tp", "--tensor-parallel-size"},
    {"--tp", "--tensor-parallel-size"},
    {"--tp-size", "--tensor-parallel-size"},
    {"-pp", "--pipeline-parallel-size"},
    {"--pp", "--pipeline-parallel-size"},
    {"-dp", "--data-parallel-size"},
    {"--dp", "--data-parallel-size"},
    {"-dpl", "--data-parallel-size-local"},
    {"-dpn", "--data-parallel-rank"},
    {"-dpr", "--data-parallel-start-rank"},
    {"-dpa", "--data-parallel-address"},
    {"-dpp", "--data-parallel-rpc-port"},
    {"-dpb", "--data-parallel-backend"},
    {"-dph", "--data-parallel-hybrid-lb"},
    {"-dpe", "--data-parallel-external-lb"},
    {"-dcp", "--decode-context-parallel-size"},
    {"-pcp", "--prefill-context-parallel-size"},
    {"-n", "--nnodes"},
    {"-r", "--node-rank"},
    {"-hl", "--headless"},
    {"-ep", "--enable-expert-parallel"},
    {"-asc", "--api-server-count"},
    {"-sc", "--speculative-config"},
    {"-ac", "--attention-config"},
    {"-cc", "--compilation-config"},
    {"-O", "--optimization-level"},
    {"--mem-fraction-static", "--gpu-memory-utilization"},
    {"--kv-cache-memory-bytes", "--kv-cache-memory"},
    {"--max-running-requests", "--max-num-seqs"},
    {"--mamba-ssm-cache-dtype", "--state-dtype"},
    {"--mamba-ssm-dtype", "--state-dtype"},
    {"--chunked-prefill-size", "--max-num-batched-tokens"},
    {"--uvicorn-log-level", "--log-level"},
    {"--max-queue", "--max-waiting"},
};

// Flags whose value is a JSON object, so that they have a dotted form.
constexpr std::string_view kJsonFlags[] = {"--default-chat-template-kwargs",
                                           "--override-generation-config",
                                           "--speculative-config",
                                           "--hf-overrides",
                                           "--kv-transfer-config",
                                           "--kv-events-config",
                                           "--ec-transfer-config",
                                           "--compilation-config",
                                           "--attention-config",
                                           "--kernel-config",
                                           "--additional-config",
                                           "--structured-outputs-config",
                                           "--model-loader-extra-config",
                                           "--mm-processor-kwargs",
                                           "--limit-mm-per-prompt",
                                           "--eplb-config",
                                           "--pooler-config",
                                           "--override-pooler-config",
                                           "--profiler-config",
                                           "--reasoning-config",
                                           "--weight-transfer-config",
                                           "--rope-scaling"};

std::string canonical(std::string name) {
  if (name.substr(0, 2) == "--") std::replace(name.begin() + 2, name.end(), '_', '-');
  for (const Alias& alias : kAliases) {
    if (alias.from == name) return std::string(alias.to);
  }
  return name;
}

bool is_flag(const std::string& word) {
  return word.size() > 1 && word[0] == '-' &&
         !((word[1] >= '0' && word[1] <= '9') || word[1] == '.');  // a negative number is none
}

/// {"a":{"b":VALUE}} of the path a.b; VALUE is JSON where it reads as such, else a string.
std::string nest(const std::string& path, const std::string& value) {
  nlohmann::json json = nlohmann::json::parse(value, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded()) json = value;
  std::string rest = path;
  while (true) {
    const size_t dot = rest.rfind('.');
    const std::string key = dot == std::string::npos ? rest : rest.substr(dot + 1);
    json = nlohmann::json{{key, std::move(json)}};
    if (dot == std::string::npos) return json.dump();
    rest.resize(dot);
  }
}

class Expander {
 public:
  /// `engine_only`: the flags of vLLM's that other commands have as well, no aliases.
  Expander(const std::vector<std::string>& words, bool engine_only)
      : words_(words), engine_only_(engine_only) {
    // Only then is a second word behind a list flag not the model itself.
    for (const std::string& word : words) {
      const std::string name = word.substr(0, word.find('='));
      model_given_ |= canonical(name) == "--model" || name == "-m";
    }
    model_given_ |= !words.empty() && !is_flag(words[0]);
  }

  Result<std::vector<std::string>> run() {
    while (next_ < words_.size()) {
      const std::string word = words_[next_++];
      if (word == "--") {
        out_.insert(out_.end(), words_.begin() + static_cast<ptrdiff_t>(next_) - 1, words_.end());
        break;
      }
      if (is_flag(word)) {
        TRY(flag(word));
      } else {
        out_.push_back(word);
      }
    }
    return std::move(out_);
  }

 private:
  Result<void> flag(const std::string& word) {
    const size_t equals = word.find('=');
    std::string name = word.substr(0, equals);
    if (engine_only_ && canonical(name.substr(0, name.find('.'))) != "--speculative-config") {
      out_.push_back(word);
      return {};
    }
    std::optional<std::string> value;
    if (equals != std::string::npos) value = word.substr(equals + 1);
    if (name.size() > 2 && name.substr(0, 2) == "-O") {  // -O3, -O.mode=3
      if (name[2] == '.') return dotted("--compilation-config", name.substr(3), value);
      if (!value) value = name.substr(2);
      name = "-O";
    }
    const size_t dot = name.find('.');
    if (dot != std::string::npos) {
      return dotted(canonical(name.substr(0, dot)), name.substr(dot + 1), value);
    }
    name = canonical(name);
    if (name == "--served-model-name" || name == "--api-key") {
      repeat(name, value);
      return {};
    }
    out_.push_back(value ? name + "=" + *value : name);
    return {};
  }

  Result<void> dotted(const std::string& name, const std::string& path,
                      std::optional<std::string> value) {
    if (std::find(std::begin(kJsonFlags), std::end(kJsonFlags), name) == std::end(kJsonFlags)) {
      return invalid_argument(name + ": this flag has no dotted form ('" + name + "." + path +
                              "'); those that take a JSON object have");
    }
    if (path.empty() || path.front() == '.' || path.back() == '.' ||
        path.find("..") != std::string::npos) {
      return invalid_argument(name + "." + path + ": a name is missing between the dots");
    }
    if (!value) {
      if (next_ >= words_.size()) {
        return invalid_argument(name + "." + path + ": its value is missing");
      }
      value = words_[next_++];
    }
    out_.push_back(name + "=" + nest(path, *value));
    return {};
  }

  void repeat(const std::string& name, const std::optional<std::string>& value) {
    if (value) {
      out_.push_back(name + "=" + *value);
      return;
    }
    // Without a value the parser will complain.
    if (next_ >= words_.size() || is_flag(words_[next_])) out_.push_back(name);
    bool first = true;
    while (next_ < words_.size() && !is_flag(words_[next_]) && (first || model_given_)) {
      out_.push_back(name + "=" + words_[next_++]);
      first = false;
    }
  }

  const std::vector<std::string>& words_;
  const bool engine_only_;
  size_t next_ = 0;
  bool model_given_ = false;
  std::vector<std::string> out_;
};

}  // namespace

std::span<const KnownFlag> ignored_flags() {
  return kIgnored;
}

std::span<const KnownFlag> refused_flags() {
  return kRefused;
}

bool is_harmless(const KnownFlag& flag, const std::vector<std::string>& values) {
  const auto known = [&flag](const std::string& value) {
    std::string_view rest = flag.harmless;
    while (!rest.empty()) {
      const std::string_view word = rest.substr(0, rest.find(' '));
      if (word == value) return true;
      rest.remove_prefix(std::min(rest.size(), word.size() + 1));
    }
    return false;
  };
  return std::all_of(values.begin(), values.end(), known);
}

Result<std::vector<std::string>> expand_serve_words(const std::vector<std::string>& words) {
  return Expander(words, /*engine_only=*/false).run();
}

Result<std::vector<std::string>> expand_engine_words(const std::vector<std::string>& words) {
  return Expander(words, /*engine_only=*/true).run();
}

}  // namespace weft
