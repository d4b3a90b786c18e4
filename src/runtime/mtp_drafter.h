#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "device/buffer.h"
#include "models/model.h"
#include "runtime/draft_state.h"
#include "runtime/sampler.h"

namespace weft {

/// Drafts of the checkpoint's multi-token prediction module, on the CPU. The module has key-value
/// layers of its own in the same blocks: its entry at position p is made of the hidden state of
/// token p and of token p + 1. follow() writes them for every row of a step when its tokens are
/// known; propose() goes on from there with drafts in the place of tokens, whose entries the next
/// follow() writes over. Nothing here touches what the model itself reads.
class MtpDrafter final : public DraftModule {
 public:
  /// `model` (which has the module), `kv`, `stream` and `ops` must outlive it.
  static Result<MtpDrafter> create(const Model& model, KvStore& kv, Stream& stream,
                                   const OpTable& ops, const StepLimits& limits);
  static int64_t bytes(const StepLimits& limits, int64_t hidden_size, int num_threads);

  /// First, for every step: whether follow() goes over it.
  void begin(const StepPlan& plan, PackedStep::Sequences& sequences, bool follows) {
    follows_ = follows;
    seen_.begin(plan, sequences, follows);
  }
  bool follows() const { return follows_; }
  /// Of this thread, that follow() and catch_up() took since the last call.
  double take_seconds() { return std::exchange(seconds_, 0.0); }

  /// `hidden` [T, hidden] are the rows of the step that `context` runs, `result` its tokens. Of
  /// prompts the module's keys and values are computed alone.
  void follow(StepContext& context, PackedStep& step, TensorView hidden, const StepResult& result);

  /// While nobody drafts, follow() only takes note of the rows of steps that decode: a pass of the
  /// module over many rows costs little more than one over few.
  void put_off(bool put_off) override { put_off_ = put_off; }
  /// Makes up for it.
  void catch_up(Arena& arena, std::span<const LateRows> rows) override;

  /// Up to `wanted` drafts a row; none for a sequence that follow() has not seen to its end.
  void propose(Arena& arena, std::span<DraftRow> rows) override;

 private:
  struct Parts {
    const Model& model;
    KvStore& kv;
    Stream& stream;
    const OpTable& ops;
  };
  /// Its arrays; with a null base only measured.
  struct Layout {
    int32_t *next_ids, *ids, *index, *delta, *cu_q, *kv_start, *block_table;
    float *previous, *logits;
    int64_t* kv_slot;
    int64_t bytes;
  };
  static Layout layout(std::byte* base, const StepLimits& limits, int64_t hidden_size);
  MtpDrafter(const Parts& parts, const StepLimits& limits);
  bool take_note(const PackedStep& step, TensorView hidden, const StepResult& result);
  void take_last_row(const ResultRow& row, TensorView hidden, const std::vector<int32_t>& tokens);
  void take_last_rows(const PackedStep& step, TensorView hidden, const StepResult& result);
  void catch_up_at_once(Arena& arena, std::span<const LateRows> rows);
  int64_t set_block_table(int64_t segment, const DraftState& state,
                          std::span<const BlockId> blocks);
  void set_batch(int64_t rows, int64_t segments);
  void make_batch(std::span<DraftRow* const> rows, int step);
  void sample(std::span<DraftRow* const> rows, int step);

  Parts parts_;
  StepLimits limits_;
  Buffer buffer_;
  TensorView next_ids_;  // [all_rows]
  TensorView previous_;  // [R or late rows, hidden]
  TensorView logits_;    // [R, V]
  Layout at_{};          // in buffer_
  bool put_off_ = false, follows_ = true;
  double seconds_ = 0;
  SeenBlocks seen_;
  StepBatch batch_;
  Sampler sampler_;
  NextTokens next_tokens_;
  std::vector<DraftRow*> order_;
  std::vector<DraftRow*> sampled_rows_;
  std::vector<SampleRow> sample_rows_;
  std::vector<SampledToken> sampled_;
};

}  // namespace weft
