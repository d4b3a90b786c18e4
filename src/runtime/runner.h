#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>

#include "device/buffer.h"
#include "models/model.h"
#include "runtime/mtp_drafter.h"
#include "runtime/row_sampler.h"
#include "runtime/vision_encoder.h"

namespace weft {

/// Rows of logits that are alive at once, [kLogitRows, V]: a step that needs more (many sequences,
/// prompt logprobs) computes them in pieces, which changes no bit of them.
inline constexpr int64_t kLogitRows = 64;

/// Runs packed steps on the CPU: layers, logits of the rows that need them, sampling.
/// All memory is taken by create(); a step allocates nothing but its results.
class Runner {
 public:
  /// `model`, `kv`, `stream` and `ops` must outlive it. Makes the memory of all of them resident.
  static Result<Runner> create(const Model& model, KvStore& kv, Stream& stream, const OpTable& ops,
                               const StepLimits& limits, const SpeculationConfig& speculation = {});

  /// Bytes of the logits and of the sampler's working memory for `num_threads` threads.
  static int64_t logit_bytes(const StepLimits& limits, int64_t hidden_size, int num_threads);

  /// Rows of `result` are those of the step, in order.
  void run(PackedStep& step, StepResult& result);

  /// What plans of heads do from now on is written there; null: nowhere.
  void set_record(PlanRecord* record) { record_ = record; }

  const Arena& arena() const { return arena_; }
  Arena& arena() { return arena_; }
  /// Null without recurrent layers or without speculation.
  const StateSlotMap* state_slots() const { return state_slots_.get(); }
  /// Null unless MTP drafts are wanted.
  MtpDrafter* mtp() { return mtp_ ? &*mtp_ : nullptr; }
  /// Where PackedStep finds the features of images; undefined without a vision tower.
  TensorView image_features() const { return vision_ ? vision_->features() : TensorView(); }

 private:
  struct Parts {
    const Model& model;
    KvStore& kv;
    Stream& stream;
    const OpTable& ops;
  };
  TensorView run_layers(PackedStep& step, StepContext& context);
  void sample(PackedStep& step, StepContext& context, const TensorView& hidden, StepResult& result);
  Runner(const Parts& parts, const StepLimits& limits, const SpeculationConfig& speculation);
  Result<void> allocate_kept(const StepLimits& limits);
  void keep_inputs(const PackedStep& step);
  void keep_states(const PackedStep& step, StepContext& context, const StepResult& result);

  Parts parts_;
  Arena arena_;
  Buffer logit_buffer_;
  TensorView gathered_;  // [kLogitRows, hidden]
  TensorView logits_;    // [kLogitRows, V]
  Buffer residual_buffer_;
  TensorView residual_;  // [layered rows, hidden] of the prompt that is computed layer by layer
  RowSampler sampler_;
  std::optional<VisionEncoder> vision_;
  PlanRecord* record_ = nullptr;
  std::unique_ptr<StateSlotMap> state_slots_;
  Buffer kept_buffer_;
  KeptInputs kept_;
  std::array<int32_t, 4> replay_ = {};  // cu_q and the two slots of a replayed segment
  std::optional<MtpDrafter> mtp_;
};

}  // namespace weft
