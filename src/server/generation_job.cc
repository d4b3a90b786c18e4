#include "server/generation_job.h"

#include <algorithm>
#include <span>
#include <utility>

#include "base/hash.h"

namespace weft {
namespace {

/// A client that has so many bytes unread gets no further frames made until it has read on...
constexpr size_t kHighWater = 8 << 10;
constexpr size_t kLowWater = 2 << 10;
/// ... and, after so long, no further tokens. (Not at once: a pause may cost a replay.)
constexpr std::chrono::seconds kPatience{2};
/// It is given up when so many events wait for it.
constexpr size_t kMaxHeldEvents = 16384;

/// Tells answers apart, those to other prompts with the same seed too: ids of calls must not come
/// again in a conversation.
uint64_t call_id_seed(const Request& request) {
  return chain_hash(request.sampling.seed, {}, std::as_bytes(std::span(request.prompt))).lo;
}

}  // namespace

struct GenerationJob::Choice {
  explicit Choice(size_t index) : index(index) {}

  const size_t index;
  std::unique_ptr<ChoiceSink> sink;
  SeqId seq;
  std::optional<ChatParser> parser;
  RequestRecord record;
  bool begun = false;  // its first frame is out
  bool ended = false;
  ChatDelta delta;            // not yet sent (of a whole answer: all of it)
  std::string text;           // the same of a completion
  std::string chat_logprobs;  // entries not yet sent
  std::unique_ptr<CompletionLogprobs> completion_logprobs;  // of a completion that has any
  std::vector<TokenLogprob> prompt_logprobs;
  std::vector<int32_t> token_ids;  // not yet sent
  int64_t num_tokens = 0, num_reasoning = 0, cached = 0;
  bool has_tool_calls = false;
  bool thought = false;                            // there was reasoning, empty perhaps
  std::unique_ptr<SpeculationCounts> speculation;  // when it has ended, where drafts are made
  ChoiceEnd end;
};

AnswerForm AnswerForm::take(GenerationRequest& request, PreparedRequest& prepared) {
  AnswerForm form;
  form.n = request.n;
  form.num_prompt_tokens = prepared.num_prompt_tokens();
  form.stream = request.stream;
  form.include_usage = request.include_usage;
  form.continuous_usage_stats = request.continuous_usage_stats;
  form.include_reasoning = request.include_reasoning;
  form.return_token_ids = request.return_token_ids;
  form.return_tokens_as_token_ids = request.return_tokens_as_token_ids;
  form.echo = request.echo;
  form.echo_only = prepared.echo_only;
  form.logprobs = request.sampling.logprobs.has_value();
  form.prompt_logprobs = request.sampling.prompt_logprobs.has_value();
  form.stop = std::move(request.sampling.stop);
  form.stop_token_ids = std::move(prepared.stop_token_ids);
  if (form.return_token_ids || form.prompt_logprobs || (form.echo && form.logprobs)) {
    form.prompts = std::move(prepared.prompts);
    for (std::vector<int32_t>& prompt : form.prompts) prompt.shrink_to_fit();
  }
  if (form.echo) form.prompt_texts = std::move(prepared.prompt_texts);
  return form;
}

GenerationJob::GenerationJob(const JobContext& context, std::shared_ptr<HttpExchange> exchange,
                             AnswerForm form, ResponseHead head, JobOrigin origin)
    : context_(context),
      exchange_(std::move(exchange)),
      form_(std::move(form)),
      head_(std::move(head)),
      origin_(std::move(origin)),
      logprobs_(context.frontend->tokenizer(), form_.return_tokens_as_token_ids) {}

GenerationJob::~GenerationJob() = default;

void GenerationJob::start(PreparedRequest prepared) {
  const std::shared_ptr<GenerationJob> self = shared_from_this();
  exchange_->when_gone([weak = weak_from_this()] {
    if (const auto job = weak.lock()) job->on_gone();
  });
  const ChatFormat& format = context_.frontend->config().format;
  for (size_t i = 0; i < prepared.sequences.size() && !answered_; ++i) {
    auto choice = std::make_unique<Choice>(i);
    choice->record.arrival = arrived_;
    choice->record.n = form_.n;
    choice->record.max_tokens = prepared.sequences[i].sampling.max_tokens;
    if (prepared.split_output) {
      ChatParserOptions options = prepared.parser;
      options.seed = call_id_seed(prepared.sequences[i]);
      choice->parser.emplace(format, std::move(options));
    }
    choice->sink = std::make_unique<ChoiceSink>(
        context_.frontend->tokenizer(), prepared.text,
        [self, i](TokenEvent event) { self->context_.emit(self, i, std::move(event)); });
    const Result<SeqId> seq =
        context_.engine->submit(std::move(prepared.sequences[i]), *choice->sink);
    if (!seq) {
      fail(to_api_error(seq.error()));
      return;
    }
    choice->seq = *seq;
    choices_.push_back(std::move(choice));
  }
}

void GenerationJob::on_gone() {
  if (answered_) return;
  abort_all();
  answered(499);
}

void GenerationJob::abort_all() {
  for (const auto& choice : choices_) {
    if (!choice->ended) context_.engine->abort(choice->seq);
  }
}

/// Times and counts, for metrics and traces; also of answers that nobody waits for any more.
void GenerationJob::note(Choice& choice, const TokenEvent& event) {
  RequestRecord& record = choice.record;
  switch (event.kind) {
    case TokenEvent::Kind::kPromptDone:
      record.scheduled = event.scheduled;
      record.first_token = event.at;
      context_.telemetry->metrics().first_token(record);
      break;
    case TokenEvent::Kind::kPromptLogprobs: break;
    case TokenEvent::Kind::kToken:
      if (record.last_token != Clock::time_point()) {
        context_.telemetry->metrics().token_gap(
            std::chrono::duration<double>(event.at - record.last_token).count());
      }
      record.last_token = event.at;
      break;
    case TokenEvent::Kind::kFinish: {
      choice.ended = true;  // for abort_all(), also while the event waits for a slow reader
      const TokenEvent::End& end = *event.end;
      record.finished = event.at;
      record.prompt_tokens = end.usage.prompt_tokens;
      record.generated_tokens = end.usage.generated_tokens;
      record.cached_tokens = end.usage.cached_tokens;
      record.id = origin_.request_id;
      record.trace_id = origin_.trace_id;
      record.finish_reason = end.error ? "error" : end_of(choice, end).reason;
      record.most_generated = most_generated(choice);
      context_.telemetry->finished(record);
    }
  }
}

/// Where all choices of its prompt have ended: the tokens of the longest of them.
std::optional<int64_t> GenerationJob::most_generated(const Choice& choice) const {
  const auto n = static_cast<size_t>(form_.n);
  const size_t first = choice.index / n * n;
  if (choices_.size() < first + n) return std::nullopt;  // not all of them came to the engine
  int64_t most = 0;
  for (size_t i = first; i < first + n; ++i) {
    if (!choices_[i]->ended) return std::nullopt;
    most = std::max(most, choices_[i]->record.generated_tokens);
  }
  return most;
}

void GenerationJob::on_event(size_t sequence, TokenEvent event) {
  Choice& choice = *choices_[sequence];
  note(choice, event);
  if (answered_) return;
  if (paused_) {
    held_.emplace_back(sequence, std::move(event));
    if (held_.size() > kMaxHeldEvents) {
      abort_all();
      answered(499);
      exchange_.reset();  // closes the connection
    } else if (!engine_paused_ && Clock::now() - paused_at_ > kPatience) {
      pause_engine();
    }
    return;
  }
  handle(choice, event);
}

void GenerationJob::handle(Choice& choice, TokenEvent& event) {
  switch (event.kind) {
    case TokenEvent::Kind::kPromptDone: on_prompt_done(choice, event); break;
    case TokenEvent::Kind::kPromptLogprobs:
      std::move(event.prompt_logprobs.begin(), event.prompt_logprobs.end(),
                std::back_inserter(choice.prompt_logprobs));
      break;
    case TokenEvent::Kind::kToken: on_token(choice, event); break;
    case TokenEvent::Kind::kFinish: on_end(choice, event); break;
  }
}

/// Where form_.prompts are kept.
const std::vector<int32_t>& GenerationJob::prompt_of(const Choice& choice) const {
  return form_.prompts[choice.index / static_cast<size_t>(form_.n)];
}

void GenerationJob::on_prompt_done(Choice& choice, const TokenEvent& event) {
  choice.cached = event.cached_tokens;
  if (form_.echo) add_echo(choice);
  if (!form_.stream) return;
  if (!streaming_) begin_stream();
  if (head_.is_chat || form_.echo) send_frame(choice, nullptr);
}

void GenerationJob::add_echo(Choice& choice) {
  choice.text = form_.prompt_texts[choice.index / static_cast<size_t>(form_.n)];
  if (!form_.logprobs) return;
  choice.completion_logprobs = std::make_unique<CompletionLogprobs>();
  const std::vector<int32_t>& ids = prompt_of(choice);
  for (size_t i = 0; i < ids.size(); ++i) {
    const TokenLogprob* logprob = i > 0 ? &choice.prompt_logprobs[i - 1] : nullptr;
    choice.completion_logprobs->add(logprobs_, ids[i], logprob);
  }
}

void GenerationJob::add_text(Choice& choice, std::string_view text) {
  if (!choice.parser) {
    choice.text += text;
    return;
  }
  if (!text.empty()) choice.parser->push(text, choice.delta);
}

void GenerationJob::add_logprob(Choice& choice, const TokenEvent& event) {
  if (!event.logprob || event.ends || !form_.logprobs) return;
  if (head_.is_chat) {
    if (!choice.chat_logprobs.empty()) choice.chat_logprobs += ',';
    logprobs_.append_chat_entry(choice.chat_logprobs, event.token, *event.logprob);
  } else {
    auto& logprobs = choice.completion_logprobs;
    if (!logprobs) logprobs = std::make_unique<CompletionLogprobs>();
    logprobs->add(logprobs_, event.token, event.logprob.get());
  }
}

void GenerationJob::on_token(Choice& choice, TokenEvent& event) {
  if (form_.echo_only) return;
  ++choice.num_tokens;
  bool thinking = choice.parser && choice.parser->in_reasoning();
  add_text(choice, event.text);
  thinking = thinking || (choice.parser && choice.parser->in_reasoning());
  if (thinking && !event.ends) {
    ++choice.num_reasoning;
    choice.thought = true;
  }
  if (form_.return_token_ids) choice.token_ids.push_back(event.token);
  add_logprob(choice, event);
  if (!form_.stream) return;
  const bool something = !choice.text.empty() || !choice.delta.content.empty() ||
                         !choice.delta.reasoning.empty() || !choice.delta.tool_calls.empty() ||
                         !choice.token_ids.empty();
  if (something) send_frame(choice, nullptr);
}

ChoiceEnd GenerationJob::end_of(const Choice& choice, const TokenEvent::End& end) const {
  ChoiceEnd out;
  switch (end.reason) {
    case FinishReason::kLength: out.reason = "length"; break;
    case FinishReason::kAbort: out.reason = "abort"; break;
    default: out.reason = choice.has_tool_calls ? "tool_calls" : "stop";
  }
  const auto& stops = form_.stop_token_ids;
  if (end.stop_string) {
    out.stop_reason = json_string(form_.stop[*end.stop_string]);
  } else if (std::find(stops.begin(), stops.end(), end.stop_token) != stops.end()) {
    out.stop_reason = std::to_string(end.stop_token);
  }
  return out;
}

void GenerationJob::on_end(Choice& choice, TokenEvent& event) {
  const TokenEvent::End& end = *event.end;
  if (end.error) {
    fail(to_api_error(*end.error));
    return;
  }
  if (end.reason == FinishReason::kAbort) {  // not by us: the client is here
    fail(not_ready("the server is shutting down; the answer was cut off"));
    return;
  }
  if (!form_.echo_only) add_text(choice, event.text);
  if (choice.parser) choice.parser->finish(choice.delta);
  choice.has_tool_calls = choice.parser && choice.parser->num_tool_calls() > 0;
  choice.end = end_of(choice, end);
  if (context_.num_speculative_tokens > 0) {
    choice.speculation = std::make_unique<SpeculationCounts>(std::move(event.end->speculation));
  }
  if (form_.stream) send_frame(choice, &choice.end);
  if (++num_ended_ == choices_.size()) finish();
}

std::string GenerationJob::take_logprobs(Choice& choice) {
  if (!form_.logprobs) return {};
  if (!head_.is_chat) {
    const auto& logprobs = choice.completion_logprobs;
    return !logprobs || logprobs->empty() ? "" : logprobs->take();
  }
  if (choice.chat_logprobs.empty()) return {};
  std::string out = "{\"content\":[" + choice.chat_logprobs + "],\"refusal\":null}";
  choice.chat_logprobs.clear();
  return out;
}

std::string GenerationJob::speculate_metrics_of(const Choice& choice) const {
  const int tokens = context_.num_speculative_tokens;
  return choice.speculation ? speculate_metrics_json(*choice.speculation, tokens) : std::string();
}

/// Sends what the choice has gathered since its last frame.
void GenerationJob::send_frame(Choice& choice, const ChoiceEnd* end) {
  if (!form_.include_reasoning) choice.delta.reasoning.clear();
  const std::string logprobs = take_logprobs(choice);
  std::string prompt_ids, ids;
  if (form_.return_token_ids) {
    if (!choice.begun) prompt_ids = json_ids(prompt_of(choice));
    ids = json_ids(choice.token_ids);
  }
  const std::string speculation = end != nullptr ? speculate_metrics_of(choice) : "";
  const ChunkChoice chunk{.index = static_cast<int64_t>(choice.index),
                          .role = !choice.begun,
                          .delta = &choice.delta,
                          .text = choice.text,
                          .logprobs = logprobs,
                          .prompt_token_ids = prompt_ids,
                          .token_ids = ids,
                          .speculate_metrics = speculation,
                          .end = end};
  const std::string usage_so_far = form_.continuous_usage_stats ? usage_json(usage()) : "";
  choice.begun = true;
  write(stream_frame(head_, chunk, usage_so_far));
  choice.delta = {};
  choice.text.clear();
  choice.token_ids.clear();
}

void GenerationJob::begin_stream() {
  streaming_ = true;
  HttpHeaders headers = std::move(origin_.headers);
  headers.emplace_back("Cache-Control", "no-cache");
  headers.emplace_back("X-Accel-Buffering", "no");
  context_.telemetry->metrics().stream_opened();
  exchange_->begin_stream(200, "text/event-stream; charset=utf-8", headers);
}

void GenerationJob::write(std::string frame) {
  if (answered_) return;
  exchange_->write(std::move(frame));
  if (!paused_ && exchange_->buffered() > kHighWater) pause();
}

void GenerationJob::pause() {
  paused_ = true;
  paused_at_ = Clock::now();
  while_paused_ = shared_from_this();
  exchange_->when_drained(kLowWater, [weak = weak_from_this()] {
    if (const auto job = weak.lock()) job->resume();
  });
}

void GenerationJob::pause_engine() {
  engine_paused_ = true;
  for (const auto& choice : choices_) {
    if (!choice->ended) context_.engine->pause(choice->seq);
  }
}

void GenerationJob::resume() {
  paused_ = false;
  if (std::exchange(engine_paused_, false)) {
    for (const auto& choice : choices_) {
      if (choice->ended) continue;
      context_.engine->resume(choice->seq);
      choice->record.last_token = {};  // the gap was the client's
    }
  }
  while_paused_.reset();  // the caller has one
  std::vector<std::pair<size_t, TokenEvent>> held;
  held.swap(held_);
  for (size_t i = 0; i < held.size() && !answered_; ++i) {
    if (paused_) {
      held_.push_back(std::move(held[i]));
    } else {
      handle(*choices_[held[i].first], held[i].second);
    }
  }
}

UsageTotals GenerationJob::usage() const {
  UsageTotals out;
  out.prompt_tokens = form_.num_prompt_tokens;
  if (context_.num_speculative_tokens > 0) out.accepted_drafts = out.rejected_drafts = 0;
  for (const auto& choice : choices_) {
    out.completion_tokens += choice->num_tokens;
    out.reasoning_tokens += choice->num_reasoning;
    if (choice->speculation) {
      const int64_t accepted = choice->speculation->num_accepted();
      out.accepted_drafts += accepted;
      out.rejected_drafts += choice->speculation->num_proposed() - accepted;
    }
    // Choices of one prompt share its prefix: the first tells what the prompt found.
    if (choice->index % static_cast<size_t>(form_.n) == 0) out.cached_tokens += choice->cached;
  }
  return out;
}

/// Nothing more goes to the client.
void GenerationJob::answered(int status) {
  answered_ = true;
  held_.clear();
  while_paused_.reset();  // callers have one
  if (streaming_) context_.telemetry->metrics().stream_closed();
  if (status == 499) context_.telemetry->metrics().disconnected();
  context_.on_answer(origin_.route, status);
}

void GenerationJob::finish() {
  if (answered_) return;
  if (form_.stream) {
    if (form_.include_usage) exchange_->write(usage_frame(head_, usage_json(usage())));
    exchange_->write(std::string(kDoneFrame));
    exchange_->end_stream();
    answered(200);
    return;
  }
  std::vector<WholeChoice> whole;
  for (const auto& choice : choices_) {
    WholeChoice out;
    out.index = static_cast<int64_t>(choice->index);
    out.text = head_.is_chat ? std::move(choice->delta.content) : std::move(choice->text);
    if (choice->thought && form_.include_reasoning) out.reasoning = choice->delta.reasoning;
    for (ToolCallDelta& piece : choice->delta.tool_calls) {
      if (static_cast<size_t>(piece.index) >= out.tool_calls.size()) out.tool_calls.emplace_back();
      ToolCall& call = out.tool_calls[static_cast<size_t>(piece.index)];
      call.id += piece.id;
      call.name += piece.name;
      call.arguments += piece.arguments;
    }
    out.logprobs = take_logprobs(*choice);
    if (form_.prompt_logprobs) {
      out.prompt_logprobs = logprobs_.prompt_logprobs(prompt_of(*choice), choice->prompt_logprobs);
    }
    if (form_.return_token_ids) {
      out.prompt_token_ids = json_ids(prompt_of(*choice));
      out.token_ids = json_ids(choice->token_ids);
    }
    out.speculate_metrics = speculate_metrics_of(*choice);
    out.end = std::move(choice->end);
    whole.push_back(std::move(out));
  }
  exchange_->respond({.body = whole_body(head_, whole, usage()), .headers = origin_.headers});
  answered(200);
}

/// Ends the answer with an error: as the response, or as an event where the stream has begun.
void GenerationJob::fail(const ApiError& error) {
  if (answered_) return;
  abort_all();
  answered(error.status);
  if (streaming_) {
    exchange_->write("data: " + to_body(error) + "\n\n");
    exchange_->write(std::string(kDoneFrame));
    exchange_->end_stream();
    return;
  }
  HttpResponse response = to_response(error);
  response.headers.insert(response.headers.end(), origin_.headers.begin(), origin_.headers.end());
  exchange_->respond(std::move(response));
}

}  // namespace weft
