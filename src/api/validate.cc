#include "api/validate.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

namespace weft {
namespace {

constexpr size_t kMaxStops = 16;
constexpr size_t kMaxStopBytes = 1024;
constexpr size_t kMaxIdList = 4096;

std::string number_text(double x) {
  char text[32];
  std::snprintf(text, sizeof(text), "%g", x);
  return text;
}

/// The range [lo, hi]; `open_lo` leaves lo itself out.
struct Range {
  double lo, hi;
  bool open_lo = false;
};

Result<float> in_range(const char* field, double value, Range range) {
  const bool low = range.open_lo ? value <= range.lo : value < range.lo;
  if (!std::isfinite(value) || low || value > range.hi) {
    return invalid_argument(std::string(field) + ": " + number_text(value) + " is not in " +
                            (range.open_lo ? "(" : "[") + number_text(range.lo) + ", " +
                            number_text(range.hi) + "]");
  }
  return static_cast<float>(value);
}

Result<int> integer_in(const char* field, int64_t value, int64_t lo, int64_t hi) {
  if (value < lo || value > hi) {
    return invalid_argument(std::string(field) + ": " + std::to_string(value) + " is not in [" +
                            std::to_string(lo) + ", " + std::to_string(hi) + "]");
  }
  return static_cast<int>(value);
}

Result<int32_t> token_id(const char* field, int64_t id, const ModelLimits& limits) {
  return TRY(integer_in(field, id, 0, limits.vocab_size - 1));
}

Result<std::vector<int32_t>> token_ids(const char* field, const std::vector<int64_t>& ids,
                                       const ModelLimits& limits) {
  if (ids.size() > kMaxIdList) {
    return invalid_argument(std::string(field) + ": " + std::to_string(ids.size()) +
                            " entries are more than " + std::to_string(kMaxIdList));
  }
  std::vector<int32_t> out;
  for (int64_t id : ids) out.push_back(TRY(token_id(field, id, limits)));
  return out;
}

Result<void> check_stops(const std::vector<std::string>& stop) {
  if (stop.size() > kMaxStops) {
    return invalid_argument("stop: " + std::to_string(stop.size()) + " texts are more than " +
                            std::to_string(kMaxStops));
  }
  for (const std::string& text : stop) {
    if (text.empty() || text.size() > kMaxStopBytes) {
      return invalid_argument("stop: each text must have 1 to " + std::to_string(kMaxStopBytes) +
                              " bytes");
    }
  }
  return {};
}

/// Clients know OpenAI's code, shorten and try again.
Error too_long(std::string message) {
  Error out = invalid_argument(std::move(message));
  out.code = "context_length_exceeded";
  return out;
}

Result<void> set_lengths(const SamplingRequest& request, const ModelLimits& limits,
                         int64_t prompt_len, SamplingParams& out) {
  if (prompt_len < 1) return invalid_argument("prompt: it has no tokens; at least 1 is needed");
  const int64_t room = limits.max_model_len - prompt_len;
  if (room < 1) {
    const std::string asked =
        request.max_tokens ? std::to_string(*request.max_tokens) : "at least 1";
    return too_long("prompt: its " + std::to_string(prompt_len) +
                    " tokens leave no room for max_tokens " + asked + " within max_model_len " +
                    std::to_string(limits.max_model_len));
  }
  if (request.max_tokens && *request.max_tokens > room) {
    return too_long("max_tokens: " + std::to_string(*request.max_tokens) + " and " +
                    std::to_string(prompt_len) + " prompt tokens exceed max_model_len " +
                    std::to_string(limits.max_model_len) + "; at most " + std::to_string(room) +
                    " can be generated");
  }
  out.max_tokens = TRY(integer_in("max_tokens", request.max_tokens.value_or(room), 1, room));
  out.min_tokens = TRY(integer_in("min_tokens", request.min_tokens, 0, out.max_tokens));
  return {};
}

}  // namespace

Result<SamplingParams> validate_sampling(const SamplingRequest& request,
                                         const GenerationDefaults& defaults,
                                         const ModelLimits& limits, int64_t prompt_len,
                                         uint64_t default_seed) {
  SamplingParams out;
  const auto pick = [](const auto& asked, const auto& fallback, auto standard) {
    return asked ? *asked : fallback.value_or(standard);
  };
  out.temperature =
      TRY(in_range("temperature", pick(request.temperature, defaults.temperature, 1.0), {0, 100}));
  const int64_t top_k = pick(request.top_k, defaults.top_k, int64_t{0});
  out.top_k = std::max(
      0, TRY(integer_in("top_k", std::min(top_k, limits.vocab_size), -1, limits.vocab_size)));
  out.top_p = TRY(in_range("top_p", pick(request.top_p, defaults.top_p, 1.0), {0, 1, true}));
  out.min_p = TRY(in_range("min_p", pick(request.min_p, defaults.min_p, 0.0), {0, 1}));
  out.repetition_penalty = TRY(
      in_range("repetition_penalty",
               pick(request.repetition_penalty, defaults.repetition_penalty, 1.0), {0.01, 100}));
  out.presence_penalty = TRY(in_range("presence_penalty", request.presence_penalty, {-2, 2}));
  out.frequency_penalty = TRY(in_range("frequency_penalty", request.frequency_penalty, {-2, 2}));
  TRY(set_lengths(request, limits, prompt_len, out));
  TRY(check_stops(request.stop));
  if (request.logit_bias.size() > kMaxIdList) {
    return invalid_argument("logit_bias: more than " + std::to_string(kMaxIdList) + " entries");
  }
  for (const auto& [id, bias] : request.logit_bias) {
    out.logit_bias.emplace_back(TRY(token_id("logit_bias", id, limits)),
                                TRY(in_range("logit_bias", bias, {-100, 100})));
  }
  out.allowed_ids = TRY(token_ids("allowed_token_ids", request.allowed_token_ids, limits));
  out.banned_ids = TRY(token_ids("bad_token_ids", request.bad_token_ids, limits));
  out.stop_ids = TRY(token_ids("stop_token_ids", request.stop_token_ids, limits));
  if (!request.ignore_eos) {
    out.stop_ids.insert(out.stop_ids.end(), defaults.eos_ids.begin(), defaults.eos_ids.end());
  }
  out.seed = request.seed.value_or(default_seed);
  out.logprobs = request.logprobs ? TRY(integer_in("logprobs", *request.logprobs, 0, 20)) : -1;
  out.prompt_logprobs = request.prompt_logprobs
                            ? TRY(integer_in("prompt_logprobs", *request.prompt_logprobs, 0, 20))
                            : -1;
  return out;
}

Result<std::vector<int32_t>> validate_prompt_ids(const std::vector<int64_t>& ids,
                                                 const ModelLimits& limits, const char* field) {
  if (ids.empty()) {
    return invalid_argument(std::string(field) + ": it has no tokens; at least 1 is needed");
  }
  std::vector<int32_t> out;
  out.reserve(ids.size());
  for (int64_t id : ids) out.push_back(TRY(token_id(field, id, limits)));
  return out;
}

}  // namespace weft
