#pragma once

#include <cstdint>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "base/result.h"
#include "cache/prefix_cache.h"
#include "cache/swap_pool.h"
#include "sched/plan.h"
#include "sched/request.h"
#include "sched/sequence.h"

namespace weft {

struct SchedulerConfig {
  int block_size = 64;            ///< tokens of a KV block: a divisor or a multiple of kChunk
  int num_blocks = 0;             ///< KV blocks
  int num_state_slots = 0;        ///< recurrent-state slots; 0: the model has no recurrent state
  int num_swap_blocks = 0;        ///< KV blocks of displaced sequences that the host has room for
  int num_swap_slots = 0;         ///< their recurrent states
  int max_batched_tokens = 2048;  ///< tokens of one step, at least kChunk - 1 + max_seqs
  /// Tokens of a step while there is only one sequence, so that nobody waits for it; less than
  /// max_batched_tokens (0): no more than that.
  int lone_batched_tokens = 0;
  int max_seqs = 256;     ///< sequences running at once
  int max_model_len = 0;  ///< prompt + generated tokens of a sequence
  bool prefix_caching = true;
  bool reuse_generated = false;  ///< also cache blocks that decode arithmetic wrote
  int checkpoint_every = 2048;   ///< state checkpoints inside long prompts; 0: none
  int dense_checkpoints = 64;    ///< extra ones a prompt may take from idle slots; 0: none
  int max_drafts = 0;            ///< of a sequence in a step, up to kMaxDrafts; 0: no speculation
  bool overlap = true;           ///< a step is planned while the one before is in flight
  int image_tokens = 0;          ///< through the vision tower in one step; 0: no images
  int image_pages = 0;           ///< of the cache of image features, see least_image_pages()
  int chunk = kChunk;  ///< prompts are cut, and reused, at multiples of it: kChunk or a multiple
  /// Prompt tokens, from the first, by which a router decides what the heads of a prompt see: 0 (no
  /// router), a multiple of `chunk`, or kWholePrompt. A window of the tokens up to there is
  /// computed in one step, or layer by layer, and blocks are shared only among prompts of equal
  /// windows.
  int64_t plan_tokens = 0;
  int num_layers = 0;  ///< of the model; with plan_tokens
  /// Heads of prompts of fewer tokens see all keys: their blocks are no others' (not with
  /// plan_tokens).
  int64_t sparse_from = 0;
  uint64_t hash_key = 0;  ///< random per process: keys the prefix index
  int hash_bits = 128;    ///< fewer: blocks of the prefix index collide, for tests
};

inline constexpr int64_t kWholePrompt = int64_t{1} << 62;

/// Pages that any kChunk tokens of a prompt may need at once: two images of the largest size that
/// are cut, and small ones between them.
constexpr int least_image_pages(int64_t image_tokens) {
  return static_cast<int>(2 * ((image_tokens + kImagePage - 1) / kImagePage)) + kChunk;
}

struct SchedulerStats {
  int64_t steps = 0;              ///< plans that were launched
  int64_t computed_tokens = 0;    ///< rows planned, replays and discarded rows included
  int64_t drafted_tokens = 0;     ///< rows of drafts that were verified
  int64_t hits = 0, misses = 0;   ///< of lookups at admission
  int64_t looked_up_tokens = 0;   ///< known tokens of the sequences at those lookups
  int64_t kv_hit_tokens = 0;      ///< cached KV found
  int64_t reused_tokens = 0;      ///< prefix tokens not computed again
  int64_t state_lost_tokens = 0;  ///< KV found, but no checkpoint that deep
  int64_t state_hits = 0;         ///< sequences that began from a checkpoint
  int64_t checkpoints = 0, dense_checkpoints = 0, branch_checkpoints = 0;  ///< registered
  int64_t take_overs = 0;  ///< checkpoints turned live for want of another slot
  int64_t preemptions = 0;
  int64_t swap_outs = 0, swap_ins = 0;  ///< of them, kept in host memory; and brought back
  int64_t swapped_blocks = 0;           ///< copied to host memory
  int64_t swapped_in_tokens = 0;        ///< not computed again
  int64_t stalls = 0;                   ///< running sequences that waited a step for blocks
  int64_t block_evictions = 0, state_evictions = 0;
  int64_t images_encoded = 0, image_tokens_encoded = 0;
  int64_t image_hits = 0;  ///< images of a slice whose features were there already
  int64_t finished_stop = 0, finished_length = 0, aborted = 0, numeric_errors = 0;
  int64_t finished_waiting = 0;  ///< of them, ended by a token sampled before a preemption
  int64_t layer_steps = 0;       ///< steps of some layers of one prompt
  PlanCounters plans;          ///< what the heads of prompts saw, where they see less than all keys
  int64_t discarded_rows = 0;  ///< rows of a step whose sequence had ended or lost its blocks
};

/// What one applied step gave one sequence.
struct SequenceOutput {
  SeqId seq;
  bool prompt_done = false;     ///< the first token: cached_tokens is valid
  int64_t cached_tokens = 0;    ///< prompt tokens taken from the prefix cache
  std::vector<int32_t> tokens;  ///< a stop id is given out too, as the last token
  SpeculationStep speculation;  ///< which of them were drafts
  std::vector<TokenLogprob> logprobs;
  std::vector<TokenLogprob> prompt_logprobs;  ///< entry i: prompt token prompt_logprobs_first + i
  int64_t prompt_logprobs_first = 0;
  FinishReason finish = FinishReason::kNone;  ///< kStop, kLength or kError
};

/// Decides who runs next. Pure host logic: no device, no tensor, no clock, no thread.
///
/// Every sequence has known tokens and computed tokens; a step lets the running, then the waiting
/// sequences catch up within the budgets (docs/scheduler.md). Not thread-safe.
class Scheduler {
 public:
  /// Errors name the field and the allowed values.
  static Result<std::unique_ptr<Scheduler>> create(const SchedulerConfig& config);

  /// Accepts a request that could run alone to its longest; otherwise says why it never can.
  Result<void> add(std::shared_ptr<const Request> request);
  /// Ends a sequence in whatever state it is; its resources follow when no step in flight names
  /// it. False when there is none of that id (it may have ended just now).
  bool abort(SeqId id);
  /// Gives a sequence no further tokens until resume(): nobody takes them now. It keeps its place
  /// as long as nobody needs it, but is displaced before all others. What is in flight still comes.
  /// Without effect on a sequence that has ended.
  void pause(SeqId id);
  void resume(SeqId id);

  /// Plans the next step. The plan and its spans live until the next call of any member; when it
  /// is not empty the caller must launch it and later apply() its result, in order. At most one
  /// (overlap: two) unapplied plans at a time.
  const StepPlan& schedule();
  /// Takes over the results of the oldest unapplied plan. The outputs live until the next call.
  std::span<SequenceOutput> apply(StepResult result);

  /// Nothing to plan or to apply; whoever lives is paused.
  bool idle() const {
    return sequences_.size() == num_paused_ && retired_.empty() && in_flight_.empty();
  }
  int num_running() const { return static_cast<int>(running_.size()); }
  int num_waiting() const { return static_cast<int>(waiting_.size() + parked_.size()); }
  int num_paused() const { return static_cast<int>(num_paused_); }
  int num_in_flight() const { return static_cast<int>(in_flight_.size()); }
  const SchedulerConfig& config() const { return config_; }
  SchedulerStats stats() const;
  const PrefixCache& cache() const { return cache_; }
  const SwapPool& swaps() const { return swaps_; }
  /// A live sequence, or null.
  const Sequence* find(SeqId id) const;
  /// Full check of blocks, slots and queues; empty when all is well. O(everything).
  std::string audit() const;

 private:
  struct Checkpointing {
    SeqId seq;
    int64_t position = 0;
    SlotId slot;
    CheckpointKind kind = CheckpointKind::kDense;
  };
  struct Planned {  // one slice of a launched plan
    SeqId seq;
    uint32_t epoch = 0;
    int64_t first = 0, end = 0;
    bool sample = false;
    int drafts = 0;  // Slice::max_drafts
    bool prompt_logprobs = false;
    bool has_row() const { return sample || prompt_logprobs; }
  };
  struct StepRecord {  // a launched plan, until it is applied; release lists are its fence
    uint64_t step = 0;
    std::vector<Planned> slices;
    std::vector<Checkpointing> checkpoints;
    std::vector<BlockId> release_blocks;
    std::vector<SlotId> release_slots;
    int64_t exclusive_blocks = 0;  // of release_blocks, how many nobody else held when fenced
    void clear();
  };
  struct Earlier {
    bool operator()(const Sequence* a, const Sequence* b) const {
      return std::pair(a->priority(), a->arrival) < std::pair(b->priority(), b->arrival);
    }
  };
  struct CheckpointSite {
    int64_t position = 0;  // 0: none
    CheckpointKind kind = CheckpointKind::kDense;
  };

  explicit Scheduler(const SchedulerConfig& config);

  // scheduler_plan.cc
  void plan_running(Sequence& seq);
  bool admit(Sequence& seq);
  PrefixHit look_up(Sequence& seq);
  int64_t affordable_end(const Sequence& seq) const;
  Sequence* victim() const;
  bool make_seat();
  bool make_room(int64_t blocks_needed);
  bool give_slot(Sequence& seq, SlotId checkpoint);
  void hold_prefix(Sequence& seq, const PrefixHit& hit);
  void count_hit(Sequence& seq, const PrefixHit& hit);
  void enter(Sequence& seq);
  void emit(Sequence& seq, int64_t end, int drafts = 0);
  void emit_slice(Sequence& seq, int64_t end, int drafts, const LayerRange& layers = {});
  void give_blocks(Sequence& seq, int64_t end);
  int allowed_drafts(const Sequence& seq, int64_t end) const;
  bool waits_for_checkpoint(const Sequence& seq) const;
  void launch_planned();
  CheckpointSite next_site(const Sequence& seq, int64_t after) const;
  SlotId checkpoint_slot(const CheckpointSite& site);
  void preempt(Sequence& victim);
  bool decodes_next(const Sequence& seq) const;

  // scheduler_swap.cc
  void swap_out(Sequence& victim);
  PrefixHit hit_of_swapped(const Sequence& seq, const PrefixHit& hit) const;
  void swap_in(Sequence& seq);
  void drop_swapped(Sequence& seq);

  // scheduler_layers.cc
  int64_t window_of(const Sequence& seq) const;
  bool undecided(const Sequence& seq) const;
  bool needs_layers(const Sequence& seq) const;
  void begin_layers(Sequence& seq);
  void emit_layers();
  void leave_layers(const Sequence& seq);
  bool layers_can_run() const { return layered_ != nullptr && !layered_->paused; }

  // scheduler_images.cc
  Result<void> check_images(const Request& request) const;
  Hash128 block_images(const Sequence& seq, int64_t block) const;
  ImageKey image_key(const Sequence& seq, const PromptImage& image) const;
  int64_t take_images(const Sequence& seq, int64_t end);
  void use_images(const Sequence& seq, int64_t first, int64_t end);
  void forget_images(const Sequence& seq);

  // scheduler_apply.cc
  void register_slice(const Planned& slice);
  void register_checkpoint(const Checkpointing& point);
  void accept(const Planned& slice, SampledRow& row);
  bool take_tokens(Sequence& seq, SampledRow& row, SequenceOutput& out);
  bool append_token(Sequence& seq, int32_t token, bool ends, SequenceOutput& out);
  void take_prompt_logprobs(Sequence& seq, const Planned& slice, SampledRow& row,
                            SequenceOutput& out);
  SequenceOutput& output_of(Sequence& seq);
  void end(Sequence& seq, FinishReason reason);

  void extend_hashes(Sequence& seq);
  void release_resources(Sequence& seq);
  void release_block(BlockId block, StepRecord* fence);
  void release_slot(SlotId slot, StepRecord* fence);
  StepRecord* fence_of(uint64_t step);
  void set_paused(SeqId id, bool paused);
  /// Where a sequence that does not run is.
  std::set<Sequence*, Earlier>& queue_of(const Sequence& seq) {
    return seq.paused ? parked_ : waiting_;
  }
  void check_counters() const;

  const SchedulerConfig config_;
  const int stride_;  // tokens between two possible cache boundaries
  PrefixCache cache_;
  ImageCache images_;
  SwapPool swaps_;
  std::unordered_map<SeqId, std::unique_ptr<Sequence>> sequences_;
  std::vector<Sequence*> running_;  // sorted by Earlier
  std::set<Sequence*, Earlier> waiting_;
  std::set<Sequence*, Earlier> parked_;  // paused, not running
  Sequence* layered_ = nullptr;          // a running one, computed layer by layer
  int layers_done_ = 0;                  // of it
  bool layers_last_ = false;             // the last plan was some layers of it
  size_t num_paused_ = 0;                // running ones too
  std::vector<SeqId> retired_;           // to be told to the executor
  std::vector<StepRecord> in_flight_;    // oldest first
  std::vector<StepRecord> spare_records_;
  StepRecord building_;  // the plan under construction
  StepPlan plan_;
  std::vector<SequenceOutput> outputs_;
  uint64_t next_step_ = 1;
  uint64_t next_arrival_ = 0;
  int64_t budget_ = 0;         // tokens left in the plan under construction
  int64_t image_budget_ = 0;   // image tokens left in it
  int64_t reserved_ = 0;       // of them, kept for running sequences that decode and come later
  size_t cursor_ = 0;          // running sequences before it have had their turn
  bool stalled_ = false;       // somebody waits for blocks: nobody less urgent is admitted
  int64_t fenced_blocks_ = 0;  // sum of exclusive_blocks of the steps in flight
  int64_t block_refs_ = 0, slot_refs_ = 0;  // references this scheduler holds
  SchedulerStats stats_;
};

}  // namespace weft
