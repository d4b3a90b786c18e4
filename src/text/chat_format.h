#pragma once

#include <cstdint>
#include <string_view>

#include "base/result.h"

namespace weft {

/// How a model marks its reasoning and its tool calls in what it generates.
struct ChatFormat {
  enum class Reasoning : uint8_t {
    kNone,
    kThinkTags,  ///< <think> ... </think> before the answer
  };
  enum class Tools : uint8_t {
    kNone,
    kHermesJson,  ///< <tool_call>{"name": ..., "arguments": {...}}</tool_call>: Hermes, Qwen 2.5, 3
    /// <tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>:
    /// Qwen3-Coder, Qwen3.5
    kQwenXml,
    kLlamaJson,  ///< the whole answer is {"name": ..., "parameters": {...}}: Llama 3.1 and later
  };
  Reasoning reasoning = Reasoning::kNone;
  Tools tools = Tools::kNone;

  bool operator==(const ChatFormat&) const = default;
};

/// The format that a chat template (its Jinja source) teaches the model.
ChatFormat detect_chat_format(std::string_view template_source);

/// The format by the names of --tool-call-parser and --reasoning-parser (vLLM's and SGLang's).
/// "auto" and the empty name take `detected`, "none" takes none.
/// Errors: kInvalidArgument that lists the names, for one that is not known.
Result<ChatFormat> choose_chat_format(std::string_view tool_call_parser,
                                      std::string_view reasoning_parser,
                                      const ChatFormat& detected);

}  // namespace weft
