#include "text/chat_format.h"

#include <span>
#include <string>

namespace weft {
namespace {

template <class Kind>
struct Name {
  std::string_view name;
  Kind kind;
};

constexpr Name<ChatFormat::Tools> kToolParsers[] = {
    {"none", ChatFormat::Tools::kNone},
    {"hermes", ChatFormat::Tools::kHermesJson},
    {"qwen", ChatFormat::Tools::kHermesJson},
    {"qwen25", ChatFormat::Tools::kHermesJson},
    {"qwen3", ChatFormat::Tools::kHermesJson},
    {"qwen3_coder", ChatFormat::Tools::kQwenXml},
    {"qwen3_xml", ChatFormat::Tools::kQwenXml},
    {"llama3", ChatFormat::Tools::kLlamaJson},
    {"llama3_json", ChatFormat::Tools::kLlamaJson},
};

constexpr Name<ChatFormat::Reasoning> kReasoningParsers[] = {
    {"none", ChatFormat::Reasoning::kNone},
    {"qwen3", ChatFormat::Reasoning::kThinkTags},
    {"deepseek_r1", ChatFormat::Reasoning::kThinkTags},
    {"deepseek-r1", ChatFormat::Reasoning::kThinkTags},
};

template <class Kind>
Result<Kind> choose(std::string_view field, std::string_view name,
                    std::span<const Name<Kind>> names, Kind detected) {
  if (name.empty() || name == "auto") return detected;
  std::string allowed = "auto";
  for (const auto& known : names) {
    if (known.name == name) return known.kind;
    allowed += ", " + std::string(known.name);
  }
  return invalid_argument(std::string(field) + ": '" + std::string(name) +
                          "' is not known; it must be one of " + allowed);
}

}  // namespace

ChatFormat detect_chat_format(std::string_view template_source) {
  const auto has = [template_source](std::string_view text) {
    return template_source.find(text) != std::string_view::npos;
  };
  ChatFormat format;
  if (has("<think>") || has("</think>")) format.reasoning = ChatFormat::Reasoning::kThinkTags;
  if (has("<tool_call>")) {
    format.tools = has("<function=") ? ChatFormat::Tools::kQwenXml : ChatFormat::Tools::kHermesJson;
  } else if (has("<|python_tag|>") || (has("<|start_header_id|>") && has("\"parameters\""))) {
    format.tools = ChatFormat::Tools::kLlamaJson;
  }
  return format;
}

Result<ChatFormat> choose_chat_format(std::string_view tool_call_parser,
                                      std::string_view reasoning_parser,
                                      const ChatFormat& detected) {
  ChatFormat format;
  format.tools = TRY(choose<ChatFormat::Tools>("tool-call-parser", tool_call_parser, kToolParsers,
                                               detected.tools));
  format.reasoning = TRY(choose<ChatFormat::Reasoning>("reasoning-parser", reasoning_parser,
                                                       kReasoningParsers, detected.reasoning));
  return format;
}

}  // namespace weft
