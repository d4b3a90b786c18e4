#include "models/qwen3_next.h"

namespace weft {
namespace {

constexpr int64_t kMaxConv = 16;

Result<GdnSpec> parse_gdn(const ConfigJson& text) {
  GdnSpec gdn;
  const int64_t key_heads = TRY(text.integer_in("linear_num_key_heads", 1, kMaxHeads));
  const int64_t value_heads = TRY(text.integer_in("linear_num_value_heads", 1, kMaxHeads));
  if (value_heads % key_heads != 0) {
    return invalid_argument(text.field("linear_num_value_heads") +
                            " must be a multiple of linear_num_key_heads, " +
                            std::to_string(key_heads) + ", got " + std::to_string(value_heads));
  }
  gdn.shape.key_heads = static_cast<int>(key_heads);
  gdn.shape.value_heads = static_cast<int>(value_heads);
  gdn.shape.key_dim = static_cast<int>(TRY(text.integer_in("linear_key_head_dim", 1, kMaxHeadDim)));
  gdn.shape.value_dim =
      static_cast<int>(TRY(text.integer_in("linear_value_head_dim", 1, kMaxHeadDim)));
  gdn.shape.conv_width =
      static_cast<int>(TRY(text.integer_in_or("linear_conv_kernel_dim", 2, kMaxConv, 4)));
  const std::string gate = TRY(text.string_or("output_gate_type", "silu"));
  if (gate != "silu" && gate != "swish" && gate != "sigmoid") {
    return unsupported(text.field("output_gate_type") + " \"" + gate +
                       "\" is not supported; silu, swish and sigmoid are");
  }
  gdn.gate = gate == "sigmoid" ? GateActivation::kSigmoid : GateActivation::kSilu;
  return gdn;
}

Result<ModelSpec> parse_qwen3_next(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  return parse_hybrid(config, {.grouped_projections = true,
                               .moe = TRY(parse_qwen_moe(text, /*default_renormalize=*/true))});
}

}  // namespace

Result<ModelSpec> parse_hybrid(const ConfigJson& config, const HybridTraits& traits) {
  const ConfigJson text = TRY(config.text_config());
  AttentionSpec attention = TRY(parse_attention(text));
  attention.qk_norm = true;
  attention.qkv_bias = attention.out_bias = TRY(text.flag_or("attention_bias", false));
  attention.output_gate = TRY(text.flag_or("attn_output_gate", true));
  ModelSpec spec = TRY(parse_common(config, attention.head_dim, {.partial_rotary_factor = 0.25}));
  spec.norm_minus_one = true;
  const int64_t num_layers = TRY(parse_num_layers(text));
  const std::vector<bool> full = TRY(parse_full_attention_layers(text, num_layers, 4));
  const std::vector<bool> sparse = TRY(parse_sparse_layers(text, num_layers));
  GdnSpec gdn = TRY(parse_gdn(text));
  gdn.grouped_projections = traits.grouped_projections;
  for (size_t i = 0; i < full.size(); ++i) {
    LayerSpec layer;
    if (full[i]) {
      layer.mixer = attention;
    } else {
      layer.mixer = gdn;
    }
    if (traits.moe && sparse[i]) {
      layer.mlp = *traits.moe;
    } else {
      layer.mlp = TRY(parse_dense_mlp(text));
    }
    spec.layers.push_back(layer);
  }
  // Qwen3-Next has the module without a word of it: adapt_to_checkpoint() looks for it.
  for (const LayerSpec& layer : spec.layers) {
    if (std::holds_alternative<AttentionSpec>(layer.mixer)) spec.mtp_layer = layer;
  }
  spec.mtp = mtp_of(spec, TRY(text.integer_in_or("mtp_num_hidden_layers", 0, kMaxMtpLayers, 0)));
  if (TRY(text.flag_or("mtp_use_dedicated_embeddings", false))) {
    return unsupported(text.field("mtp_use_dedicated_embeddings") + " = true is not supported");
  }
  return spec;
}

const ModelFamily kQwen3Next{"Qwen3NextForCausalLM", parse_qwen3_next};

}  // namespace weft
