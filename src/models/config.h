#pragma once

// What several families read of config.json in the same way. `text` is the view of the language
// model's fields (ConfigJson::text_config).

#include <string>
#include <vector>

#include "models/spec.h"

namespace weft {

constexpr int64_t kMaxHeads = 1024, kMaxHeadDim = 1024;  ///< bounds of what a config may say

/// One architecture name and its parser.
struct ModelFamily {
  std::string_view architecture;
  Result<ModelSpec> (*parse)(const ConfigJson& config);
};

struct CommonDefaults {
  double rope_theta = 10000;
  double partial_rotary_factor = 1;
  bool tied_head = false;
  double norm_eps = 1e-6;
};

/// hidden, vocab, max_positions, eps, tie flag and rope of any family; the rotary part of
/// `head_dim` and the scaling from the old (rope_theta, rope_scaling) or new (rope_parameters)
/// form. Refuses what no family here has: quantised checkpoints, other activations, unknown rope
/// types.
Result<ModelSpec> parse_common(const ConfigJson& config, int64_t head_dim,
                               const CommonDefaults& defaults);
Result<int64_t> parse_num_layers(const ConfigJson& text);

/// Heads and their sizes: num_attention_heads, num_key_value_heads, head_dim (hidden / heads when
/// absent). The flags are left to the family.
Result<AttentionSpec> parse_attention(const ConfigJson& text);
Result<DenseMlpSpec> parse_dense_mlp(const ConfigJson& text);

/// Dense decoder with grouped-query attention, as Qwen2, Qwen3 and Llama have it; `attention` holds
/// the family's flags.
Result<ModelSpec> parse_dense(const ConfigJson& config, const AttentionSpec& attention,
                              const CommonDefaults& defaults);
/// Qwen3's flags: q and k are normalised per head; biases only where attention_bias says so.
Result<ModelSpec> parse_qwen3(const ConfigJson& config);

/// Qwen3-VL and Qwen3.5: a language model behind a vision tower, under longer names, with
/// interleaved rope sections; reads vision_config and the ids of image tokens at the top level.
Result<ModelSpec> put_behind_tower(const ConfigJson& config, ModelSpec spec);

/// Kind of every layer (true: full attention, false: linear) from layer_types, or from
/// full_attention_interval when that is absent. Sliding attention is refused.
Result<std::vector<bool>> parse_full_attention_layers(const ConfigJson& text, int64_t num_layers,
                                                      int64_t default_interval);
/// Refuses use_sliding_window and layer_types other than full attention.
Result<> refuse_sliding_window(const ConfigJson& text, int64_t num_layers);

/// Experts of the Qwen families: num_experts (or num_local_experts), num_experts_per_tok,
/// moe_intermediate_size, norm_topk_prob; the shared expert where shared_expert_intermediate_size
/// says so.
Result<MoeSpec> parse_qwen_moe(const ConfigJson& text, bool default_renormalize);
/// The mlp of layer i of the Qwen MoE families: decoder_sparse_step and mlp_only_layers.
Result<std::vector<bool>> parse_sparse_layers(const ConfigJson& text, int64_t num_layers);

Result<RopeSpec> parse_rope(const ConfigJson& text, int64_t head_dim,
                            const CommonDefaults& defaults);

// The families, one file each.
extern const ModelFamily kQwen2, kQwen3, kLlama, kPawQwen3, kQwen3Moe, kQwen3Next;
extern const ModelFamily kQwen35, kQwen35Image, kQwen35Moe, kQwen35MoeImage;
extern const ModelFamily kQwen25Image, kQwen3Image;
extern const ModelFamily kErnie45, kErnie45First, kErnie45Moe;

}  // namespace weft
