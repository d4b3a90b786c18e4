#include "models/config.h"

namespace weft {
namespace {

/// Qwen3 attention; the mlp of most layers is a mixture of experts without a shared one.
Result<ModelSpec> parse_qwen3_moe(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  AttentionSpec attention = TRY(parse_attention(text));
  attention.qk_norm = true;
  attention.qkv_bias = attention.out_bias = TRY(text.flag_or("attention_bias", false));
  ModelSpec spec = TRY(parse_common(config, attention.head_dim, {}));
  const int64_t num_layers = TRY(parse_num_layers(text));
  TRY(refuse_sliding_window(text, num_layers));
  const MoeSpec moe = TRY(parse_qwen_moe(text, /*default_renormalize=*/false));
  for (const bool sparse : TRY(parse_sparse_layers(text, num_layers))) {
    LayerSpec layer{.mixer = attention, .mlp = moe};
    if (!sparse) layer.mlp = TRY(parse_dense_mlp(text));
    spec.layers.push_back(layer);
  }
  return spec;
}

}  // namespace

const ModelFamily kQwen3Moe{"Qwen3MoeForCausalLM", parse_qwen3_moe};

}  // namespace weft
