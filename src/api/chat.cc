#include "api/chat.h"

#include <algorithm>
#include <nlohmann/json.hpp>

namespace weft {
namespace {

constexpr std::string_view kSpaces = " \t\n\r\v\f";

std::string_view strip_left(std::string_view text) {
  const size_t begin = text.find_first_not_of(kSpaces);
  return begin == std::string_view::npos ? std::string_view() : text.substr(begin);
}

std::string_view strip_right(std::string_view text) {
  const size_t end = text.find_last_not_of(kSpaces);
  return end == std::string_view::npos ? std::string_view() : text.substr(0, end + 1);
}

/// The text of the last message: its content, or the last text part of it.
Result<std::string> final_content(const std::string& messages) {
  const auto json = nlohmann::json::parse(messages, nullptr, /*allow_exceptions=*/false);
  if (json.is_array() && !json.empty() && json.back().is_object() &&
      json.back().contains("content")) {
    const nlohmann::json& content = json.back()["content"];
    if (content.is_string()) return content.get<std::string>();
    if (content.is_array()) {
      for (auto part = content.rbegin(); part != content.rend(); ++part) {
        if (part->is_object() && part->contains("text") && (*part)["text"].is_string()) {
          return (*part)["text"].get<std::string>();
        }
      }
    }
  }
  return invalid_argument("continue_final_message: the last message has no text to continue");
}

/// Cuts the rendered prompt after the content of its last message (transformers'
/// continue_final_message).
Result<void> cut_after_final_message(const std::string& messages, Rendered& rendered) {
  const std::string content = TRY(final_content(messages));
  const std::string_view left = strip_left(content);
  const std::string_view both = strip_right(left);
  const size_t at = rendered.text.rfind(both);
  if (both.empty() || at == std::string::npos) {
    return invalid_argument(
        "continue_final_message: the chat template does not show the last message as it is "
        "written");
  }
  const bool keeps_spaces = std::string_view(rendered.text).substr(at, left.size()) == left;
  const size_t end = at + (keeps_spaces ? left.size() : both.size());
  rendered.text.resize(end);
  while (!rendered.spans.empty() && rendered.spans.back().begin >= end) rendered.spans.pop_back();
  if (!rendered.spans.empty()) rendered.spans.back().end = end;
  return {};
}

/// Puts the texts of videos where the template, not a user, wrote the token of one, with the marks
/// around it.
Result<void> put_videos(const VideoTexts& videos, Rendered& rendered) {
  Rendered out;
  size_t next = 0;
  for (const RenderedSpan& span : rendered.spans) {
    std::string text = rendered.text.substr(span.begin, span.end - span.begin);
    for (size_t at = 0; !span.user && (at = text.find(videos.token, at)) != std::string::npos;) {
      size_t begin = at, end = at + videos.token.size();
      const std::string_view view = text;
      if (view.substr(0, begin).ends_with(videos.start) &&
          view.substr(end).starts_with(videos.end)) {
        begin -= videos.start.size();
        end += videos.end.size();
      }
      const std::string with = next < videos.texts.size() ? videos.texts[next] : "";
      ++next;
      text.replace(begin, end - begin, with);
      at = begin + with.size();
    }
    const size_t first = out.text.size();
    out.text += text;
    out.spans.push_back({first, out.text.size(), span.user});
  }
  if (next != videos.texts.size()) {
    return invalid_argument("messages: the chat template shows " + std::to_string(next) + " of " +
                            std::to_string(videos.texts.size()) +
                            " videos; the model takes none where these stand");
  }
  rendered = std::move(out);
  return {};
}

}  // namespace

Result<ChatFrontend> ChatFrontend::load(const std::string& directory,
                                        const std::string& template_file) {
  Tokenizer tokenizer = TRY(Tokenizer::load(directory));
  Result<ChatTemplate> chat_template = ChatTemplate::load(directory, template_file);
  if (chat_template) return ChatFrontend(std::move(tokenizer), std::move(chat_template).value());
  if (chat_template.error().kind != ErrorKind::kNotFound) return chat_template.error();
  return ChatFrontend(std::move(tokenizer), std::nullopt);
}

Result<EncodedChat> ChatFrontend::encode(const ChatRequest& request) const {
  if (!template_) {
    return unsupported(
        "messages: this model has no chat template; give a text to complete instead");
  }
  const ChatInput input{.messages_json = request.messages,
                        .tools_json = request.tools,
                        .documents_json = request.documents,
                        .add_generation_prompt = request.add_generation_prompt,
                        .extra = request.template_kwargs};
  Rendered rendered = TRY(template_->render(input));
  if (request.continue_final_message) TRY(cut_after_final_message(request.messages, rendered));
  if (!request.videos.texts.empty()) TRY(put_videos(request.videos, rendered));
  EncodedChat out;
  out.ids = TRY(tokenizer_.encode_segments(rendered.segments(), /*add_special_tokens=*/false));
  out.text = std::move(rendered.text);
  return out;
}

GenerationDefaults with_eos_of(const Tokenizer& tokenizer, GenerationDefaults defaults) {
  const std::optional<int32_t> eos = tokenizer.eos_id();
  std::vector<int32_t>& ids = defaults.eos_ids;
  if (eos && std::find(ids.begin(), ids.end(), *eos) == ids.end()) ids.push_back(*eos);
  return defaults;
}

Result<std::vector<int32_t>> ChatFrontend::encode_text(const std::string& text, bool allow_special,
                                                       bool add_special_tokens) const {
  const TextSegment segment{.text = text, .allow_special = allow_special};
  return tokenizer_.encode_segments({&segment, 1}, add_special_tokens);
}

}  // namespace weft
