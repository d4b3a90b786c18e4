#include "text/chat_parser.h"

#include <optional>
#include <utility>

#include "text/tool_call_reader.h"

namespace weft {
namespace {

constexpr std::string_view kThink = "<think>";
constexpr std::string_view kThinkEnd = "</think>";
constexpr std::string_view kCall = "<tool_call>";

bool is_space(char c) {
  return c == ' ' || c == '\t' || c == '\n' || c == '\r';
}

/// "call_" and 24 hex digits of (seed, index): splitmix64 (Steele et al. 2014).
std::string call_id(uint64_t seed, int index) {
  static constexpr char kHex[] = "0123456789abcdef";
  std::string id = "call_";
  uint64_t state = seed ^ (uint64_t{0x9E3779B97F4A7C15} * static_cast<uint64_t>(index + 1));
  for (int word = 0; word < 2; ++word) {
    state += 0x9E3779B97F4A7C15;
    uint64_t z = state;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    z ^= z >> 31;
    for (int shift = 0; shift < 48; shift += 4) id += kHex[(z >> shift) & 15];
  }
  return id;
}

}  // namespace

struct ChatParser::Parts {
  Parts(const ChatFormat& format, const ChatParserOptions& options);

  /// Appends to `out`.
  void push(std::string_view text, ChatDelta& out);
  void finish(ChatDelta& out);
  bool in_reasoning() const { return state_ == State::kReasoning; }
  int num_tool_calls() const { return num_calls_; }

  enum class State { kStart, kReasoning, kContent, kCall };
  void take(char c, ChatDelta& out);
  void take_start(char c, ChatDelta& out);
  void take_reasoning(char c, ChatDelta& out);
  void take_content(char c, ChatDelta& out);
  void take_call(char c, ChatDelta& out);
  void give_call(std::string arguments, ChatDelta& out);
  void end_call(ChatDelta& out);
  void replay(const std::string& text, ChatDelta& out);

  const ChatFormat format_;
  const bool tools_enabled_;
  const uint64_t seed_;
  const ToolTypes types_;
  State state_ = State::kContent;
  std::string spaces_;          // held back: dropped if markup follows
  size_t matched_ = 0;          // of the tag that may be beginning
  bool skip_newlines_ = false;  // after <think> and </think>
  std::optional<ToolCallReader> call_;
  bool call_given_ = false;  // its id and name are out
  int num_calls_ = 0;
};

ChatParser::Parts::Parts(const ChatFormat& format, const ChatParserOptions& options)
    : format_(format),
      tools_enabled_(options.tools_enabled && format.tools != ChatFormat::Tools::kNone),
      seed_(options.seed),
      types_(options.tools_json) {
  if (format_.reasoning == ChatFormat::Reasoning::kNone) return;
  state_ = options.starts_in_reasoning ? State::kReasoning : State::kStart;
  skip_newlines_ = options.starts_in_reasoning;
}

void ChatParser::Parts::push(std::string_view text, ChatDelta& out) {
  for (const char c : text) take(c, out);
}

void ChatParser::Parts::take(char c, ChatDelta& out) {
  switch (state_) {
    case State::kStart: take_start(c, out); break;
    case State::kReasoning: take_reasoning(c, out); break;
    case State::kContent: take_content(c, out); break;
    case State::kCall: take_call(c, out); break;
  }
}

void ChatParser::Parts::replay(const std::string& text, ChatDelta& out) {
  for (const char c : text) take(c, out);
}

void ChatParser::Parts::take_start(char c, ChatDelta& out) {
  if (matched_ == 0 && is_space(c)) {
    spaces_ += c;
    return;
  }
  if (c == kThink[matched_]) {
    if (++matched_ < kThink.size()) return;
    state_ = State::kReasoning;
    skip_newlines_ = true;
    spaces_.clear();
    matched_ = 0;
    return;
  }
  const std::string held = std::exchange(spaces_, "") + std::string(kThink.substr(0, matched_));
  matched_ = 0;
  state_ = State::kContent;
  replay(held, out);
  take(c, out);
}

void ChatParser::Parts::take_reasoning(char c, ChatDelta& out) {
  if (c == kThinkEnd[matched_]) {
    if (++matched_ < kThinkEnd.size()) return;
    state_ = State::kContent;
    skip_newlines_ = true;
    spaces_.clear();
    matched_ = 0;
    return;
  }
  if (matched_ > 0) {  // it was no tag; '<' begins one only as the first byte
    out.reasoning += std::exchange(spaces_, "");
    out.reasoning += kThinkEnd.substr(0, std::exchange(matched_, 0));
    skip_newlines_ = false;
    take_reasoning(c, out);
    return;
  }
  if (c == '\n') {
    if (!skip_newlines_) spaces_ += c;
    return;
  }
  skip_newlines_ = false;
  out.reasoning += std::exchange(spaces_, "");
  out.reasoning += c;
}

void ChatParser::Parts::take_content(char c, ChatDelta& out) {
  if (skip_newlines_) {
    if (c == '\n') return;
    skip_newlines_ = false;
  }
  if (!tools_enabled_) {
    out.content += c;
    return;
  }
  if (c == kCall[matched_]) {
    if (++matched_ < kCall.size()) return;
    matched_ = 0;
    spaces_.clear();
    call_.emplace(types_);
    call_given_ = false;
    state_ = State::kCall;
    return;
  }
  if (matched_ > 0) {
    out.content += std::exchange(spaces_, "");
    out.content += kCall.substr(0, std::exchange(matched_, 0));
    take_content(c, out);
    return;
  }
  if (is_space(c)) {
    spaces_ += c;
    return;
  }
  out.content += std::exchange(spaces_, "");
  out.content += c;
}

/// A piece of the arguments of the call being read; with id and name if it is the first.
void ChatParser::Parts::give_call(std::string arguments, ChatDelta& out) {
  const int index = call_given_ ? num_calls_ - 1 : num_calls_;
  const bool joins = call_given_ && !out.tool_calls.empty() && out.tool_calls.back().index == index;
  if (joins) {
    out.tool_calls.back().arguments += arguments;
    return;
  }
  ToolCallDelta piece{.index = index, .id = "", .name = "", .arguments = std::move(arguments)};
  if (!call_given_) {
    piece.id = call_id(seed_, index);
    piece.name = call_->name();
    call_given_ = true;
    ++num_calls_;
  }
  out.tool_calls.push_back(std::move(piece));
}

void ChatParser::Parts::take_call(char c, ChatDelta& out) {
  std::string arguments;
  const ToolCallReader::Status status = call_->push(c, arguments);
  if (call_->begun() && (!call_given_ || !arguments.empty())) give_call(std::move(arguments), out);
  if (status == ToolCallReader::Status::kMore) return;
  if (status == ToolCallReader::Status::kDone) {
    end_call(out);
    return;
  }
  if (call_->begun()) {
    end_call(out);
    take(c, out);
    return;
  }
  const std::string raw = call_->raw();
  call_.reset();
  state_ = State::kContent;
  out.content += kCall;
  replay(raw, out);
  take(c, out);
}

void ChatParser::Parts::end_call(ChatDelta& out) {
  const std::string rest = call_->completion();
  if (!rest.empty()) give_call(rest, out);
  call_.reset();
  state_ = State::kContent;
}

void ChatParser::Parts::finish(ChatDelta& out) {
  if (state_ == State::kStart) {
    out.content += std::exchange(spaces_, "");
    out.content += kThink.substr(0, std::exchange(matched_, 0));
    return;
  }
  if (state_ == State::kReasoning) {
    if (matched_ > 0) out.reasoning += spaces_ + std::string(kThinkEnd.substr(0, matched_));
  } else if (state_ == State::kContent) {
    if (num_calls_ == 0 || matched_ > 0) out.content += spaces_;
    out.content += kCall.substr(0, matched_);
  } else if (call_->begun()) {
    end_call(out);
  }
  spaces_.clear();
  matched_ = 0;
}

ChatParser::ChatParser(ChatFormat format, ChatParserOptions options)
    : parts_(std::make_unique<Parts>(format, options)) {}
ChatParser::~ChatParser() = default;
ChatParser::ChatParser(ChatParser&&) noexcept = default;
ChatParser& ChatParser::operator=(ChatParser&&) noexcept = default;

void ChatParser::push(std::string_view text, ChatDelta& out) {
  parts_->push(text, out);
}

void ChatParser::finish(ChatDelta& out) {
  parts_->finish(out);
}

bool ChatParser::in_reasoning() const {
  return parts_->in_reasoning();
}

int ChatParser::num_tool_calls() const {
  return parts_->num_tool_calls();
}

}  // namespace weft
