#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "api/choice_sink.h"
#include "sched/speculation_counts.h"
#include "text/chat_parser.h"
#include "text/tokenizer.h"

namespace weft {

/// `text` (valid UTF-8) as a JSON string, quotes included.
std::string json_string(std::string_view text);
/// [1,2,3]
std::string json_ids(const std::vector<int32_t>& ids);

/// What all parts of one answer have in common.
struct ResponseHead {
  std::string id;       ///< "chatcmpl-..." or "cmpl-..."
  int64_t created = 0;  ///< seconds since the epoch
  std::string model;
  bool is_chat = false;
};

struct UsageTotals {
  int64_t prompt_tokens = 0, completion_tokens = 0, cached_tokens = 0, reasoning_tokens = 0;
  /// Drafts of the choices that have ended; -1: nothing is drafted.
  int64_t accepted_drafts = -1, rejected_drafts = -1;
};
std::string usage_json(const UsageTotals& usage);

/// FastDeploy's speculate_metrics of one choice, and beside them the drafts by who proposed them.
/// `num_speculative_tokens`: K.
std::string speculate_metrics_json(const SpeculationCounts& counts, int num_speculative_tokens);

/// Why a choice ended, as the API says it.
struct ChoiceEnd {
  std::string_view reason;  ///< stop | length | tool_calls | abort
  std::string stop_reason;  ///< JSON: null, the stop string or the stop token's id
};

/// What one frame of a stream adds to one choice. JSON texts that are empty are left out (or null
/// where the API always has the field).
struct ChunkChoice {
  int64_t index = 0;
  bool role = false;                 ///< of a chat: the first frame of the choice
  const ChatDelta* delta = nullptr;  ///< of a chat
  std::string_view text;             ///< of a completion
  std::string_view logprobs;
  std::string_view prompt_token_ids;
  std::string_view token_ids;
  std::string_view speculate_metrics;  ///< of the last frame
  const ChoiceEnd* end = nullptr;      ///< of the last frame
};

/// One SSE frame, "data: ...\n\n".
std::string stream_frame(const ResponseHead& head, const ChunkChoice& choice,
                         std::string_view usage);
/// The frame with an empty list of choices and the usage of the whole answer.
std::string usage_frame(const ResponseHead& head, std::string_view usage);
inline constexpr std::string_view kDoneFrame = "data: [DONE]\n\n";

struct ToolCall {
  std::string id, name, arguments;
};

/// One choice of an answer that is given whole.
struct WholeChoice {
  int64_t index = 0;
  std::string text;  ///< content, or the text of a completion
  std::optional<std::string> reasoning;
  std::vector<ToolCall> tool_calls;
  /// JSON, or empty.
  std::string logprobs, prompt_logprobs, prompt_token_ids, token_ids, speculate_metrics;
  ChoiceEnd end;
};
std::string whole_body(const ResponseHead& head, const std::vector<WholeChoice>& choices,
                       const UsageTotals& usage);

/// Log-probabilities as the API writes them.
class LogprobWriter {
 public:
  /// `as_ids`: tokens are written "token_id:17" (return_tokens_as_token_ids).
  LogprobWriter(const Tokenizer& tokenizer, bool as_ids) : tokenizer_(tokenizer), as_ids_(as_ids) {}

  std::string token_text(int32_t token) const;
  /// An entry of a chat's logprobs.content.
  void append_chat_entry(std::string& out, int32_t token, const TokenLogprob& logprob) const;
  /// vLLM's prompt_logprobs: null for the first token, then {"id": {logprob, rank, decoded_token}}.
  std::string prompt_logprobs(const std::vector<int32_t>& prompt,
                              const std::vector<TokenLogprob>& logprobs) const;

 private:
  const Tokenizer& tokenizer_;
  bool as_ids_;
};

/// logprobs of a completion, four lists that grow together.
class CompletionLogprobs {
 public:
  /// `logprob` null: the first token of an echoed prompt.
  void add(const LogprobWriter& writer, int32_t token, const TokenLogprob* logprob);
  bool empty() const { return count_ == 0; }
  /// The lists as a JSON object; they begin anew (offsets go on).
  std::string take();

 private:
  std::string tokens_, token_logprobs_, top_logprobs_, offsets_;
  int64_t count_ = 0;
  int64_t offset_ = 0;  // in characters (code points) of the answer
};

}  // namespace weft
