#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "text/chat_parser.h"

namespace weft::text {

/// Where the readers of calls put them: pieces of one call that follow each other are joined.
class ToolCallWriter {
 public:
  explicit ToolCallWriter(uint64_t seed) : seed_(seed) {}

  /// What is written goes to `out` until the next call of this.
  void write_to(ChatDelta* out) { out_ = out; }
  void begin(std::string_view name);
  /// Of the call that was begun last.
  void append(std::string_view arguments);
  int num_calls() const { return num_calls_; }

 private:
  uint64_t seed_;
  int num_calls_ = 0;
  ChatDelta* out_ = nullptr;
};

/// How far a reader of one call got.
enum class CallStep : uint8_t {
  kMore,
  kNoCall,    ///< not begun, and this byte makes clear that it is no call; the byte is not taken
  kEnd,       ///< complete with this byte
  kEndBlock,  ///< the same, and the byte completes </tool_call>
  kBroken,    ///< begun; it ends here as what follows is unsound; the byte is not taken
};

/// Longest name of a tool or parameter, in bytes.
inline constexpr size_t kMaxCallName = 256;
/// Most bytes that wait for a call to be certain, or for a value to be complete.
inline constexpr size_t kMaxCallHeld = size_t{256} << 10;

}  // namespace weft::text
