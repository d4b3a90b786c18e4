#include "models/config.h"
#include "models/prefill.h"

namespace weft {

Result<ModelSpec> parse_dense(const ConfigJson& config, const AttentionSpec& flags,
                              const CommonDefaults& defaults) {
  const ConfigJson text = TRY(config.text_config());
  AttentionSpec attention = TRY(parse_attention(text));
  attention.qk_norm = flags.qk_norm;
  attention.qkv_bias = flags.qkv_bias;
  attention.out_bias = flags.out_bias;
  ModelSpec spec = TRY(parse_common(config, attention.head_dim, defaults));
  const int64_t num_layers = TRY(parse_num_layers(text));
  TRY(refuse_sliding_window(text, num_layers));
  spec.layers.assign(static_cast<size_t>(num_layers),
                     LayerSpec{.mixer = attention, .mlp = TRY(parse_dense_mlp(text))});
  return spec;
}

Result<ModelSpec> parse_qwen3(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  const bool bias = TRY(text.flag_or("attention_bias", false));
  return parse_dense(config, {.qk_norm = true, .qkv_bias = bias, .out_bias = bias}, {});
}

namespace {

/// q, k and v have biases, the output projection has none.
Result<ModelSpec> parse_qwen2(const ConfigJson& config) {
  return parse_dense(config, {.qkv_bias = true}, {});
}

Result<ModelSpec> parse_llama(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  const bool bias = TRY(text.flag_or("attention_bias", false));
  return parse_dense(config, {.qkv_bias = bias, .out_bias = bias}, {});
}

/// Elastic-Attention: a Qwen3 with a router beside each attention, which decides what the heads see
/// of a prompt. What its training left behind is not read.
Result<ModelSpec> parse_paw_qwen3(const ConfigJson& config) {
  ModelSpec spec = TRY(parse_qwen3(config));
  const ConfigJson text = TRY(config.text_config());
  const Result<SparsePrefillSpec> sparse =
      parse_elastic(text, std::get<AttentionSpec>(spec.layers[0].mixer));
  if (!sparse) {
    spec.prefill_refusal = sparse.error().message;
  } else if (sparse->routed || sparse->sparse != HeadKind::kFull) {
    for (LayerSpec& layer : spec.layers) std::get<AttentionSpec>(layer.mixer).sparse = *sparse;
  }
  spec.names.ignored_prefixes.push_back("model.sparsity_lambda");
  spec.names.ignored_parts.push_back(".self_attn.mask_allocator.log_temp");
  spec.names.ignored_parts.push_back(".self_attn.attn_mask_log_alphas");
  if (!has_prefill_router(spec)) {
    spec.names.ignored_parts.push_back(".self_attn.mask_allocator.");
  }
  return spec;
}

}  // namespace

const ModelFamily kQwen3{"Qwen3ForCausalLM", parse_qwen3};
const ModelFamily kQwen2{"Qwen2ForCausalLM", parse_qwen2};
const ModelFamily kLlama{"LlamaForCausalLM", parse_llama};
const ModelFamily kPawQwen3{"PawQwen3ForCausalLM", parse_paw_qwen3};

}  // namespace weft
