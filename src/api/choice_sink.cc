#include "api/choice_sink.h"

#include <utility>

namespace weft {
namespace {

TokenEvent event(TokenEvent::Kind kind) {
  TokenEvent out;
  out.kind = kind;
  out.at = std::chrono::steady_clock::now();
  return out;
}

}  // namespace

ChoiceSink::ChoiceSink(const Tokenizer& tokenizer, TextOptions options, Emit emit)
    : output_(tokenizer, std::move(options)), emit_(std::move(emit)) {}

void ChoiceSink::on_scheduled() {
  scheduled_ = std::chrono::steady_clock::now();
}

void ChoiceSink::on_prompt_done(int64_t cached_tokens) {
  TokenEvent done = event(TokenEvent::Kind::kPromptDone);
  done.cached_tokens = cached_tokens;
  done.scheduled = scheduled_;
  emit_(std::move(done));
}

void ChoiceSink::on_prompt_logprobs(int64_t first, std::vector<TokenLogprob> logprobs) {
  (void)first;  // they come in order
  TokenEvent some = event(TokenEvent::Kind::kPromptLogprobs);
  some.prompt_logprobs = std::move(logprobs);
  emit_(std::move(some));
}

bool ChoiceSink::on_token(int32_t token, const TokenLogprob* logprob) {
  TokenEvent out = event(TokenEvent::Kind::kToken);
  out.token = token;
  out.ends = output_.is_stop_id(token);
  stop_token_ = out.ends ? token : -1;
  if (logprob != nullptr) out.logprob = std::make_unique<TokenLogprob>(*logprob);
  const bool go_on = output_.push(token, out.text);
  emit_(std::move(out));
  return go_on;
}

void ChoiceSink::on_step(const SpeculationStep& step) {
  if (!speculation_) {
    if (step.emitted == 1 && step.num_proposed() == 0) {
      ++plain_steps_;
      return;
    }
    speculation_ = std::make_unique<SpeculationCounts>();
  }
  speculation_->add(step);
}

void ChoiceSink::on_finish(FinishReason reason, const Usage& usage, const Error* error) {
  TokenEvent last = event(TokenEvent::Kind::kFinish);
  output_.finish(last.text);
  last.end = std::make_unique<TokenEvent::End>();
  last.end->reason = reason;
  last.end->usage = usage;
  if (error != nullptr) last.end->error = *error;
  if (speculation_) last.end->speculation = std::move(*speculation_);
  last.end->speculation.add_plain(plain_steps_);
  last.end->stop_string = output_.stop_string();
  if (reason == FinishReason::kStop) last.end->stop_token = stop_token_;
  const Emit emit = std::move(emit_);  // it may hold the last reference to this
  emit(std::move(last));
}

}  // namespace weft
