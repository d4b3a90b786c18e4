#include "text/json_stream.h"

#include <string_view>

#include "base/hex.h"
#include "base/json_text.h"
#include "text/unicode.h"

namespace weft::text {
namespace {

constexpr std::string_view kReplacement = "\\ufffd";

bool is_digit(char c) {
  return c >= '0' && c <= '9';
}

bool is_control(char c) {
  return static_cast<unsigned char>(c) < 0x20;
}

/// The number that the four digits from `at` stand for.
uint32_t code_unit(const std::string& escape, size_t at) {
  uint32_t unit = 0;
  for (size_t i = at; i < at + 4; ++i) {
    unit = unit << 4 | static_cast<uint32_t>(hex_digit(escape[i]));
  }
  return unit;
}

bool is_high(uint32_t unit) {
  return unit >= 0xd800 && unit < 0xdc00;
}
bool is_low(uint32_t unit) {
  return unit >= 0xdc00 && unit < 0xe000;
}

}  // namespace

bool is_json_space(char c) {
  return c == ' ' || c == '\n' || c == '\r' || c == '\t';
}

JsonStream::Step JsonStream::step(char c, std::string& out) {
  switch (state_) {
    case State::kValue:
    case State::kValueOrEnd: return value(c, out);
    case State::kKeyOrEnd:
    case State::kKey:
      if (is_json_space(c)) return hold(c);
      if (c == '}') return close_container(c, out);
      if (c != '"') return Step::kBad;
      held_ += c;
      state_ = State::kInKey;
      return Step::kMore;
    case State::kInKey:
      if (c == '"' && !after_backslash()) {
        end_escape(held_);
        held_ += c;
        state_ = State::kColon;
        return Step::kMore;
      }
      string_byte(c, held_);
      return held_.size() > kMaxHeld ? Step::kBad : Step::kMore;
    case State::kColon:
      if (is_json_space(c)) return hold(c);
      if (c != ':') return Step::kBad;
      held_ += c;
      state_ = State::kValue;
      return Step::kMore;
    case State::kInString:
      if (c == '"' && !after_backslash()) {
        end_escape(out);
        out += c;
        return ended();
      }
      string_byte(c, out);
      return Step::kMore;
    case State::kWord: return word(c);
    case State::kNumber: return number(c, out);
    case State::kAfter: return after(c, out);
  }
  return Step::kBad;
}

JsonStream::Step JsonStream::hold(char c) {
  if (depth_ == 0) return Step::kMore;  // before the value
  held_ += c;
  return held_.size() > kMaxHeld ? Step::kBad : Step::kMore;
}

void JsonStream::flush(std::string& out) {
  out += held_;
  held_.clear();
  comma_ = false;
}

JsonStream::Step JsonStream::value(char c, std::string& out) {
  if (is_json_space(c)) return hold(c);
  if (c == ']' && depth_ > 0 && !in_object()) return close_container(c, out);
  struct Word {
    char first;
    const char* rest;
    std::string_view json;
  };
  static constexpr Word kWords[] = {{'t', "rue", "true"},   {'f', "alse", "false"},
                                    {'n', "ull", "null"},   {'T', "rue", "true"},
                                    {'F', "alse", "false"}, {'N', "one", "null"}};
  for (const Word& known : kWords) {
    if (known.first != c) continue;
    flush(out);
    out += known.json;
    begun_ = true;
    rest_ = known.rest;
    state_ = State::kWord;
    return Step::kMore;
  }
  if (c == '{' || c == '[') return open(c, out);
  if (c == '"') {
    state_ = State::kInString;
  } else if (c == '-' || is_digit(c)) {
    state_ = State::kNumber;
    digits_ = c == '-' ? Digits::kSign : c == '0' ? Digits::kZero : Digits::kWhole;
  } else {
    return Step::kBad;
  }
  flush(out);
  out += c;
  begun_ = true;
  return Step::kMore;
}

JsonStream::Step JsonStream::open(char c, std::string& out) {
  if (depth_ == kMaxDepth) return Step::kBad;
  flush(out);
  out += c;
  begun_ = true;
  const uint64_t bit = uint64_t{1} << depth_;
  objects_ = c == '{' ? objects_ | bit : objects_ & ~bit;
  ++depth_;
  state_ = c == '{' ? State::kKeyOrEnd : State::kValueOrEnd;
  return Step::kMore;
}

JsonStream::Step JsonStream::close_container(char c, std::string& out) {
  if (comma_) held_.clear();  // a trailing comma
  flush(out);
  out += c;
  --depth_;
  return ended();
}

JsonStream::Step JsonStream::ended() {
  state_ = State::kAfter;
  return depth_ == 0 ? Step::kEnd : Step::kMore;
}

JsonStream::Step JsonStream::after(char c, std::string& out) {
  if (is_json_space(c)) return hold(c);
  if (c == ',') {
    held_ += c;
    comma_ = true;
    state_ = in_object() ? State::kKey : State::kValue;
    return Step::kMore;
  }
  if (c != (in_object() ? '}' : ']')) return Step::kBad;
  return close_container(c, out);
}

JsonStream::Step JsonStream::word(char c) {
  if (c != *rest_) return Step::kBad;
  ++rest_;
  return *rest_ == '\0' ? ended() : Step::kMore;
}

JsonStream::Step JsonStream::number(char c, std::string& out) {
  const auto go = [&](Digits next) {
    digits_ = next;
    out += c;
    return Step::kMore;
  };
  const bool digit = is_digit(c);
  const bool e = c == 'e' || c == 'E';
  switch (digits_) {
    case Digits::kSign: return !digit ? Step::kBad : go(c == '0' ? Digits::kZero : Digits::kWhole);
    case Digits::kZero:
    case Digits::kWhole:
      if (digit) return digits_ == Digits::kZero ? Step::kBad : go(Digits::kWhole);
      if (c == '.') return go(Digits::kPoint);
      if (e) return go(Digits::kE);
      break;
    case Digits::kPoint: return digit ? go(Digits::kFraction) : Step::kBad;
    case Digits::kFraction:
      if (digit) return go(Digits::kFraction);
      if (e) return go(Digits::kE);
      break;
    case Digits::kE:
      if (c == '+' || c == '-') return go(Digits::kESign);
      return digit ? go(Digits::kExponent) : Step::kBad;
    case Digits::kESign: return digit ? go(Digits::kExponent) : Step::kBad;
    case Digits::kExponent:
      if (digit) return go(Digits::kExponent);
      break;
  }
  state_ = State::kAfter;
  return depth_ == 0 ? Step::kEndBefore : after(c, out);
}

void JsonStream::string_byte(char c, std::string& target) {
  if (!escape_.empty()) {
    escape(c, target);
  } else if (c == '\\') {
    escape_ = c;
  } else if (is_control(c)) {
    append_json_escaped(c, target);
  } else {
    target += c;
  }
}

void JsonStream::escape(char c, std::string& target) {
  if (escape_.size() == 6 || escape_.size() == 7) {
    after_surrogate(c, target);
    return;
  }
  if (escape_.size() == 1) {
    if (c == 'u') {
      escape_ += c;
      return;
    }
    escape_.clear();
    if (std::string_view("\"\\/bfnrt").find(c) != std::string_view::npos) {
      target += '\\';
      target += c;
    } else if (c == '\'') {
      target += c;
    } else {
      target += "\\\\";
      string_byte(c, target);
    }
    return;
  }
  if (hex_digit(c) < 0) {  // in the digits of the first unit or of the second
    end_escape(target);
    string_byte(c, target);
    return;
  }
  escape_ += c;
  if (escape_.size() == 6) {
    const uint32_t unit = code_unit(escape_, 2);
    if (is_high(unit)) return;  // its other half may follow
    if (is_low(unit)) {
      target += kReplacement;
    } else {
      target += escape_;
    }
    escape_.clear();
  } else if (escape_.size() == 12) {
    const uint32_t unit = code_unit(escape_, 8);
    if (is_low(unit)) {
      target += escape_;
      escape_.clear();
      return;
    }
    target += kReplacement;
    if (is_high(unit)) {
      escape_.erase(0, 6);
      return;
    }
    target.append(escape_, 6);
    escape_.clear();
  }
}

/// The escape does not go on: what there is of it becomes text.
void JsonStream::end_escape(std::string& target) {
  if (escape_.size() >= 6) {
    target += kReplacement;
    escape_.erase(0, 6);
  }
  if (!escape_.empty()) target += '\\' + escape_;  // its backslash, escaped, and the rest
  escape_.clear();
}

/// `c` follows the first half of a surrogate pair, or that and a backslash.
void JsonStream::after_surrogate(char c, std::string& target) {
  if (c == (escape_.size() == 6 ? '\\' : 'u')) {
    escape_ += c;
    return;
  }
  const bool backslash = after_backslash();
  target += kReplacement;
  escape_.clear();
  if (backslash) escape_ = "\\";
  string_byte(c, target);
}

bool JsonStream::close(std::string& out) {
  if (!begun_) return false;
  if (state_ == State::kInString) out += '"';
  if (state_ == State::kNumber && digits_ != Digits::kZero && digits_ != Digits::kWhole &&
      digits_ != Digits::kFraction && digits_ != Digits::kExponent) {
    out += '0';
  }
  held_.clear();
  escape_.clear();
  while (depth_ > 0) {
    out += in_object() ? '}' : ']';
    --depth_;
  }
  state_ = State::kAfter;
  return true;
}

bool JsonStringReader::step(char c, std::string& out) {
  switch (state_) {
    case State::kText:
      if (c == '\\') {
        state_ = State::kEscape;
        return false;
      }
      if (high_ != 0) end_unit(out);
      if (c == '"') return true;
      out += c;
      return false;
    case State::kEscape:
      state_ = State::kText;
      if (c == 'u') {
        state_ = State::kHex;
        num_digits_ = 0;
        unit_ = 0;
        return false;
      }
      if (high_ != 0) end_unit(out);
      switch (c) {
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'n': out += '\n'; break;
        case 'r': out += '\r'; break;
        case 't': out += '\t'; break;
        case '"':
        case '\\':
        case '/':
        case '\'': out += c; break;
        default: out += '\\'; out += c;
      }
      return false;
    case State::kHex: break;
  }
  const int digit = hex_digit(c);
  if (digit < 0) {  // not an escape after all
    state_ = State::kText;
    unit_ = 0xfffd;
    if (high_ != 0) end_unit(out);
    append_utf8(out, 0xfffd);
    return step(c, out);
  }
  unit_ = unit_ << 4 | static_cast<uint32_t>(digit);
  if (++num_digits_ < 4) return false;
  state_ = State::kText;
  if (high_ != 0 && is_low(unit_)) {
    append_utf8(out, 0x10000 + ((high_ - 0xd800) << 10) + (unit_ - 0xdc00));
    high_ = 0;
    return false;
  }
  if (high_ != 0) end_unit(out);
  if (is_high(unit_)) {
    high_ = unit_;
  } else {
    append_utf8(out, is_low(unit_) ? 0xfffd : unit_);
  }
  return false;
}

/// The first half of a surrogate pair without its second.
void JsonStringReader::end_unit(std::string& out) {
  append_utf8(out, 0xfffd);
  high_ = 0;
}

}  // namespace weft::text
