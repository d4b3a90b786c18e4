#pragma once

#include <span>

#include "device/gpu.h"
#include "models/model.h"
#include "runtime/draft_state.h"

namespace weft {

/// Rows of steps without drafts that the MTP module of a GPU has not gone over: while nobody drafts
/// their hidden states are put aside, one step after the other, and the module goes over many at
/// once. What is not made up for before the room is used again, because its sequence had no turn,
/// the module never sees: its drafts for that sequence are worse then, and no answer is another.
class GpuLateRows {
 public:
  /// Everything that a pass over them needs; must outlive it.
  struct Parts {
    const Model& model;
    KvStore& kv;
    Stream& stream;
    const OpTable& ops;
  };
  static Result<GpuLateRows> create(const Parts& parts, const StepLimits& limits);
  static int64_t device_bytes(const StepLimits& limits, int64_t hidden_size);

  /// No more steps can be put aside.
  bool full() const { return num_steps_ == most_steps_; }
  /// Enqueues the copy of a step's hidden states [rows, hidden]; the place of its first row.
  int32_t put_aside(TensorView hidden);
  /// When its tokens are known; one a row that has a result, and no drafts.
  void note(const PackedStep& step, const StepResult& result, int32_t place) const;
  /// Some of the sequence's rows are put aside.
  bool has(const DraftState& state) const {
    return !state.late_rows.empty() && state.late_round == round_;
  }

  /// Where the module's output behind a sequence's last row goes.
  struct Kept {
    TensorView rows;    ///< [n, hidden]
    int64_t used = 0;   ///< of them
    uint64_t step = 0;  ///< DraftState::hidden_step of those
  };
  /// The module's pass over all rows of these sequences; `work` [all rows, hidden] is free. Then
  /// there is room again.
  void catch_up(Arena& arena, std::span<const LateRows> sequences, TensorView work, Kept& kept);

 private:
  /// What goes up for a pass; with a null base only measured.
  struct Layout {
    int32_t *ids, *gather, *index, *delta, *cu_q, *kv_start, *last;
    BlockTable block_table;
    int64_t* kv_slot;
    int64_t bytes;
  };
  static Layout layout(std::byte* base, const StepLimits& limits);
  GpuLateRows(const Parts& parts, const StepLimits& limits);
  void add_segment(const LateRows& late, std::span<const DraftState::LateRow> rows);
  void run(Arena& arena, TensorView work, Kept& kept);

  Parts parts_;
  StepLimits limits_;
  int64_t most_steps_, num_steps_ = 0;
  uint64_t round_ = 1;
  Buffer aside_buffer_, up_, up_device_;
  TensorView aside_;  // [steps * sequences, hidden]
  GpuEvent went_up_;
  // Of the pass that is put together.
  Layout host_{};
  int64_t num_rows_ = 0, num_segments_ = 0, num_last_ = 0, longest_ = 0;
};

}  // namespace weft
