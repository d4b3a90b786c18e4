#include "api/chat.h"

namespace weft {

Result<ChatFrontend> ChatFrontend::load(const std::string& directory) {
  Tokenizer tokenizer = TRY(Tokenizer::load(directory));
  Result<ChatTemplate> chat_template = ChatTemplate::load(directory);
  if (chat_template) return ChatFrontend(std::move(tokenizer), std::move(chat_template).value());
  if (chat_template.error().kind != ErrorKind::kNotFound) return chat_template.error();
  return ChatFrontend(std::move(tokenizer), std::nullopt);
}

Result<std::vector<int32_t>> ChatFrontend::encode(const ChatRequest& request) const {
  if (!template_) {
    return unsupported(
        "messages: this model has no chat template; give a text to complete instead");
  }
  ChatInput input{.messages_json = request.messages,
                  .tools_json = request.tools,
                  .add_generation_prompt = request.add_generation_prompt,
                  .extra = {{"enable_thinking", request.enable_thinking ? "true" : "false"}}};
  const Rendered rendered = TRY(template_->render(input));
  return tokenizer_.encode_segments(rendered.segments(), /*add_special_tokens=*/false);
}

Result<std::vector<int32_t>> ChatFrontend::encode_text(const std::string& text) const {
  const TextSegment segment{.text = text, .allow_special = false};
  return tokenizer_.encode_segments({&segment, 1}, /*add_special_tokens=*/true);
}

}  // namespace weft
