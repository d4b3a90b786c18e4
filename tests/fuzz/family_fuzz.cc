// DEPS: weft_models
// config.json -> model spec on arbitrary bytes: a message, or a spec whose every extent is in its
// bounds and whose parameters can be counted.
#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>

#include "base/check.h"
#include "models/spec.h"

namespace {

void check_layer(const weft::LayerSpec& layer) {
  if (const auto* a = std::get_if<weft::AttentionSpec>(&layer.mixer)) {
    CHECK(a->kv_heads > 0 && a->q_heads % a->kv_heads == 0 && a->head_dim >= 2);
  } else {
    const weft::GdnShape& s = std::get<weft::GdnSpec>(layer.mixer).shape;
    CHECK(s.key_heads > 0 && s.value_heads % s.key_heads == 0);
    CHECK(s.key_dim > 0 && s.value_dim > 0 && s.conv_width >= 2);
  }
  if (const auto* moe = std::get_if<weft::MoeSpec>(&layer.mlp)) {
    CHECK(moe->rule.top_k >= 1 && moe->rule.top_k <= moe->num_experts && moe->inner > 0);
  } else {
    CHECK(std::get<weft::DenseMlpSpec>(layer.mlp).inner > 0);
  }
}

void check_rope(const weft::RopeSpec& rope) {
  const size_t half = static_cast<size_t>(rope.rotary_dim / 2);
  CHECK(half >= 1 && rope.rotary_dim % 2 == 0);
  const std::vector<float> frequencies = weft::rope_inverse_frequencies(rope);
  CHECK(frequencies.size() == half && weft::rope_axes(rope).size() == half);
  for (const float f : frequencies) CHECK(std::isfinite(f) && f >= 0);
  CHECK(std::isfinite(weft::rope_attention_factor(rope)));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto json = weft::ConfigJson::parse(text, "config.json");
  if (!json.ok()) return 0;
  const auto spec = weft::parse_model(*json);
  if (!spec.ok()) {
    CHECK(!spec.error().message.empty());
    return 0;
  }
  CHECK(spec->hidden > 0 && spec->vocab > 0 && spec->max_positions > 0 && !spec->layers.empty());
  CHECK(spec->norm_eps > 0 && std::isfinite(spec->norm_eps));
  for (const weft::LayerSpec& layer : spec->layers) check_layer(layer);
  check_rope(spec->rope);
  CHECK(weft::count_parameters(*spec) > 0);
  return 0;
}
