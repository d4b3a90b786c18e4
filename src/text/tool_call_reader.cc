#include "text/tool_call_reader.h"

#include <simdjson.h>

namespace weft {
namespace {

namespace json = simdjson::dom;

constexpr std::string_view kCallEnd = "</tool_call>";
constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kFunctionEnd = "</function>";
constexpr std::string_view kParameter = "<parameter=";
constexpr std::string_view kParameterEnd = "</parameter>";
constexpr size_t kMaxName = 256;

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/// Appends a byte of a JSON string's content.
void append_escaped(char c, std::string& out) {
  static constexpr char kHex[] = "0123456789abcdef";
  switch (c) {
    case '"': out += "\\\""; return;
    case '\\': out += "\\\\"; return;
    case '\n': out += "\\n"; return;
    case '\r': out += "\\r"; return;
    case '\t': out += "\\t"; return;
    default: break;
  }
  const auto byte = static_cast<unsigned char>(c);
  if (byte < 0x20) {
    out += "\\u00";
    out += kHex[byte >> 4];
    out += kHex[byte & 15];
  } else {
    out += c;
  }
}

std::string quote_json(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) append_escaped(c, out);
  return out + '"';
}

/// The text of a JSON string; nothing when `text` is something else.
bool unquote(const std::string& text, std::string& out) {
  json::parser parser;
  std::string_view value;
  if (parser.parse(text).get(value) != simdjson::SUCCESS) return false;
  out = value;
  return true;
}

bool is_json(const std::string& text) {
  json::parser parser;
  json::element root;
  return parser.parse(text).get(root) == simdjson::SUCCESS;
}

bool is_json_object(const std::string& text) {
  json::parser parser;
  json::element root;
  return parser.parse(text).get(root) == simdjson::SUCCESS && root.is_object();
}

std::string_view strip(std::string_view text) {
  while (!text.empty() && is_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_space(text.back())) text.remove_suffix(1);
  return text;
}

/// Whether a declared schema makes its value text: type string, alone or beside null.
bool schema_is_text(const json::element& schema) {
  json::element type;
  if (schema["type"].get(type) != simdjson::SUCCESS) {
    return schema["anyOf"].error() != simdjson::SUCCESS &&
           schema["$ref"].error() != simdjson::SUCCESS &&
           schema["oneOf"].error() != simdjson::SUCCESS;
  }
  std::string_view name;
  if (type.get(name) == simdjson::SUCCESS) return name == "string";
  json::array names;
  if (type.get(names) != simdjson::SUCCESS) return true;
  for (const json::element one : names) {
    if (one.get(name) != simdjson::SUCCESS || (name != "string" && name != "null")) return false;
  }
  return true;
}

}  // namespace

ToolTypes::ToolTypes(const std::string& tools_json) {
  json::parser parser;
  json::array tools;
  if (tools_json.empty() || parser.parse(tools_json).get(tools) != simdjson::SUCCESS) return;
  for (const json::element tool : tools) {
    std::string_view name;
    json::object properties;
    if (tool["function"]["name"].get(name) != simdjson::SUCCESS) continue;
    auto& parameters = is_text_[std::string(name)];
    if (tool["function"]["parameters"]["properties"].get(properties) != simdjson::SUCCESS) continue;
    for (const auto [key, schema] : properties) {
      parameters[std::string(key)] = schema_is_text(schema);
    }
  }
}

bool ToolTypes::is_text(const std::string& function, const std::string& parameter) const {
  const auto known = is_text_.find(function);
  if (known == is_text_.end()) return true;
  const auto type = known->second.find(parameter);
  return type == known->second.end() || type->second;
}

ToolCallReader::Status ToolCallReader::push(char c, std::string& arguments) {
  Status status = Status::kMore;
  if (state_ == State::kStart) {
    if (c == '{') {
      state_ = State::kFirstMember;
    } else if (c == '<') {
      state_ = State::kFunctionTag;
      matched_ = 1;
    } else if (!is_space(c)) {
      return Status::kBad;
    }
  } else if (state_ == State::kEndTag) {
    status = push_end_tag(c);
  } else if (state_ < State::kFunctionTag) {
    status = push_json(c, arguments);
  } else {
    status = push_xml(c, arguments);
  }
  if (!begun_ && status != Status::kBad) raw_ += c;
  return status;
}

void ToolCallReader::begin(std::string& arguments) {
  begun_ = true;
  raw_.clear();
  if (has_early_) arguments += early_;
}

ToolCallReader::Status ToolCallReader::push_end_tag(char c) {
  if (matched_ == 0 && is_space(c)) return Status::kMore;
  if (c != kCallEnd[matched_]) return Status::kBad;
  return ++matched_ == kCallEnd.size() ? Status::kDone : Status::kMore;
}

// JSON

ToolCallReader::Status ToolCallReader::push_json(char c, std::string& arguments) {
  switch (state_) {
    case State::kMemberKey: {
      // A key is a JSON string; the stream reads it as a value of its own.
      const JsonStream::Status status = stream_.push(c, text_);
      if (status == JsonStream::Status::kBad) return Status::kBad;
      if (status == JsonStream::Status::kDone) {
        if (!unquote(text_, key_)) return Status::kBad;
        state_ = State::kMemberColon;
      }
      return Status::kMore;
    }
    case State::kMemberValue:
    case State::kArguments: return push_value(c, arguments);
    default: break;
  }
  if (is_space(c)) return Status::kMore;
  switch (state_) {
    case State::kFirstMember:
    case State::kAfterMember:
      if (c == '}') {
        if (!has_name_) return Status::kBad;
        if (!begun_) {
          if (!has_early_) {
            has_early_ = true;
            early_ = "{}";
          }
          begin(arguments);
        }
        state_ = State::kEndTag;
        matched_ = 0;
        return Status::kMore;
      }
      if (state_ == State::kAfterMember) {
        if (c != ',') return Status::kBad;
        state_ = State::kFirstMember;
        return Status::kMore;
      }
      if (c != '"') return Status::kBad;
      stream_ = JsonStream();
      text_.clear();
      stream_.push(c, text_);
      state_ = State::kMemberKey;
      return Status::kMore;
    case State::kMemberColon:
      if (c != ':') return Status::kBad;
      stream_ = JsonStream();
      text_.clear();
      state_ = State::kMemberValue;
      return Status::kMore;
    default: return Status::kBad;
  }
}

/// A byte of a member's value. Arguments that are an object go out as they come once the name is
/// known; everything else is gathered.
ToolCallReader::Status ToolCallReader::push_value(char c, std::string& arguments) {
  const bool is_arguments = key_ == "arguments" || key_ == "parameters";
  if (state_ == State::kMemberValue && text_.empty()) {
    if (is_space(c)) return Status::kMore;
    scalar_value_ = c != '"' && c != '{' && c != '[';
    if (c == '{' && is_arguments && has_name_ && !begun_ && !has_early_) {
      begin(arguments);
      state_ = State::kArguments;
    }
  }
  if (state_ == State::kMemberValue && scalar_value_) {
    if (c != ',' && c != '}' && !is_space(c)) {
      text_ += c;
      return text_.size() <= kMaxName ? Status::kMore : Status::kBad;
    }
    if (!is_json(text_) || key_ == "name" || (is_arguments && text_ != "null")) return Status::kBad;
    state_ = State::kAfterMember;
    if (is_arguments) {
      if (begun_ || has_early_) return Status::kBad;
      early_ = "{}";
      has_early_ = true;
      if (has_name_) begin(arguments);
    }
    return push_json(c, arguments);
  }
  std::string& out = state_ == State::kArguments ? arguments : text_;
  const JsonStream::Status status = stream_.push(c, out);
  if (status == JsonStream::Status::kBad) return Status::kBad;
  return status == JsonStream::Status::kDone ? end_member(arguments) : Status::kMore;
}

ToolCallReader::Status ToolCallReader::end_member(std::string& arguments) {
  const bool streamed = state_ == State::kArguments;
  state_ = State::kAfterMember;
  if (streamed) return Status::kMore;
  if (key_ == "name") {
    if (begun_ || has_name_ || !unquote(text_, name_) || name_.empty() || name_.size() > kMaxName) {
      return Status::kBad;
    }
    has_name_ = true;
    if (has_early_) begin(arguments);
    return Status::kMore;
  }
  if (key_ != "arguments" && key_ != "parameters") return Status::kMore;
  if (begun_ || has_early_) return Status::kBad;
  if (text_[0] == '"') {  // the object written as a string
    std::string inner;
    if (!unquote(text_, inner)) return Status::kBad;
    text_ = strip(inner).empty() ? "{}" : inner;
  }
  if (!is_json_object(text_)) return Status::kBad;
  early_ = text_;
  has_early_ = true;
  if (has_name_) begin(arguments);
  return Status::kMore;
}

// XML

ToolCallReader::Status ToolCallReader::push_xml(char c, std::string& arguments) {
  switch (state_) {
    case State::kFunctionTag:
      if (c != kFunction[matched_]) return Status::kBad;
      if (++matched_ == kFunction.size()) state_ = State::kFunctionName;
      return Status::kMore;
    case State::kFunctionName:
      if (c == '>') {
        if (name_.empty()) return Status::kBad;
        begin(arguments);
        arguments += '{';
        object_open_ = true;
        state_ = State::kBetween;
        matched_ = 0;
        return Status::kMore;
      }
      if (c == '<' || c == '\n' || name_.size() >= kMaxName) return Status::kBad;
      name_ += c;
      return Status::kMore;
    case State::kBetween: {
      if (matched_ == 0 && is_space(c)) return Status::kMore;
      // Both tags begin with '<' and part at the next byte.
      if (matched_ == 1) end_of_function_ = c == '/';
      const std::string_view tag = end_of_function_ && matched_ > 0 ? kFunctionEnd : kParameter;
      if (c != tag[matched_]) return Status::kBad;
      if (++matched_ < tag.size()) return Status::kMore;
      matched_ = 0;
      if (tag == kParameter) {
        key_.clear();
        state_ = State::kParameterName;
        return Status::kMore;
      }
      arguments += '}';
      object_open_ = false;
      state_ = State::kEndTag;
      return Status::kMore;
    }
    case State::kParameterName:
      if (c == '>') {
        if (key_.empty()) return Status::kBad;
        is_text_ = types_.is_text(name_, key_);
        text_.clear();
        matched_ = 0;
        at_start_ = true;
        state_ = State::kValue;
        return Status::kMore;
      }
      if (c == '<' || c == '\n' || key_.size() >= kMaxName) return Status::kBad;
      key_ += c;
      return Status::kMore;
    default: break;
  }
  push_text(c, arguments);
  return Status::kMore;
}

/// A byte of a parameter's value. One newline at its start and one before its end belong to the
/// markup; text_ holds back what may still be markup (and the whole of what is no text).
void ToolCallReader::push_text(char c, std::string& arguments) {
  if (at_start_) {
    at_start_ = false;
    if (is_text_) {
      arguments += std::string(num_parameters_++ > 0 ? ", " : "") + quote_json(key_) + ": \"";
      value_open_ = true;
    }
    if (c == '\n') return;
  }
  const auto give = [&](std::string_view text) {
    for (const char byte : text) append_escaped(byte, arguments);
  };
  if (c == kParameterEnd[matched_]) {
    text_ += c;
    if (++matched_ == kParameterEnd.size()) end_parameter(arguments);
    return;
  }
  // The tag has one '<', so a broken match can only begin anew with this byte.
  if (is_text_) {
    give(text_);
    text_.clear();
  }
  matched_ = c == '<' ? 1 : 0;
  if (!is_text_ || c == '<' || c == '\n') {
    text_ += c;
  } else {
    give({&c, 1});
  }
}

ToolCallReader::Status ToolCallReader::end_parameter(std::string& arguments) {
  state_ = State::kBetween;
  matched_ = 0;
  if (is_text_) {
    arguments += '"';
    value_open_ = false;
    return Status::kMore;
  }
  text_.resize(text_.size() - kParameterEnd.size());
  if (!text_.empty() && text_.back() == '\n') text_.pop_back();
  const std::string value(strip(text_));
  arguments += std::string(num_parameters_++ > 0 ? ", " : "") + quote_json(key_) + ": ";
  arguments += is_json(value) ? value : quote_json(text_);
  return Status::kMore;
}

std::string ToolCallReader::completion() const {
  if (state_ == State::kArguments) return stream_.completion();
  std::string out = value_open_ ? "\"" : "";
  if (object_open_) out += '}';
  return out;
}

}  // namespace weft
