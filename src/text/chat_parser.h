#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "text/chat_format.h"

namespace weft {

/// The next piece of a tool call.
struct ToolCallDelta {
  int index = 0;          ///< of the call in the answer
  std::string id, name;   ///< in the first piece of the call only
  std::string arguments;  ///< the next piece of the arguments' JSON text
};

/// What a piece of text adds to an answer.
struct ChatDelta {
  std::string reasoning, content;
  std::vector<ToolCallDelta> tool_calls;
};

struct ChatParserOptions {
  bool tools_enabled = false;        ///< else the markup of calls is content
  bool starts_in_reasoning = false;  ///< the prompt ends with an open <think>
  std::string tools_json;            ///< the request's tools: types of parameters given as XML
  /// Call ids are made of this and nothing else: it should tell one answer from another, and be
  /// the same for the same request.
  uint64_t seed = 0;
};

/// Parts generated text into reasoning, content and tool calls while it comes. Each byte is looked
/// at a bounded number of times; what is held back is bounded. The pieces given out, put together,
/// depend on the text alone and not on how it was cut.
///
/// Reasoning: <think> opens it at the start of the text, </think> closes it; it goes to the end of
/// the text if nothing closes it. Newlines next to the tags are dropped. Markup of calls in it is
/// reasoning.
///
/// Tool calls: a call is given out once its name is complete and its arguments begin (or are
/// certain to be absent: "{}"). From then on its arguments are made valid JSON whatever comes:
/// JSON is passed on as it was written but for what JSON does not allow (control characters in
/// strings, unknown escapes, trailing commas, Python's True, False, None), which is mended; where
/// that is impossible, and where the text ends inside, the arguments are closed where they are
/// sound and the rest of the block is dropped. finish_reason "length" tells users of such a cut.
/// Arguments are an object; given as a JSON string, they are what the string holds; null is {}.
/// A block that turns out not to be a call before that point is content, unchanged; one that the
/// text's end cuts off before it is dropped.
/// Parameters given as XML get the type of the tool's schema: strings as they are, without one
/// newline at either end; other types as JSON where that is valid, else as a string. A value ends
/// with </parameter> where another parameter or the end of the call follows it.
///
/// Content: all text around calls, without the white space before the first and after the last one
/// and between two calls.
class ChatParser {
 public:
  ChatParser(ChatFormat format, ChatParserOptions options);
  ~ChatParser();
  ChatParser(ChatParser&&) noexcept;
  ChatParser& operator=(ChatParser&&) noexcept;

  /// Appends to `out` what became certain with `text`. Pieces of one call that follow each other in
  /// `out` are joined.
  void push(std::string_view text, ChatDelta& out);
  /// The answer has ended; nothing may be pushed after it.
  void finish(ChatDelta& out);

  bool in_reasoning() const;
  /// Calls given out so far.
  int num_tool_calls() const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace weft
