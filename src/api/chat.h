#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "api/validate.h"
#include "api/videos.h"
#include "base/result.h"
#include "text/template.h"
#include "text/tokenizer.h"

namespace weft {

/// A conversation as the OpenAI API writes it.
struct ChatRequest {
  std::string messages;   ///< JSON array of messages
  std::string tools;      ///< JSON array or empty
  std::string documents;  ///< JSON array or empty
  /// Further variables of the template: name, JSON (enable_thinking, ...).
  std::vector<std::pair<std::string, std::string>> template_kwargs;
  bool add_generation_prompt = true;
  /// The last message is the answer's beginning: the prompt ends with its content.
  bool continue_final_message = false;
  VideoTexts videos;  ///< what stands for each video
};

struct EncodedChat {
  std::vector<int32_t> ids;
  std::string text;  ///< of the prompt, as rendered
};

/// Text in, token ids out: the tokenizer and the chat template of one model.
class ChatFrontend {
 public:
  /// Reads tokenizer and template of a model directory; `template_file` replaces the model's
  /// template. A model without a template can still complete texts; encode() of a chat is then an
  /// Error.
  static Result<ChatFrontend> load(const std::string& directory,
                                   const std::string& template_file = "");

  const Tokenizer& tokenizer() const { return tokenizer_; }
  const ChatTemplate* chat_template() const { return template_ ? &*template_ : nullptr; }

  /// Renders the conversation and tokenises it: what users wrote never becomes a control token.
  Result<EncodedChat> encode(const ChatRequest& request) const;
  /// A plain text, with the tokens that the tokenizer puts around one if `add_special_tokens`.
  /// `allow_special`: control tokens written in the text count as such (its writer owns the whole
  /// prompt).
  Result<std::vector<int32_t>> encode_text(const std::string& text, bool allow_special = false,
                                           bool add_special_tokens = true) const;

 private:
  ChatFrontend(Tokenizer tokenizer, std::optional<ChatTemplate> chat_template)
      : tokenizer_(std::move(tokenizer)), template_(std::move(chat_template)) {}

  Tokenizer tokenizer_;
  std::optional<ChatTemplate> template_;
};

/// The defaults with the tokenizer's end-of-sequence token among what ends an answer, as vLLM has
/// them: the configurations of fine-tunes often name their base model's token alone.
GenerationDefaults with_eos_of(const Tokenizer& tokenizer, GenerationDefaults defaults);

}  // namespace weft
