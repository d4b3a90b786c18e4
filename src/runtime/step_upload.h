#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "device/buffer.h"
#include "grammar/grammar.h"
#include "nn/step.h"
#include "runtime/token_history.h"
#include "sched/plan.h"

namespace weft {

/// Bounds of every step of an executor. Memory is planned with them and every plan is checked
/// against them.
struct StepLimits {
  int64_t max_rows = 0;       ///< tokens of one step
  int64_t max_seqs = 0;       ///< sequences of one step
  int64_t max_model_len = 0;  ///< positions: also the length of the rope table
  int64_t vocab_size = 0;
  int block_size = 64;
  int64_t num_blocks = 0;
  int64_t num_slots = 0;
  bool paged = true;       ///< the model has paged layers
  bool recurrent = false;  ///< the model has recurrent layers

  /// Slices of one step: a sequence's slices are cut at multiples of kChunk and where its prompt
  /// ends.
  int64_t max_segments() const;
  int64_t max_blocks_per_seq() const { return (max_model_len + block_size - 1) / block_size; }
};

/// What an executor knows of one sequence. Made and forgotten by the launching thread; `history`
/// and `failed` belong to the thread that runs the steps.
struct ExecutorSequence {
  ExecutorSequence(std::shared_ptr<const Request> r, const StepLimits& limits);

  std::shared_ptr<const Request> request;
  TokenHistory history;
  std::unique_ptr<GrammarMatcher> grammar;  ///< of a constrained request; the running thread's
  bool failed = false;  ///< its last sample was a numeric error: there is no token to go on from
};

/// A row of the step whose logits are needed: to sample, or for a prompt logprob.
struct LogitRow {
  int64_t row = 0;        ///< in the batch
  int result = 0;         ///< index into StepResult::rows
  int prompt_entry = -1;  ///< entry of SampledRow::prompt_logprobs; -1: sample
  int32_t target = -1;    ///< the prompt token whose logprob is asked
  int64_t position = 0;   ///< of the token that follows this row
  ExecutorSequence* sequence = nullptr;
};

/// Generated tokens that a slice feeds back, in order.
struct FedTokens {
  ExecutorSequence* sequence = nullptr;
  int64_t row = 0;  ///< in the batch, of the first one
  int64_t count = 0;
  int64_t generated = 0;     ///< index of the first one among the generated tokens
  bool from_device = false;  ///< kDeviceToken: the executor fills it in
};

/// One row of the result, before it is computed.
struct ResultRow {
  SeqId seq;
  ExecutorSequence* sequence = nullptr;
  bool logprobs = false;        ///< of the sampled token
  int num_prompt_logprobs = 0;  ///< entries
};

/// A StepPlan in the form the device takes: prompt slices first, then decode slices, each in plan
/// order. Owns its memory, which is taken once.
class PackedStep {
 public:
  static Result<PackedStep> create(const StepLimits& limits);
  static int64_t bytes(const StepLimits& limits);

  using Sequences = std::unordered_map<SeqId, std::unique_ptr<ExecutorSequence>>;

  /// Packs `plan`, admitting to and retiring from `sequences`. Everything is checked against the
  /// limits and the requests; a violation is a bug of the scheduler (Panic).
  void pack(const StepPlan& plan, Sequences& sequences);

  const StepBatch& batch() const { return batch_; }
  uint64_t step() const { return step_; }
  std::span<const FedTokens> fed_tokens() const { return fed_; }
  /// Prompt rows first, then decode rows, in batch order.
  std::span<const LogitRow> logit_rows() const { return logit_rows_; }
  int64_t num_prompt_logit_rows() const { return num_prompt_logit_rows_; }
  std::span<const ResultRow> results() const { return results_; }
  std::span<const BlockCopy> copies() const { return copies_; }
  int32_t* ids() { return ids_; }
  /// Destroys what the step retired; call it when the step and all before it are done.
  void forget_retired() { retired_.clear(); }

 private:
  void check_slice(const Slice& slice, const ExecutorSequence& sequence) const;
  void add_slice(const Slice& slice, ExecutorSequence& sequence, int result);
  void add_tokens(const Slice& slice, ExecutorSequence& sequence, int64_t row);
  void add_logit_rows(const Slice& slice, ExecutorSequence& sequence, int64_t row, int result);

  StepLimits limits_;
  Buffer buffer_;
  int32_t* ids_ = nullptr;
  int32_t* positions_ = nullptr;
  int64_t* kv_slot_ = nullptr;
  int32_t* cu_q_ = nullptr;
  int32_t* kv_start_ = nullptr;
  int32_t* read_slot_ = nullptr;
  int32_t* write_slot_ = nullptr;
  int32_t* block_table_ = nullptr;

  uint64_t step_ = 0;
  StepBatch batch_;
  int64_t table_width_ = 0;  // blocks a row of block_table in this step
  std::vector<FedTokens> fed_;
  std::vector<LogitRow> logit_rows_;
  int64_t num_prompt_logit_rows_ = 0;
  std::vector<ResultRow> results_;
  std::vector<BlockCopy> copies_;
  std::vector<std::unique_ptr<ExecutorSequence>> retired_;
};

}  // namespace weft
