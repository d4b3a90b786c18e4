#pragma once

#include <memory>
#include <optional>
#include <vector>

#include "kernels/sample_args.h"
#include "models/model.h"
#include "runtime/draft_state.h"
#include "runtime/gpu_graphs.h"
#include "runtime/gpu_late_rows.h"
#include "runtime/gpu_sampler.h"
#include "runtime/sample_lists.h"

namespace weft {

/// MtpDrafter on a GPU: the same module, keys, positions and random numbers. Drafts of all
/// sequences and steps are enqueued at once, each step's tokens going to the next on the device;
/// the host waits once, for all of them, and may do so when the step that verifies them, fed with
/// them on the device, is enqueued too. A grammar cuts them afterwards, so that they are drawn
/// without its mask.
///
/// The module's outputs are kept for one step: a sequence that was not in the step before gets no
/// drafts this time.
class GpuMtpDrafter final : public DraftModule {
 public:
  using Parts = GpuLateRows::Parts;
  struct Shared {
    TensorView logits;  ///< [rows, V] f32, which nobody needs between steps
    TensorView counts;  ///< of GpuSampler
    TensorView drafts;  ///< likewise
  };
  /// `parts` and `shared` must outlive it.
  static Result<std::unique_ptr<GpuMtpDrafter>> create(const Parts& parts, const StepLimits& limits,
                                                       const SpeculationConfig& config,
                                                       const Shared& shared, bool graphs);
  static int64_t device_bytes(const StepLimits& limits, const SpeculationConfig& config,
                              int64_t hidden_size);

  /// First, for every step: whether one of the following goes over it.
  void begin(const StepPlan& plan, PackedStep::Sequences& sequences, bool follows) {
    seen_.begin(plan, sequences, follows);
  }
  /// Where the hidden states of a step's rows have to be when it is followed.
  TensorView hidden(int64_t rows) const { return hidden_.rows(0, rows); }

  /// Enqueues the module behind the step, whose tokens are known: entries of all its rows.
  void follow(Arena& arena, PackedStep& step, const StepResult& result);
  /// Likewise behind a step that only decodes and has no next_tokens(), with what the device knows
  /// of its tokens. `shape`: everything that its launches depend on. Gives what followed() takes
  /// when the host knows them, too.
  uint64_t follow_ahead(Arena& arena, const PackedStep& step, const GpuSampler::Accepted& accepted,
                        const GpuGraphs::Key& shape);
  void followed(const PackedStep& step, const StepResult& result, uint64_t number) const;
  /// Instead of follow(), for a step without drafts that only decodes, while nobody drafts and
  /// there is room: the first enqueues what has to be kept of it, behind its forward, and gives
  /// what the second takes when its tokens are known.
  bool can_put_aside() const { return put_off_ && !late_.full(); }
  int32_t put_aside(int64_t rows) { return late_.put_aside(hidden(rows)); }
  void note(const PackedStep& step, const StepResult& result, int32_t place) const {
    late_.note(step, result, place);
  }

  void put_off(bool put_off) override { put_off_ = put_off; }
  bool must_catch_up(bool) const override { return late_.full(); }
  void catch_up(Arena& arena, std::span<const LateRows> rows) override;
  void propose(Arena& arena, std::span<DraftRow> rows) override;
  void take() override;
  /// Between those two, for the step of the same rows: that its drafts are fed on the device.
  void feed(PackedStep& step) const;

  int64_t num_graph_launches() const { return num_graph_launches_; }
  int64_t num_new_graphs() const { return graphs_.num_new() + follow_graphs_.num_new(); }

 private:
  /// What goes up for drafts of `rows` rows and `steps` steps; with a null base only measured.
  struct Layout {
    int32_t *gather, *delta, *cu_q, *index;
    BlockTable block_table;
    int64_t* kv_slot;
    SampleSpec* specs;
    TokenBias* biases;
    int32_t* ids;
    int64_t bytes;
  };
  static Layout layout(std::byte* base, int64_t rows, int64_t steps, int64_t table_width);
  GpuMtpDrafter(const Parts& parts, const StepLimits& limits, const SpeculationConfig& config,
                bool graphs, GpuLateRows late);
  static int64_t up_bytes(const StepLimits& limits, const SpeculationConfig& config);
  Result<> allocate(const SpeculationConfig& config, int64_t hidden_size);
  void set_row(Layout& to, int64_t row, int64_t rows, int64_t steps);
  void set_padding(Layout& to, int64_t row, int64_t rows, int64_t steps) const;
  bool add_draw(const SamplingParams& params, SampleSpec& spec);
  bool knows(const DraftRow& row) const;
  void note_kept(ExecutorSequence& sequence, int64_t row, uint64_t number) const;
  void run_behind(Arena& arena, const StepBatch& batch, TensorView kept_rows);
  void run(Arena& arena, int64_t rows, int64_t steps, bool greedy);
  void take_row(DraftRow& row, int64_t at) const;

  Parts parts_;
  StepLimits limits_;
  int64_t most_rows_, most_steps_, table_width_;
  GpuGraphs graphs_, follow_graphs_;
  GpuEvent done_;
  Buffer up_, up_device_;                // of propose()
  Buffer follow_up_, follow_up_device_;  // next ids [all rows], kept rows [sequences]
  Buffer device_;
  Buffer down_;
  TensorView hidden_;    // [all rows, hidden]
  TensorView kept_;      // [2 sequences, hidden]: the module's outputs behind the last step
  TensorView previous_;  // [rows, hidden]
  TensorView drafts_;    // [steps x rows] i32: those of a step behind those of the one before
  TensorView logits_;    // [rows, V]
  TensorView counts_;
  SampleResult* results_ = nullptr;  // [steps, rows] on the device
  int64_t num_kept_ = 0;             // of kept_
  uint64_t num_followed_ = 0;
  SeenBlocks seen_;
  GpuLateRows late_;
  bool put_off_ = false;
  int64_t num_graph_launches_ = 0;
  NextTokens next_tokens_;
  std::vector<DraftRow*> order_;
  int64_t padded_ = 0;             // rows of a step of drafts_ and results_
  std::vector<SampleSpec> specs_;  // of order_
  SampleLists lists_;              // of specs_
};

}  // namespace weft
