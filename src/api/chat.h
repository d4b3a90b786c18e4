#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/result.h"
#include "text/template.h"
#include "text/tokenizer.h"

namespace weft {

/// A conversation as the OpenAI API writes it.
struct ChatRequest {
  std::string messages;  ///< JSON array of messages
  std::string tools;     ///< JSON array or empty
  bool enable_thinking = false;
  bool add_generation_prompt = true;
};

/// Text in, token ids out: the tokenizer and the chat template of one model.
class ChatFrontend {
 public:
  /// Reads tokenizer and template of a model directory. A model without a template can still
  /// complete texts; encode() of a chat is then an Error.
  static Result<ChatFrontend> load(const std::string& directory);

  const Tokenizer& tokenizer() const { return tokenizer_; }
  bool has_template() const { return template_.has_value(); }

  /// Renders the conversation and tokenises it: what users wrote never becomes a control token.
  Result<std::vector<int32_t>> encode(const ChatRequest& request) const;
  /// A plain text, control tokens off, with the tokens that the tokenizer puts before a text.
  Result<std::vector<int32_t>> encode_text(const std::string& text) const;

 private:
  ChatFrontend(Tokenizer tokenizer, std::optional<ChatTemplate> chat_template)
      : tokenizer_(std::move(tokenizer)), template_(std::move(chat_template)) {}

  Tokenizer tokenizer_;
  std::optional<ChatTemplate> template_;
};

}  // namespace weft
