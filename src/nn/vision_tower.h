#pragma once

#include <memory>
#include <string>

#include "nn/linear.h"
#include "nn/specs.h"

namespace weft {

/// One pass of a tower on the device: N patches of some images (VisionPlan says in which order).
struct VisionBatch {
  TensorView patches;       ///< [N, patch_values] rescaled and normalised
  TensorView positions;     ///< [N, 2] i32
  TensorView grid_ids;      ///< [N, 4] i32; undefined without learned positions
  TensorView grid_weights;  ///< [N, 4] f32
  TensorView frames;        ///< [frames + 1] i32
  TensorView windows;       ///< [windows + 1] i32; undefined without windows
  TensorView order;         ///< [N / merge^2] i32; undefined: merged row i is token i
  const int32_t* host_frames = nullptr;
  const int32_t* host_windows = nullptr;
};

struct VisionContext {
  Stream& stream;
  const OpTable& ops;
  Arena& arena;  ///< temporaries of the pass
};

/// LayerNorm with bias, or an RMS norm, as the tower has them.
class VisionNorm {
 public:
  void declare(WeightPlan& plan, const std::string& name, int64_t width, bool rms);
  /// out = norm(x); with a residual: residual += x, out = norm(residual).
  void forward(VisionContext& context, TensorView x, TensorView residual, TensorView out) const;

 private:
  TensorView weight_, bias_;  // no bias: RMS
};

/// Patches to token features: patch embedding, blocks of bidirectional attention, merger. Stateless
/// after loading. A token's bits depend on its image alone.
class VisionTower {
 public:
  explicit VisionTower(const VisionSpec& spec);

  /// Declares every tensor below `prefix` ("model.visual.").
  void declare(WeightPlan& plan, WeightFormat format, const std::string& prefix);
  /// Makes what is not in the checkpoint: rotary angles, for passes of up to `max_patches`.
  Result<> prepare(Stream& stream, const OpTable& ops, int64_t max_patches);

  const VisionSpec& spec() const { return spec_; }
  /// Bounds of what forward() takes of the arena and of the stream's scratch memory.
  int64_t arena_bytes(const OpTable& ops, int64_t patches) const;
  int64_t scratch_bytes(const OpTable& ops, int64_t patches, int num_threads) const;
  /// Rows and columns that positions may have in a pass of that many patches.
  static int64_t max_side(int64_t patches);
  static int64_t rope_bytes(const VisionSpec& spec, int64_t patches);

  /// out [N / merge^2, feature_width] of the activation type.
  void forward(VisionContext& context, const VisionBatch& batch, TensorView out) const;

 private:
  struct Block {
    VisionNorm norm1, norm2;
    Linear qkv, proj, up, down;
  };
  struct Merger {
    VisionNorm norm;
    bool norm_behind_merge = false;  ///< of the joined patches, not of each
    Linear fc1, fc2;
  };
  using Blocks = std::vector<std::unique_ptr<Block>>;  // stay where they are while loading

  void declare_block(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                     Block& block) const;
  void declare_merger(WeightPlan& plan, WeightFormat format, const std::string& prefix,
                      Merger& merger, bool behind) const;
  bool sees_whole_frame(int layer) const;
  void attend(VisionContext& context, const VisionBatch& batch, int layer, TensorView qkv,
              TensorView out) const;
  void feed_forward(VisionContext& context, const Block& block, TensorView x, TensorView out) const;
  void merge(VisionContext& context, const Merger& merger, TensorView normed, TensorView out) const;

  VisionSpec spec_;
  Linear patch_;
  TensorView grid_;  // [num_positions, hidden]
  Blocks blocks_;
  Merger merger_;
  std::vector<std::unique_ptr<Merger>> deepstack_;
  Buffer rope_;
  TensorView cos_sin_;  // [positions, head_dim / 4, 2]
};

}  // namespace weft
