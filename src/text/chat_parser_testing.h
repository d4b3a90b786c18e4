#pragma once

#include <cstdlib>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "text/chat_parser.h"

namespace weft {

/// One format of each kind of tool call.
constexpr ChatFormat kFormats[] = {
    {ChatFormat::Reasoning::kThinkTags, ChatFormat::Tools::kHermesJson},
    {ChatFormat::Reasoning::kThinkTags, ChatFormat::Tools::kQwenXml},
    {ChatFormat::Reasoning::kNone, ChatFormat::Tools::kLlamaJson}};

/// An answer as a client puts it together from its pieces; for tests and fuzzers.
struct ParsedAnswer {
  struct Call {
    std::string id, name, arguments;
    bool operator==(const Call&) const = default;
  };
  std::string reasoning, content;
  std::vector<Call> calls;
  bool well_formed = true;  ///< indices without gaps; id and name in the first piece and there only

  bool operator==(const ParsedAnswer&) const = default;

  void add(const ChatDelta& delta) {
    reasoning += delta.reasoning;
    content += delta.content;
    for (const ToolCallDelta& piece : delta.tool_calls) {
      const auto index = static_cast<size_t>(piece.index);
      const bool first = index == calls.size();
      well_formed = well_formed && (first || index + 1 == calls.size()) &&
                    first == !piece.id.empty() && first == !piece.name.empty();
      if (!well_formed) return;
      if (first) calls.push_back({piece.id, piece.name, {}});
      calls.back().arguments += piece.arguments;
    }
  }
};

/// `next(rest)`: size of the next piece, at least 1, given how much is left.
inline ParsedAnswer parse_answer(ChatFormat format, const ChatParserOptions& options,
                                 std::string_view text, const std::function<size_t(size_t)>& next) {
  ChatParser parser(format, options);
  ParsedAnswer answer;
  while (!text.empty()) {
    const size_t size = next(text.size());
    ChatDelta delta;
    parser.push(text.substr(0, size), delta);
    answer.add(delta);
    text.remove_prefix(size);
  }
  ChatDelta delta;
  parser.finish(delta);
  answer.add(delta);
  answer.well_formed =
      answer.well_formed && parser.num_tool_calls() == static_cast<int>(answer.calls.size());
  return answer;
}

}  // namespace weft
