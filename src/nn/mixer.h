#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kv/spec.h"
#include "nn/linear.h"
#include "nn/specs.h"

namespace weft {

/// Static scales of a layer's cache, [G, D] f32 on the device; null: its format has none.
struct KvScalePointers {
  const float* k = nullptr;
  const float* v = nullptr;
};

/// What the mixers of a model share.
struct MixerOptions {
  int64_t hidden = 0;
  float eps = 1e-6f;
  bool norm_minus_one = false;  ///< q and k norms are stored as w - 1
  WeightFormat format = WeightFormat::kBf16;
  KvFormat kv_format = KvFormat::kBf16;
  DType state_dtype = DType::kF32;  ///< of recurrent states
  int block_size = 64;
  /// Of each layer of the cache; outlives the mixer, set before forward(); null: no static scales.
  const std::vector<KvScalePointers>* kv_scales = nullptr;
  const RopeTable* rope = nullptr;  ///< outlives the mixer; set before forward()
};

/// The part of a layer that mixes tokens. Stateless: what it remembers of a sequence is in the
/// cache.
class Mixer {
 public:
  virtual ~Mixer() = default;
  /// What this layer asks of the cache.
  virtual CacheSpec cache_spec() const = 0;
  /// Declares the weights below `prefix` ("model.layers.3.").
  virtual void declare(WeightPlan& plan, const std::string& prefix) = 0;
  /// What forward() takes of the arena, at most.
  virtual int64_t arena_bytes(const StepQuery& query) const = 0;
  /// What its ops take of the stream's scratch memory, at most.
  virtual int64_t scratch_bytes(const StepQuery& query) const = 0;
  /// Called once when the weights are loaded.
  virtual Result<> prepare(Stream&, DeviceKind) { return {}; }
  /// Decides what heads see, for the deciding segments of a step whose rows are the only ones that
  /// the router needs; x [T, hidden]. Nothing where no router is.
  virtual void decide(StepContext&, LayerId, TensorView) const {}
  /// residual += mixer(norm of the rows); [T, hidden], residual f32. Reads and writes the cache of
  /// `layer`. The norm is the mixer's to do, so that its first product can do it. With
  /// StepContext::last other rows than the asked ones may be left as they are.
  virtual void forward(StepContext& context, LayerId layer, const RmsNormArgs& norm,
                       TensorView residual) const = 0;
  /// Takes the state of the batch's one segment through rows [first, first + count) of what was
  /// kept of `layer`, in decode arithmetic: from its read slot to its write slot.
  virtual void replay(StepContext&, LayerId, const KeptInputs::Rows&) const {}
};

std::unique_ptr<Mixer> make_mixer(const MixerSpec& spec, const MixerOptions& options);

}  // namespace weft
