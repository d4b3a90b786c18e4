#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/text_output.h"
#include "engine/engine.h"

namespace weft {

/// Something that happened to one sequence.
struct TokenEvent {
  enum class Kind : uint8_t { kPromptDone, kPromptLogprobs, kToken, kFinish };
  /// Of kFinish.
  struct End {
    FinishReason reason = FinishReason::kNone;
    Usage usage;
    std::optional<Error> error;
    std::optional<size_t> stop_string;  ///< index of the stop string that ended it
    int32_t stop_token = -1;            ///< the stop id that ended it
    SpeculationCounts speculation;      ///< of all its steps
  };
  Kind kind = Kind::kToken;
  int32_t token = -1;                               ///< of kToken
  bool ends = false;                                ///< of kToken: it is a stop id
  std::string text;                                 ///< what became certain (kToken, kFinish)
  std::unique_ptr<TokenLogprob> logprob;            ///< of kToken, when asked for
  std::vector<TokenLogprob> prompt_logprobs;        ///< of kPromptLogprobs: prompt tokens 1, 2, ...
  int64_t cached_tokens = 0;                        ///< of kPromptDone
  std::chrono::steady_clock::time_point scheduled;  ///< of kPromptDone: when it left the queue
  std::unique_ptr<End> end;
  std::chrono::steady_clock::time_point at;
};

/// The engine's side of one sequence: makes text of its tokens, finds stop strings, and passes
/// everything on as events.
class ChoiceSink final : public TokenSink {
 public:
  /// Called on the engine thread, in order; must not block. It is destroyed by the event kFinish,
  /// and may be what keeps the sink alive until then.
  using Emit = std::function<void(TokenEvent)>;

  /// `tokenizer` must outlive it.
  ChoiceSink(const Tokenizer& tokenizer, TextOptions options, Emit emit);

  void on_scheduled() override;
  void on_prompt_done(int64_t cached_tokens) override;
  void on_prompt_logprobs(int64_t first, std::vector<TokenLogprob> logprobs) override;
  bool on_token(int32_t token, const TokenLogprob* logprob) override;
  void on_step(const SpeculationStep& step) override;
  void on_finish(FinishReason reason, const Usage& usage, const Error* error) override;

 private:
  TextOutput output_;
  Emit emit_;
  int32_t stop_token_ = -1;
  int64_t plain_steps_ = 0;                         // before the first that tried a draft
  std::unique_ptr<SpeculationCounts> speculation_;  // from that one on
  std::chrono::steady_clock::time_point scheduled_;
};

}  // namespace weft
