#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include "text/json_stream.h"
#include "text/tool_call_writer.h"
#include "text/tool_schemas.h"

namespace weft::text {

/// Reads one call written as a JSON object: a name under "name", arguments under "arguments" or
/// "parameters", in any order; other keys are passed over. The call begins when the name is known
/// and the arguments begin, or at the object's end.
class ToolCallJson {
 public:
  /// `known`: the object is a call only with arguments and one of these names; null: any name.
  explicit ToolCallJson(const ToolSchemas* known) : known_(known) {}

  /// The first byte is the object's brace.
  CallStep step(char c, ToolCallWriter& out);
  /// The text ends inside the call.
  void close(ToolCallWriter& out);
  bool begun() const { return begun_; }

 private:
  enum class State : uint8_t {
    kOpen,
    kKeyOrEnd,
    kKey,
    kInKey,
    kColon,
    kValue,
    kInName,
    kArguments,
    kQuotedArguments,
    kNull,
    kOther,
    kAfter,
  };

  CallStep fail(ToolCallWriter& out);
  CallStep value(char c, ToolCallWriter& out);
  CallStep begin_arguments(char c, ToolCallWriter& out);
  CallStep arguments(char c, ToolCallWriter& out);
  CallStep quoted(char c, ToolCallWriter& out);
  CallStep name_end(ToolCallWriter& out);
  CallStep after(char c, ToolCallWriter& out);
  bool feed_arguments(char c, ToolCallWriter& out);
  bool set_empty(ToolCallWriter& out);
  bool begin(ToolCallWriter& out);
  void give(ToolCallWriter& out);

  const ToolSchemas* known_;
  State state_ = State::kOpen;
  bool begun_ = false;
  bool has_name_ = false, has_arguments_ = false;
  bool arguments_done_ = false;
  std::string key_, name_;
  std::string quoted_;   // decoded bytes of quoted arguments, not yet read
  std::string pending_;  // arguments not yet given out
  JsonStringReader string_;
  JsonStream arguments_;
  std::optional<JsonStream> other_;
  const char* rest_ = nullptr;
};

}  // namespace weft::text
