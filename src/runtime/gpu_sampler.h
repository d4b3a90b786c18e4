#pragma once

#include <span>
#include <vector>

#include "kernels/op_table.h"
#include "runtime/row_sampler.h"
#include "runtime/step_upload.h"

namespace weft {

/// Sampling of a GPU's steps: the device keeps the last token of every running sequence, and the
/// token counts of those with penalties, in slots; the host says what each row of logits is for and
/// reads a few bytes a row back. Token semantics: runtime/sampler.h.
class GpuSampler {
 public:
  /// What one step in flight owns: pinned memory and its twin on the device for what goes up
  /// (specs, lists, masks) and for what comes back (results, alternatives).
  struct Flight {
    Buffer up, up_device, down, down_device;
    int64_t up_used = 0;
    /// The results are written where the host reads them.
    bool results_there = false;
    std::vector<LogitRow> rows;   ///< entry i is result i; without a sequence: padding
    std::vector<int32_t> drafts;  ///< of the sequence whose rows come, up to the last of `rows`
    bool any_top = false;
    /// Grammars that stand behind drafts, for the masks of the rows behind them, and by how many.
    std::vector<std::pair<GrammarMatcher*, int>> ahead;
  };

  /// Error when memory can't be had.
  static Result<GpuSampler> create(const OpTable& ops, const StepLimits& limits,
                                   const DraftRule& rule);
  static Result<Flight> make_flight(const StepLimits& limits);
  /// Device memory of create() and of `flights` flights.
  static int64_t device_bytes(const StepLimits& limits, int64_t flights);

  /// Before the plan is packed: frees the slots of sequences that leave.
  void release(const StepPlan& plan, const PackedStep::Sequences& sequences);
  /// When it is packed and before its upload: gives slots to new sequences, says which rows are fed
  /// from slots, takes note of replayed tokens.
  void admit(Stream& stream, PackedStep& step, Flight& flight);
  /// First thing on the device: the ids of rows that are fed.
  void feed(Stream& stream, const PackedStep& step) const;
  /// Where steps run, and where what they need goes up meanwhile; the same one, too.
  struct Streams {
    Stream& steps;
    Stream& uploads;
  };
  /// What sampling one piece of the step's logit rows is launched with.
  struct Piece {
    SampleArgs args;
    /// Not 0: another piece with this number, at the same place of the step and with logits of the
    /// same rows, has the same arguments.
    int64_t number = 0;
  };
  /// Enqueues the way up of what sample() needs for one more piece: row i of `logits` belongs to
  /// rows[i]; an entry without a sequence is padding. Rows with a grammar need the tokens of the
  /// step before (finish()). Rows of drafts are sampled as if all drafts before them were right,
  /// and penalties count those; what became of them is counted on the device with the next step.
  /// `alone`: the step has no other piece.
  Piece prepare(const Streams& streams, Flight& flight, std::span<const LogitRow> rows,
                TensorView logits, bool alone);
  void sample(Stream& stream, const Piece& piece) const;
  /// What the device knows of the tokens of a step that only decodes, behind its sampling; until
  /// the next accept() on the stream.
  struct Accepted {
    TensorView next_ids;   ///< [rows of the batch] i32, AcceptDraftsArgs
    TensorView counts;     ///< [segments] i32
    TensorView last_rows;  ///< [segments] i32
  };
  /// With speculation: enqueues that. The step's one piece has all rows of the batch.
  void accept(Stream& stream, const StepBatch& batch, const Flight& flight) const;
  Accepted accepted(const StepBatch& batch) const;
  /// Enqueues the way back of all results.
  void fetch(Stream& stream, Flight& flight) const;
  /// Before finish(), where drafts were not known when the step was packed and prepared: what
  /// DraftState has. Rows behind those count for nothing.
  static void set_drafts(PackedStep& step, Flight& flight);
  /// When they have come: tokens and log-probabilities into `result`, histories and grammars; of
  /// the rows of drafts those that count.
  void finish(const PackedStep& step, Flight& flight, StepResult& result);
  /// [slots, V]: what penalties count, see SampleArgs.
  const TensorView& counts() const { return counts_; }
  /// i32: room for drafts behind the last tokens of the slots. Draft i feeds the rows that have
  /// `max_seqs` + i in PackedStep::feed().
  TensorView drafts() const { return last_token_.rows(limits_.max_seqs, last_token_.dim(0)); }

 private:
  GpuSampler(const OpTable& ops, const StepLimits& limits, const DraftRule& rule)
      : ops_(&ops), limits_(limits), rule_(rule) {}
  void give_slot(Stream& stream, ExecutorSequence& sequence, Flight& flight);
  void count_late(Stream& stream, Flight& flight);

  const OpTable* ops_;
  StepLimits limits_;
  DraftRule rule_;
  std::vector<int> free_slots_;
  /// Tokens of steps with drafts that `counts` does not hold yet.
  struct LateTokens {
    int slot = -1;
    std::vector<int32_t> tokens;
  };
  std::vector<LateTokens> late_;
  Buffer slot_buffer_;
  TensorView last_token_;  // [slots and drafts]
  TensorView counts_;      // [slots, V]
  TensorView tokens_;      // [rows that may decode], with speculation
  TensorView next_ids_;    // likewise
  TensorView accepted_;    // [sequences]: accepted drafts and one
  TensorView last_rows_;   // [sequences]
};

}  // namespace weft
