#include "models/qwen3_next.h"

namespace weft {
namespace {

constexpr int64_t kMaxVision = 1 << 16;

Result<int32_t> token_id(const ConfigJson& config, std::string_view field, int64_t vocab) {
  if (!config.has(field)) return -1;
  return static_cast<int32_t>(TRY(config.integer_in(field, 0, vocab - 1)));
}

Result<VisionSpec> parse_vision(const ConfigJson& config, const ModelSpec& spec) {
  const ConfigJson v = TRY(config.object("vision_config"));
  VisionSpec out;
  out.depth = static_cast<int>(TRY(v.integer_in("depth", 1, 1024)));
  out.hidden = TRY(v.integer_in("hidden_size", 1, kMaxVision));
  out.heads = static_cast<int>(TRY(v.integer_in("num_heads", 1, 1024)));
  if (out.hidden % out.heads != 0) {
    return invalid_argument(v.field("num_heads") + " must divide hidden_size, " +
                            std::to_string(out.hidden) + ", got " + std::to_string(out.heads));
  }
  out.inner = TRY(v.integer_in("intermediate_size", 1, 1 << 20));
  out.out_hidden = TRY(v.integer_in_or("out_hidden_size", 1, kMaxVision, spec.hidden));
  if (out.out_hidden != spec.hidden) {
    return invalid_argument(v.field("out_hidden_size") + " must equal hidden_size of the text, " +
                            std::to_string(spec.hidden) + ", got " +
                            std::to_string(out.out_hidden));
  }
  out.channels = static_cast<int>(TRY(v.integer_in_or("in_channels", 1, 16, 3)));
  out.patch_size = static_cast<int>(TRY(v.integer_in_or("patch_size", 1, 256, 16)));
  out.temporal_patch_size = static_cast<int>(TRY(v.integer_in_or("temporal_patch_size", 1, 16, 2)));
  out.merge_size = static_cast<int>(TRY(v.integer_in_or("spatial_merge_size", 1, 16, 2)));
  out.num_positions = TRY(v.integer_in("num_position_embeddings", 1, 1 << 20));
  if (v.has("deepstack_visual_indexes") && !TRY(v.integers("deepstack_visual_indexes")).empty()) {
    return unsupported(v.field("deepstack_visual_indexes") + ": deepstack is not supported here");
  }
  out.image_token = TRY(token_id(config, "image_token_id", spec.vocab));
  out.video_token = TRY(token_id(config, "video_token_id", spec.vocab));
  out.start_token = TRY(token_id(config, "vision_start_token_id", spec.vocab));
  out.end_token = TRY(token_id(config, "vision_end_token_id", spec.vocab));
  return out;
}

Result<ModelSpec> parse_qwen3_5(const ConfigJson& config) {
  return parse_hybrid(config, {});
}

Result<ModelSpec> parse_qwen3_5_moe(const ConfigJson& config) {
  const ConfigJson text = TRY(config.text_config());
  MoeSpec moe = TRY(parse_qwen_moe(text, /*default_renormalize=*/true));
  moe.rule.renormalize = true;  // whatever norm_topk_prob says
  return parse_hybrid(config, {.moe = moe});
}

/// The checkpoints with a vision tower: the same language model under longer names.
template <Result<ModelSpec> (*parse)(const ConfigJson&)>
Result<ModelSpec> parse_with_vision(const ConfigJson& config) {
  if (!config.is_object("text_config")) {
    return invalid_argument(config.field("text_config") + " must be an object, got " +
                            config.dump("text_config"));
  }
  ModelSpec spec = TRY(parse(config));
  spec.names.model = "model.language_model.";
  spec.vision = TRY(parse_vision(config, spec));
  return spec;
}

}  // namespace

const ModelFamily kQwen35{"Qwen3_5ForCausalLM", parse_qwen3_5};
const ModelFamily kQwen35Image{"Qwen3_5ForConditionalGeneration", parse_with_vision<parse_qwen3_5>};
const ModelFamily kQwen35Moe{"Qwen3_5MoeForCausalLM", parse_qwen3_5_moe};
const ModelFamily kQwen35MoeImage{"Qwen3_5MoeForConditionalGeneration",
                                  parse_with_vision<parse_qwen3_5_moe>};

}  // namespace weft
