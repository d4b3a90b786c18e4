#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "text/json_stream.h"

namespace weft {

/// Types of the parameters that a request's tools declare: function -> parameter -> is it a string.
class ToolTypes {
 public:
  ToolTypes() = default;
  /// `tools_json`: the request's `tools` array. What is no valid declaration declares nothing.
  explicit ToolTypes(const std::string& tools_json);
  /// Whether the value is text as it stands; parameters that nobody declares are.
  bool is_text(const std::string& function, const std::string& parameter) const;

 private:
  std::map<std::string, std::map<std::string, bool>> is_text_;
};

/// Reads what follows "<tool_call>", byte by byte, in either markup: JSON or XML by its first
/// character. The call begins to exist when its arguments do; from then on what was given out can
/// always be completed to valid JSON.
class ToolCallReader {
 public:
  enum class Status {
    kMore,
    kDone,  ///< the call and its end tag are complete
    kBad,   ///< the byte can't stand here (it was not taken)
  };
  explicit ToolCallReader(const ToolTypes& types) : types_(types) {}

  /// Appends to `arguments` the next piece of the arguments' JSON text.
  Status push(char c, std::string& arguments);
  /// The call ends here, whole or not: what completes the arguments. Call only if begun().
  std::string completion() const;
  /// The arguments have begun: name() is known.
  bool begun() const { return begun_; }
  const std::string& name() const { return name_; }
  /// All bytes taken while not begun().
  const std::string& raw() const { return raw_; }

 private:
  enum class State {
    kStart,
    // JSON: the members of the outer object
    kFirstMember,
    kMemberKey,
    kMemberColon,
    kMemberValue,
    kArguments,
    kAfterMember,
    // XML
    kFunctionTag,
    kFunctionName,
    kBetween,
    kParameterName,
    kValue,
    kEndTag,
  };
  Status push_json(char c, std::string& arguments);
  Status push_value(char c, std::string& arguments);
  Status end_member(std::string& arguments);
  Status push_xml(char c, std::string& arguments);
  void push_text(char c, std::string& arguments);
  Status end_parameter(std::string& arguments);
  Status push_end_tag(char c);
  void begin(std::string& arguments);

  const ToolTypes& types_;
  State state_ = State::kStart;
  bool begun_ = false;
  std::string raw_, name_;
  JsonStream stream_;       // of the member's value
  std::string key_, text_;  // of the member or parameter being read
  std::string early_;       // arguments that came before the name
  bool has_early_ = false, has_name_ = false;
  bool scalar_value_ = false;  // the member is a number, true, false or null
  bool end_of_function_ = false, at_start_ = false;
  bool is_text_ = false;                           // the parameter's value is written as it stands
  bool value_open_ = false, object_open_ = false;  // of the XML form
  int num_parameters_ = 0;
  size_t matched_ = 0;  // of the tag being read
};

}  // namespace weft
