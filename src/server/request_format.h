#pragma once

#include <string>
#include <utility>
#include <vector>

#include "api/generation.h"
#include "base/result.h"
#include "server/json.h"
#include "server/openai_request.h"

namespace weft {

/// response_format of the OpenAI API.
Result<OutputFormat> read_response_format(const JsonValue& value, const RequestLimits& limits);
/// structured_outputs of vLLM: one of json, regex, choice, grammar, json_object.
Result<OutputFormat> read_structured_outputs(const JsonValue& value, const RequestLimits& limits);
/// The older fields of vLLM; `kind` is what comes after "guided_".
Result<OutputFormat> read_guided(const std::string& kind, const JsonValue& value,
                                 const RequestLimits& limits);

/// chat_template_kwargs: names and JSON texts. Names that would replace what the server itself
/// hands to the template are refused (CVE-2025-62426).
Result<std::vector<std::pair<std::string, std::string>>> read_template_kwargs(
    const JsonValue& value, const RequestLimits& limits);

}  // namespace weft
