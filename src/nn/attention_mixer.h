#pragma once

#include <optional>

#include "nn/head_planner.h"

namespace weft {

/// Softmax attention: one fused projection [q (and gate) | k | v], per-head norms and rope, paged K
/// and V, optional output gate, output projection.
class AttentionMixer final : public Mixer {
 public:
  AttentionMixer(const AttentionSpec& spec, const MixerOptions& options)
      : spec_(spec), options_(options) {
    if (spec_.sparse) planner_.emplace(spec_, options_);
  }
  CacheSpec cache_spec() const override;
  void declare(WeightPlan& plan, const std::string& prefix) override;
  int64_t arena_bytes(const StepQuery& query) const override;
  int64_t scratch_bytes(const StepQuery& query) const override;
  Result<> prepare(Stream& stream, DeviceKind device) override;
  void decide(StepContext& context, LayerId layer, TensorView x) const override;
  void forward(StepContext& context, LayerId layer, const RmsNormArgs& norm,
               TensorView residual) const override;

 private:
  int64_t q_width() const;  ///< columns of the projection before k
  int64_t kv_width() const { return int64_t{spec_.kv_heads} * spec_.head_dim; }

  AttentionSpec spec_;
  MixerOptions options_;
  Linear qkv_, out_;
  RmsNorm q_norm_, k_norm_;
  std::optional<HeadPlanner> planner_;
};

}  // namespace weft
