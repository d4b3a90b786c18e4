#include "text/tool_call_xml.h"

#include <span>

#include "base/json_text.h"
#include "text/json_stream.h"

namespace weft::text {
namespace {

constexpr std::string_view kParameter = "<parameter=", kParameterEnd = "</parameter>";
constexpr std::string_view kFunctionEnd = "</function>", kCallEnd = "</tool_call>";
constexpr std::string_view kInBody[] = {kParameter, kFunctionEnd, kCallEnd};
constexpr std::string_view kValueEnds[] = {kParameterEnd, kFunctionEnd};
constexpr std::string_view kAfterFunction[] = {kCallEnd};

constexpr size_t kMaxGap = 1024;         // bytes of white space between two closing tags
constexpr size_t kMaxNull = 64;          // bytes of null and white space around it
constexpr size_t kMaxParameters = 1024;  // of one call; more are dropped

/// Whether `c` may stand in the name of a function or parameter.
bool is_name_byte(char c) {
  return static_cast<unsigned char>(c) > 0x20 && c != '<' && c != '>' && c != '"' && c != '\\';
}

std::string_view trimmed(std::string_view text) {
  while (!text.empty() && is_json_space(text.front())) text.remove_prefix(1);
  while (!text.empty() && is_json_space(text.back())) text.remove_suffix(1);
  return text;
}

uint8_t type_of(char first) {
  switch (first) {
    case '{': return kJsonObject;
    case '[': return kJsonArray;
    case '"': return kJsonString;
    case 't':
    case 'f':
    case 'T':
    case 'F': return kJsonBoolean;
    case 'n':
    case 'N': return kJsonNull;
    default: return kJsonNumber;
  }
}

/// `text` as a JSON value, empty if it is none.
std::string as_json(std::string_view text) {
  std::string out;
  JsonStream json;
  for (size_t i = 0; i < text.size(); ++i) {
    const JsonStream::Step step = json.step(text[i], out);
    if (step == JsonStream::Step::kMore) continue;
    return step == JsonStream::Step::kEnd && i + 1 == text.size() ? out : "";
  }
  // Only a number can be complete without an end of its own.
  const size_t size = out.size();
  const bool number = !text.empty() && type_of(text[0]) == kJsonNumber;
  return number && json.close(out) && out.size() == size ? out : "";
}

}  // namespace

CallStep ToolCallXml::fail(ToolCallWriter& out) {
  if (!begun_) return CallStep::kNoCall;
  close(out);
  return CallStep::kBroken;
}

CallStep ToolCallXml::step(char c, ToolCallWriter& out) {
  switch (state_) {
    case State::kName:
      if (c == '>' && !name_.empty()) {
        state_ = State::kBody;
      } else if (is_name_byte(c) && name_.size() < kMaxCallName) {
        name_ += c;
      } else {
        return fail(out);
      }
      return CallStep::kMore;
    case State::kBody: return body(c, out);
    case State::kKey:
      if (c == '>' && !key_.empty()) {
        begin_value();
      } else if (is_name_byte(c) && key_.size() < kMaxCallName) {
        key_ += c;
      } else {
        return fail(out);
      }
      return CallStep::kMore;
    case State::kValue: return value_byte(c, out);
  }
  return fail(out);
}

/// Between the function's name and its first parameter.
CallStep ToolCallXml::body(char c, ToolCallWriter& out) {
  if (tag_.empty() && is_json_space(c)) return CallStep::kMore;
  switch (tag_.step(c, kInBody)) {
    case TagMatcher::Step::kNo: return fail(out);
    case TagMatcher::Step::kMore: return CallStep::kMore;
    case TagMatcher::Step::kFull: break;
  }
  begin(out);
  return after_tag(kInBody[tag_.which()], out);
}

CallStep ToolCallXml::after_tag(std::string_view tag, ToolCallWriter& out) {
  tag_.reset();
  if (tag == kParameter) {
    key_.clear();
    state_ = State::kKey;
    return CallStep::kMore;
  }
  end(out);
  return tag == kCallEnd ? CallStep::kEndBlock : CallStep::kEnd;
}

void ToolCallXml::begin_value() {
  state_ = State::kValue;
  at_start_ = true;
  newline_ = false;
  in_string_ = false;
  held_.clear();
  tail_ = Tail::kNone;
  tail_text_.clear();
  if (keys_.size() >= kMaxParameters || !keys_.insert(key_).second) {
    value_ = Value::kDropped;
    return;
  }
  const uint8_t types = schemas_->types(name_, key_);
  value_ = types == kJsonString                 ? Value::kString
           : types == (kJsonString | kJsonNull) ? Value::kStringOrNull
                                                : Value::kTyped;
}

CallStep ToolCallXml::value_byte(char c, ToolCallWriter& out) {
  switch (tail_) {
    case Tail::kNone:
      if (c != '<') {
        const bool dropped = at_start_ && c == '\n';
        at_start_ = false;
        if (!dropped) add(c, out);
        return CallStep::kMore;
      }
      at_start_ = false;
      tail_ = Tail::kTag;
      tag_.reset();
      tag_.step(c, kValueEnds);
      tail_text_ = c;
      return CallStep::kMore;
    case Tail::kTag: {
      const TagMatcher::Step step = tag_.step(c, kValueEnds);
      if (step == TagMatcher::Step::kNo) return not_the_end(c, out);
      tail_text_ += c;
      if (step == TagMatcher::Step::kFull) {
        tail_is_function_ = kValueEnds[tag_.which()] == kFunctionEnd;
        tail_ = Tail::kGap;
        tag_.reset();
      }
      return CallStep::kMore;
    }
    case Tail::kGap:
      if (is_json_space(c) && tail_text_.size() < kMaxGap) {
        tail_text_ += c;
        return CallStep::kMore;
      }
      tail_ = Tail::kNext;
      break;
    case Tail::kNext: break;
  }
  const std::span<const std::string_view> tags =
      tail_is_function_ ? std::span<const std::string_view>(kAfterFunction) : kInBody;
  switch (tag_.step(c, tags)) {
    case TagMatcher::Step::kNo: return not_the_end(c, out);
    case TagMatcher::Step::kMore: tail_text_ += c; return CallStep::kMore;
    case TagMatcher::Step::kFull: break;
  }
  const std::string_view tag = tags[tag_.which()];
  value_end(out);
  return after_tag(tag, out);
}

/// The tail and `c` are part of the value; inside them may be the beginning of its end. Each byte
/// comes here at most twice: a tail holds no second '<' but that of its last tag.
CallStep ToolCallXml::not_the_end(char c, ToolCallWriter& out) {
  const std::string text = tail_text_ + c;
  tail_ = Tail::kNone;
  tail_text_.clear();
  add('<', out);
  for (size_t i = 1; i < text.size(); ++i) {
    const CallStep step = value_byte(text[i], out);
    if (step != CallStep::kMore) return step;
  }
  return CallStep::kMore;
}

/// A byte of the value.
void ToolCallXml::add(char c, ToolCallWriter& out) {
  if (value_ == Value::kDropped) return;
  const bool newline = newline_;
  newline_ = c == '\n';
  const auto give = [&](char byte) {
    if (!in_string_) {
      held_ += byte;
      return;
    }
    std::string text;
    append_json_escaped(byte, text);
    out.append(text);
  };
  if (value_ == Value::kString && !in_string_) write_string(out);
  if (newline) give('\n');
  if (!newline_) give(c);
  if (in_string_) return;
  // Held back no longer than it may still be something else than a string.
  bool certain = held_.size() > kMaxCallHeld;
  if (value_ == Value::kStringOrNull) {
    const std::string_view text = trimmed(held_);
    certain = held_.size() > kMaxNull || !(std::string_view("null").starts_with(text) ||
                                           std::string_view("None").starts_with(text));
  }
  if (certain) write_string(out);
}

void ToolCallXml::write_key(ToolCallWriter& out) {
  std::string text = keys_.size() > 1 ? ", " : "";
  append_json_quoted(key_, text);
  text += ": ";
  out.append(text);
}

/// The value is a string: opens it, with what was held back of it.
void ToolCallXml::write_string(ToolCallWriter& out) {
  write_key(out);
  std::string text = "\"";
  for (char c : held_) append_json_escaped(c, text);
  held_.clear();
  out.append(text);
  in_string_ = true;
}

void ToolCallXml::value_end(ToolCallWriter& out) {
  tail_ = Tail::kNone;
  tail_text_.clear();
  newline_ = false;
  if (value_ == Value::kDropped) return;
  if (!in_string_ && value_ != Value::kString) {
    const std::string_view text = trimmed(held_);
    const uint8_t types = schemas_->types(name_, key_);
    const std::string json = text.empty() ? "" : as_json(text);
    // Where strings are allowed too, only what is of another allowed type is not taken as one.
    const bool takes = (types & kJsonString) == 0 ||
                       (text.empty() ? 0 : type_of(text[0]) & types & ~kJsonString) != 0;
    if (!json.empty() && takes) {
      write_key(out);
      out.append(json);
      held_.clear();
      return;
    }
  }
  if (!in_string_) write_string(out);
  out.append("\"");
  in_string_ = false;
}

void ToolCallXml::begin(ToolCallWriter& out) {
  begun_ = true;
  out.begin(name_);
  out.append("{");
}

void ToolCallXml::end(ToolCallWriter& out) {
  if (ended_) return;
  ended_ = true;
  out.append("}");
}

void ToolCallXml::close(ToolCallWriter& out) {
  if (!begun_ || ended_) return;
  if (state_ == State::kValue) {
    if (tail_ == Tail::kGap || tail_ == Tail::kNext) {
      value_end(out);
    } else if (in_string_) {
      out.append("\"");
    }
  }
  end(out);
}

}  // namespace weft::text
