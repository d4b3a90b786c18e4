#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "models/kv_scales.h"
#include "models/spec.h"
#include "nn/step.h"
#include "nn/vision_tower.h"
#include "nn/weights.h"

namespace weft {

struct LoadOptions {
  WeightFormat format = WeightFormat::kBf16;  ///< of the linear layers (head included)
  KvFormat kv_format = KvFormat::kBf16;
  DType state_dtype = DType::kF32;  ///< of recurrent states; or kBF16
  /// Scales of a static kv_format: what --kv-scales or the checkpoint gives (kv_scales.h). Empty
  /// for other formats.
  KvLayers kv_scales;
  int block_size = 64;
  int64_t max_model_len = 0;          ///< rows of the rope table; 0: the model's own length
  int64_t max_num_seqs = 64;          ///< sequences of a step
  int num_threads = 0;                ///< of the pools that will run it; 0: usable_cpus()
  bool images = false;                ///< load the vision tower, where the model has one
  int64_t max_image_patches = 16384;  ///< of one pass of the tower
  /// A copy of the head in int4 for the logits of drafts, where the head is wider than that: what a
  /// draft is decides no bit of an answer.
  bool draft_head = false;
  /// Format of the linear layers of the MTP module; none: `format`.
  std::optional<WeightFormat> mtp_format;
  bool dummy_weights = false;  ///< seeded random weights instead of the checkpoint's
  LoadProgress progress;       ///< may be empty
};

/// What a model takes, before it is loaded.
struct ModelFootprint {
  int64_t parameters = 0;
  int64_t weight_bytes = 0;
  std::vector<CacheSpec> cache_specs;  ///< as Model::cache_specs()
  int64_t rope_bytes_per_position = 0;
  std::function<int64_t(int64_t rows)> arena_bytes;  ///< as Model::arena_bytes()
  std::shared_ptr<const VisionTower> vision;         ///< without weights; null: no images
};
/// `checkpoint` may be null: the weights are as the configuration says, in bf16.
ModelFootprint measure_model(const ModelSpec& spec, const LoadOptions& options, const OpTable& ops,
                             const Checkpoint* checkpoint = nullptr);

/// Some layers of one prompt that is computed layer by layer, because what its heads see of a layer
/// depends on all of its rows there. `residual` carries it from one call to the next.
struct LayeredPrompt {
  std::span<const StepBatch> pieces;  ///< its rows in order: batches of one prompt segment
  /// The segment that decides: the first and the last rows of the prompt, as many as a router
  /// pools, one behind the other (all rows of a short one).
  const StepBatch* ends = nullptr;
  int64_t num_ends = 0;                 ///< rows of it
  TensorView residual;                  ///< [rows of all pieces, hidden] f32
  int first_layer = 0, last_layer = 0;  ///< layers [first, last)
};

/// A decoder with its weights, for one device. Immutable after load(); a step's state is all in the
/// StepContext. Virtual only so that tests of the runtime can put a toy in its place.
class Model {
 public:
  /// Reads, checks and packs every tensor the spec names. `checkpoint` may be null with
  /// dummy_weights. Missing, extra and misshapen tensors are an Error that names them.
  static Result<std::unique_ptr<Model>> load(const ModelSpec& spec, const Checkpoint* checkpoint,
                                             const LoadOptions& options, Stream& stream,
                                             const OpTable& ops);
  virtual ~Model() = default;

  virtual const ModelSpec& spec() const = 0;
  /// One entry a layer: the decoder layers, then those of the MTP module.
  virtual std::span<const CacheSpec> cache_specs() const = 0;
  virtual int64_t weight_bytes() const = 0;
  /// Upper bound of StepContext::arena for a step of `rows` rows and of Stream::scratch.
  virtual int64_t arena_bytes(int64_t rows) const = 0;

  /// The vision tower; null: the model takes no images.
  virtual const VisionTower* vision() const { return nullptr; }

  /// Runs the layers; returns the asked rows after the final norm, [R, hidden] (or all, [T,
  /// hidden]), in the context's arena. Of rows that are not asked the last layer computes what its
  /// cache takes.
  virtual TensorView hidden(StepContext& context) const = 0;
  /// out [R, V] f32 = head(rows [R, hidden]); the first `prompt_rows` use prompt arithmetic.
  virtual void logits(StepContext& context, TensorView rows, int64_t prompt_rows,
                      TensorView out) const = 0;
  /// logits() in decode arithmetic, then sampling of the backend by `choice`: the same tokens, but
  /// choice.logits is memory for it and undefined behind it.
  virtual void tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const {
    logits(context, rows, 0, choice.logits);
    context.ops.sampling->sample(context.stream, choice);
  }

  /// Logits of drafts, in decode arithmetic: with LoadOptions::draft_head by a less exact copy of
  /// the head, and faster.
  virtual void draft_logits(StepContext& context, TensorView rows, TensorView out) const {
    logits(context, rows, 0, out);
  }
  /// The same, then sampling of the backend by `choice`, whose logits are memory for it and
  /// undefined behind it: in whatever arithmetic is fastest.
  virtual void draft_tokens(StepContext& context, TensorView rows, const SampleArgs& choice) const {
    draft_logits(context, rows, choice.logits);
    context.ops.sampling->sample(context.stream, choice);
  }

  /// Runs some layers of a prompt; the first ones begin with its tokens, the last one need not
  /// compute other rows than StepContext::asked.
  virtual void run_prompt_layers(StepContext& context, const LayeredPrompt& prompt) const;
  /// What hidden() does behind the layers: out = norm(rows of the residual), [R, hidden].
  virtual void final_norm(StepContext& context, TensorView rows, TensorView out) const;

  /// Mixer::replay() of every recurrent layer.
  virtual void replay_states(StepContext& context, const KeptInputs::Rows& rows) const;

  /// The MTP module on rows whose tokens are the batch's ids and whose hidden states are those of
  /// the tokens before them (`previous` [T, hidden], normed): [T, hidden] in the arena, for
  /// logits() and for another step of drafting; with StepContext::asked those rows alone, as
  /// hidden(). Positions and slots are those of `previous`. Only with spec().mtp.
  virtual TensorView mtp_hidden(StepContext& context, TensorView previous) const;
};

}  // namespace weft
