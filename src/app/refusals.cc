#include "app/refusals.h"

#include <algorithm>
#include <string_view>

namespace weft {
namespace {

/// Whether only this machine can reach the address. A name is taken for public.
bool is_loopback(std::string_view host) {
  if (host == "localhost" || host == "::1" || host == "[::1]") return true;
  return host.substr(0, 4) == "127." && std::all_of(host.begin(), host.end(), [](char c) {
           return c == '.' || (c >= '0' && c <= '9');
         });
}

constexpr Refusal kRefusals[] = {
    {"cuda-float32",
     [](const EngineOptions& o) { return o.device == "cuda" && o.dtype == "float32"; },
     "--dtype float32: the CUDA backend computes in bf16; use --device cpu with it"},
    {"float32-quantized",
     [](const EngineOptions& o) { return o.dtype == "float32" && o.quantization != "none"; },
     "--dtype float32 keeps every weight exact and --quantization rounds them: give one of the "
     "two"},
    {"float32-rounded-states",
     [](const EngineOptions& o) { return o.dtype == "float32" && o.state_dtype == "bfloat16"; },
     "--dtype float32 keeps everything exact and --state-dtype bfloat16 rounds the recurrent "
     "states: give one of the two"},
    {"kv-scales-without-static",
     [](const EngineOptions& o) {
       const std::string& format = o.kv_cache_dtype;  // auto: once config.json is read
       return !o.kv_scales.empty() && format != "int8" && format != "fp8" && format != "auto";
     },
     "--kv-scales holds the scales of a static KV cache; give --kv-cache-dtype int8 or fp8 with "
     "it"},
    {"dummy-without-model",
     [](const EngineOptions& o) { return o.load_format == "dummy" && o.model.empty(); },
     "--load-format dummy needs a MODEL whose config.json gives the shapes"},
    {"reuse-without-cache",
     [](const EngineOptions& o) { return o.reuse_generated && !o.prefix_caching; },
     "--prefix-cache reuse-generated needs the prefix cache; drop --no-enable-prefix-caching"},
    {"cuda-topp",
     [](const EngineOptions& o) {
       return o.device == "cuda" && o.speculation.verify == VerifyStrategy::kTopP;
     },
     "--speculative-config: verify_strategy topp (lossy) runs on the CPU alone; give target_match, "
     "or --device cpu"},
    {"sparse-reuse",
     [](const EngineOptions& o) {
       return o.reuse_generated && o.prefill_attention.rfind("xattn", 0) == 0;
     },
     "--prefix-cache reuse-generated: generated tokens see all keys and those of prompts only what "
     "--prefill-attention lets them; use exact, or dense"},
};

constexpr ServeRefusal kServeRefusals[] = {
    {"public-without-key",
     [](const ServeOptions& o) {
       return o.uds.empty() && !is_loopback(o.host) && o.api_keys.empty() && !o.allow_public;
     },
     "--host: everybody who reaches this address could use the server; give --api-key or "
     "--api-key-file, or say --allow-public"},
    {"fake-hang-without-fake",
     [](const ServeOptions& o) { return o.fake_hang_after >= 0 && !o.fake(); },
     "--fake-hang-after makes the test device hang; give --device fake with it"},
    {"fake-speed-without-fake",
     [](const ServeOptions& o) { return o.fake_tokens_per_second > 0 && !o.fake(); },
     "--fake-tokens-per-second is the speed of the test device; give --device fake with it"},
};

constexpr FlagRefusal kFlagRefusals[] = {
    {"tls",
     "--ssl-keyfile --ssl-certfile --ssl-ca-certs --ssl-cert-reqs --ssl-ciphers "
     "--enable-ssl-refresh",
     "weft speaks plain HTTP, and what was meant to be encrypted must not go out in the clear; "
     "put nginx or another proxy with TLS in front"},
    {"one-device",
     "--tensor-parallel-size --pipeline-parallel-size --data-parallel-size "
     "--data-parallel-size-local --data-parallel-rank --data-parallel-start-rank "
     "--data-parallel-hybrid-lb --data-parallel-external-lb --decode-context-parallel-size "
     "--prefill-context-parallel-size --nnodes --node-rank --headless",
     "this version runs a model on one device of one machine; allowed: sizes of 1"},
    {"speculation-flags", "--speculative-model --num-speculative-tokens",
     "these are vLLM's older spellings; give --speculative-config "
     "{\"method\":\"ngram\",\"num_speculative_tokens\":4}"},
    {"lora",
     "--enable-lora --lora-modules --enable-prompt-adapter --prompt-adapters "
     "--qlora-adapter-name-or-path",
     "adapters are not supported, and the base model would answer in their place; merge the "
     "adapter into the weights"},
    {"kv-transfer", "--kv-transfer-config --kv-events-config --ec-transfer-config",
     "this version shares no cache with other processes; leave the flag out"},
    {"own-config", "--hf-overrides --hf-config-path --rope-scaling --rope-theta",
     "a model is what its config.json says; change that file"},
    {"own-tokenizer", "--tokenizer --tokenizer-revision --tokenizer-mode --skip-tokenizer-init",
     "a model is served with the tokenizer.json in its directory; put another one there"},
    {"generation-only", "--task --runner --convert",
     "weft generates text; allowed: auto, generate (for --convert: auto, none)"},
    {"answer-role", "--response-role", "answers have the role assistant; allowed: assistant"},
    {"python-code",
     "--middleware --tool-parser-plugin --reasoning-parser-plugin --logits-processors "
     "--io-processor-plugin --worker-cls --worker-extension-cls --tool-server",
     "weft runs no Python and no tools, and what the code was meant to check would go unchecked"},
};

bool names(std::string_view list, std::string_view flag) {
  while (!list.empty()) {
    const std::string_view word = list.substr(0, list.find(' '));
    if (word == flag) return true;
    list.remove_prefix(std::min(list.size(), word.size() + 1));
  }
  return false;
}

}  // namespace

std::span<const Refusal> refusals() {
  return kRefusals;
}

Result<void> check_refusals(const EngineOptions& options) {
  for (const Refusal& refusal : kRefusals) {
    if (refusal.applies(options)) {
      return invalid_argument("[" + std::string(refusal.id) + "] " + refusal.reason);
    }
  }
  return {};
}

std::span<const ServeRefusal> serve_refusals() {
  return kServeRefusals;
}

std::span<const FlagRefusal> flag_refusals() {
  return kFlagRefusals;
}

Result<void> check_serve_refusals(const ServeOptions& options) {
  TRY(check_refusals(options.engine));
  for (const ServeRefusal& refusal : kServeRefusals) {
    if (refusal.applies(options)) {
      return invalid_argument("[" + std::string(refusal.id) + "] " + refusal.reason);
    }
  }
  return {};
}

Error flag_refusal(const std::string& flag) {
  const auto* const row =
      std::find_if(std::begin(kFlagRefusals), std::end(kFlagRefusals),
                   [&flag](const FlagRefusal& refusal) { return names(refusal.flags, flag); });
  CHECK(row != std::end(kFlagRefusals), flag);
  return invalid_argument("[" + std::string(row->id) + "] " + flag + ": " + row->reason);
}

}  // namespace weft
