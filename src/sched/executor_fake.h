#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <optional>
#include <unordered_map>
#include <vector>

#include "sched/executor.h"

namespace weft {

struct FakeExecutorConfig {
  int block_size = 64;
  int num_blocks = 0;
  int num_state_slots = 0;  ///< 0: no recurrent state
  int num_swap_blocks = 0, num_swap_slots = 0;
  int32_t vocab = 1000;
  bool reuse_generated = false;  ///< the two arithmetics may be mixed in a prefix
  int chunk = kChunk;            ///< as in SchedulerConfig, like the next three
  int64_t plan_tokens = 0;
  int64_t sparse_from = 0;
  int num_layers = 0;
  int64_t numeric_error_in = 0;  ///< one sample in so many is a numeric error; 0: never
  int right_drafts = 5;          ///< of eight drafts; where a plan allows any there are 0 to all
};

/// A device that is symbolic: the KV entry of a token is the hash of the prefix that ends there
/// (tokens and arithmetic), the recurrent state is that hash with its position. Every slice reads
/// its whole context and its state and panics when an entry is not what a cold run alone would have
/// written, so a stale, foreign, misaligned or too early reused block or slot shows at once. The
/// sampled token is a hash of (prefix, seed).
class FakeExecutor : public Executor {
 public:
  explicit FakeExecutor(const FakeExecutorConfig& config);

  void launch(const StepPlan& plan) override;
  StepResult collect() override;

  /// Replaces a sampled token: gets the sequence, the position of the new token and the token; a
  /// negative one is a numeric error.
  using SampleHook = std::function<int32_t(SeqId, int64_t, int32_t)>;
  void set_sample_hook(SampleHook hook) { hook_ = std::move(hook); }

  /// What a request alone generates: the oracle. Ends as the scheduler would (stop ids, length,
  /// numeric error: the tokens before it).
  struct Answer {
    std::vector<int32_t> tokens;
    FinishReason finish = FinishReason::kNone;
  };
  static Answer answer(const Request& request, const FakeExecutorConfig& config,
                       int64_t max_model_len);

 private:
  struct StateSlot {
    uint64_t hash = 0;
    int64_t position = -1;  // -1: never written
  };
  struct Sequence {
    std::shared_ptr<const Request> request;
    // [i]: the low half of the hash of the first i tokens; kept across preemption. Half is enough
    // to tell a wrong entry from the right one, and a thousand streams stay small.
    std::deque<uint32_t> prefix;
    uint64_t last = 0;  // the whole hash of prefix.back()
    int64_t computed = 0;
    uint64_t current = 0;  // the whole hash of the first `computed` tokens
    int32_t last_token = kDeviceToken;
    std::unique_ptr<GrammarMatcher> grammar;
    bool restarted = true;  // may begin at any cached boundary
    int layers_done = 0;    // of a prompt that is computed layer by layer
    int drafts = 0;         // that its last slice might accept
  };
  struct User {  // who named a block or slot last
    SeqId seq;   // invalid: several sequences
    uint64_t step = 0;
  };
  void run(const Slice& slice, uint64_t step, StepResult& result);
  bool run_layers(const Slice& slice, Sequence& seq);
  void check_decision(const Slice& slice, const Sequence& seq) const;
  void swap(const StepPlan& plan);
  void check_fence(const Slice& slice, uint64_t step);
  void check_images(const Slice& slice, const StepPlan& plan);
  void sample(const Slice& slice, Sequence& seq, SampledRow& row);
  int64_t verify(const Slice& slice, Sequence& seq, SampledRow& row);
  uint64_t& entry(const Slice& slice, int64_t position);
  void write(const Slice& slice, Sequence& seq, int64_t position, uint64_t hash);

  const FakeExecutorConfig config_;
  SampleHook hook_;
  std::unordered_map<SeqId, Sequence> sequences_;
  std::vector<uint64_t> kv_, host_kv_;  // [num_blocks * block_size]
  std::vector<StateSlot> states_, host_states_;
  std::vector<User> block_user_, slot_user_;
  std::unordered_map<int32_t, uint64_t> image_pages_;  // what they hold
  std::deque<StepResult> results_;
};

}  // namespace weft
