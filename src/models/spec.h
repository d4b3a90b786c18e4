#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/config_json.h"
#include "nn/rope.h"
#include "nn/specs.h"

namespace weft {

inline constexpr int64_t kMaxMtpLayers = 16;

/// How a checkpoint names the tensors of its MTP module.
struct MtpNames {
  std::string all = "mtp.";            ///< before all of them
  std::string layers = "mtp.layers.";  ///< before N
  std::string fc = "mtp.fc.weight";
  std::string embedding_norm = "mtp.pre_fc_norm_embedding.weight";
  std::string hidden_norm = "mtp.pre_fc_norm_hidden.weight";
  std::string norm = "mtp.norm.weight";  ///< may be the model's own
};

/// How a checkpoint names its tensors, where families differ.
struct NameMap {
  std::string model = "model.";         ///< before embed_tokens, layers.N and norm
  std::string head = "lm_head.weight";  ///< absent when tied
  MtpNames mtp;
  std::string vision = "model.visual.";
  std::vector<std::string> ignored_prefixes;  ///< tensors that inference does not need
  /// The scales of static KV caches are read by kv_scales_of().
  std::vector<std::string> ignored_parts = {
      "rotary_emb.inv_freq", ".k_scale",       ".v_scale",      "k_proj.output_scale",
      "v_proj.output_scale", "cachek_matmul.", "cachev_matmul."};
};

/// Multi-token prediction: draft head with decoder layers of its own (Qwen3-Next, Qwen3.5, ERNIE).
/// h = fc [ norm_e(embedding of token p+1) ; norm_h(hidden p) ], then the layers, then a norm; the
/// embedding and the head are the model's.
struct MtpSpec {
  int num_layers = 1;
  LayerSpec layer;
};

/// A model as data: everything that the decoder needs to know, from config.json alone.
struct ModelSpec {
  std::string architecture;
  int64_t hidden = 0;
  int64_t vocab = 0;
  int64_t max_positions = 0;  ///< context length that the model is made for (YaRN included)
  float norm_eps = 1e-6f;
  bool norm_minus_one =
      false;               ///< norms are stored as w - 1 (not the gated norm of the delta rule)
  bool tied_head = false;  ///< the head is the embedding; adapt_to_checkpoint() may correct it
  RopeSpec rope;
  std::vector<LayerSpec> layers;
  /// What the layers of an MTP module are, where the family knows one; the checkpoint decides.
  std::optional<LayerSpec> mtp_layer;
  int64_t most_mtp_layers = kMaxMtpLayers;
  std::optional<MtpSpec> mtp;
  std::optional<MtpSpec> mtp_left_out;  ///< by leave_out_mtp()
  /// Why the heads of prompts can't see what the checkpoint was trained with; empty: they can. With
  /// another --prefill-attention it runs.
  std::string prefill_refusal;
  std::optional<VisionSpec> vision;   ///< see LoadOptions::images
  std::optional<KvFormat> kv_format;  ///< what quantization_config.kv_cache_quant_type asks for
  NameMap names;
};

/// config.json -> spec. Unknown architectures and rope types, and every value out of range, are
/// errors that name the field and what is allowed.
Result<ModelSpec> parse_model(const ConfigJson& config);

/// An MTP module of that many layers; none for 0 layers or where the family knows none.
std::optional<MtpSpec> mtp_of(const ModelSpec& spec, int64_t num_layers);
/// The model without its MTP module: nothing of it is loaded or cached.
void leave_out_mtp(ModelSpec& spec);

/// Names in `architectures` that parse_model() accepts.
std::vector<std::string_view> supported_architectures();

/// Parameters of the model (language model, MTP and vision; a tied tensor counts once).
int64_t count_parameters(const ModelSpec& spec);

/// What only the weights tell: a head that is absent is tied, an MTP module is there or not.
/// Model::load() does this too; call it before for a memory plan that is exact.
void adapt_to_checkpoint(ModelSpec& spec, const Checkpoint& checkpoint);

}  // namespace weft
