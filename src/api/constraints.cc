#include "api/constraints.h"

namespace weft {

ConstraintFactory::ConstraintFactory(const Tokenizer& tokenizer, int64_t vocab_size,
                                     const ChatFormat& format)
    : tokenizer_(tokenizer), vocab_size_(static_cast<int32_t>(vocab_size)), format_(format) {}

Result<std::shared_ptr<const OutputConstraint>> ConstraintFactory::make(
    const GenerationRequest& request, Thinking thinking) {
  (void)thinking;
  const bool forced = !request.tools.empty() && (request.tool_choice == ToolChoice::kRequired ||
                                                 request.tool_choice == ToolChoice::kNamed);
  if (forced) return unsupported("tool_choice: auto and none are supported");
  if (request.format.kind != OutputFormat::Kind::kText) {
    return unsupported(request.format.field + ": only text is supported");
  }
  return std::shared_ptr<const OutputConstraint>();
}

}  // namespace weft
