#pragma once

#include <string>
#include <vector>

#include "models/spec.h"

namespace weft {

/// One positive number a channel, [G * D], of K and of V of one layer.
struct KvChannels {
  std::vector<float> k, v;
};

/// Of every layer of Model::cache_specs() (the MTP module's are the last); empty where a layer has
/// no paged cache. As static scales: what a code is multiplied by. As a range: the largest
/// magnitude that was seen.
using KvLayers = std::vector<KvChannels>;

/// The static scales of `format` in the checkpoint: below a layer's self_attn.
///   k_scale (also attn.k_scale, k_proj.k_scale, k_proj.output_scale): value = code * scale
///   cachek_matmul.activation_scale (ERNIE): the largest value, code * scale / 127 or / 448
/// and likewise for V; of one number, one a head, or one a channel. A layer without any has 1 with
/// fp8 (what e4m3 holds is enough for most models); with int8 that is an Error that points to the
/// dynamic formats, as is a k_scale of less than channels: such are made for e4m3, unless
/// spec.kv_format says int8. One of K or V alone is an Error too. Who asked for the format is the
/// caller's to say.
Result<KvLayers> kv_scales_of(const ModelSpec& spec, const Checkpoint* checkpoint, KvFormat format);

/// The same from a file that write_kv_range() wrote. A file of another architecture or hidden size,
/// or of other layers than the model's, is an Error that names it and what the model has.
Result<KvLayers> read_kv_scales(const ModelSpec& spec, const std::string& path, KvFormat format);

/// Writes a safetensors file with layers.N.k_range and layers.N.v_range [G, D] f32.
Result<> write_kv_range(const std::string& path, const ModelSpec& spec, const KvLayers& range);

/// For tests: a scale that fits values of about 1 in every layer.
KvLayers unit_kv_scales(const ModelSpec& spec, KvFormat format);

}  // namespace weft
