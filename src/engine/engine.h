#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "engine/step_record.h"
#include "sched/executor.h"
#include "sched/scheduler.h"

namespace weft {

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t generated_tokens = 0;
  int64_t cached_tokens = 0;  ///< prompt tokens taken from the prefix cache
};

/// Where the tokens of one request go. Called on the engine thread, in order, never after
/// on_finish(), which comes exactly once for every request that submit() accepted. Must not throw
/// and must not block: every other request waits meanwhile. Must not call the engine's drain() or
/// stop(); submit() and abort() are fine.
class TokenSink {
 public:
  virtual ~TokenSink() = default;
  /// The request leaves the queue: a step that computes some of it was launched.
  virtual void on_scheduled() {}
  /// The prompt is computed; the first token follows.
  virtual void on_prompt_done(int64_t cached_tokens) { (void)cached_tokens; }
  /// Log-probabilities of prompt tokens `first`, first + 1, ... (the token at 0 has none).
  // NOLINTNEXTLINE(performance-unnecessary-value-param): implementations take it over
  virtual void on_prompt_logprobs(int64_t first, std::vector<TokenLogprob> logprobs) {
    (void)first, (void)logprobs;
  }
  /// A new token (a stop id too); `logprob` is null unless asked for. False ends the request here
  /// with FinishReason::kStop (a stop string was found).
  virtual bool on_token(int32_t token, const TokenLogprob* logprob) = 0;
  /// A step has given its tokens, step.emitted of them; which of them were drafts.
  virtual void on_step(const SpeculationStep& step) { (void)step; }
  /// The end. `error` is set with kError alone.
  virtual void on_finish(FinishReason reason, const Usage& usage, const Error* error) = 0;
};

struct EngineConfig {
  int max_requests = 4096;  ///< accepted and not finished; more are refused (kExhausted)
  /// Every step, when its results have come; on the engine thread, so it must be quick.
  std::function<void(const StepRecord&)> on_step;
};

/// A snapshot for metrics.
struct EngineStats {
  SchedulerStats scheduler;
  int num_running = 0, num_waiting = 0, num_paused = 0;  ///< paused ones are among the others
  int blocks_free = 0, blocks_cached = 0, blocks_used = 0;
  int slots_free = 0, slots_cached = 0, slots_used = 0;
  int64_t prompt_tokens = 0;      ///< of prompts that are done, cached ones included
  int64_t generated_tokens = 0;   ///< given out
  SpeculationCounts speculation;  ///< of all requests; zeros where nothing is drafted
};

/// The loop: takes mail, plans a step, launches it, applies the step before, gives tokens out.
/// Scheduler and executor live on its thread alone; everything else talks to it by mail. Public
/// functions may be called from any thread.
class Engine {
 public:
  Engine(const EngineConfig& config, std::unique_ptr<Scheduler> scheduler,
         std::unique_ptr<Executor> executor);
  /// stop()s.
  ~Engine();
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  /// Queues a request under a new id (request.id is ignored). `sink` must live until its
  /// on_finish() has returned. Refused when the queue is full (kExhausted) or the engine is
  /// draining, stopped or failed (kUnavailable); the sink is not called then. What only the
  /// scheduler can refuse (a request that can never fit) arrives as on_finish(kError).
  Result<SeqId> submit(Request request, TokenSink& sink);
  /// Ends a request soon with kAbort. No effect when it has ended.
  void abort(SeqId id);
  /// Soon no more tokens are made for a request, until resume(): its client does not take them.
  /// Whoever needs its place gets it. No effect when it has ended.
  void pause(SeqId id);
  void resume(SeqId id);

  /// Accepts nothing more, and waits until every accepted request has ended, at most `patience`;
  /// true when all have. Call stop() afterwards.
  bool drain(std::chrono::milliseconds patience);
  /// Aborts whatever is alive and joins the thread. Idempotent.
  void stop();

  /// Heartbeat: completed steps. While busy() it must grow; a liveness check compares two looks.
  uint64_t steps_completed() const { return heartbeat_.load(std::memory_order_relaxed); }
  /// Tokens of the steps that were launched and not applied.
  int rows_in_flight() const { return rows_in_flight_.load(std::memory_order_relaxed); }
  /// Requests accepted and not finished.
  int num_requests() const { return num_requests_.load(std::memory_order_relaxed); }
  /// There is something to compute: not all requests are paused.
  bool busy() const {
    return num_requests() > num_paused_.load(std::memory_order_relaxed) || rows_in_flight() > 0;
  }
  /// A panic ended the loop: every request failed, nothing is accepted any more.
  bool failed() const { return failed_.load(std::memory_order_relaxed); }
  EngineStats stats() const;

 private:
  struct Mail {
    enum class Kind : uint8_t { kSubmit, kAbort, kPause, kResume };
    SeqId id;
    Kind kind = Kind::kAbort;
    std::shared_ptr<const Request> request;  // of kSubmit
    TokenSink* sink = nullptr;
  };
  struct Client {
    TokenSink* sink = nullptr;
    Usage usage;
  };

  void thread_main();
  void loop();
  bool take_mail(bool wait);
  void send(SeqId id, Mail::Kind kind);
  void deliver(Mail& mail);
  void step(bool may_overlap);
  void launch(const StepPlan& plan);
  void apply_oldest();
  void hand_out(SequenceOutput& output);
  void finish(SeqId id, FinishReason reason, const Error* error);
  void fail_all(const Error& error);
  void publish_stats();

  const EngineConfig config_;
  const std::unique_ptr<Scheduler> scheduler_;  // engine thread only
  const std::unique_ptr<Executor> executor_;    // engine thread only
  std::unordered_map<SeqId, Client> clients_;   // engine thread only
  std::vector<Mail> inbox_;                     // engine thread only: mail being delivered
  std::deque<StepRecord> launched_;             // engine thread only: of the steps in flight
  StepRecord::Clock::time_point last_end_;      // engine thread only: of the step before
  int64_t prompt_tokens_ = 0;                   // engine thread only
  int64_t generated_tokens_ = 0;                // engine thread only
  SpeculationCounts speculation_;               // engine thread only

  std::mutex mutex_;  // guards the next four
  std::condition_variable mail_came_;
  std::condition_variable all_done_;
  std::vector<Mail> mailbox_;
  bool accepting_ = true;
  bool stopping_ = false;
  int32_t next_id_ = 0;

  mutable std::mutex stats_mutex_;
  EngineStats stats_;
  std::atomic<uint64_t> heartbeat_{0};
  std::atomic<int> num_requests_{0};
  std::atomic<int> num_paused_{0};
  std::atomic<int> rows_in_flight_{0};
  std::atomic<bool> failed_{false};
  std::mutex join_mutex_;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace weft
