#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "base/ids.h"
#include "grammar/grammar.h"

namespace weft {

/// Sampling of one request, validated (ranges are those of the OpenAI API and vLLM).
struct SamplingParams {
  float temperature = 1.0f;  ///< 0 is greedy
  int top_k = 0;             ///< 0 is off
  float top_p = 1.0f;        ///< (0, 1]
  float min_p = 0.0f;        ///< [0, 1]
  float repetition_penalty = 1.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  std::vector<std::pair<int32_t, float>> logit_bias;  ///< token id, added to its logit
  std::vector<int32_t> allowed_ids;                   ///< empty: all
  std::vector<int32_t> banned_ids;
  int min_tokens = 0;             ///< stop ids can't be sampled before this many generated tokens
  int max_tokens = 16;            ///< >= 1
  std::vector<int32_t> stop_ids;  ///< end-of-sequence ids (unless ignored) and the user's stop ids
  uint64_t seed = 0;              ///< Philox key; a draw depends on (seed, position) alone
  int logprobs = -1;              ///< -1 none, else the number of alternatives (0..20)
  int prompt_logprobs = -1;       ///< -1 none, else the number of alternatives (0..20)
};

enum class FinishReason : uint8_t { kNone, kStop, kLength, kAbort, kError };

/// The pixels of an image as the vision tower takes them. Equal digests: equal features.
struct ImagePatches {
  std::array<uint8_t, 32> digest{};  ///< SHA-256 of the file and of how it was processed
  int t = 1, h = 0, w = 0;           ///< extents in patches
  int64_t num_tokens = 0;            ///< after merging
  std::vector<uint8_t> samples;      ///< [t h w, values of a patch], in the order of merge blocks
  std::array<float, 3 * 256> values{};  ///< what a sample becomes, by channel
};

/// An image in a prompt: tokens [first, end()) stand for it.
struct PromptImage {
  int64_t first = 0;
  std::shared_ptr<const ImagePatches> content;
  int64_t end() const { return first + content->num_tokens; }
};

/// One sequence to generate, immutable once submitted; prompts are non-empty.
struct Request {
  SeqId id;
  std::vector<int32_t> prompt;
  SamplingParams sampling;
  std::vector<std::array<int32_t, 3>> positions;  ///< (t,h,w) of the prompt tokens; empty: text
  int32_t rope_delta = 0;           ///< max(prompt positions) + 1 - prompt length; 0 for text
  std::vector<PromptImage> images;  ///< in order, apart
  std::string cache_salt;           ///< prefix blocks are shared only among requests of one salt
  std::shared_ptr<const OutputConstraint> constraint;  ///< grammar of the output; null: none
  int priority = 0;  ///< lower runs earlier (vLLM's rule), then first come
};

struct TopLogprob {
  int32_t token = 0;
  float logprob = 0;
};

/// Log-probability of one token, of the model's own distribution (before penalties, temperature
/// and filters), with the most probable alternatives in descending order.
struct TokenLogprob {
  float logprob = 0;
  std::vector<TopLogprob> top;
};

}  // namespace weft
