#pragma once

#include <cstdint>
#include <string>

#include "base/result.h"
#include "grammar/rules.h"

namespace weft {

/// How a model writes its tool calls (text/chat_format.h).
enum class ToolMarkup : uint8_t { kHermesJson, kQwenXml };

struct ToolGrammarOptions {
  ToolMarkup markup = ToolMarkup::kHermesJson;
  std::string name;       ///< the one function that may be called; empty: any
  bool parallel = false;  ///< several calls, else exactly one
};

/// One or more calls of the functions in `tools_json` (the `tools` array of an OpenAI request) with
/// arguments that are valid for their schemas. Errors name tools[i].function.parameters and the
/// keyword.
Result<GrammarRules::Node> tool_call_node(GrammarRules& rules, const std::string& tools_json,
                                          const ToolGrammarOptions& options);

}  // namespace weft
