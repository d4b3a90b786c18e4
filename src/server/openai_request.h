#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "api/generation.h"
#include "base/result.h"

namespace weft {

/// Counts and sizes that a request may have, whatever the model.
struct RequestLimits {
  size_t max_messages = 4096;
  size_t max_parts = 256;  ///< of one message
  size_t max_tools = 128;
  size_t max_prompts = 1024;
  int64_t max_n = 16;
  int64_t max_choices = 1024;  ///< n times the number of prompts
  size_t max_logit_bias = 1024;
  size_t max_grammar_bytes = 256 << 10;  ///< a schema, a regex, a grammar, all choices
  size_t max_choice_list = 4096;
  size_t max_kwargs = 64;
  size_t max_kwargs_bytes = 64 << 10;
};

// JSON bodies to requests. Types, counts and sizes are checked here, ranges by api/validate. All
// errors are the client's: "field: what is wrong", or "body: ..." for text that is no JSON.
// Unknown fields are ignored, as vLLM does; null means absent.

/// POST /v1/chat/completions.
Result<GenerationRequest> parse_chat_request(std::string_view body,
                                             const RequestLimits& limits = {});
/// POST /v1/completions.
Result<GenerationRequest> parse_completion_request(std::string_view body,
                                                   const RequestLimits& limits = {});

struct TokenizeRequest {
  GenerationRequest request;  ///< a conversation, or one text in `prompts`
  bool return_token_strs = false;
};

/// POST /tokenize: {"prompt"} or {"messages"} as vLLM has them.
Result<TokenizeRequest> parse_tokenize_request(std::string_view body,
                                               const RequestLimits& limits = {});

struct DetokenizeRequest {
  std::string model;
  std::vector<int64_t> tokens;
};

/// POST /detokenize.
Result<DetokenizeRequest> parse_detokenize_request(std::string_view body);

}  // namespace weft
