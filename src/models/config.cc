#include "models/config.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace weft {
namespace {

constexpr int64_t kMaxHidden = 1 << 16, kMaxInner = 1 << 20, kMaxVocab = 1 << 24;
constexpr int64_t kMaxLayers = 1024, kMaxExperts = 4096;
constexpr int64_t kMaxPositions = int64_t{1} << 28;

Error not_allowed(const ConfigJson& json, std::string_view field, const std::string& rule) {
  return invalid_argument(json.field(field) + " " + rule + ", got " + json.dump(field));
}

/// The cache's format as FastDeploy's configurations name it.
Result<KvFormat> parse_kv_cache_type(const ConfigJson& config) {
  const std::string type = TRY(config.string("kv_cache_quant_type"));
  if (type == "int8") return KvFormat::kInt8;
  if (type == "float8_e4m3fn") return KvFormat::kFp8;
  if (type == "block_wise_fp8") return KvFormat::kFp8Block;
  if (type == "int4_zp") return KvFormat::kInt4;
  return not_allowed(config, "kv_cache_quant_type",
                     "must be int8, float8_e4m3fn, block_wise_fp8 or int4_zp (int8_zp and "
                     "float8_e4m3fn_zp are not supported)");
}

/// fp8 codes with a scale for each 128 x 128 block are read; nothing else that is quantised is.
/// With mix_quant (FastDeploy) the checkpoint's weights are bf16 and stay so: --quantization
/// decides.
Result<> check_quantization(const ConfigJson& json) {
  const ConfigJson config = TRY(json.object("quantization_config"));
  if (TRY(config.string_or("quantization", "")) == "mix_quant") {
    for (const std::string_view field : {"dense_quant_type", "moe_quant_type"}) {
      const std::string type = TRY(config.string_or(field, "block_wise_fp8"));
      if (type != "block_wise_fp8") {
        return not_allowed(config, field,
                           "must be block_wise_fp8 or absent; other weight formats are chosen by "
                           "--quantization (int8, int4)");
      }
    }
    return {};
  }
  const std::string method = TRY(config.string_or("quant_method", ""));
  const std::string format = TRY(config.string_or("fmt", "e4m3"));
  std::vector<int64_t> block;
  if (config.has("weight_block_size")) block = TRY(config.integers("weight_block_size"));
  if (method == "fp8" && format == "e4m3" && block == std::vector<int64_t>{128, 128}) return {};
  return unsupported(json.field("quantization_config") +
                     ": of quantised checkpoints only those "
                     "with quant_method fp8, fmt e4m3 and weight_block_size [128, 128] are read; "
                     "else take the bf16 weights and quantise while loading (--quantization int8 "
                     "or int4)");
}

/// Refuses what would be computed wrongly if it were ignored.
Result<> refuse_unknown_forms(const ConfigJson& config, const ConfigJson& text) {
  for (const ConfigJson& json : {config, text}) {
    if (json.has("quantization_config")) TRY(check_quantization(json));
  }
  for (const std::string_view field : {"hidden_act", "hidden_activation"}) {
    const std::string act = TRY(text.string_or(field, "silu"));
    if (act != "silu" && act != "swish") {
      return unsupported(text.field(field) + " \"" + act + "\" is not supported; silu is");
    }
  }
  for (const std::string_view field : {"mlp_bias", "use_bias"}) {
    if (TRY(text.flag_or(field, false))) {
      return unsupported(text.field(field) + " = true is not supported");
    }
  }
  return {};
}

Result<double> positive(const ConfigJson& json, std::string_view field, double high) {
  const double x = TRY(json.number_in(field, 0.0, high));
  if (x == 0.0) return not_allowed(json, field, "must be above 0");
  return x;
}

Result<double> positive_or(const ConfigJson& json, std::string_view field, double high,
                           double fallback) {
  if (!json.has(field)) return fallback;
  return positive(json, field, high);
}

/// A stretch of the context: at least 1.
Result<double> scaling_factor(const ConfigJson& p) {
  return p.number_in("factor", 1.0, 1e4);
}

constexpr const char* kOriginalPositions = "original_max_position_embeddings";

/// The length that a scaled rope was trained with. transformers lets the field outside the rope
/// parameters go before the one inside.
Result<int64_t> original_positions(const ConfigJson& p, const ConfigJson& text) {
  return (text.has(kOriginalPositions) ? text : p).integer_in(kOriginalPositions, 1, kMaxPositions);
}

Result<RopeScaling> parse_yarn(const ConfigJson& p, const ConfigJson& text) {
  YarnScaling yarn;
  const bool has_original = p.has(kOriginalPositions) || text.has(kOriginalPositions);
  if (has_original) {
    yarn.original_positions = TRY(original_positions(p, text));
  } else {
    yarn.original_positions = TRY(text.integer_in("max_position_embeddings", 1, kMaxPositions));
  }
  if (p.has("factor") || !has_original) {
    yarn.factor = TRY(scaling_factor(p));
  } else {
    yarn.factor =
        static_cast<double>(TRY(text.integer_in("max_position_embeddings", 1, kMaxPositions))) /
        static_cast<double>(yarn.original_positions);
  }
  yarn.beta_fast = TRY(positive_or(p, "beta_fast", 1e6, 32));
  yarn.beta_slow = TRY(positive_or(p, "beta_slow", 1e6, 1));
  if (yarn.beta_fast < yarn.beta_slow) {
    return not_allowed(p, "beta_fast", "must be at least beta_slow");
  }
  yarn.truncate = TRY(p.flag_or("truncate", true));
  const double mscale = TRY(p.number_in_or("mscale", 0, 100, 0));
  const double mscale_all_dim = TRY(p.number_in_or("mscale_all_dim", 0, 100, 0));
  yarn.attention_factor = TRY(positive_or(
      p, "attention_factor", 100, yarn_attention_factor(yarn.factor, mscale, mscale_all_dim)));
  return RopeScaling(yarn);
}

Result<RopeScaling> parse_llama3(const ConfigJson& p, const ConfigJson& text) {
  Llama3Scaling s;
  s.factor = TRY(scaling_factor(p));
  s.low_freq_factor = TRY(positive(p, "low_freq_factor", 1e6));
  s.high_freq_factor = TRY(positive(p, "high_freq_factor", 1e6));
  if (s.high_freq_factor <= s.low_freq_factor) {
    return not_allowed(p, "high_freq_factor", "must be above low_freq_factor");
  }
  s.original_positions = TRY(original_positions(p, text));
  return RopeScaling(s);
}

Result<RopeScaling> parse_scaling(const ConfigJson& p, const ConfigJson& text) {
  const std::string_view field = p.has("rope_type") || !p.has("type") ? "rope_type" : "type";
  const std::string type = TRY(p.string_or(field, "default"));
  // "mrope" is how Qwen-VL configs say: the default frequencies, with sections.
  if (type == "default" || type == "mrope") return RopeScaling();
  if (type == "linear") return RopeScaling(LinearScaling{TRY(scaling_factor(p))});
  if (type == "yarn") return parse_yarn(p, text);
  if (type == "llama3") return parse_llama3(p, text);
  return unsupported(p.field(field) + " \"" + type +
                     "\" is not supported; default, linear, yarn and llama3 are");
}

Result<> parse_sections(const ConfigJson& p, RopeSpec& rope) {
  if (!p.has("mrope_section")) return {};
  const std::vector<int64_t> sections = TRY(p.integers("mrope_section"));
  const int64_t half = rope.rotary_dim / 2;
  int64_t sum = 0;
  bool valid = sections.size() == 3;
  for (const int64_t n : sections) {
    valid = valid && n >= 0 && n <= half;
    if (valid) sum += n;
  }
  if (!valid || sum != half) {
    return not_allowed(
        p, "mrope_section",
        "must be three counts that sum to half of the rotary dimension, " + std::to_string(half));
  }
  for (size_t i = 0; i < 3; ++i) rope.sections[i] = static_cast<int>(sections[i]);
  if (TRY(p.flag_or("mrope_interleaved", false))) {
    rope.section_order = SectionOrder::kInterleaved;
  }
  return {};
}

}  // namespace

Result<RopeSpec> parse_rope(const ConfigJson& text, int64_t head_dim,
                            const CommonDefaults& defaults) {
  RopeSpec rope;
  const std::string_view form = text.has("rope_parameters") ? "rope_parameters" : "rope_scaling";
  const bool has_parameters = text.has(form);
  const ConfigJson p = has_parameters ? TRY(text.object(form)) : text;
  rope.theta = TRY(positive_or(text, "rope_theta", 1e15, defaults.rope_theta));
  double partial =
      TRY(positive_or(text, "partial_rotary_factor", 1, defaults.partial_rotary_factor));
  if (has_parameters) {  // what stands beside the rope type counts more
    rope.theta = TRY(positive_or(p, "rope_theta", 1e15, rope.theta));
    partial = TRY(positive_or(p, "partial_rotary_factor", 1, partial));
  }
  if (rope.theta <= 1) {
    return invalid_argument(text.field("rope_theta") + " must be above 1, got " +
                            std::to_string(rope.theta));
  }
  rope.rotary_dim = static_cast<int>(static_cast<double>(head_dim) * partial);
  if (rope.rotary_dim < 2 || rope.rotary_dim % 2 != 0) {
    return invalid_argument(text.field("partial_rotary_factor") + ": " + std::to_string(partial) +
                            " of head_dim " + std::to_string(head_dim) + " gives " +
                            std::to_string(rope.rotary_dim) +
                            " rotary dimensions; an even number of at least 2 is needed");
  }
  if (has_parameters) {
    rope.scaling = TRY(parse_scaling(p, text));
    TRY(parse_sections(p, rope));
  }
  return rope;
}

Result<ModelSpec> parse_common(const ConfigJson& config, int64_t head_dim,
                               const CommonDefaults& defaults) {
  const ConfigJson text = TRY(config.text_config());
  TRY(refuse_unknown_forms(config, text));
  ModelSpec spec;
  for (const ConfigJson& json : {config, text}) {
    if (!json.has("quantization_config")) continue;
    const ConfigJson quantization = TRY(json.object("quantization_config"));
    if (quantization.has("kv_cache_quant_type")) {
      spec.kv_format = TRY(parse_kv_cache_type(quantization));
    }
  }
  spec.hidden = TRY(text.integer_in("hidden_size", 1, kMaxHidden));
  spec.vocab = TRY(text.integer_in("vocab_size", 1, kMaxVocab));
  spec.max_positions = TRY(text.integer_in("max_position_embeddings", 1, kMaxPositions));
  spec.norm_eps =
      static_cast<float>(TRY(positive_or(text, "rms_norm_eps", 1.0, defaults.norm_eps)));
  // Image models say it at the top level, whatever their text_config says.
  const ConfigJson& tie = config.has("tie_word_embeddings") ? config : text;
  spec.tied_head = TRY(tie.flag_or("tie_word_embeddings", defaults.tied_head));
  spec.rope = TRY(parse_rope(text, head_dim, defaults));
  if (const auto* yarn = std::get_if<YarnScaling>(&spec.rope.scaling)) {
    // Some releases state the stretched length, others the original one.
    const double stretched = yarn->factor * static_cast<double>(yarn->original_positions);
    spec.max_positions =
        std::clamp(static_cast<int64_t>(std::min(stretched, static_cast<double>(kMaxPositions))),
                   spec.max_positions, kMaxPositions);
  }
  return spec;
}

Result<int64_t> parse_num_layers(const ConfigJson& text) {
  return text.integer_in("num_hidden_layers", 1, kMaxLayers);
}

Result<AttentionSpec> parse_attention(const ConfigJson& text) {
  AttentionSpec spec;
  const int64_t heads = TRY(text.integer_in("num_attention_heads", 1, kMaxHeads));
  const int64_t kv_heads = TRY(text.integer_in_or("num_key_value_heads", 1, kMaxHeads, heads));
  if (heads % kv_heads != 0) {
    return not_allowed(text, "num_key_value_heads",
                       "must divide num_attention_heads, " + std::to_string(heads));
  }
  int64_t head_dim = 0;
  if (text.has("head_dim")) {
    head_dim = TRY(text.integer_in("head_dim", 2, kMaxHeadDim));
  } else {
    const int64_t hidden = TRY(text.integer_in("hidden_size", 1, kMaxHidden));
    head_dim = hidden / heads;
    if (hidden % heads != 0 || head_dim < 2 || head_dim > kMaxHeadDim || head_dim % 2 != 0) {
      return not_allowed(text, "num_attention_heads",
                         "must divide hidden_size, " + std::to_string(hidden) +
                             ", into heads of an even number of dimensions, 2 to " +
                             std::to_string(kMaxHeadDim) + " (there is no head_dim)");
    }
  }
  if (head_dim % 2 != 0) return not_allowed(text, "head_dim", "must be even");
  spec.q_heads = static_cast<int>(heads);
  spec.kv_heads = static_cast<int>(kv_heads);
  spec.head_dim = static_cast<int>(head_dim);
  return spec;
}

Result<DenseMlpSpec> parse_dense_mlp(const ConfigJson& text) {
  return DenseMlpSpec{TRY(text.integer_in("intermediate_size", 1, kMaxInner))};
}

Result<std::vector<bool>> parse_full_attention_layers(const ConfigJson& text, int64_t num_layers,
                                                      int64_t default_interval) {
  std::vector<bool> full(static_cast<size_t>(num_layers));
  if (!text.has("layer_types")) {
    const int64_t interval =
        TRY(text.integer_in_or("full_attention_interval", 1, kMaxLayers, default_interval));
    for (int64_t i = 0; i < num_layers; ++i) full[static_cast<size_t>(i)] = (i + 1) % interval == 0;
    return full;
  }
  const std::vector<std::string> types = TRY(text.strings("layer_types"));
  if (types.size() != full.size()) {
    return invalid_argument(text.field("layer_types") + " must have one entry a layer, " +
                            std::to_string(num_layers) + ", got " + std::to_string(types.size()));
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] != "full_attention" && types[i] != "linear_attention") {
      return unsupported(text.field("layer_types") + ": \"" + types[i] +
                         "\" is not supported; full_attention and linear_attention are");
    }
    full[i] = types[i] == "full_attention";
  }
  return full;
}

Result<> refuse_sliding_window(const ConfigJson& text, int64_t num_layers) {
  if (text.has("layer_types")) {
    const std::vector<bool> full = TRY(parse_full_attention_layers(text, num_layers, 1));
    if (std::find(full.begin(), full.end(), false) != full.end()) {
      return unsupported(text.field("layer_types") + ": this architecture has full_attention only");
    }
    return {};
  }
  if (!TRY(text.flag_or("use_sliding_window", false))) return {};
  // Layers from max_window_layers on would use the window.
  const int64_t from = TRY(text.integer_in_or("max_window_layers", 0, kMaxLayers, 0));
  if (from >= num_layers) return {};
  return unsupported(text.field("use_sliding_window") + ": sliding windows are not supported");
}

Result<MoeSpec> parse_qwen_moe(const ConfigJson& text, bool default_renormalize) {
  MoeSpec moe;
  const std::string_view field = text.has("num_experts") ? "num_experts" : "num_local_experts";
  moe.num_experts = static_cast<int>(TRY(text.integer_in(field, 1, kMaxExperts)));
  moe.rule.top_k =
      static_cast<int>(TRY(text.integer_in("num_experts_per_tok", 1, moe.num_experts)));
  moe.rule.renormalize = TRY(text.flag_or("norm_topk_prob", default_renormalize));
  moe.inner = TRY(text.integer_in("moe_intermediate_size", 1, kMaxInner));
  moe.shared_inner = TRY(text.integer_in_or("shared_expert_intermediate_size", 0, kMaxInner, 0));
  moe.shared_gate = moe.shared_inner > 0;
  return moe;
}

Result<std::vector<bool>> parse_sparse_layers(const ConfigJson& text, int64_t num_layers) {
  const int64_t step = TRY(text.integer_in_or("decoder_sparse_step", 1, kMaxLayers, 1));
  std::vector<bool> sparse(static_cast<size_t>(num_layers));
  for (int64_t i = 0; i < num_layers; ++i) sparse[static_cast<size_t>(i)] = (i + 1) % step == 0;
  if (!text.has("mlp_only_layers")) return sparse;
  for (const int64_t layer : TRY(text.integers("mlp_only_layers"))) {
    if (layer < 0 || layer >= num_layers) {
      return not_allowed(text, "mlp_only_layers",
                         "must name layers from 0 to " + std::to_string(num_layers - 1));
    }
    sparse[static_cast<size_t>(layer)] = false;
  }
  return sparse;
}

}  // namespace weft
