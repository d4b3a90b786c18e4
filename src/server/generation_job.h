#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "api/choice_sink.h"
#include "api/frontend.h"
#include "server/api_error.h"
#include "server/http.h"
#include "server/openai_response.h"
#include "server/telemetry.h"

namespace weft {

class GenerationJob;

/// What a job needs of the server around it. All functions are called on the I/O thread, but
/// `emit`, which the engine thread calls.
struct JobContext {
  Engine* engine = nullptr;
  const Frontend* frontend = nullptr;
  /// Brings an event to GenerationJob::on_event() on the I/O thread, in order.
  std::function<void(std::shared_ptr<GenerationJob>, size_t sequence, TokenEvent)> emit;
  Telemetry* telemetry = nullptr;
  int num_speculative_tokens = 0;  ///< 0: nothing is drafted
  /// Once a job, when its answer is complete; 499: the client has gone.
  std::function<void(std::string_view route, int status)> on_answer;
};

/// What of a request is needed to the end of its answer; the rest (the conversation, the prompts,
/// the parameters of sampling) is not kept while the answer streams.
struct AnswerForm {
  /// Takes what it needs out of both.
  static AnswerForm take(GenerationRequest& request, PreparedRequest& prepared);

  int64_t n = 1;
  int64_t num_prompt_tokens = 0;
  bool stream = false, include_usage = false, continuous_usage_stats = false;
  bool include_reasoning = true, return_token_ids = false, return_tokens_as_token_ids = false;
  bool echo = false, echo_only = false, logprobs = false, prompt_logprobs = false;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::vector<int32_t>> prompts;  ///< where the answer tells them; else empty
  std::vector<std::string> prompt_texts;      ///< of echo; else empty
};

/// Who asks, for the answer's headers, logs and traces.
struct JobOrigin {
  std::string_view route;  ///< the pattern of the route table
  std::string request_id;
  std::string trace_id;  ///< of traceparent; empty: none
  HttpHeaders headers;   ///< of every answer
};

/// One generation request from submission to the last byte of its answer: whole or as a stream.
/// Lives on the I/O thread; the engine's events and the client keep it alive.
class GenerationJob : public std::enable_shared_from_this<GenerationJob> {
 public:
  GenerationJob(const JobContext& context, std::shared_ptr<HttpExchange> exchange, AnswerForm form,
                ResponseHead head, JobOrigin origin);
  ~GenerationJob();
  GenerationJob(const GenerationJob&) = delete;
  GenerationJob& operator=(const GenerationJob&) = delete;

  /// Submits every sequence, or answers with the error.
  void start(PreparedRequest prepared);
  void on_event(size_t sequence, TokenEvent event);
  /// The client has gone: ends what is running.
  void on_gone();

 private:
  struct Choice;
  using Clock = std::chrono::steady_clock;

  void note(Choice& choice, const TokenEvent& event);
  std::optional<int64_t> most_generated(const Choice& choice) const;
  void handle(Choice& choice, TokenEvent& event);
  void on_prompt_done(Choice& choice, const TokenEvent& event);
  void on_token(Choice& choice, TokenEvent& event);
  void on_end(Choice& choice, TokenEvent& event);
  void add_text(Choice& choice, std::string_view text);
  void add_logprob(Choice& choice, const TokenEvent& event);
  void add_echo(Choice& choice);
  std::string take_logprobs(Choice& choice);
  std::string speculate_metrics_of(const Choice& choice) const;
  void send_frame(Choice& choice, const ChoiceEnd* end);
  void begin_stream();
  void write(std::string frame);
  void finish();
  void answered(int status);
  void fail(const ApiError& error);
  void abort_all();
  void pause();
  void pause_engine();
  void resume();
  const std::vector<int32_t>& prompt_of(const Choice& choice) const;
  UsageTotals usage() const;
  ChoiceEnd end_of(const Choice& choice, const TokenEvent::End& end) const;

  const JobContext& context_;
  std::shared_ptr<HttpExchange> exchange_;
  const AnswerForm form_;
  const ResponseHead head_;
  JobOrigin origin_;  // its headers go out with the answer
  const LogprobWriter logprobs_;
  const Clock::time_point arrived_ = Clock::now();
  std::vector<std::unique_ptr<Choice>> choices_;
  size_t num_ended_ = 0;
  bool streaming_ = false;  // headers are out
  bool answered_ = false;   // the answer is complete, or the client has gone
  bool paused_ = false;     // the client reads too slowly: events wait in held_
  bool engine_paused_ = false;
  Clock::time_point paused_at_;
  // While paused, when the engine may have no more to say and nobody else keeps the job alive.
  std::shared_ptr<GenerationJob> while_paused_;
  std::vector<std::pair<size_t, TokenEvent>> held_;
};

}  // namespace weft
