#pragma once

#include <memory>
#include <span>

#include "checkpoint/checkpoint.h"
#include "models/spec.h"
#include "nn/step.h"

namespace weft {

struct LoadOptions {
  WeightFormat format = WeightFormat::kBf16;  ///< of the linear layers (head included)
  KvFormat kv_format = KvFormat::kBf16;
  int block_size = 64;
  int64_t max_model_len = 0;  ///< rows of the rope table
  bool dummy_weights = false;  ///< seeded random weights instead of the checkpoint's
};

/// A decoder with its weights, for one device. Immutable after load(); a step's state is all in the
/// StepContext.
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

  /// Runs the layers; returns [T, hidden] after the final norm, in the context's arena.
  virtual TensorView hidden(StepContext& context) const = 0;
  /// out [R, V] f32 = head(rows [R, hidden]); the first `prompt_rows` use prompt arithmetic.
  virtual void logits(StepContext& context, TensorView rows, int64_t prompt_rows,
                      TensorView out) const = 0;
};

}  // namespace weft
