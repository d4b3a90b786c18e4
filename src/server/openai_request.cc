#include "server/openai_request.h"

#include <algorithm>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "server/json.h"
#include "server/request_fields.h"
#include "server/request_format.h"
#include "server/request_messages.h"
#include "server/request_videos.h"

namespace weft {
namespace {

constexpr size_t kMaxFields = 256;
constexpr size_t kMaxModelName = 256;
constexpr size_t kMaxSalt = 256;
constexpr size_t kMaxStops = 16;
constexpr size_t kMaxIdList = 4096;
constexpr int64_t kMaxTopLogprobs = 20;

/// What is known after one pass over the fields, whatever their order.
struct Reading {
  GenerationRequest out;
  const RequestLimits& limits;
  std::vector<std::string> tool_names;
  std::optional<bool> logprobs;         // chat
  std::optional<int64_t> top_logprobs;  // chat
  std::optional<int64_t> best_of;
  std::optional<int64_t> max_completion_tokens;
  std::optional<bool> add_generation_prompt;
  std::string tool_choice;  // "" where it is absent
  std::string reasoning_effort;
  bool has_messages = false, has_prompt = false, has_stream_options = false;
  bool return_token_strs = false;
  std::vector<int64_t> tokens;  // of /detokenize
};

/// Reads one field that is not null.
using Reader = Result<void> (*)(Reading&, const std::string& field, const JsonValue&);
struct Field {
  std::string_view name;
  Reader read;
};

template <auto kMember>
Result<void> set_bool(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.*kMember = TRY(read_bool(field, value));
  return {};
}
template <auto kMember>
Result<void> set_sampling_bool(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.sampling.*kMember = TRY(read_bool(field, value));
  return {};
}
template <auto kMember>
Result<void> set_sampling_int(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.sampling.*kMember = TRY(read_int(field, value));
  return {};
}
template <auto kMember>
Result<void> set_sampling_number(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.sampling.*kMember = TRY(read_number(field, value));
  return {};
}
template <auto kMember, size_t kLeast = 0>
Result<void> set_sampling_ids(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.sampling.*kMember = TRY(read_int_list(field, value));
  const size_t got = (r.out.sampling.*kMember).size();
  if (got > kMaxIdList) return too_many(field, got, "entries", int64_t{kMaxIdList});
  if (got < kLeast) return invalid_argument(field + ": it is empty; at least 1 token id, or null");
  return {};
}
template <auto kMember>
Result<void> note_int(Reading& r, const std::string& field, const JsonValue& value) {
  r.*kMember = TRY(read_int(field, value));
  return {};
}

Result<void> refuse(Reading&, const std::string& field, const JsonValue& value) {
  return refuse_unless_off(field, value);
}

Result<void> read_model(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.model = TRY(read_short_string(field, value, kMaxModelName));
  return {};
}

Result<void> read_seed(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.sampling.seed = static_cast<uint64_t>(TRY(read_int(field, value)));
  return {};
}

Result<void> read_n(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.n = TRY(read_int_in(field, value, 1, r.limits.max_n));
  return {};
}

Result<void> read_stop(Reading& r, const std::string& field, const JsonValue& value) {
  std::vector<std::string>& stops = r.out.sampling.stop;
  if (const auto* text = value.as<std::string>()) {
    stops = {*text};
    return {};
  }
  const auto* items = value.as<JsonArray>();
  if (!items) return wrong_type(field, "a string or an array of strings", value);
  if (items->size() > kMaxStops) return too_many(field, items->size(), "texts", int64_t{kMaxStops});
  stops = TRY(read_string_list(field, value));
  return {};
}

Result<void> read_bad_words(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.bad_words = TRY(read_string_list(field, value));
  return {};
}

Result<void> read_logit_bias(Reading& r, const std::string& field, const JsonValue& value) {
  const JsonObject& members = *TRY(read_object(field, value));
  if (members.size() > r.limits.max_logit_bias) {
    return too_many(field, members.size(), "entries",
                    static_cast<int64_t>(r.limits.max_logit_bias));
  }
  for (const auto& [key, bias] : members) {
    const bool digits =
        !key.empty() && key.size() <= 10 && (key[0] != '0' || key.size() == 1) &&
        std::all_of(key.begin(), key.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (!digits) {
      return invalid_argument(field + ": its keys must be token ids as decimal numbers");
    }
    r.out.sampling.logit_bias.emplace_back(std::stoll(key),
                                           TRY(read_number(field + "." + key, bias)));
  }
  return {};
}

Result<void> read_truncation(Reading& r, const std::string& field, const JsonValue& value) {
  const int64_t keep = TRY(read_int_in(field, value, -1, std::numeric_limits<int32_t>::max()));
  if (keep == 0) return invalid_argument(field + ": 0 is not -1 or at least 1");
  r.out.truncate_prompt_tokens = keep;
  return {};
}

Result<void> read_priority(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.priority = TRY(read_int_in(field, value, std::numeric_limits<int32_t>::min(),
                                   std::numeric_limits<int32_t>::max()));
  return {};
}

Result<void> read_salt(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.cache_salt = TRY(read_short_string(field, value, kMaxSalt));
  if (r.out.cache_salt.empty()) return invalid_argument(field + ": it must not be empty");
  return {};
}

Result<void> read_stream_options(Reading& r, const std::string& field, const JsonValue& value) {
  TRY(read_object(field, value));
  r.has_stream_options = true;
  const auto flag = [&](const char* name, bool& out) -> Result<void> {
    const JsonValue* option = value.find(name);
    if (option && !option->is_null()) out = TRY(read_bool(field + "." + name, *option));
    return {};
  };
  TRY(flag("include_usage", r.out.include_usage));
  TRY(flag("continuous_usage_stats", r.out.continuous_usage_stats));
  return {};
}

Result<void> set_format(Reading& r, OutputFormat format) {
  if (format.kind == OutputFormat::Kind::kText) return {};
  if (r.out.format.kind != OutputFormat::Kind::kText) {
    return invalid_argument(format.field + ": " + r.out.format.field +
                            " is given too; one constraint of the output is allowed");
  }
  r.out.format = std::move(format);
  return {};
}

Result<void> read_format(Reading& r, const std::string&, const JsonValue& value) {
  return set_format(r, TRY(read_response_format(value, r.limits)));
}

Result<void> read_structured(Reading& r, const std::string&, const JsonValue& value) {
  return set_format(r, TRY(read_structured_outputs(value, r.limits)));
}

Result<void> read_guided_field(Reading& r, const std::string& field, const JsonValue& value) {
  return set_format(r, TRY(read_guided(field.substr(7), value, r.limits)));  // "guided_"
}

Result<void> read_echo(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.echo = TRY(read_bool(field, value));
  if (r.out.echo && r.out.is_chat) {
    return unsupported(field + ": it is not supported for chats");
  }
  return {};
}

// --- chats

Result<void> read_conversation(Reading& r, const std::string&, const JsonValue& value) {
  r.has_messages = true;
  return read_messages(value, r.limits, r.out);
}

Result<void> note_media_options(Reading& r, const std::string& field, const JsonValue& value) {
  r.out.video_fps = TRY(read_video_fps(field, value));
  if (field == "mm_processor_kwargs") r.out.image_bounds = TRY(read_processor_bounds(field, value));
  return {};
}

Result<void> read_tool_list(Reading& r, const std::string&, const JsonValue& value) {
  ToolList tools = TRY(read_tools(value, r.limits));
  r.out.tools = std::move(tools.json);
  r.tool_names = std::move(tools.names);
  return {};
}

Result<void> read_tool_choice(Reading& r, const std::string& field, const JsonValue& value) {
  if (const auto* text = value.as<std::string>()) {
    if (*text != "none" && *text != "auto" && *text != "required") {
      return invalid_argument(field + ": it must be none, auto, required or an object");
    }
    r.tool_choice = *text;
    return {};
  }
  if (!value.as<JsonObject>()) {
    return wrong_type(field, "none, auto, required or an object", value);
  }
  const JsonValue* type = value.find("type");
  if (!type) return invalid_argument(field + ".type: it is missing");
  if (TRY(read_string(field + ".type", *type)) != "function") {
    return invalid_argument(field + ".type: it must be \"function\"");
  }
  const JsonValue* function = value.find("function");
  if (!function) return invalid_argument(field + ".function: it is missing");
  TRY(read_object(field + ".function", *function));
  const JsonValue* name = function->find("name");
  if (!name) return invalid_argument(field + ".function.name: it is missing");
  r.out.tool_name = TRY(read_string(field + ".function.name", *name));
  r.tool_choice = "named";
  return {};
}

Result<void> refuse_functions(Reading&, const std::string& field, const JsonValue&) {
  return unsupported(field + ": it is not supported; use " +
                     (field == "functions" ? "tools" : "tool_choice"));
}

Result<void> read_kwargs(Reading& r, const std::string&, const JsonValue& value) {
  r.out.template_kwargs = TRY(read_template_kwargs(value, r.limits));
  return {};
}

Result<void> read_effort(Reading& r, const std::string& field, const JsonValue& value) {
  static constexpr std::string_view kEfforts[] = {"none", "minimal", "low", "medium",
                                                  "high", "xhigh",   "max"};
  r.reasoning_effort = TRY(read_short_string(field, value, 16));
  if (std::find(std::begin(kEfforts), std::end(kEfforts), r.reasoning_effort) ==
      std::end(kEfforts)) {
    return invalid_argument(field + ": it must be none, minimal, low, medium, high, xhigh or max");
  }
  return {};
}

Result<void> read_documents(Reading& r, const std::string& field, const JsonValue& value) {
  const JsonArray& items = *TRY(read_array(field, value));
  for (size_t i = 0; i < items.size(); ++i) TRY(read_object(item_of(field, i), items[i]));
  if (!items.empty()) r.out.documents = to_json(value);
  return {};
}

Result<void> read_generation_prompt(Reading& r, const std::string& field, const JsonValue& value) {
  r.add_generation_prompt = TRY(read_bool(field, value));
  return {};
}

Result<void> read_chat_logprobs(Reading& r, const std::string& field, const JsonValue& value) {
  r.logprobs = TRY(read_bool(field, value));
  return {};
}

Result<void> read_top_logprobs(Reading& r, const std::string& field, const JsonValue& value) {
  r.top_logprobs = TRY(read_int_in(field, value, 0, kMaxTopLogprobs));
  return {};
}

Result<void> read_modalities(Reading&, const std::string& field, const JsonValue& value) {
  for (const std::string& kind : TRY(read_string_list(field, value))) {
    if (kind != "text") return unsupported(field + ": only text is supported");
  }
  return {};
}

// --- completions

bool is_id_list(const JsonArray& items) {
  return !items.empty() && (items[0].as<int64_t>() || items[0].as<JsonReal>());
}

Result<void> read_prompts(Reading& r, const std::string& field, const JsonValue& value) {
  r.has_prompt = true;
  auto& prompts = r.out.prompts;
  if (const auto* text = value.as<std::string>()) {
    prompts.emplace_back(*text);
    return {};
  }
  const auto* items = value.as<JsonArray>();
  if (!items) {
    return wrong_type(field, "a string, an array of strings, token ids or arrays of them", value);
  }
  if (items->empty()) return invalid_argument(field + ": the array is empty");
  if (is_id_list(*items)) {
    prompts.emplace_back(TRY(read_int_list(field, value)));
    return {};
  }
  if (items->size() > r.limits.max_prompts) {
    return too_many(field, items->size(), "prompts", static_cast<int64_t>(r.limits.max_prompts));
  }
  const bool texts = (*items)[0].as<std::string>() != nullptr;
  for (size_t i = 0; i < items->size(); ++i) {
    const std::string at = item_of(field, i);
    if (texts) {
      prompts.emplace_back(TRY(read_string(at, (*items)[i])));
    } else {
      prompts.emplace_back(TRY(read_int_list(at, (*items)[i])));
    }
  }
  return {};
}

// --- tokenize, detokenize

Result<void> read_one_text(Reading& r, const std::string& field, const JsonValue& value) {
  r.has_prompt = true;
  r.out.prompts.emplace_back(TRY(read_string(field, value)));
  return {};
}

Result<void> read_token_strs(Reading& r, const std::string& field, const JsonValue& value) {
  r.return_token_strs = TRY(read_bool(field, value));
  return {};
}

Result<void> read_tokens(Reading& r, const std::string& field, const JsonValue& value) {
  r.has_prompt = true;
  r.tokens = TRY(read_int_list(field, value));
  return {};
}

using G = GenerationRequest;
using S = SamplingRequest;

/// Fields of chats and completions alike.
constexpr Field kCommonFields[] = {
    {"model", read_model},
    {"temperature", set_sampling_number<&S::temperature>},
    {"top_p", set_sampling_number<&S::top_p>},
    {"min_p", set_sampling_number<&S::min_p>},
    {"top_k", set_sampling_int<&S::top_k>},
    {"repetition_penalty", set_sampling_number<&S::repetition_penalty>},
    {"presence_penalty", set_sampling_number<&S::presence_penalty>},
    {"frequency_penalty", set_sampling_number<&S::frequency_penalty>},
    {"max_tokens", set_sampling_int<&S::max_tokens>},
    {"min_tokens", set_sampling_int<&S::min_tokens>},
    {"stop", read_stop},
    {"stop_token_ids", set_sampling_ids<&S::stop_token_ids>},
    {"allowed_token_ids", set_sampling_ids<&S::allowed_token_ids, 1>},
    {"bad_words", read_bad_words},
    {"ignore_eos", set_sampling_bool<&S::ignore_eos>},
    {"seed", read_seed},
    {"logit_bias", read_logit_bias},
    {"prompt_logprobs", set_sampling_int<&S::prompt_logprobs>},
    {"n", read_n},
    {"best_of", note_int<&Reading::best_of>},
    {"use_beam_search", refuse},
    {"logits_processors", refuse},
    {"thinking_token_budget", refuse},
    {"response_format", read_format},
    {"structured_outputs", read_structured},
    {"guided_json", read_guided_field},
    {"guided_regex", read_guided_field},
    {"guided_choice", read_guided_field},
    {"guided_grammar", read_guided_field},
    {"guided_whitespace_pattern", refuse},
    {"structural_tag", refuse},
    {"truncate_prompt_tokens", read_truncation},
    {"priority", read_priority},
    {"cache_salt", read_salt},
    {"stream", set_bool<&G::stream>},
    {"stream_options", read_stream_options},
    {"echo", read_echo},
    {"add_special_tokens", set_bool<&G::add_special_tokens>},
    {"include_stop_str_in_output", set_bool<&G::include_stop_str_in_output>},
    {"skip_special_tokens", set_bool<&G::skip_special_tokens>},
    {"return_token_ids", set_bool<&G::return_token_ids>},
    {"return_tokens_as_token_ids", set_bool<&G::return_tokens_as_token_ids>},
};

/// What a conversation needs, in /v1/chat/completions and in /tokenize.
constexpr Field kConversationFields[] = {
    {"messages", read_conversation},
    {"tools", read_tool_list},
    {"chat_template", refuse},
    {"chat_template_kwargs", read_kwargs},
    {"documents", read_documents},
    {"add_generation_prompt", read_generation_prompt},
    {"continue_final_message", set_bool<&G::continue_final_message>},
    {"mm_processor_kwargs", note_media_options},
    {"media_io_kwargs", note_media_options},
};

constexpr Field kChatFields[] = {
    {"max_completion_tokens", note_int<&Reading::max_completion_tokens>},
    {"logprobs", read_chat_logprobs},
    {"top_logprobs", read_top_logprobs},
    {"tool_choice", read_tool_choice},
    {"parallel_tool_calls", set_bool<&G::parallel_tool_calls>},
    {"functions", refuse_functions},
    {"function_call", refuse_functions},
    {"include_reasoning", set_bool<&G::include_reasoning>},
    {"reasoning_effort", read_effort},
    {"modalities", read_modalities},
    {"audio", refuse},
    {"web_search_options", refuse},
};

constexpr Field kCompletionFields[] = {
    {"prompt", read_prompts},
    {"prompt_embeds", refuse},
    {"suffix", refuse},
    {"logprobs", set_sampling_int<&S::logprobs>},
};

constexpr Field kTokenizeFields[] = {
    {"model", read_model},
    {"prompt", read_one_text},
    {"add_special_tokens", set_bool<&G::add_special_tokens>},
    {"return_token_strs", read_token_strs},
};

constexpr Field kDetokenizeFields[] = {{"model", read_model}, {"tokens", read_tokens}};

using Tables = std::initializer_list<std::span<const Field>>;

Result<JsonValue> parse_body(std::string_view body) {
  Result<JsonValue> parsed = parse_json(body);
  if (!parsed) return with_context(parsed.error(), "body");
  if (!parsed->as<JsonObject>()) return wrong_type("body", "a JSON object", *parsed);
  const size_t fields = parsed->as<JsonObject>()->size();
  if (fields > kMaxFields) return too_many("body", fields, "fields", int64_t{kMaxFields});
  return parsed;
}

Result<void> read_fields(Reading& r, const JsonValue& body, Tables tables) {
  for (const auto& [name, value] : *body.as<JsonObject>()) {
    if (value.is_null()) continue;
    for (const std::span<const Field>& table : tables) {
      for (const Field& field : table) {
        if (field.name == name) TRY(field.read(r, name, value));
      }
    }
  }
  return {};
}

/// What depends on two fields.
Result<void> finish_common(Reading& r) {
  G& out = r.out;
  if (r.best_of && *r.best_of != out.n) {
    return unsupported("best_of: it is only supported when it equals n");
  }
  if (r.has_stream_options && !out.stream) {
    return invalid_argument("stream_options: they are only allowed with stream: true");
  }
  if (out.sampling.prompt_logprobs && out.stream) {
    return invalid_argument("prompt_logprobs: they are not available with stream: true");
  }
  return {};
}

Result<void> finish_tools(Reading& r) {
  G& out = r.out;
  if (r.tool_choice.empty() || r.tool_choice == "none") {
    out.tool_choice =
        out.tools.empty() || r.tool_choice == "none" ? ToolChoice::kNone : ToolChoice::kAuto;
    return {};
  }
  if (out.tools.empty()) {
    return invalid_argument("tool_choice: it is only allowed when tools are given");
  }
  if (r.tool_choice == "auto") {
    out.tool_choice = ToolChoice::kAuto;
    return {};
  }
  if (out.format.kind != OutputFormat::Kind::kText) {
    return invalid_argument("tool_choice: a required call and " + out.format.field +
                            " can't both be met");
  }
  out.tool_choice = r.tool_choice == "required" ? ToolChoice::kRequired : ToolChoice::kNamed;
  if (out.tool_choice == ToolChoice::kNamed &&
      std::find(r.tool_names.begin(), r.tool_names.end(), out.tool_name) == r.tool_names.end()) {
    return invalid_argument("tool_choice.function.name: there is no such function in tools");
  }
  return {};
}

Result<void> finish_conversation(Reading& r) {
  G& out = r.out;
  out.add_generation_prompt = r.add_generation_prompt.value_or(!out.continue_final_message);
  if (out.add_generation_prompt && out.continue_final_message) {
    return invalid_argument(
        "continue_final_message: it can't be true together with add_generation_prompt");
  }
  if (r.reasoning_effort.empty()) return {};
  const auto set = [&](const char* name, std::string json) {
    for (const auto& [key, value] : out.template_kwargs) {
      if (key == name) return;  // what the user says about the template itself wins
    }
    out.template_kwargs.emplace_back(name, std::move(json));
  };
  set("reasoning_effort", "\"" + r.reasoning_effort + "\"");
  if (r.reasoning_effort == "none") set("enable_thinking", "false");
  return {};
}

Result<void> finish_logprobs(Reading& r) {
  if (r.top_logprobs.value_or(0) > 0 && !r.logprobs.value_or(false)) {
    return invalid_argument("top_logprobs: it is only allowed with logprobs: true");
  }
  if (r.logprobs.value_or(false)) r.out.sampling.logprobs = r.top_logprobs.value_or(0);
  return {};
}

}  // namespace

Result<GenerationRequest> parse_chat_request(std::string_view body, const RequestLimits& limits) {
  const JsonValue json = TRY(parse_body(body));
  Reading r{.limits = limits};
  r.out.is_chat = true;
  r.out.add_special_tokens = false;  // the template writes them
  TRY(read_fields(r, json, {kConversationFields, kChatFields, kCommonFields}));
  if (!r.has_messages) return invalid_argument("messages: it is missing");
  // The newer name wins, as in vLLM.
  if (r.max_completion_tokens) r.out.sampling.max_tokens = r.max_completion_tokens;
  TRY(finish_logprobs(r));
  TRY(finish_conversation(r));
  TRY(finish_tools(r));
  TRY(finish_common(r));
  return std::move(r.out);
}

Result<GenerationRequest> parse_completion_request(std::string_view body,
                                                   const RequestLimits& limits) {
  const JsonValue json = TRY(parse_body(body));
  Reading r{.limits = limits};
  r.out.tool_choice = ToolChoice::kNone;
  TRY(read_fields(r, json, {kCompletionFields, kCommonFields}));
  if (!r.has_prompt) return invalid_argument("prompt: it is missing");
  TRY(finish_common(r));
  const auto choices = static_cast<int64_t>(r.out.prompts.size()) * r.out.n;
  if (choices > limits.max_choices) {
    return invalid_argument("n: " + std::to_string(r.out.prompts.size()) + " prompts times n are " +
                            std::to_string(choices) + " choices; at most " +
                            std::to_string(limits.max_choices) + " are accepted");
  }
  return std::move(r.out);
}

Result<TokenizeRequest> parse_tokenize_request(std::string_view body, const RequestLimits& limits) {
  const JsonValue json = TRY(parse_body(body));
  Reading r{.limits = limits};
  r.out.is_chat = json.find("messages") != nullptr && !json.find("messages")->is_null();
  r.out.add_special_tokens = !r.out.is_chat;
  r.out.tool_choice = ToolChoice::kNone;
  TRY(read_fields(r, json, {kTokenizeFields, kConversationFields}));
  if (r.has_prompt == r.has_messages) {
    return invalid_argument(r.has_prompt ? "prompt: messages are given too; one is allowed"
                                         : "prompt: it is missing, and so are messages");
  }
  TRY(finish_conversation(r));
  if (!r.out.tools.empty()) r.out.tool_choice = ToolChoice::kAuto;
  return TokenizeRequest{std::move(r.out), r.return_token_strs};
}

Result<DetokenizeRequest> parse_detokenize_request(std::string_view body) {
  const JsonValue json = TRY(parse_body(body));
  const RequestLimits limits;
  Reading r{.limits = limits};
  TRY(read_fields(r, json, {kDetokenizeFields}));
  if (!r.has_prompt) return invalid_argument("tokens: it is missing");
  return DetokenizeRequest{std::move(r.out.model), std::move(r.tokens)};
}

}  // namespace weft
