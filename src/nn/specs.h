#pragma once

// What a layer is, as data. A model family fills these in from config.json; the layers are built
// from them. Every extent has been validated (positive, divisibility) by the parser.

#include <cstdint>
#include <iterator>
#include <optional>
#include <variant>
#include <vector>

#include "kernels/args.h"

namespace weft {

/// What heads see of long prompts (kernels/sparse_args.h); generated tokens see everything.
struct SparsePrefillSpec {
  /// A router of the checkpoint's decides per kv head and prompt (Elastic-Attention); otherwise all
  /// heads are of kind `sparse` (XAttention).
  bool routed = false;
  HeadKind retrieval = HeadKind::kFull, sparse = HeadKind::kBlocks;
  std::vector<HeadKind> heads;              ///< of the kv heads, given by the user; empty: as above
  int sink_blocks = 1, window_blocks = 16;  ///< of streaming heads
  int stride = 16;                          ///< of the estimate: 4, 8 or 16
  float norm = 1;
  std::vector<float> thresholds = {0.9f};  ///< mass that a list reaches: one, or one a head
};

/// Softmax attention with grouped kv heads. The scale is head_dim^-0.5.
struct AttentionSpec {
  int q_heads = 0, kv_heads = 0, head_dim = 0;
  bool qk_norm = false;      ///< RMS norm of q and k over head_dim, before rope
  bool qkv_bias = false;     ///< q_proj.bias, k_proj.bias, v_proj.bias
  bool out_bias = false;     ///< o_proj.bias
  bool output_gate = false;  ///< q_proj has 2D rows a head, [q | gate]; out *= sigmoid(gate)
  std::optional<SparsePrefillSpec> sparse;  ///< none: all heads see all keys
};

/// Gated delta rule (Qwen3-Next, Qwen3.5).
struct GdnSpec {
  GdnShape shape;
  GateActivation gate = GateActivation::kSilu;
  /// Qwen3-Next: in_proj_qkvz and in_proj_ba hold one group of rows a key head, [q k v z] and
  /// [b a]; otherwise in_proj_qkv, in_proj_z, in_proj_b and in_proj_a.
  bool grouped_projections = false;
};

using MixerSpec = std::variant<AttentionSpec, GdnSpec>;

/// down( silu(gate x) * up x )
struct DenseMlpSpec {
  int64_t inner = 0;
};

struct MoeSpec {
  int num_experts = 0;
  int64_t inner = 0;  ///< of one expert
  RoutingRule rule;
  bool correction = false;   ///< a bias on the choice of experts, not on their weights
  int64_t shared_inner = 0;  ///< of the shared expert; 0: none
  bool shared_gate = false;  ///< the shared expert is weighted by sigmoid(gate x)
  const char* shared_name = "shared_expert";
};

using MlpSpec = std::variant<DenseMlpSpec, MoeSpec>;

struct LayerSpec {
  MixerSpec mixer;
  MlpSpec mlp;
};

/// Vision tower of the Qwen families. Qwen3-VL and Qwen3.5: layer norms, a GELU MLP and learned
/// positions; Qwen2.5-VL (`gated`): RMS norms, a SiLU-gated MLP, and attention within windows.
struct VisionSpec {
  int depth = 0, heads = 0;
  int64_t hidden = 0, inner = 0, out_hidden = 0;
  int channels = 3, patch_size = 16, temporal_patch_size = 2, merge_size = 2;
  double rope_theta = 10000;
  bool gated = false;
  int64_t num_positions = 0;     ///< learned positions, a square; 0: none
  int window = 0;                ///< side of a window in merged patches; 0: none
  std::vector<int> full_layers;  ///< with windows: layers that see the whole frame
  std::vector<int> deepstack;    ///< layers whose output joins the first decoder layers
  int32_t image_token = -1, video_token = -1, start_token = -1, end_token = -1;
  /// Positions of a second of video; 0: its frames have their times as text instead.
  double tokens_per_second = 0;

  int64_t patch_values() const {
    return int64_t{channels} * temporal_patch_size * patch_size * patch_size;
  }
  int64_t merge_patches() const { return int64_t{merge_size} * merge_size; }
  int64_t head_dim() const { return hidden / heads; }
  /// Values of a token: what replaces its embedding, then what each deepstack layer adds.
  int64_t feature_width() const { return out_hidden * (1 + std::ssize(deepstack)); }
};

}  // namespace weft
