#include "text/chat_parser.h"

#include <optional>
#include <span>
#include <utility>

#include "text/json_stream.h"
#include "text/tag_matcher.h"
#include "text/tool_call_json.h"
#include "text/tool_call_writer.h"
#include "text/tool_call_xml.h"
#include "text/tool_schemas.h"

namespace weft {
namespace text {
namespace {

/// Spreads the bits of a counter (SplitMix64).
uint64_t mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
  x = (x ^ x >> 27) * 0x94d049bb133111ebu;
  return x ^ x >> 31;
}

}  // namespace

void ToolCallWriter::begin(std::string_view name) {
  constexpr std::string_view kHex = "0123456789abcdef";
  uint64_t high = mix(seed_ + static_cast<uint64_t>(num_calls_));
  uint64_t low = mix(high ^ seed_);
  std::string id = "call_";
  for (int i = 0; i < 24; ++i) {
    uint64_t& bits = i < 12 ? high : low;
    id += kHex[bits & 15];
    bits >>= 4;
  }
  out_->tool_calls.push_back({num_calls_, std::move(id), std::string(name), {}});
  ++num_calls_;
}

void ToolCallWriter::append(std::string_view arguments) {
  const int index = num_calls_ - 1;
  if (out_->tool_calls.empty() || out_->tool_calls.back().index != index) {
    out_->tool_calls.push_back({index, {}, {}, {}});
  }
  out_->tool_calls.back().arguments += arguments;
}

}  // namespace text

namespace {

using text::CallStep;
using text::TagMatcher;

constexpr std::string_view kThink = "<think>", kThinkEnd = "</think>";
constexpr std::string_view kCall = "<tool_call>", kCallEnd = "</tool_call>";
constexpr std::string_view kFunction = "<function=";
constexpr std::string_view kPythonTag = "<|python_tag|>";

constexpr std::string_view kAtStart[] = {kThink, kThinkEnd};
constexpr std::string_view kInThought[] = {kThinkEnd};
constexpr std::string_view kInContent[] = {kCall, kFunction};  // the second only of kQwenXml
constexpr std::string_view kInBlock[] = {kFunction};
constexpr std::string_view kAfterCall[] = {kCallEnd, kCall, kFunction};
constexpr std::string_view kInSkipped[] = {kCallEnd, kCall};
constexpr std::string_view kLlamaStart[] = {kPythonTag};

constexpr size_t kMaxSpace = 4096;  // bytes of white space that wait for what follows

}  // namespace

struct ChatParser::Parts {
  enum class State : uint8_t {
    kStart,  // before the answer: white space and think tags
    kThought,
    kContent,
    kBlock,  // behind <tool_call>
    kJsonCall,
    kXmlCall,
    kAfterCall,  // behind a complete call
    kSkip,       // in what is left of an unsound block
    kLlama,      // where a bare JSON object is a call
  };

  Parts(ChatFormat chat_format, ChatParserOptions options)
      : format(chat_format),
        tools_json(options.tools_enabled ? std::move(options.tools_json) : std::string()),
        writer(options.seed) {
    if (!options.tools_enabled) format.tools = ChatFormat::Tools::kNone;
    if (options.starts_in_reasoning) {
      state = State::kThought;
      may_reopen = true;
    } else if (format.reasoning == ChatFormat::Reasoning::kThinkTags) {
      state = State::kStart;
    } else {
      begin_content();
    }
  }

  bool has_tools() const { return format.tools != ChatFormat::Tools::kNone; }
  bool is_llama() const { return format.tools == ChatFormat::Tools::kLlamaJson; }

  void step(char c);
  void finish();

  void give_rest(std::string_view text);
  void begin_content() { state = is_llama() ? State::kLlama : State::kContent; }
  void at_start(char c);
  void thought(char c);
  void no_tag(char c, void (Parts::*add)(char));
  void thought_byte(char c);
  void content(char c);
  void content_byte(char c);
  void give_content_space();
  void block(char c);
  void llama(char c);
  void call(char c);
  void after_call(char c);
  void skip(char c);
  const text::ToolSchemas& tool_schemas();
  void begin_json();
  void begin_xml();
  void not_a_call(char c);
  void begin_block();
  bool hold(char c);
  void call_begun();

  ChatFormat format;
  std::string tools_json;
  std::optional<text::ToolSchemas> schemas;  // once there is a call that asks for them
  text::ToolCallWriter writer;
  ChatDelta* out = nullptr;
  State state = State::kContent;
  TagMatcher tag;

  // Reasoning.
  bool may_reopen = false;  // a <think> at the start of an opened thought is dropped
  bool has_reasoning = false;
  bool after_thought = false;
  std::string space;  // white space that waits for what follows (kStart, kThought, kContent)

  // Content and calls.
  bool has_content = false;
  bool call_since_content = false;
  std::string space_before_call;
  bool bare = false;       // the block is a <function=...> without <tool_call>
  std::string block_text;  // the block so far, while it may still not be a call
  std::optional<text::ToolCallJson> json;
  std::optional<text::ToolCallXml> xml;
};

void ChatParser::Parts::step(char c) {
  switch (state) {
    case State::kStart: at_start(c); break;
    case State::kThought: thought(c); break;
    case State::kContent: content(c); break;
    case State::kBlock: block(c); break;
    case State::kJsonCall:
    case State::kXmlCall: call(c); break;
    case State::kAfterCall: after_call(c); break;
    case State::kSkip: skip(c); break;
    case State::kLlama: llama(c); break;
  }
}

void ChatParser::Parts::at_start(char c) {
  if (tag.empty() && text::is_json_space(c) && space.size() < kMaxSpace) {
    if (!after_thought || c != '\n' || !space.empty()) space += c;
    return;
  }
  switch (tag.step(c, kAtStart)) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull:
      if (kAtStart[tag.which()] == kThink) state = State::kThought;
      tag.reset();
      space.clear();
      return;
    case TagMatcher::Step::kNo: break;
  }
  // The answer: white space before it is content, where no call follows.
  const std::string taken = std::exchange(space, {}) + std::string(tag.taken());
  tag.reset();
  begin_content();
  for (char t : taken) step(t);
  step(c);
}

void ChatParser::Parts::thought(char c) {
  if (may_reopen) {
    if (tag.empty() && text::is_json_space(c) && space.size() < kMaxSpace) {
      if (c != '\n' || !space.empty()) space += c;
      return;
    }
    switch (tag.step(c, kAtStart)) {
      case TagMatcher::Step::kMore: return;
      case TagMatcher::Step::kFull:
        if (kAtStart[tag.which()] == kThinkEnd) {
          state = State::kStart;
          after_thought = true;
        }
        may_reopen = false;
        tag.reset();
        space.clear();
        return;
      case TagMatcher::Step::kNo: break;
    }
    const std::string taken = std::exchange(space, {}) + std::string(tag.taken());
    tag.reset();
    may_reopen = false;
    for (char t : taken) step(t);
    step(c);
    return;
  }
  switch (tag.step(c, kInThought)) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull:
      tag.reset();
      space.clear();
      after_thought = true;
      state = State::kStart;
      return;
    case TagMatcher::Step::kNo: break;
  }
  no_tag(c, &Parts::thought_byte);
}

/// `c` ends what might have become a tag, or nothing was begun: that is text for `add`.
void ChatParser::Parts::no_tag(char c, void (Parts::*add)(char)) {
  if (tag.empty()) {
    (this->*add)(c);
    return;
  }
  const std::string_view taken = tag.taken();
  tag.reset();
  for (char t : taken) (this->*add)(t);
  step(c);
}

void ChatParser::Parts::thought_byte(char c) {
  if (c == '\n' && space.size() < kMaxSpace) {
    space += c;
    return;
  }
  // Newlines at the beginning are dropped; one stays between two thoughts.
  if (has_reasoning) {
    out->reasoning += after_thought ? std::string("\n") : space;
  }
  after_thought = false;
  space.clear();
  has_reasoning = true;
  out->reasoning += c;
}

void ChatParser::Parts::content(char c) {
  if (!has_tools() || is_llama()) {
    content_byte(c);
    return;
  }
  const size_t num_tags = format.tools == ChatFormat::Tools::kQwenXml ? 2 : 1;
  switch (tag.step(c, std::span(kInContent).first(num_tags))) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull:
      bare = tag.which() == 1;
      begin_block();
      if (bare) begin_xml();
      return;
    case TagMatcher::Step::kNo: break;
  }
  no_tag(c, &Parts::content_byte);
}

/// The tag that opens a block is complete.
void ChatParser::Parts::begin_block() {
  block_text = tag.taken();
  tag.reset();
  state = State::kBlock;
}

void ChatParser::Parts::content_byte(char c) {
  if (has_tools() && text::is_json_space(c) && space.size() < kMaxSpace) {
    space += c;
    return;
  }
  give_content_space();
  has_content = true;
  out->content += c;
}

void ChatParser::Parts::give_content_space() {
  if (!call_since_content) {
    out->content += space;
  } else if (has_content) {
    out->content += space.empty() ? space_before_call : space;
  }
  call_since_content = false;
  space.clear();
  space_before_call.clear();
}

/// Behind <tool_call>: an object or <function= have to follow.
void ChatParser::Parts::block(char c) {
  if (tag.empty() && (text::is_json_space(c) || c == '{')) {
    if (c == '{') {
      begin_json();
      step(c);
    } else if (!hold(c)) {
      not_a_call(c);
    }
    return;
  }
  switch (tag.step(c, kInBlock)) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull:
      block_text += tag.taken();
      tag.reset();
      begin_xml();
      return;
    case TagMatcher::Step::kNo: break;
  }
  block_text += tag.taken();
  tag.reset();
  not_a_call(c);
}

const text::ToolSchemas& ChatParser::Parts::tool_schemas() {
  if (!schemas) schemas.emplace(tools_json);
  return *schemas;
}

void ChatParser::Parts::begin_json() {
  json.emplace(is_llama() ? &tool_schemas() : nullptr);
  state = State::kJsonCall;
}

void ChatParser::Parts::begin_xml() {
  xml.emplace(tool_schemas());
  state = State::kXmlCall;
}

bool ChatParser::Parts::hold(char c) {
  if (block_text.size() >= text::kMaxCallHeld) return false;
  block_text += c;
  return true;
}

/// The block so far is content; `c` comes after it. The end of the block may begin another one.
void ChatParser::Parts::not_a_call(char c) {
  const std::string taken = std::exchange(block_text, {});
  state = State::kContent;
  const size_t last = taken.rfind('<');
  const auto may_open = [&](std::string_view tag_text) {
    return last != 0 && last != taken.npos && tag_text.starts_with(taken.substr(last));
  };
  const bool opens = may_open(kCall) || may_open(kFunction);
  for (size_t i = 0; i < taken.size(); ++i) {
    if (opens && i >= last) {
      step(taken[i]);
    } else {
      content_byte(taken[i]);
    }
  }
  step(c);
}

void ChatParser::Parts::call_begun() {
  block_text.clear();
  if (!call_since_content) space_before_call = space;
  space.clear();
  call_since_content = true;
}

void ChatParser::Parts::call(char c) {
  const bool is_json = state == State::kJsonCall;
  const bool was_begun = is_json ? json->begun() : xml->begun();
  if (!was_begun && block_text.size() >= text::kMaxCallHeld) {
    not_a_call(c);
    return;
  }
  const CallStep step_taken = is_json ? json->step(c, writer) : xml->step(c, writer);
  const bool begun = is_json ? json->begun() : xml->begun();
  if (begun && !was_begun) call_begun();
  switch (step_taken) {
    case CallStep::kMore:
      if (!begun) block_text += c;
      return;
    case CallStep::kNoCall: not_a_call(c); return;
    case CallStep::kEnd: state = is_llama() ? State::kLlama : State::kAfterCall; return;
    case CallStep::kEndBlock: state = State::kContent; return;
    case CallStep::kBroken:
      state = State::kSkip;
      step(c);
      return;
  }
}

void ChatParser::Parts::after_call(char c) {
  if (tag.empty() && text::is_json_space(c) && (!bare || space.size() < kMaxSpace)) {
    if (bare) space += c;
    return;
  }
  switch (tag.step(c, kAfterCall)) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull: {
      const std::string_view which = kAfterCall[tag.which()];
      if (which == kCallEnd) {
        tag.reset();
        space.clear();
        state = State::kContent;
        return;
      }
      begin_block();
      if (which == kFunction) {
        begin_xml();
      } else {
        bare = false;
      }
      return;
    }
    case TagMatcher::Step::kNo: break;
  }
  const std::string_view taken = tag.taken();
  tag.reset();
  state = bare ? State::kContent : State::kSkip;
  for (char t : taken) step(t);
  step(c);
}

void ChatParser::Parts::skip(char c) {
  if (is_llama()) return;
  switch (tag.step(c, kInSkipped)) {
    case TagMatcher::Step::kMore: return;
    case TagMatcher::Step::kFull:
      if (kInSkipped[tag.which()] == kCall) {
        bare = false;
        begin_block();
      } else {
        tag.reset();
        state = State::kContent;
      }
      return;
    case TagMatcher::Step::kNo: break;
  }
  const bool again = !tag.empty();
  tag.reset();
  if (again) step(c);
}

/// Where the answer of a Llama model, or its next call, begins.
void ChatParser::Parts::llama(char c) {
  if (tag.empty() && block_text.empty() &&
      (text::is_json_space(c) || (call_since_content && (c == ';' || c == ',')))) {
    if (space.size() < kMaxSpace) space += c;
    return;
  }
  if (tag.empty() && c == '{') {
    begin_json();
    step(c);
    return;
  }
  if (block_text.empty()) {
    switch (tag.step(c, kLlamaStart)) {
      case TagMatcher::Step::kMore: return;
      case TagMatcher::Step::kFull:
        begin_block();
        state = State::kLlama;
        return;
      case TagMatcher::Step::kNo: break;
    }
  }
  block_text += tag.taken();
  tag.reset();
  not_a_call(c);
}

void ChatParser::Parts::finish() {
  const std::string taken(tag.taken());
  switch (state) {
    case State::kStart:
    case State::kContent:
    case State::kLlama: give_rest(block_text + taken); break;
    case State::kThought:
      for (char t : taken) thought_byte(t);
      break;
    case State::kJsonCall:
      if (json->begun()) {
        json->close(writer);
      } else if (is_llama()) {
        give_rest(block_text);
      }
      break;
    case State::kXmlCall: xml->close(writer); break;
    case State::kBlock:
    case State::kAfterCall:
    case State::kSkip: break;
  }
}

/// The last of the content.
void ChatParser::Parts::give_rest(std::string_view text) {
  for (char t : text) content_byte(t);
  if (!call_since_content) out->content += space;
}

ChatParser::ChatParser(ChatFormat format, ChatParserOptions options)
    : parts_(std::make_unique<Parts>(format, std::move(options))) {}
ChatParser::~ChatParser() = default;
ChatParser::ChatParser(ChatParser&&) noexcept = default;
ChatParser& ChatParser::operator=(ChatParser&&) noexcept = default;

void ChatParser::push(std::string_view text, ChatDelta& out) {
  parts_->out = &out;
  parts_->writer.write_to(&out);
  for (const char c : text) parts_->step(c);
}

void ChatParser::finish(ChatDelta& out) {
  parts_->out = &out;
  parts_->writer.write_to(&out);
  parts_->finish();
}

bool ChatParser::in_reasoning() const {
  return parts_->state == Parts::State::kThought;
}
int ChatParser::num_tool_calls() const {
  return parts_->writer.num_calls();
}

}  // namespace weft
