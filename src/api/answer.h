#pragma once

#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "api/text_output.h"
#include "engine/engine.h"

namespace weft {

/// One answer, as far as it has come.
struct Answer {
  using Clock = std::chrono::steady_clock;
  std::vector<int32_t> tokens;  ///< the stop token too
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;  ///< of prompt tokens 1, 2, ...
  std::string text;
  FinishReason reason = FinishReason::kNone;
  Usage usage;
  SpeculationCounts speculation;  ///< of all its steps
  std::optional<Error> error;
  std::vector<Clock::time_point> token_times;  ///< one a token
  Clock::time_point started, first_token, finished;
};

/// Seconds from `a` to `b`.
inline double seconds_between(Answer::Clock::time_point a, Answer::Clock::time_point b) {
  return std::chrono::duration<double>(b - a).count();
}

/// The receiving end of one request: the engine thread puts tokens in, another thread reads the
/// text as it grows or waits for the end.
class AnswerStream final : public TokenSink {
 public:
  /// `tokenizer` must outlive it; null: tokens only, no text.
  AnswerStream(const Tokenizer* tokenizer, TextOptions options);

  bool on_token(int32_t token, const TokenLogprob* logprob) override;
  void on_step(const SpeculationStep& step) override;
  void on_prompt_logprobs(int64_t first, std::vector<TokenLogprob> logprobs) override;
  void on_finish(FinishReason reason, const Usage& usage, const Error* error) override;

  /// Waits for more text, at most `patience`, and moves it to `piece` (empty after a time-out).
  /// False when the answer has ended and all its text was taken.
  bool next_text(std::string& piece, std::chrono::milliseconds patience);
  /// Waits for the end.
  const Answer& wait();

 private:
  std::optional<TextOutput> output_;  // the engine thread's

  std::mutex mutex_;
  std::condition_variable changed_;
  Answer answer_;     // guarded by mutex_ until the end, constant afterwards
  size_t taken_ = 0;  // bytes of answer_.text that next_text() has given out
  bool ended_ = false;
};

}  // namespace weft
