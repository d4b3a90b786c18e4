#include "engine/engine.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/check.h"
#include "base/log.h"

namespace weft {

Engine::Engine(const EngineConfig& config, std::unique_ptr<Scheduler> scheduler,
               std::unique_ptr<Executor> executor)
    : config_(config), scheduler_(std::move(scheduler)), executor_(std::move(executor)) {
  CHECK(scheduler_ && executor_);
  publish_stats();
  thread_ = std::thread([this] { thread_main(); });
}

Engine::~Engine() {
  stop();
}

Result<SeqId> Engine::submit(Request request, TokenSink& sink) {
  const std::lock_guard lock(mutex_);
  if (!accepting_) {
    return unavailable(failed() ? "the engine has failed; restart it"
                                : "the engine is shutting down");
  }
  if (num_requests() >= config_.max_requests) {
    return exhausted("too many requests: " + std::to_string(config_.max_requests) +
                     " are queued or running; try again later");
  }
  request.id = SeqId{next_id_++};
  const SeqId id = request.id;
  mailbox_.push_back(
      {id, Mail::Kind::kSubmit, std::make_shared<const Request>(std::move(request)), &sink});
  num_requests_.fetch_add(1, std::memory_order_relaxed);
  mail_came_.notify_one();
  return id;
}

void Engine::abort(SeqId id) {
  send(id, Mail::Kind::kAbort);
}

void Engine::pause(SeqId id) {
  send(id, Mail::Kind::kPause);
}

void Engine::resume(SeqId id) {
  send(id, Mail::Kind::kResume);
}

void Engine::send(SeqId id, Mail::Kind kind) {
  const std::lock_guard lock(mutex_);
  mailbox_.push_back({.id = id, .kind = kind});
  mail_came_.notify_one();
}

bool Engine::drain(std::chrono::milliseconds patience) {
  std::unique_lock lock(mutex_);
  accepting_ = false;
  return all_done_.wait_for(lock, patience, [this] { return num_requests() == 0; });
}

void Engine::stop() {
  {
    const std::lock_guard lock(mutex_);
    accepting_ = false;
    stopping_ = true;
    mail_came_.notify_one();
  }
  const std::lock_guard lock(join_mutex_);
  if (thread_.joinable()) thread_.join();
}

EngineStats Engine::stats() const {
  EngineStats now;
  {
    const std::lock_guard lock(stats_mutex_);
    now = stats_;
  }
  // What lies in the mailbox while a long step runs waits as well.
  now.num_waiting = std::max(now.num_waiting, num_requests() - now.num_running);
  return now;
}

void Engine::thread_main() {
  // The one place where a panic ends: nobody is left waiting for an answer.
  try {
    loop();
  } catch (const std::exception& error) {
    log_error(std::string("engine: ") + error.what());
    failed_.store(true, std::memory_order_relaxed);
    fail_all(unavailable(std::string("the engine has failed: ") + error.what()));
  }
}

void Engine::loop() {
  const bool overlap = scheduler_->config().overlap;
  while (take_mail(/*wait=*/scheduler_->idle())) {
    for (Mail& mail : inbox_) deliver(mail);
    inbox_.clear();
    num_paused_.store(scheduler_->num_paused(), std::memory_order_relaxed);
    step(overlap);
  }
  // Stopped: what is in flight is waited for, so that the device is quiet afterwards.
  while (scheduler_->num_in_flight() > 0) apply_oldest();
  for (const Mail& mail : inbox_) {
    if (mail.request) clients_[mail.id] = {mail.sink, {}};
  }
  inbox_.clear();
  while (!clients_.empty()) {
    const SeqId id = clients_.begin()->first;
    scheduler_->abort(id);
    finish(id, FinishReason::kAbort, nullptr);
  }
  publish_stats();
}

/// Moves the mail to inbox_, waiting for some if asked to. False: stop.
bool Engine::take_mail(bool wait) {
  std::unique_lock lock(mutex_);
  if (wait) mail_came_.wait(lock, [this] { return stopping_ || !mailbox_.empty(); });
  std::swap(inbox_, mailbox_);
  return !stopping_;
}

void Engine::deliver(Mail& mail) {
  switch (mail.kind) {
    case Mail::Kind::kAbort:
      if (scheduler_->abort(mail.id)) finish(mail.id, FinishReason::kAbort, nullptr);
      return;
    case Mail::Kind::kPause: scheduler_->pause(mail.id); return;
    case Mail::Kind::kResume: scheduler_->resume(mail.id); return;
    case Mail::Kind::kSubmit: break;
  }
  const auto prompt_len = static_cast<int64_t>(mail.request->prompt.size());
  clients_[mail.id] = {mail.sink, {.prompt_tokens = prompt_len}};
  const Result<void> added = scheduler_->add(std::move(mail.request));
  if (!added.ok()) finish(mail.id, FinishReason::kError, &added.error());
}

/// Launches the next step, then applies the one before (or, without overlap, the same).
void Engine::step(bool may_overlap) {
  const StepPlan& plan = scheduler_->schedule();
  const bool launched = !plan.empty();
  if (launched) launch(plan);
  CHECK(launched || scheduler_->num_in_flight() > 0 || scheduler_->idle(), "nobody can run");
  const int leave = launched && may_overlap ? 1 : 0;
  while (scheduler_->num_in_flight() > leave) apply_oldest();
  publish_stats();
}

void Engine::launch(const StepPlan& plan) {
  StepRecord record;
  record.step = plan.step;
  record.start = StepRecord::Clock::now();
  SeqId last;
  for (const Slice& slice : plan.slices) {
    record.sequences += slice.seq != last;
    last = slice.seq;
    int& rows = slice.arithmetic == Arithmetic::kPrompt ? record.prompt_rows : record.decode_rows;
    rows += static_cast<int>(slice.tokens.size());
  }
  for (const ImageEncoding& encoding : plan.encodings) {
    record.image_tokens += static_cast<int>(encoding.image->num_tokens);
  }
  record.running = scheduler_->num_running();
  record.waiting = scheduler_->num_waiting();
  record.preempted = static_cast<int>(plan.preempted.size());
  launched_.push_back(record);
  rows_in_flight_.fetch_add(record.rows(), std::memory_order_relaxed);
  executor_->launch(plan);
  for (const std::shared_ptr<const Request>& request : plan.admitted) {
    clients_.at(request->id).sink->on_scheduled();
  }
}

void Engine::apply_oldest() {
  StepResult result = executor_->collect();
  StepRecord record = launched_.front();
  launched_.pop_front();
  rows_in_flight_.fetch_sub(record.rows(), std::memory_order_relaxed);
  record.start = std::max(record.start, last_end_);
  record.end = last_end_ = StepRecord::Clock::now();
  record.device_idle_us = result.device_idle_us;
  record.device_us = result.device_us;
  record.device_graphs = result.device_graphs;
  for (SequenceOutput& output : scheduler_->apply(std::move(result))) hand_out(output);
  heartbeat_.fetch_add(1, std::memory_order_relaxed);
  if (config_.on_step) config_.on_step(record);
}

void Engine::hand_out(SequenceOutput& output) {
  const auto it = clients_.find(output.seq);
  CHECK(it != clients_.end());
  Client& client = it->second;
  if (!output.prompt_logprobs.empty()) {
    client.sink->on_prompt_logprobs(output.prompt_logprobs_first,
                                    std::move(output.prompt_logprobs));
  }
  if (output.prompt_done) {
    client.usage.cached_tokens = output.cached_tokens;
    prompt_tokens_ += client.usage.prompt_tokens;
    client.sink->on_prompt_done(output.cached_tokens);
  }
  bool stopped = false;
  size_t given = 0;
  while (given < output.tokens.size() && !stopped) {
    ++client.usage.generated_tokens;
    ++generated_tokens_;
    const TokenLogprob* logprob =
        given < output.logprobs.size() ? &output.logprobs[given] : nullptr;
    stopped = !client.sink->on_token(output.tokens[given++], logprob);
  }
  if (given > 0) {
    output.speculation.cut(static_cast<int>(given));
    client.sink->on_step(output.speculation);
    speculation_.add(output.speculation);
  }
  if (stopped) {
    scheduler_->abort(output.seq);
    finish(output.seq, FinishReason::kStop, nullptr);
    return;
  }
  if (output.finish == FinishReason::kNone) return;
  const Error error{ErrorKind::kDataLoss, "the model's logits held NaN; the request was ended"};
  finish(output.seq, output.finish, output.finish == FinishReason::kError ? &error : nullptr);
}

void Engine::finish(SeqId id, FinishReason reason, const Error* error) {
  const auto it = clients_.find(id);
  CHECK(it != clients_.end());
  const Client client = it->second;
  clients_.erase(it);
  client.sink->on_finish(reason, client.usage, error);
  const std::lock_guard lock(mutex_);
  num_requests_.fetch_sub(1, std::memory_order_relaxed);
  if (num_requests() == 0) all_done_.notify_all();
}

void Engine::fail_all(const Error& error) {
  std::vector<Mail> mail;
  {
    const std::lock_guard lock(mutex_);
    accepting_ = false;
    mail.swap(mailbox_);
  }
  mail.insert(mail.end(), inbox_.begin(), inbox_.end());
  for (const Mail& m : mail) {
    if (m.request) clients_.try_emplace(m.id, Client{m.sink, {}});
  }
  while (!clients_.empty()) finish(clients_.begin()->first, FinishReason::kError, &error);
  const std::lock_guard lock(stats_mutex_);
  stats_.num_running = stats_.num_waiting = stats_.num_paused = 0;
}

void Engine::publish_stats() {
  const BlockPool& blocks = scheduler_->cache().blocks();
  const StatePool& slots = scheduler_->cache().slots();
  const EngineStats now{.scheduler = scheduler_->stats(),
                        .num_running = scheduler_->num_running(),
                        .num_waiting = scheduler_->num_waiting(),
                        .num_paused = scheduler_->num_paused(),
                        .blocks_free = blocks.num_free(),
                        .blocks_cached = blocks.num_evictable(),
                        .blocks_used = blocks.num_used(),
                        .slots_free = slots.num_free(),
                        .slots_cached = slots.num_evictable(),
                        .slots_used = slots.num_used(),
                        .prompt_tokens = prompt_tokens_,
                        .generated_tokens = generated_tokens_,
                        .speculation = speculation_};
  const std::lock_guard lock(stats_mutex_);
  stats_ = now;
}

}  // namespace weft
