#include "text/json_stream.h"

#include <cctype>

namespace weft {
namespace {

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}
bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

/// number of RFC 8259, or true, false, null.
bool is_scalar(std::string_view text) {
  if (text == "true" || text == "false" || text == "null") return true;
  size_t i = 0;
  const auto digits = [&] {
    const size_t begin = i;
    while (i < text.size() && is_digit(text[i])) ++i;
    return i > begin;
  };
  if (i < text.size() && text[i] == '-') ++i;
  const bool zero = i < text.size() && text[i] == '0';
  const size_t begin = i;
  if (!digits() || (zero && i - begin > 1)) return false;
  if (i < text.size() && text[i] == '.') {
    ++i;
    if (!digits()) return false;
  }
  if (i < text.size() && (text[i] == 'e' || text[i] == 'E')) {
    ++i;
    if (i < text.size() && (text[i] == '+' || text[i] == '-')) ++i;
    if (!digits()) return false;
  }
  return i == text.size();
}

bool can_be_in_scalar(char c) {
  return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '+' || c == '-' || c == '.';
}

}  // namespace

void JsonStream::give(std::string& out) {
  out += held_;
  held_.clear();
}

JsonStream::Status JsonStream::end_value(std::string& out) {
  give(out);
  state_ = stack_.empty() ? State::kDone : State::kAfterValue;
  return stack_.empty() ? Status::kDone : Status::kMore;
}

JsonStream::Status JsonStream::close(char c, std::string& out) {
  if (stack_.back() != (c == '}' ? '{' : '[')) return Status::kBad;
  stack_.pop_back();
  held_ += c;
  return end_value(out);
}

JsonStream::Status JsonStream::begin_value(char c, std::string& out) {
  if (c == '{' || c == '[') {
    if (stack_.size() >= kMaxDepth) return Status::kBad;
    stack_ += c;
    held_ += c;
    give(out);
    state_ = c == '{' ? State::kFirstKey : State::kFirstValue;
    return Status::kMore;
  }
  if (c == '"') {
    held_ += c;
    give(out);
    string_open_ = true;
    in_key_ = false;
    state_ = State::kString;
    return Status::kMore;
  }
  if (!can_be_in_scalar(c)) return Status::kBad;
  scalar_begin_ = held_.size();
  held_ += c;
  state_ = State::kScalar;
  return Status::kMore;
}

JsonStream::Status JsonStream::push_in_string(char c, std::string& out) {
  if (state_ == State::kUnicode) {
    if (std::isxdigit(static_cast<unsigned char>(c)) == 0) return Status::kBad;
    held_ += c;
    if (--unicode_left_ > 0) return Status::kMore;
    state_ = State::kString;
  } else if (state_ == State::kEscape) {
    if (std::string_view("\"\\/bfnrtu").find(c) == std::string_view::npos) return Status::kBad;
    held_ += c;
    state_ = c == 'u' ? State::kUnicode : State::kString;
    unicode_left_ = 4;
    if (c == 'u') return Status::kMore;
  } else if (static_cast<unsigned char>(c) < 0x20) {
    return Status::kBad;
  } else {
    held_ += c;
    if (c == '\\') {
      state_ = State::kEscape;
      return Status::kMore;
    }
    if (c == '"') {
      if (in_key_) {
        state_ = State::kColon;
        return Status::kMore;
      }
      string_open_ = false;
      return end_value(out);
    }
  }
  if (!in_key_) give(out);
  return Status::kMore;
}

JsonStream::Status JsonStream::push_structure(char c, std::string& out) {
  if (is_space(c)) {
    held_ += c;
    return Status::kMore;
  }
  switch (state_) {
    case State::kValue: return begin_value(c, out);
    case State::kFirstValue: return c == ']' ? close(c, out) : begin_value(c, out);
    case State::kFirstKey:
      if (c == '}') return close(c, out);
      [[fallthrough]];
    case State::kKey:
      if (c != '"') return Status::kBad;
      held_ += c;
      in_key_ = true;
      state_ = State::kString;
      return Status::kMore;
    case State::kColon:
      if (c != ':') return Status::kBad;
      held_ += c;
      state_ = State::kValue;
      return Status::kMore;
    case State::kAfterValue:
      if (c == '}' || c == ']') return close(c, out);
      if (c != ',') return Status::kBad;
      held_ += c;
      state_ = stack_.back() == '{' ? State::kKey : State::kValue;
      return Status::kMore;
    default: return Status::kBad;
  }
}

JsonStream::Status JsonStream::push(char c, std::string& out) {
  switch (state_) {
    case State::kString:
    case State::kEscape:
    case State::kUnicode: return push_in_string(c, out);
    case State::kScalar:
      if (can_be_in_scalar(c)) {
        held_ += c;
        return Status::kMore;
      }
      if (!is_scalar(std::string_view(held_).substr(scalar_begin_))) return Status::kBad;
      if (stack_.empty()) return Status::kBad;
      give(out);
      state_ = State::kAfterValue;
      return push_structure(c, out);
    case State::kDone: return Status::kBad;
    default: return push_structure(c, out);
  }
}

std::string JsonStream::completion() const {
  std::string out;
  if (string_open_) out += '"';
  for (auto it = stack_.rbegin(); it != stack_.rend(); ++it) out += *it == '{' ? '}' : ']';
  return out;
}

}  // namespace weft
