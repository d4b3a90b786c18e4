#pragma once

#include <span>
#include <vector>

#include "kernels/op_table.h"
#include "kv/store.h"
#include "nn/plan_record.h"

namespace weft {

/// Rows of a step that are image tokens: row + i has the features of pool row rows[first + i].
struct ImageRun {
  int64_t row = 0, count = 0, first = 0;
};

/// The image tokens of a step.
struct ImageRows {
  TensorView features;  ///< [pool rows, feature_width] of the activation type (VisionTower)
  TensorView rows;      ///< [image tokens of the step] i32
  std::span<const ImageRun> runs;  ///< on the host
};

/// One step on the device. Rows of prompt slices come first, then rows of decode slices; one
/// segment a slice, segments of one sequence in order.
struct StepBatch {
  TensorView ids;  ///< [T] i32
  RopePositions positions;
  TensorView kv_slot;  ///< [T] i64: where each row's K and V go; undefined without paged layers
  SeqMap seqs;
  TensorView read_slot;    ///< [S] i32, as in GdnArgs; undefined without recurrent layers
  TensorView write_slot;   ///< [S] i32
  bool kept_rows = false;  ///< a segment keeps rows, or some come first (kernels/gdn_slots.h)
  TensorView chains;       ///< [chains + 1] i32, see GdnArgs
  int num_chains = 0, num_prompt_chains = 0;
  ImageRows images;
  int64_t prompt_rows = 0;
  int num_prompt_segments = 0;
  /// Of the prompt segments the first ones: whole decision windows, whose routers decide now what
  /// their heads see.
  int num_deciding = 0;
  /// Of the prompt segments, on the host: 1 where heads see all keys, because the prompt is short.
  /// Empty: 0.
  std::span<const int32_t> sees_all;
  int max_decode_len = 1;  ///< rows of the longest decode segment, at most
  int64_t num_rows() const { return ids.dim(0); }
};

/// Inputs of recurrent layers that are kept beyond their step on the CPU: where fewer of its drafts
/// were right, the layer goes through the right ones again, from the state before.
struct KeptInputs {
  struct Rows {
    int64_t first = 0, count = 0;  ///< in the batch
  };
  std::vector<Rows> rows;          ///< kept one behind the other, in this order
  std::vector<TensorView> layers;  ///< by layer: [kept rows, kept_width()] f32
};

/// Rows of a step whose hidden states are wanted: those of prompts first, ascending (but for
/// padding).
struct AskedRows {
  TensorView rows;          ///< [R] i32
  int64_t prompt_rows = 0;  ///< of them, rows of prompts
  /// Those before this one need nothing of the last layer but what it writes to its cache. It
  /// begins a block of HeadPlan, or a segment.
  int64_t first_row = 0;
  SeqMap seqs = {};  ///< of the rows from there on, counted from it, if it is not 0
};

/// What a layer may use while it runs: an argument, never a global.
struct StepContext {
  Stream& stream;
  const OpTable& ops;
  Arena& arena;  ///< temporaries of this step
  const StepBatch& batch;
  const KvStore& kv;
  PlanSink* plans = nullptr;         ///< told what plans of heads do; null: nobody asks
  const KeptInputs* kept = nullptr;  ///< what has to be kept of this step; null: nothing
  const AskedRows* asked = nullptr;  ///< null: all rows
  bool last = false;  ///< of this layer only what it caches and the rows of `asked` are wanted
};

}  // namespace weft
