#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "api/chat.h"
#include "api/constraints.h"
#include "api/generation.h"
#include "api/images.h"
#include "api/text_output.h"
#include "sched/request.h"
#include "text/chat_parser.h"

namespace weft {

struct FrontendConfig {
  ModelLimits limits;
  GenerationDefaults defaults;
  ChatFormat format;                          ///< of reasoning and tool calls in chats
  std::shared_ptr<const ImageReader> images;  ///< null: the model takes none
  std::vector<std::pair<std::string, std::string>> template_kwargs;  ///< where a chat has none
  int64_t max_sequences = 256;                                       ///< prompts x n of one request
  int64_t default_max_tokens = 16;  ///< of completions; chats go to the model's length
};

/// A request that can't fail for its user's fault any more.
struct PreparedRequest {
  std::vector<std::vector<int32_t>> prompts;  ///< token ids
  std::vector<std::string> prompt_texts;      ///< as given, or rendered by the template
  std::vector<Request> sequences;  ///< choice i of prompt p at p * n + i; ids and scope are unset
  std::vector<int32_t> stop_token_ids;  ///< the user's own, which are told as stop_reason
  bool echo_only = false;               ///< the one generated token is not the user's
  TextOptions text;
  bool split_output = false;  ///< a chat: reasoning and tool calls are parted from the content
  ChatParserOptions parser;
  int64_t num_prompt_tokens() const;
};

/// The way from a user's request to sequences for the engine: template, tokenizer, validation,
/// grammar. Immutable but for its cache of grammars; any number of threads may use it at once.
class Frontend {
 public:
  Frontend(ChatFrontend chat, FrontendConfig config);

  /// Errors are the user's: they name the field and the allowed values. `default_seed` is used
  /// where the request has none.
  Result<PreparedRequest> prepare(const GenerationRequest& request, uint64_t default_seed) const;
  /// Token ids of the request's conversation or of its one prompt, as prepare() would make them.
  Result<std::vector<int32_t>> tokenize(const GenerationRequest& request) const;

  const Tokenizer& tokenizer() const { return chat_->tokenizer(); }
  const ChatFrontend& chat() const { return *chat_; }
  const FrontendConfig& config() const { return config_; }

 private:
  struct Prompt {
    std::vector<int32_t> ids;
    std::string text;
    ImagePrompt images;  // its ids have moved to the other ones
  };
  Result<void> check_media(const GenerationRequest& request) const;
  Result<Prompt> encode_chat(const GenerationRequest& request) const;
  Result<Prompt> encode_prompt(const GenerationRequest& request, size_t index) const;
  Result<std::vector<Prompt>> encode(const GenerationRequest& request) const;

  std::unique_ptr<const ChatFrontend> chat_;  // at a fixed address: others refer to its tokenizer
  FrontendConfig config_;
  std::unique_ptr<ConstraintFactory> constraints_;
};

}  // namespace weft
