#pragma once

#include <array>
#include <memory>
#include <optional>

#include "device/gpu.h"
#include "models/model.h"
#include "runtime/gpu_graphs.h"
#include "runtime/gpu_mtp_drafter.h"
#include "runtime/gpu_ngrams.h"
#include "runtime/gpu_sampler.h"
#include "runtime/speculator.h"
#include "runtime/vision_encoder.h"
#include "sched/executor.h"

namespace weft {

struct GpuExecutorOptions {
  bool graphs = true;             ///< decode steps are captured once a batch size and replayed
  SpeculationConfig speculation;  ///< with recurrent layers its limits and the cache have kept_rows
};

/// Runs steps of one model on a GPU: launch() packs and enqueues on the calling thread and returns;
/// collect() waits for the oldest step. At most two steps in flight: the tokens of a step are fed
/// to the next on the device. Only a step with a grammar waits in launch() for the tokens of the
/// step before, after its forward was enqueued; and with speculation a step waits, before it is
/// packed, where somebody drafts in it or in the one before. The module's drafts too are fed on the
/// device where nothing but the ids of rows depends on them: launch() waits for those behind
/// enqueuing the step. All memory is taken by create().
///
/// A step of one token each for some sequences, and drafts behind them, is padded to one of a few
/// shapes, and its forward is a graph from the second time on: the padding changes no bit of a real
/// row (docs/architecture.md, rule 1). So are the drafts of the MTP module, and its pass behind
/// such a step.
class GpuExecutor : public Executor {
 public:
  /// `model`, `kv`, `stream` and `ops` must outlive it. Error when memory can't be had.
  static Result<std::unique_ptr<GpuExecutor>> create(const Model& model, KvStore& kv,
                                                     Stream& stream, const OpTable& ops,
                                                     const StepLimits& limits,
                                                     const GpuExecutorOptions& options);
  ~GpuExecutor() override;

  /// For tests, with speculation and before the first launch.
  void set_guess(Speculator::Guess guess) { speculator_->set_guess(std::move(guess)); }
  /// Likewise.
  void set_whim(Speculator::Whim whim) { speculator_->set_whim(std::move(whim)); }

  void launch(const StepPlan& plan) override;
  StepResult collect() override;

  /// Error where a step could have more decode segments than the kernels take: one a sequence, and
  /// more where generated tokens are computed again.
  static Result<> check_limits(const StepLimits& limits);
  /// Device memory that create() takes, but for the model's arena.
  static int64_t device_bytes(const StepLimits& limits, int64_t hidden_size,
                              const SpeculationConfig& speculation = {});

 private:
  static constexpr size_t kStepsInFlight = 2;
  using Parts = GpuMtpDrafter::Parts;
  struct Flight {
    size_t index = 0;
    PackedStep step;
    GpuSampler::Flight sampling;
    GpuEvent uploaded;  // what the step needs is on the device
    GpuEvent done;      // the results have come back
    StepResult result;
    PaddedShape shape;                       // of a step that only decodes
    std::optional<GpuSampler::Piece> piece;  // of such a step without grammars: all its rows
    uint64_t number = 0;                     // of the launches
    bool begun = false;                      // its time runs since its drafts
    bool pending = false;                    // its tokens are not known yet
    bool ngrams = false;                     // somebody may draft: texts on the device go on
    bool settles = false;                    // where the next step begins is known when they are
    Buffer plans;                            // pinned: PlanCounters of all steps up to this one
    bool has_plans = false;
    bool continues = false;     // the step before was not done when it was launched
    bool follows = false;       // the MTP module goes over it
    bool module_reads = false;  // or did so with the last step of this flight
    int32_t aside = -1;         // where its hidden states wait for the MTP module; -1: nowhere
    uint64_t followed = 0;      // the module's pass, enqueued right behind the step; 0: none
  };
  /// When the kernels of a step began and ended; kept until the step after next is collected.
  struct Times {
    GpuEvent begin, forward, end;
  };
  GpuExecutor(const Parts& parts, const StepLimits& limits, const GpuExecutorOptions& options,
              GpuSampler sampler, GpuStream uploads);

  const StepPlan& resolved(const StepPlan& plan, Flight& flight);
  void finish_for_drafts(Flight& before, Flight& flight);
  PaddedShape decode_shape(const StepPlan& plan) const;
  GpuGraphs::Key key(const Flight& flight) const;
  Stream& uploads(const Flight& flight) { return flight.module_reads ? parts_.stream : uploads_; }
  void upload(Flight& flight);
  int64_t num_new_graphs() const;
  void run_decode(Flight& flight);
  void run_mixed(Flight& flight);
  void run_layers(Flight& flight);
  void forward_decode(const Flight& flight, const GpuSampler::Piece* sampled);
  void keep(const Flight& flight, const TensorView& hidden);
  void accept(const Flight& flight);
  void sample(Flight& flight, std::span<const LogitRow> rows);
  void follow_ahead(Flight& flight);
  void settle(Flight& flight);
  void finish(Flight& flight);
  double module_seconds(const Flight& flight);
  Times& times(uint64_t step) { return times_[step % times_.size()]; }

  Parts parts_;
  StepLimits limits_;
  GpuExecutorOptions options_;
  GpuSampler sampler_;
  GpuStream upload_stream_;
  Stream uploads_;
  std::optional<VisionEncoder> vision_;
  std::array<std::optional<Flight>, kStepsInFlight> flights_;  // step i of the launches is in i % 2
  std::vector<Times> times_;                                   // of step i in i % size
  uint64_t num_launched_ = 0, num_collected_ = 0;
  int64_t num_old_graphs_ = 0;  // but for those of passes behind the last step
  PackedStep::Sequences sequences_;
  std::optional<Speculator> speculator_;
  OwnedPlan plan_;                       // with speculation: of the step that is packed
  std::unique_ptr<KeptRows> kept_rows_;  // with speculation and recurrent layers
  Arena arena_;
  Buffer logit_buffer_;
  TensorView gathered_;  // [logit rows, hidden]
  TensorView logits_;    // [logit rows, V]
  Buffer residual_buffer_;
  TensorView residual_;       // [layered rows, hidden] f32 of the prompt computed layer by layer
  TensorView residual_rows_;  // [logit rows, hidden] f32
  PlanSink plans_;            // of models with sparse prompts
  Buffer plan_buffer_;        // its PlanCounters on the device
  PlanCounters counted_;      // of the steps that are finished
  std::vector<LogitRow> padded_;  // the rows of a decode step by their place in the batch
  GpuGraphs graphs_;              // of each flight: their batches lie in different memory
  std::unique_ptr<GpuMtpDrafter> mtp_;
  // What the device waits before steps that the module does not follow: prompts too, decodes.
  std::array<double, 2> plain_waits_{};
  std::unique_ptr<GpuNgrams> ngrams_;
};

}  // namespace weft
