#include <algorithm>

#include "models/config.h"

namespace weft {
namespace {

constexpr int64_t kMaxVision = 1 << 16, kMaxDepth = 1024;

Result<int32_t> token_id(const ConfigJson& config, std::string_view field, int64_t vocab) {
  if (!config.has(field)) return -1;
  return static_cast<int32_t>(TRY(config.integer_in(field, 0, vocab - 1)));
}

Error bad_extent(const ConfigJson& v, const char* field, const std::string& rule, int64_t value) {
  return invalid_argument(v.field(field) + " must " + rule + ", got " + std::to_string(value));
}

/// Layer numbers below `depth`, ascending.
Result<std::vector<int>> layer_list(const ConfigJson& v, const char* field, int depth) {
  std::vector<int> out;
  if (!v.has(field)) return out;
  for (const int64_t layer : TRY(v.integers(field))) {
    if (layer < 0 || layer >= depth || (!out.empty() && layer <= out.back())) {
      return invalid_argument(v.field(field) + " must name layers from 0 to " +
                              std::to_string(depth - 1) + ", ascending, got " + v.dump(field));
    }
    out.push_back(static_cast<int>(layer));
  }
  return out;
}

Result<> parse_extents(const ConfigJson& v, VisionSpec& out) {
  out.depth = static_cast<int>(TRY(v.integer_in("depth", 1, kMaxDepth)));
  out.hidden = TRY(v.integer_in("hidden_size", 1, kMaxVision));
  out.heads = static_cast<int>(TRY(v.integer_in("num_heads", 1, 1024)));
  if (out.hidden % 8 != 0) return bad_extent(v, "hidden_size", "be a multiple of 8", out.hidden);
  if (out.hidden % out.heads != 0 || out.head_dim() % 4 != 0 || out.head_dim() > 256) {
    return bad_extent(v, "num_heads",
                      "divide hidden_size, " + std::to_string(out.hidden) +
                          ", into heads of a multiple of 4, at most 256",
                      out.heads);
  }
  out.inner = TRY(v.integer_in("intermediate_size", 1, 1 << 20));
  const char* channels = v.has("in_channels") || !v.has("in_chans") ? "in_channels" : "in_chans";
  out.channels = static_cast<int>(TRY(v.integer_in_or(channels, 3, 3, 3)));
  const char* patch =
      v.has("patch_size") || !v.has("spatial_patch_size") ? "patch_size" : "spatial_patch_size";
  out.patch_size = static_cast<int>(TRY(v.integer_in_or(patch, 1, 256, out.gated ? 14 : 16)));
  out.temporal_patch_size = static_cast<int>(TRY(v.integer_in_or("temporal_patch_size", 1, 16, 2)));
  out.merge_size = static_cast<int>(TRY(v.integer_in_or("spatial_merge_size", 1, 16, 2)));
  return {};
}

/// Learned positions and deepstack of Qwen3-VL and Qwen3.5.
Result<> parse_qwen3_traits(const ConfigJson& v, VisionSpec& out) {
  out.num_positions = TRY(v.integer_in("num_position_embeddings", 1, 1 << 20));
  int64_t side = 1;
  while (side * side < out.num_positions) ++side;
  if (side * side != out.num_positions) {
    return bad_extent(v, "num_position_embeddings", "be a square", out.num_positions);
  }
  out.deepstack = TRY(layer_list(v, "deepstack_visual_indexes", out.depth));
  return {};
}

/// Windows of Qwen2.5-VL.
Result<> parse_window_traits(const ConfigJson& v, VisionSpec& out) {
  const int64_t pixels = TRY(v.integer_in("window_size", 1, kMaxVision));
  const int64_t unit = int64_t{out.patch_size} * out.merge_size;
  if (pixels % unit != 0) {
    return bad_extent(v, "window_size", "be a multiple of " + std::to_string(unit), pixels);
  }
  out.window = static_cast<int>(pixels / unit);
  out.tokens_per_second =
      static_cast<double>(TRY(v.integer_in_or("tokens_per_second", 1, 1000, 4)));
  out.full_layers = TRY(layer_list(v, "fullatt_block_indexes", out.depth));
  return {};
}

Result<VisionSpec> parse_tower(const ConfigJson& config, const ModelSpec& spec, bool gated) {
  const ConfigJson v = TRY(config.object("vision_config"));
  VisionSpec out;
  out.gated = gated;
  TRY(parse_extents(v, out));
  out.out_hidden = TRY(v.integer_in_or("out_hidden_size", 1, kMaxVision, spec.hidden));
  if (out.out_hidden != spec.hidden) {
    return bad_extent(v, "out_hidden_size",
                      "equal hidden_size of the text, " + std::to_string(spec.hidden),
                      out.out_hidden);
  }
  TRY(gated ? parse_window_traits(v, out) : parse_qwen3_traits(v, out));
  if (out.deepstack.size() > spec.layers.size()) {
    return invalid_argument(v.field("deepstack_visual_indexes") +
                            " must not be longer than the decoder has layers");
  }
  out.image_token = TRY(token_id(config, "image_token_id", spec.vocab));
  out.video_token = TRY(token_id(config, "video_token_id", spec.vocab));
  out.start_token = TRY(token_id(config, "vision_start_token_id", spec.vocab));
  out.end_token = TRY(token_id(config, "vision_end_token_id", spec.vocab));
  return out;
}

/// An image model's language model must have rope with sections for t, h and w.
Result<> require_sections(const ConfigJson& config, const ModelSpec& spec) {
  if (spec.rope.multimodal()) return {};
  const ConfigJson text = TRY(config.text_config());
  return invalid_argument(text.field("mrope_section") +
                          " is missing: an image model's rope has sections for t, h and w");
}

/// Qwen2.5-VL: Qwen2 behind a tower with windows. Checkpoints have flat or nested configs and two
/// sets of names (adapt_to_checkpoint()).
Result<ModelSpec> parse_qwen2_5_vl(const ConfigJson& config) {
  ModelSpec spec = TRY(parse_dense(config, {.qkv_bias = true}, {.rope_theta = 1e6}));
  TRY(require_sections(config, spec));
  spec.names.vision = "visual.";
  spec.vision = TRY(parse_tower(config, spec, /*gated=*/true));
  return spec;
}

/// Qwen3-VL: Qwen3 behind a tower whose middle layers join the first decoder layers.
Result<ModelSpec> parse_qwen3_vl(const ConfigJson& config) {
  return put_behind_tower(config, TRY(parse_qwen3(config)));
}

}  // namespace

Result<ModelSpec> put_behind_tower(const ConfigJson& config, ModelSpec spec) {
  spec.names.model = "model.language_model.";
  spec.rope.section_order = SectionOrder::kInterleaved;
  TRY(require_sections(config, spec));
  spec.vision = TRY(parse_tower(config, spec, /*gated=*/false));
  return spec;
}

const ModelFamily kQwen25Image{"Qwen2_5_VLForConditionalGeneration", parse_qwen2_5_vl};
const ModelFamily kQwen3Image{"Qwen3VLForConditionalGeneration", parse_qwen3_vl};

}  // namespace weft
