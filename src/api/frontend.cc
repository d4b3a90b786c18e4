#include "api/frontend.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace weft {
namespace {

constexpr std::string_view kTrailing = " \t\n\r";

/// Where the rendered prompt leaves the model's thinking.
Thinking thinking_after(const ChatFormat& format, std::string_view prompt, bool new_message) {
  if (format.reasoning == ChatFormat::Reasoning::kNone) return Thinking::kNone;
  const size_t open = prompt.rfind("<think>");
  const size_t close = prompt.rfind("</think>");
  const size_t last = prompt.find_last_not_of(kTrailing);
  if (last == std::string_view::npos) return Thinking::kMayOpen;
  if (open != std::string_view::npos && open + 6 == last) return Thinking::kOpen;
  if (!new_message) {  // a continued message: open if its own thought is
    const bool unclosed =
        open != std::string_view::npos && (close == std::string_view::npos || close < open);
    return unclosed ? Thinking::kOpen : Thinking::kNone;
  }
  if (close != std::string_view::npos && close + 7 == last) return Thinking::kNone;
  return Thinking::kMayOpen;
}

bool uses_tools(const GenerationRequest& request) {
  return !request.tools.empty() && request.tool_choice != ToolChoice::kNone;
}

Result<void> truncate(std::vector<int32_t>& ids, const GenerationRequest& request,
                      const ModelLimits& limits) {
  if (!request.truncate_prompt_tokens) return {};
  int64_t keep = *request.truncate_prompt_tokens;
  if (keep == -1) {
    const int64_t room = request.sampling.max_tokens.value_or(1);
    keep = limits.max_model_len - std::clamp<int64_t>(room, 1, limits.max_model_len - 1);
  }
  if (keep < 1 || keep > limits.max_model_len) {
    return invalid_argument(
        "truncate_prompt_tokens: " + std::to_string(*request.truncate_prompt_tokens) +
        " is not -1 or in [1, " + std::to_string(limits.max_model_len) + "]");
  }
  if (static_cast<int64_t>(ids.size()) > keep) ids.erase(ids.begin(), ids.end() - keep);
  return {};
}

}  // namespace

int64_t PreparedRequest::num_prompt_tokens() const {
  int64_t sum = 0;
  for (const std::vector<int32_t>& prompt : prompts) sum += static_cast<int64_t>(prompt.size());
  return sum;
}

Frontend::Frontend(ChatFrontend chat, FrontendConfig config)
    : chat_(std::make_unique<const ChatFrontend>(std::move(chat))),
      config_(std::move(config)),
      constraints_(std::make_unique<ConstraintFactory>(chat_->tokenizer(),
                                                       config_.limits.vocab_size, config_.format)) {
  config_.defaults = with_eos_of(chat_->tokenizer(), std::move(config_.defaults));
}

Result<Frontend::Prompt> Frontend::encode_chat(const GenerationRequest& request) const {
  ChatRequest chat{.messages = request.messages,
                   .tools = uses_tools(request) ? request.tools : "",
                   .documents = request.documents,
                   .template_kwargs = request.template_kwargs,
                   .add_generation_prompt = request.add_generation_prompt,
                   .continue_final_message = request.continue_final_message};
  for (const auto& [name, value] : config_.template_kwargs) {
    const bool given =
        std::any_of(chat.template_kwargs.begin(), chat.template_kwargs.end(),
                    [&name = name](const auto& kwarg) { return kwarg.first == name; });
    if (!given) chat.template_kwargs.emplace_back(name, value);
  }
  TRY(check_media(request));
  std::vector<PromptVideo> videos;
  if (!request.videos.empty()) {
    videos = TRY(config_.images->read_videos(
        request.videos, request.video_fps > 0 ? request.video_fps : kVideoFps));
    chat.videos = TRY(texts_of_videos(videos, *config_.images->config().video, tokenizer()));
  }
  EncodedChat encoded = TRY(chat_->encode(chat));
  Prompt prompt{std::move(encoded.ids), std::move(encoded.text), {}};
  if (request.images.empty() && videos.empty()) return prompt;
  const auto images = TRY(config_.images->read_all(request.images, request.image_bounds));
  prompt.images = TRY(config_.images->expand(prompt.ids, images, videos));
  prompt.ids = std::move(prompt.images.ids);
  return prompt;
}

/// What the model or the request can't have together with pictures.
Result<void> Frontend::check_media(const GenerationRequest& request) const {
  if (!request.images.empty() && !config_.images) {
    return unsupported(request.images[0].field + ": images are not supported by this model");
  }
  if (!request.videos.empty() && !(config_.images && config_.images->config().video)) {
    return unsupported(request.videos[0].field + ": videos are not supported by this model");
  }
  if (request.truncate_prompt_tokens && !(request.images.empty() && request.videos.empty())) {
    return invalid_argument("truncate_prompt_tokens: a prompt with images can't be cut");
  }
  return {};
}

Result<Frontend::Prompt> Frontend::encode_prompt(const GenerationRequest& request,
                                                 size_t index) const {
  Prompt prompt;
  if (const auto* text = std::get_if<std::string>(&request.prompts[index])) {
    prompt.ids = TRY(chat_->encode_text(*text, /*allow_special=*/true, request.add_special_tokens));
    prompt.text = *text;
    return prompt;
  }
  prompt.ids = TRY(
      validate_prompt_ids(std::get<std::vector<int64_t>>(request.prompts[index]), config_.limits));
  if (request.echo)
    prompt.text = chat_->tokenizer().decode(prompt.ids, request.skip_special_tokens);
  return prompt;
}

Result<std::vector<Frontend::Prompt>> Frontend::encode(const GenerationRequest& request) const {
  std::vector<Prompt> prompts;
  if (request.is_chat) {
    prompts.push_back(TRY(encode_chat(request)));
  } else {
    for (size_t i = 0; i < request.prompts.size(); ++i) {
      prompts.push_back(TRY(encode_prompt(request, i)));
    }
  }
  for (Prompt& prompt : prompts) TRY(truncate(prompt.ids, request, config_.limits));
  return prompts;
}

Result<std::vector<int32_t>> Frontend::tokenize(const GenerationRequest& request) const {
  if (request.is_chat) return TRY(encode_chat(request)).ids;
  return TRY(encode_prompt(request, 0)).ids;
}

Result<PreparedRequest> Frontend::prepare(const GenerationRequest& request,
                                          uint64_t default_seed) const {
  const auto num_sequences =
      static_cast<int64_t>(request.is_chat ? 1 : request.prompts.size()) * request.n;
  if (num_sequences < 1 || num_sequences > config_.max_sequences) {
    return invalid_argument("n: prompts times n is " + std::to_string(num_sequences) +
                            "; it must be in [1, " + std::to_string(config_.max_sequences) + "]");
  }
  std::vector<Prompt> prompts = TRY(encode(request));
  const Thinking thinking = request.is_chat ? thinking_after(config_.format, prompts[0].text,
                                                             request.add_generation_prompt)
                                            : Thinking::kNone;

  PreparedRequest out;
  out.split_output = request.is_chat;
  out.parser = {.tools_enabled = uses_tools(request),
                .starts_in_reasoning = thinking == Thinking::kOpen,
                .tools_json = uses_tools(request) ? request.tools : ""};
  const auto constraint = TRY(constraints_->make(request, thinking));

  SamplingRequest sampling = request.sampling;
  if (!request.is_chat && !sampling.max_tokens) sampling.max_tokens = config_.default_max_tokens;
  if (request.echo && sampling.max_tokens == 0) {
    sampling.max_tokens = 1;  // its token is not given out
    out.echo_only = true;
  }
  if (request.echo && sampling.logprobs && !sampling.prompt_logprobs) {
    sampling.prompt_logprobs = sampling.logprobs;
  }
  for (int64_t id : request.sampling.stop_token_ids) {
    out.stop_token_ids.push_back(static_cast<int32_t>(id));
  }
  for (Prompt& prompt : prompts) {
    const SamplingParams params =
        TRY(validate_sampling(sampling, config_.defaults, config_.limits,
                              static_cast<int64_t>(prompt.ids.size()), default_seed));
    for (int64_t i = 0; i < request.n; ++i) {
      Request sequence;
      sequence.prompt = prompt.ids;
      sequence.sampling = params;
      sequence.sampling.seed += static_cast<uint64_t>(i);
      sequence.cache_salt = request.cache_salt;
      sequence.priority = static_cast<int>(request.priority);
      sequence.constraint = constraint;
      sequence.images = prompt.images.images;
      sequence.positions = prompt.images.positions;
      sequence.rope_delta = prompt.images.rope_delta;
      out.sequences.push_back(std::move(sequence));
    }
    out.prompts.push_back(std::move(prompt.ids));
    out.prompt_texts.push_back(std::move(prompt.text));
  }
  const SamplingParams& params = out.sequences[0].sampling;
  out.text.stop_ids = params.stop_ids;
  out.text.min_tokens = params.min_tokens;
  out.text.include_stop_id = request.include_stop_str_in_output;
  out.text.skip_special = request.skip_special_tokens;
  if (!sampling.stop.empty()) {
    out.text.stops = TRY(StopStrings::make(sampling.stop, request.include_stop_str_in_output));
  }
  return out;
}

}  // namespace weft
