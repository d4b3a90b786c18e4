#pragma once

#include <string>
#include <vector>

#include "api/images.h"
#include "base/result.h"
#include "server/json.h"
#include "server/openai_request.h"

namespace weft {

/// Checks a conversation and writes it as the chat template wants it: `developer` is `system`, text
/// parts are one text (joined by newlines), the arguments of tool calls are objects where they are
/// valid JSON, optional members that are null are left out.
/// A content with images or videos is a list of parts. Sets messages, images and videos of `out`.
Result<void> read_messages(const JsonValue& value, const RequestLimits& limits,
                           GenerationRequest& out);

struct ToolList {
  std::string json;  ///< as the template gets it; empty: no tools
  std::vector<std::string> names;
};

/// Checks the tools; the array itself is passed on as it came.
Result<ToolList> read_tools(const JsonValue& value, const RequestLimits& limits);

}  // namespace weft
