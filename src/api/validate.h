#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "base/result.h"
#include "sched/request.h"

namespace weft {

/// Sampling as a user writes it, in the OpenAI API's and vLLM's names. An unset field falls back to
/// the checkpoint's generation_config.json, then to the default noted here.
struct SamplingRequest {
  std::optional<double> temperature;         ///< [0, 100]; 1
  std::optional<int64_t> top_k;              ///< >= -1; 0 and -1: off
  std::optional<double> top_p;               ///< (0, 1]; 1
  std::optional<double> min_p;               ///< [0, 1]; 0
  std::optional<double> repetition_penalty;  ///< [0.01, 100] (less makes logits infinite); 1
  double presence_penalty = 0;               ///< [-2, 2]
  double frequency_penalty = 0;              ///< [-2, 2]
  std::optional<int64_t> max_tokens;         ///< >= 1; up to the model's length
  int64_t min_tokens = 0;                    ///< [0, max_tokens]
  std::vector<std::string> stop;             ///< at most 16 texts of 1 to 1,024 bytes
  std::vector<int64_t> stop_token_ids;
  bool ignore_eos = false;
  std::optional<uint64_t> seed;
  std::vector<std::pair<int64_t, double>> logit_bias;  ///< values in [-100, 100]
  std::vector<int64_t> allowed_token_ids;
  std::vector<int64_t> bad_token_ids;
  std::optional<int64_t> logprobs;         ///< [0, 20]
  std::optional<int64_t> prompt_logprobs;  ///< [0, 20]
};

/// What a checkpoint's generation_config.json asks for.
struct GenerationDefaults {
  std::optional<double> temperature, top_p, min_p, repetition_penalty;
  std::optional<int64_t> top_k;
  std::vector<int32_t> eos_ids;
};

struct ModelLimits {
  int64_t vocab_size = 0;
  int64_t max_model_len = 0;  ///< prompt and generated tokens together
};

/// Checks every field and fits max_tokens to what the prompt leaves. `default_seed` is used when
/// the request has none. Errors name the field and the allowed values.
Result<SamplingParams> validate_sampling(const SamplingRequest& request,
                                         const GenerationDefaults& defaults,
                                         const ModelLimits& limits, int64_t prompt_len,
                                         uint64_t default_seed);

/// Token ids given as numbers in `field`: non-empty, each in [0, vocab_size).
Result<std::vector<int32_t>> validate_prompt_ids(const std::vector<int64_t>& ids,
                                                 const ModelLimits& limits,
                                                 const char* field = "prompt");

}  // namespace weft
