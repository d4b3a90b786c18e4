#pragma once

#include <optional>

#include "models/model.h"
#include "nn/mixer.h"
#include "nn/mlp.h"

namespace weft {

/// x += mixer(norm(x)); x += mlp(norm(x)). The sums are taken by the next norm.
struct DecoderLayer {
  RmsNorm input_norm, post_norm;
  std::unique_ptr<Mixer> mixer;
  Mlp mlp;

  DecoderLayer(const LayerSpec& spec, const MixerOptions& options)
      : mixer(make_mixer(spec.mixer, options)), mlp(spec.mlp) {}
};

/// The one forward of all families: embedding, layers, norm, head; the MTP module beside it.
class Decoder final : public Model {
 public:
  Decoder(const ModelSpec& spec, const LoadOptions& options, const OpTable* ops);

  /// Declares every tensor of the checkpoint.
  void declare(WeightPlan& plan);
  Result<> load(const Checkpoint* checkpoint, Stream& stream);

  const ModelSpec& spec() const override { return spec_; }
  const VisionTower* vision() const override { return takes_images() ? &*vision_ : nullptr; }
  std::span<const CacheSpec> cache_specs() const override { return cache_specs_; }
  int64_t weight_bytes() const override { return weights_.bytes(); }
  int64_t arena_bytes(int64_t rows) const override;
  TensorView hidden(StepContext& context) const override;
  void logits(StepContext& context, TensorView rows, int64_t prompt_rows,
              TensorView out) const override;
  void tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const override;
  void draft_logits(StepContext& context, TensorView rows, TensorView out) const override;
  void draft_tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const override;
  void run_prompt_layers(StepContext& context, const LayeredPrompt& prompt) const override;
  void final_norm(StepContext& context, TensorView rows, TensorView out) const override;
  void replay_states(StepContext& context, const KeptInputs::Rows& rows) const override;
  TensorView mtp_hidden(StepContext& context, TensorView previous) const override;

 private:
  using Layers = std::vector<std::unique_ptr<DecoderLayer>>;  // stay where they are while loading

  struct Mtp {
    RmsNorm embedding_norm, hidden_norm, norm;
    Linear fc;  // [hidden, 2 hidden]: embedding first
    Layers layers;
    std::optional<Linear> head;  // with LoadOptions::draft_head
  };

  void declare_layers(WeightPlan& plan, const Layers& layers, WeightFormat format,
                      const std::string& prefix);
  void declare_mtp(WeightPlan& plan, const TensorPart& head);
  void declare_vision(WeightPlan& plan);
  Result<> load_kv_scales(Stream& stream);
  const Linear& draft_head() const;
  /// Runs `layers` on `residual` (updated) and returns the final norm of the rows that are asked.
  TensorView run_layers(StepContext& context, const Layers& layers, int first_layer,
                        TensorView residual, const RmsNorm& final_norm) const;
  bool narrows(const StepContext& context) const;
  TensorView end_asked(StepContext& context, const DecoderLayer& layer, TensorView residual,
                       TensorView normed, TensorView out, const RmsNorm& final_norm) const;
  void run_layer(StepContext& context, LayerId id, TensorView residual) const;
  void decide(StepContext& context, const LayeredPrompt& prompt, LayerId id) const;
  StepQuery step_query(int64_t rows) const;
  int64_t scratch_bytes(const StepQuery& query) const;
  int64_t num_positions() const {
    return options_.max_model_len > 0 ? options_.max_model_len : spec_.max_positions;
  }
  WeightFormat head_format() const;
  bool drafts_as_prompts(const StepBatch& batch, int64_t rows) const;
  WeightFormat mtp_format() const { return options_.mtp_format.value_or(options_.format); }
  bool head_is_embedding() const;
  bool takes_images() const { return vision_ && options_.images && ops_ && ops_->vision; }
  void add_deepstack(StepContext& context, size_t layer, TensorView residual) const;
  void embed(StepContext& context, TensorView out) const;

  ModelSpec spec_;
  LoadOptions options_;
  const OpTable* ops_;  // null: counting only
  MixerOptions mixer_options_;
  std::vector<CacheSpec> cache_specs_;
  Buffer kv_scale_buffer_;
  std::vector<KvScalePointers> kv_scales_;
  Rope rope_;
  RopeTable rope_table_;
  TensorView embedding_;
  Layers layers_;
  RmsNorm norm_;
  Linear head_;
  std::optional<Mtp> mtp_;
  std::optional<VisionTower> vision_;
  Buffer weights_;
};

}  // namespace weft
