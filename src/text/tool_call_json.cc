#include "text/tool_call_json.h"

namespace weft::text {
namespace {

using Json = JsonStream::Step;

}  // namespace

CallStep ToolCallJson::step(char c, ToolCallWriter& out) {
  switch (state_) {
    case State::kOpen: state_ = State::kKeyOrEnd; return CallStep::kMore;
    case State::kKeyOrEnd:
    case State::kKey:
      if (is_json_space(c)) return CallStep::kMore;
      if (c == '}') return after(c, out);
      if (c != '"') return fail(out);
      key_.clear();
      string_ = {};
      state_ = State::kInKey;
      return CallStep::kMore;
    case State::kInKey:
      if (string_.step(c, key_)) {
        state_ = State::kColon;
      } else if (key_.size() > kMaxCallName) {
        return fail(out);
      }
      return CallStep::kMore;
    case State::kColon:
      if (is_json_space(c)) return CallStep::kMore;
      if (c != ':') return fail(out);
      state_ = State::kValue;
      return CallStep::kMore;
    case State::kValue: return is_json_space(c) ? CallStep::kMore : value(c, out);
    case State::kInName:
      if (string_.step(c, name_)) return name_end(out);
      return name_.size() > kMaxCallName ? fail(out) : CallStep::kMore;
    case State::kArguments: return arguments(c, out);
    case State::kQuotedArguments: return quoted(c, out);
    case State::kNull:
      if (c != *rest_) return fail(out);
      if (*++rest_ != '\0') return CallStep::kMore;
      state_ = State::kAfter;
      return set_empty(out) ? CallStep::kMore : fail(out);
    case State::kOther: {
      std::string passed_over;
      switch (other_->step(c, passed_over)) {
        case Json::kMore: return CallStep::kMore;
        case Json::kEnd: state_ = State::kAfter; return CallStep::kMore;
        case Json::kEndBefore: state_ = State::kAfter; return after(c, out);
        case Json::kBad: break;
      }
      return fail(out);
    }
    case State::kAfter: return is_json_space(c) ? CallStep::kMore : after(c, out);
  }
  return fail(out);
}

CallStep ToolCallJson::fail(ToolCallWriter& out) {
  if (!begun_) return CallStep::kNoCall;
  close(out);
  return CallStep::kBroken;
}

void ToolCallJson::close(ToolCallWriter& out) {
  if (!begun_ || arguments_done_) return;
  arguments_.close(pending_);
  arguments_done_ = true;
  give(out);
}

CallStep ToolCallJson::value(char c, ToolCallWriter& out) {
  if (key_ == "name" && !has_name_) {
    if (c != '"') return fail(out);
    string_ = {};
    state_ = State::kInName;
    return CallStep::kMore;
  }
  if ((key_ == "arguments" || key_ == "parameters") && !has_arguments_) {
    return begin_arguments(c, out);
  }
  other_.emplace();
  state_ = State::kOther;
  return step(c, out);
}

CallStep ToolCallJson::name_end(ToolCallWriter& out) {
  has_name_ = true;
  if (name_.empty()) return fail(out);
  state_ = State::kAfter;
  if (has_arguments_ && !begin(out)) return fail(out);
  return CallStep::kMore;
}

CallStep ToolCallJson::begin_arguments(char c, ToolCallWriter& out) {
  if (c == 'n' || c == 'N') {
    state_ = State::kNull;
    rest_ = c == 'n' ? "ull" : "one";
    return CallStep::kMore;
  }
  if (c == '"') {
    string_ = {};
    state_ = State::kQuotedArguments;
    return CallStep::kMore;
  }
  if (c != '{') return fail(out);
  has_arguments_ = true;
  state_ = State::kArguments;
  if (has_name_ && !begin(out)) return fail(out);
  return arguments(c, out);
}

CallStep ToolCallJson::arguments(char c, ToolCallWriter& out) {
  if (!feed_arguments(c, out)) return fail(out);
  if (arguments_done_) state_ = State::kAfter;
  return CallStep::kMore;
}

/// Arguments written as a JSON string: its text is read as JSON.
CallStep ToolCallJson::quoted(char c, ToolCallWriter& out) {
  quoted_.clear();
  const bool end = string_.step(c, quoted_);
  for (const char d : quoted_) {
    if (arguments_done_) break;  // what follows the object
    if (!has_arguments_) {
      if (is_json_space(d)) continue;
      if (d == 'n' || d == 'N') {  // "null"; whatever it is, it is no object
        if (!set_empty(out)) return fail(out);
        break;
      }
      if (d != '{') return fail(out);
      has_arguments_ = true;
      if (has_name_ && !begin(out)) return fail(out);
    }
    if (!feed_arguments(d, out)) return fail(out);
  }
  if (!end) return CallStep::kMore;
  state_ = State::kAfter;
  if (!has_arguments_) return set_empty(out) ? CallStep::kMore : fail(out);
  if (arguments_done_) return CallStep::kMore;
  if (!begun_) return fail(out);
  close(out);
  return CallStep::kMore;
}

CallStep ToolCallJson::after(char c, ToolCallWriter& out) {
  if (c == ',' && state_ == State::kAfter) {
    state_ = State::kKey;
    return CallStep::kMore;
  }
  if (c != '}' || !has_name_) return fail(out);
  if (!has_arguments_ && (known_ != nullptr || !set_empty(out))) return fail(out);
  return CallStep::kEnd;
}

/// False: the arguments are unsound from this byte on, or too long to be held.
bool ToolCallJson::feed_arguments(char c, ToolCallWriter& out) {
  const Json result = arguments_.step(c, pending_);
  if (result == Json::kBad) return false;
  if (result == Json::kEnd) arguments_done_ = true;
  if (begun_) give(out);
  return pending_.size() <= kMaxCallHeld;
}

/// No arguments, or null: {}. False: not a call of a known tool.
bool ToolCallJson::set_empty(ToolCallWriter& out) {
  has_arguments_ = true;
  arguments_done_ = true;
  pending_ = "{}";
  return !has_name_ || begin(out);
}

bool ToolCallJson::begin(ToolCallWriter& out) {
  if (known_ != nullptr && !known_->has(name_)) return false;
  begun_ = true;
  out.begin(name_);
  give(out);
  return true;
}

void ToolCallJson::give(ToolCallWriter& out) {
  if (!pending_.empty()) out.append(pending_);
  pending_.clear();
}

}  // namespace weft::text
