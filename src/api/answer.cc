#include "api/answer.h"

#include <algorithm>

namespace weft {

AnswerStream::AnswerStream(const Tokenizer* tokenizer, TextOptions options) {
  if (tokenizer != nullptr) output_.emplace(*tokenizer, std::move(options));
  answer_.started = Answer::Clock::now();
}

bool AnswerStream::on_token(int32_t token, const TokenLogprob* logprob) {
  const Answer::Clock::time_point now = Answer::Clock::now();
  std::string text;
  const bool go_on = !output_ || output_->push(token, text);
  const std::lock_guard lock(mutex_);
  if (answer_.tokens.empty()) answer_.first_token = now;
  answer_.tokens.push_back(token);
  answer_.token_times.push_back(now);
  if (logprob != nullptr) answer_.logprobs.push_back(*logprob);
  answer_.text += text;
  changed_.notify_all();
  return go_on;
}

void AnswerStream::on_step(const SpeculationStep& step) {
  const std::lock_guard lock(mutex_);
  answer_.speculation.add(step);
}

void AnswerStream::on_prompt_logprobs(int64_t first, std::vector<TokenLogprob> logprobs) {
  const std::lock_guard lock(mutex_);
  CHECK(first == static_cast<int64_t>(answer_.prompt_logprobs.size()) + 1);
  std::move(logprobs.begin(), logprobs.end(), std::back_inserter(answer_.prompt_logprobs));
}

void AnswerStream::on_finish(FinishReason reason, const Usage& usage, const Error* error) {
  std::string text;
  if (output_) output_->finish(text);
  const std::lock_guard lock(mutex_);
  answer_.text += text;
  answer_.reason = reason;
  answer_.usage = usage;
  if (error != nullptr) answer_.error = *error;
  answer_.finished = Answer::Clock::now();
  ended_ = true;
  changed_.notify_all();
}

bool AnswerStream::next_text(std::string& piece, std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  changed_.wait_for(lock, patience, [this] { return ended_ || taken_ < answer_.text.size(); });
  piece = answer_.text.substr(taken_);
  taken_ = answer_.text.size();
  return !ended_ || !piece.empty();
}

const Answer& AnswerStream::wait() {
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return ended_; });
  return answer_;
}

}  // namespace weft
