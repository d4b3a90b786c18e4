#pragma once

#include "nn/mixer.h"

namespace weft {

/// Gated delta rule: projections to [q | k | v | z] and [b | a], convolution and delta rule with
/// the recurrent state of the sequence's slot, gated norm, output projection. No positions.
class GdnMixer final : public Mixer {
 public:
  GdnMixer(const GdnSpec& spec, const MixerOptions& options) : spec_(spec), options_(options) {}
  CacheSpec cache_spec() const override { return StateSpec{spec_.shape, options_.state_dtype}; }
  void declare(WeightPlan& plan, const std::string& prefix) override;
  int64_t arena_bytes(const StepQuery& query) const override;
  int64_t scratch_bytes(const StepQuery& query) const override;
  void forward(StepContext& context, LayerId layer, const RmsNormArgs& norm,
               TensorView residual) const override;
  void replay(StepContext& context, LayerId layer, const KeptInputs::Rows& rows) const override;

 private:
  int64_t key_width() const { return int64_t{spec_.shape.key_heads} * spec_.shape.key_dim; }
  int64_t value_width() const { return int64_t{spec_.shape.value_heads} * spec_.shape.value_dim; }
  int64_t channels() const { return 2 * key_width() + value_width(); }
  GdnArgs args(const StepContext& context, LayerId layer, TensorView qkv, TensorView ba) const;
  void declare_grouped(WeightPlan& plan, const std::string& prefix);

  GdnSpec spec_;
  MixerOptions options_;
  Linear qkvz_, ba_, out_;
  TensorView conv_, a_log_, dt_bias_;
  RmsNorm norm_;
};

}  // namespace weft
