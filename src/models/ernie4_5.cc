#include <algorithm>

#include "models/config.h"

namespace weft {
namespace {

constexpr CommonDefaults kDefaults{.rope_theta = 500000, .tied_head = true, .norm_eps = 1e-5};

/// The MTP module as FastDeploy runs it (fastdeploy/model_executor/models/ernie4_5_mtp.py): one
/// dense layer also beside experts, and the model's own final norm, on the way in and on the way
/// out. Where a checkpoint has several modules, one a place, the first makes all drafts.
const MtpNames kMtpNames{.all = "model.mtp_",
                         .layers = "model.mtp_block.",
                         .fc = "model.mtp_linear_proj.0.weight",
                         .embedding_norm = "model.mtp_emb_norm.0.weight",
                         .hidden_norm = "model.mtp_hidden_norm.0.weight",
                         .norm = "model.norm.weight"};

/// Llama's decoder with interleaved rotary pairs (2i, 2i + 1), no biases, no q and k norms.
Result<ModelSpec> parse_dense_part(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  const AttentionSpec attention = TRY(parse_attention(text));
  ModelSpec spec = TRY(parse_common(config, attention.head_dim, kDefaults));
  spec.rope.style = RopeStyle::kInterleaved;
  spec.layers.assign(static_cast<size_t>(TRY(parse_num_layers(text))),
                     LayerSpec{.mixer = attention, .mlp = TRY(parse_dense_mlp(text))});
  spec.names.mtp = kMtpNames;
  spec.names.ignored_prefixes = {spec.names.mtp.all};
  spec.mtp_layer = spec.layers.front();
  spec.most_mtp_layers = 1;
  spec.mtp = mtp_of(spec, TRY(text.integer_in_or("num_nextn_predict_layers", 0, kMaxMtpLayers, 0)));
  return spec;
}

/// Softmax router, choice corrected by a bias, weights divided by their sum (at least norm_min);
/// shared experts are one ungated mlp of their summed width.
Result<MoeSpec> parse_moe(const ConfigJson& text) {
  MoeSpec moe;
  moe.num_experts = static_cast<int>(TRY(text.integer_in("moe_num_experts", 1, 4096)));
  moe.rule.top_k = static_cast<int>(TRY(text.integer_in("moe_k", 1, moe.num_experts)));
  moe.rule.norm_min = static_cast<float>(TRY(text.number_in_or("moe_norm_min", 0, 1, 1e-12)));
  moe.inner = TRY(text.integer_in("moe_intermediate_size", 1, 1 << 20));
  moe.shared_inner = moe.inner * TRY(text.integer_in_or("moe_num_shared_experts", 0, 64, 0));
  moe.shared_name = "shared_experts";
  moe.correction = true;
  return moe;
}

Result<ModelSpec> parse_ernie4_5_moe(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  ModelSpec spec = TRY(parse_dense_part(config));
  const MoeSpec moe = TRY(parse_moe(text));
  const int64_t last = static_cast<int64_t>(spec.layers.size()) - 1;
  const int64_t interval = TRY(text.integer_in_or("moe_layer_interval", 1, 1024, 1));
  const int64_t start = TRY(text.integer_in_or("moe_layer_start_index", 0, 1024, 1));
  int64_t end = TRY(text.integer_in_or("moe_layer_end_index", -1, 1024, -1));
  if (end == -1) end = last;
  for (int64_t i = start; i <= std::min(end, last); ++i) {
    if ((i + 1) % interval == 0) spec.layers[static_cast<size_t>(i)].mlp = moe;
  }
  return spec;
}

}  // namespace

const ModelFamily kErnie45{"Ernie4_5ForCausalLM", parse_dense_part};
/// As the first releases call it, from before transformers knew the family.
const ModelFamily kErnie45First{"Ernie4_5_ForCausalLM", parse_dense_part};
const ModelFamily kErnie45Moe{"Ernie4_5_MoeForCausalLM", parse_ernie4_5_moe};

}  // namespace weft
