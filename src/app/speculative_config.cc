#include "app/speculative_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>

#include "sched/ngram_matcher.h"

namespace weft {
namespace {

using nlohmann::json;
using enum SpeculationMethod;

/// What the keys say, before they are seen together.
struct Draft {
  SpeculationConfig config;
  std::string method, strategy, model;
  std::optional<int> tokens, steps, min_size, max_size;
  std::optional<double> acceptance_rate;
  std::optional<std::string> accept;
  std::optional<int> max_candidates, verify_window;
  bool benchmark_mode = false;
};

Error bad(std::string_view key, const json& value, std::string_view allowed) {
  return invalid_argument(
      fmt::format("--speculative-config: {}: {} is not allowed; allowed: {}", key,
                  value.dump(-1, ' ', false, json::error_handler_t::replace), allowed));
}

Result<int> read_int(std::string_view key, const json& value, int low, int high) {
  const std::string allowed = fmt::format("a whole number from {} to {}", low, high);
  if (!value.is_number_integer()) return bad(key, value, allowed);
  if (value.is_number_unsigned() && value.get<uint64_t>() > INT32_MAX) {
    return bad(key, value, allowed);
  }
  const auto n = value.get<int64_t>();
  if (n < low || n > high) return bad(key, value, allowed);
  return static_cast<int>(n);
}

Result<bool> read_bool(std::string_view key, const json& value) {
  if (!value.is_boolean()) return bad(key, value, "true, false");
  return value.get<bool>();
}

Result<std::string> read_word(std::string_view key, const json& value) {
  if (!value.is_string()) return bad(key, value, "a string");
  return value.get<std::string>();
}

/// A key that weft knows and that can only ask for what it does anyway.
Result<void> only(std::string_view key, const json& value, const json& fixed) {
  if (value == fixed) return {};
  return bad(key, value, fixed.dump() + " (weft has no other)");
}

struct Key {
  std::string_view name;
  Result<void> (*read)(std::string_view key, const json& value, Draft& draft);
};

constexpr int kMaxNgramSize = NgramMatcher::kMaxSize;

constexpr Key kKeys[] = {
    {"method",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.method = TRY(read_word(key, value));
       return {};
     }},
    {"num_speculative_tokens",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.tokens = TRY(read_int(key, value, 0, kMaxDrafts));
       return {};
     }},
    {"num_model_steps",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.steps = TRY(read_int(key, value, 1, kMaxDrafts));
       return {};
     }},
    {"mtp_strategy",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       if (value != "default" && value != "with_ngram") {
         return bad(key, value, "default, with_ngram");
       }
       d.strategy = value.get<std::string>();
       return {};
     }},
    {"min_ngram_size",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.min_size = TRY(read_int(key, value, 1, kMaxNgramSize));
       return {};
     }},
    {"max_ngram_size",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.max_size = TRY(read_int(key, value, 1, kMaxNgramSize));
       return {};
     }},
    {"prompt_lookup_min",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.min_size = TRY(read_int(key, value, 1, kMaxNgramSize));
       return {};
     }},
    {"prompt_lookup_max",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.max_size = TRY(read_int(key, value, 1, kMaxNgramSize));
       return {};
     }},
    {"verify_strategy",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       if (value != "target_match" && value != "topp") {
         return bad(key, value,
                    "target_match, which accepts what the model samples itself, topp (lossy: it "
                    "changes answers)");
       }
       d.config.verify = value == "topp" ? VerifyStrategy::kTopP : VerifyStrategy::kTargetMatch;
       return {};
     }},
    {"accept_policy",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.accept = TRY(read_word(key, value));
       return {};
     }},
    {"adaptive",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.config.adaptive = TRY(read_bool(key, value));
       return {};
     }},
    {"disable_by_batch_size",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.config.disable_by_batch_size = TRY(read_int(key, value, 1, INT32_MAX));
       return {};
     }},
    {"benchmark_mode",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.benchmark_mode = TRY(read_bool(key, value));
       return {};
     }},
    {"acceptance_rate",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       const bool fits = value.is_number() && value.get<double>() >= 0 && value.get<double>() <= 1;
       if (!fits) return bad(key, value, "a number from 0 to 1");
       d.acceptance_rate = value.get<double>();
       return {};
     }},
    {"model",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.model = TRY(read_word(key, value));
       return {};
     }},
    {"quantization",
     [](std::string_view key, const json& value, Draft&) -> Result<void> {
       if (value == "" || value == "none") return {};
       return bad(key, value, "none (the MTP module has the weight format of the model)");
     }},
    {"max_candidate_len",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.max_candidates = TRY(read_int(key, value, 1, 64));
       return {};
     }},
    {"verify_window",
     [](std::string_view key, const json& value, Draft& d) -> Result<void> {
       d.verify_window = TRY(read_int(key, value, 1, kMaxDrafts));
       return {};
     }},
    {"draft_tensor_parallel_size",
     [](std::string_view key, const json& value, Draft&) { return only(key, value, 1); }},
    {"num_gpu_block_expand_ratio",
     [](std::string_view key, const json& value, Draft&) { return only(key, value, 1); }},
    {"enable_draft_logprob",
     [](std::string_view key, const json& value, Draft&) { return only(key, value, false); }},
    {"prefill_one_step_stop",
     [](std::string_view key, const json& value, Draft&) { return only(key, value, false); }},
};

std::string key_names() {
  std::string out;
  for (const Key& key : kKeys) out += (out.empty() ? "" : ", ") + std::string(key.name);
  return out;
}

constexpr std::string_view kMethods =
    "ngram, mtp, hybrid_mtp_ngram, naive (and the spellings ngram_match, qwen3_next_mtp, "
    "qwen3_5_mtp, ernie_mtp)";

Result<SpeculationMethod> to_method(const Draft& d) {
  std::string name = d.method;
  const bool ngram_model = d.model == "ngram" || d.model == "[ngram]";  // vLLM's older spelling
  if (name.empty() && ngram_model) name = "ngram";
  if (name.empty()) {
    return invalid_argument("--speculative-config: method: it is missing; allowed: " +
                            std::string(kMethods));
  }
  SpeculationMethod method = kNone;
  if (name == "ngram" || name == "ngram_match") {
    method = kNgram;
  } else if (name == "mtp" || name == "qwen3_next_mtp" || name == "qwen3_5_mtp" ||
             name == "ernie_mtp") {
    method = kMtp;
  } else if (name == "hybrid_mtp_ngram") {
    method = kHybrid;
  } else if (name != "naive") {
    return bad("method", name, kMethods);
  }
  if (!d.model.empty() && !(ngram_model && method == kNgram)) {
    return bad("model", d.model,
               "nothing: the MTP module is part of the checkpoint itself, and there are no drafts "
               "by a second model");
  }
  if (!d.strategy.empty() && method != kMtp && !(method == kHybrid && d.strategy == "with_ngram")) {
    return bad("mtp_strategy", d.strategy, "nothing with the method " + name);
  }
  return method;
}

Result<void> set_acceptance(const Draft& d, SpeculationConfig& config) {
  if (d.acceptance_rate && !d.benchmark_mode) {
    return bad("acceptance_rate", *d.acceptance_rate,
               "nothing without \"benchmark_mode\": true (the answers are not the model's then)");
  }
  if (d.benchmark_mode) {
    if (d.accept) return bad("accept_policy", *d.accept, "nothing with benchmark_mode");
    config.accept = AcceptPolicy::kSimulated;
    config.simulated_acceptance = d.acceptance_rate.value_or(0);
    return {};
  }
  const std::string accept = d.accept.value_or("normal");
  if (accept == "normal") {
    config.accept = AcceptPolicy::kNormal;
  } else if (accept == "accept_all") {
    config.accept = AcceptPolicy::kAcceptAll;
  } else if (accept == "reject_all") {
    config.accept = AcceptPolicy::kRejectAll;
  } else {
    return bad("accept_policy", accept, "normal, accept_all, reject_all");
  }
  return {};
}

/// `topp` and what belongs to it.
Result<void> set_verification(const Draft& d, ParsedSpeculation& out) {
  SpeculationConfig& config = out.config;
  const SpeculationConfig usual;
  const int candidates = d.max_candidates.value_or(usual.max_candidates);
  const int window = d.verify_window.value_or(usual.verify_window);
  if (config.verify != VerifyStrategy::kTopP) {
    const auto fixed = [](std::string_view key, int value) {
      return bad(key, value, "its default without \"verify_strategy\": \"topp\"");
    };
    if (candidates != usual.max_candidates) return fixed("max_candidate_len", candidates);
    if (window != usual.verify_window) return fixed("verify_window", window);
    return {};
  }
  if (config.accept != AcceptPolicy::kNormal) {
    return bad("verify_strategy", "topp", "target_match with accept_policy or benchmark_mode");
  }
  config.max_candidates = candidates;
  config.verify_window = window;
  out.warnings.emplace_back(
      "--speculative-config: verify_strategy topp is LOSSY: drafts become tokens that plain "
      "decoding would not have sampled, so answers change, and with the drafts from run to run");
  return {};
}

Result<void> set_ngram_sizes(const Draft& d, SpeculationConfig& config) {
  config.max_ngram_size = d.max_size.value_or(std::max(5, d.min_size.value_or(0)));
  config.min_ngram_size = d.min_size.value_or(std::min(2, config.max_ngram_size));
  if (config.min_ngram_size <= config.max_ngram_size) return {};
  return bad("min_ngram_size", config.min_ngram_size,
             fmt::format("1 to max_ngram_size, which is {}", config.max_ngram_size));
}

std::string changed_tokens(const char* how, int from, int to) {
  return fmt::format(
      "--speculative-config: num_speculative_tokens is {} from {} to {}, which is num_model_steps",
      how, from, to);
}

Result<ParsedSpeculation> combine(const Draft& d) {
  ParsedSpeculation out{d.config, {}};
  SpeculationConfig& config = out.config;
  config.method = TRY(to_method(d));
  TRY(set_acceptance(d, config));
  TRY(set_ngram_sizes(d, config));
  if (!config.on() || (d.tokens && *d.tokens == 0)) return ParsedSpeculation{};
  TRY(set_verification(d, out));
  int& tokens = config.num_speculative_tokens;
  tokens = d.tokens.value_or(1);
  if (config.method == kNgram) return out;

  // As vLLM has it, K drafts of plain MTP are K steps of the module.
  const bool with_ngram = config.method == kHybrid || d.strategy == "with_ngram";
  const int steps = d.steps.value_or(with_ngram ? 1 : tokens);
  if (steps > tokens) {
    if (d.tokens) out.warnings.push_back(changed_tokens("raised", tokens, steps));
    tokens = steps;
  } else if (steps < tokens && !with_ngram) {
    out.warnings.push_back(changed_tokens("lowered", tokens, steps));
    tokens = steps;
  }
  config.num_mtp_steps = steps;
  config.method = tokens > steps ? kHybrid : kMtp;
  return out;
}

}  // namespace

Result<ParsedSpeculation> parse_speculative_config(const std::vector<std::string>& objects) {
  json merged = json::object();
  for (const std::string& text : objects) {
    const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (!object.is_object()) {
      return invalid_argument("--speculative-config: '" + text + "' is not a JSON object");
    }
    merged.merge_patch(object);  // null takes a key back
  }
  if (merged.empty()) return ParsedSpeculation{};
  Draft draft;
  for (const auto& [name, value] : merged.items()) {
    const Key* const key = std::find_if(std::begin(kKeys), std::end(kKeys),
                                        [&](const Key& k) { return k.name == name; });
    if (key == std::end(kKeys)) {
      return invalid_argument("--speculative-config: unknown key '" + name +
                              "'; allowed: " + key_names());
    }
    TRY(key->read(name, value, draft));
  }
  for (const auto& [ours, theirs] : {std::pair{"min_ngram_size", "prompt_lookup_min"},
                                     std::pair{"max_ngram_size", "prompt_lookup_max"}}) {
    if (merged.contains(ours) && merged.contains(theirs)) {
      return invalid_argument(fmt::format(
          "--speculative-config: {} and {} are two names of one thing; give one", ours, theirs));
    }
  }
  return combine(draft);
}

std::string short_name(const SpeculationConfig& config) {
  const int tokens = config.num_speculative_tokens;
  const char* const lossy = config.verify == VerifyStrategy::kTopP ? "-topp-lossy" : "";
  switch (config.method) {
    case kNone: break;
    case kNgram: return fmt::format("ngram-{}{}", tokens, lossy);
    case kMtp: return fmt::format("mtp-{}{}", tokens, lossy);
    case kHybrid: return fmt::format("hybrid-{}-{}{}", config.num_mtp_steps, tokens, lossy);
  }
  return "none";
}

}  // namespace weft
