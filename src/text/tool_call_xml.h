#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>

#include "text/tag_matcher.h"
#include "text/tool_call_writer.h"
#include "text/tool_schemas.h"

namespace weft::text {

/// Reads one call written as XML, from behind "<function=": NAME> <parameter=KEY> VALUE
/// </parameter> ... </function>. The call begins with its first parameter or its end.
class ToolCallXml {
 public:
  explicit ToolCallXml(const ToolSchemas& schemas) : schemas_(&schemas) {}

  CallStep step(char c, ToolCallWriter& out);
  /// The text ends inside the call. A value that waits for its type is dropped.
  void close(ToolCallWriter& out);
  bool begun() const { return begun_; }

 private:
  enum class State : uint8_t { kName, kBody, kKey, kValue };
  /// What becomes of a value.
  enum class Value : uint8_t { kString, kStringOrNull, kTyped, kDropped };
  enum class Tail : uint8_t { kNone, kTag, kGap, kNext };

  CallStep fail(ToolCallWriter& out);
  CallStep body(char c, ToolCallWriter& out);
  CallStep value_byte(char c, ToolCallWriter& out);
  CallStep not_the_end(char c, ToolCallWriter& out);
  void value_end(ToolCallWriter& out);
  CallStep after_tag(std::string_view tag, ToolCallWriter& out);
  void begin_value();
  void add(char c, ToolCallWriter& out);
  void write_key(ToolCallWriter& out);
  void write_string(ToolCallWriter& out);
  void begin(ToolCallWriter& out);
  void end(ToolCallWriter& out);

  const ToolSchemas* schemas_;
  State state_ = State::kName;
  bool begun_ = false, ended_ = false;
  std::string name_, key_;
  std::set<std::string> keys_;
  TagMatcher tag_;

  Value value_ = Value::kString;
  bool at_start_ = false;   // of a value: one newline is dropped
  bool newline_ = false;    // a newline waits: dropped if the value ends after it
  bool in_string_ = false;  // its opening quote is given out
  std::string held_;        // of a value that waits for its type
  // What may be the value's end: a closing tag, white space, and the tag that has to follow.
  Tail tail_ = Tail::kNone;
  bool tail_is_function_ = false;
  std::string tail_text_;
};

}  // namespace weft::text
