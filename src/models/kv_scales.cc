#include "models/kv_scales.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

#include "checkpoint/safetensors_writer.h"
#include "kv/spec.h"

namespace weft {
namespace {

const char kDynamicHint[] =
    "; bfloat16, int8_dynamic, fp8_block and int4 need no scales, and `weft calibrate` makes a "
    "file for --kv-scales";

/// The layers of the cache: what they are and where the checkpoint has their tensors.
struct CacheLayer {
  const AttentionSpec* attention = nullptr;  // null: no paged cache
  std::string prefix;                        // "model.layers.3.self_attn."
  int64_t heads() const { return attention->kv_heads; }
  int64_t dim() const { return attention->head_dim; }
};
std::vector<CacheLayer> cache_layers(const ModelSpec& spec) {
  std::vector<CacheLayer> out;
  const auto add = [&](const LayerSpec& layer, const std::string& layers, size_t i) {
    out.push_back(
        {std::get_if<AttentionSpec>(&layer.mixer), layers + std::to_string(i) + ".self_attn."});
  };
  for (size_t i = 0; i < spec.layers.size(); ++i)
    add(spec.layers[i], spec.names.model + "layers.", i);
  for (int i = 0; spec.mtp && i < spec.mtp->num_layers; ++i) {
    add(spec.mtp->layer, spec.names.mtp.layers, static_cast<size_t>(i));
  }
  return out;
}

/// `name` in messages.
Result<std::vector<float>> to_floats(const std::string& name, const TensorInfo& info,
                                     const std::vector<std::byte>& bytes) {
  std::vector<float> out;
  for (int64_t i = 0; i < info.num_elements(); ++i) {
    uint16_t half = 0;
    float value = 0;
    switch (info.dtype) {
      case DType::kF32: std::memcpy(&value, bytes.data() + i * 4, 4); break;
      case DType::kBF16:
        std::memcpy(&half, bytes.data() + i * 2, 2);
        value = bf16_to_float(half);
        break;
      case DType::kF16:
        std::memcpy(&half, bytes.data() + i * 2, 2);
        value = f16_to_float(half);
        break;
      default:
        return unsupported(name + ": scales are F32, BF16 or F16, not " +
                           std::string(dtype_name(info.dtype)));
    }
    // With less or more, 1 / scale or the largest code's value might be no finite number.
    if (!(value >= 1e-30f && value <= 1e30f)) {
      return data_loss(fmt::format("{}: scales must be from 1e-30 to 1e30, got {:g}", name, value));
    }
    out.push_back(value);
  }
  return out;
}

/// One number, one a head or one a channel -> one a channel.
Result<std::vector<float>> spread(const std::string& name, const std::vector<float>& values,
                                  const CacheLayer& layer) {
  const auto heads = static_cast<size_t>(layer.heads()), dim = static_cast<size_t>(layer.dim());
  const size_t each = values.empty() ? 0 : heads * dim / values.size();
  if (values.size() != 1 && values.size() != heads && values.size() != heads * dim) {
    return data_loss(name + ": 1, " + std::to_string(heads) + " (one a head) or " +
                     std::to_string(heads * dim) + " (one a channel) scales are allowed, got " +
                     std::to_string(values.size()));
  }
  std::vector<float> out;
  for (size_t i = 0; i < heads * dim; ++i) out.push_back(values[i / each]);
  return out;
}

/// fp8 has one scale a head: that of its largest channel, under which every channel fits.
void take_largest_of_heads(std::vector<float>& scales, int64_t head_dim) {
  for (auto begin = scales.begin(); begin != scales.end(); begin += head_dim) {
    std::fill(begin, begin + head_dim, *std::max_element(begin, begin + head_dim));
  }
}

/// Scales of one plane of a layer, or nothing. `made_for`: what config.json says they are of.
Result<std::vector<float>> find_scales(const Checkpoint& checkpoint, const CacheLayer& layer,
                                       char plane, KvFormat format,
                                       std::optional<KvFormat> made_for) {
  const std::string x(1, plane);
  const std::string direct[] = {x + "_scale", "attn." + x + "_scale", x + "_proj." + x + "_scale",
                                x + "_proj.output_scale"};
  const auto load = [&](const std::string& name) -> Result<std::vector<float>> {
    const TensorInfo* info = checkpoint.find(name);
    return spread(name, TRY(to_floats(name, *info, TRY(checkpoint.load(name)))), layer);
  };
  for (const std::string& suffix : direct) {
    const std::string name = layer.prefix + suffix;
    const TensorInfo* info = checkpoint.find(name);
    if (!info) continue;
    // Checkpoints for other engines have such scales for e4m3 alone, whose codes go up to 448.
    const bool of_channels = info->num_elements() == layer.heads() * layer.dim();
    if (format == KvFormat::kInt8 && made_for != format && (made_for || !of_channels)) {
      return invalid_argument(name +
                              " is of e4m3 codes (up to 448), and int8 would clip with it; fp8 "
                              "takes it" +
                              kDynamicHint);
    }
    return load(name);
  }
  const std::string ernie = layer.prefix + "cache" + x + "_matmul.activation_scale";
  if (!checkpoint.find(ernie)) return std::vector<float>();
  std::vector<float> out = TRY(load(ernie));
  for (float& scale : out) scale /= kv_largest_code(format);
  return out;
}

/// In a file of ranges: [heads, dims of a head].
std::string range_name(size_t layer, const char* plane) {
  return "layers." + std::to_string(layer) + "." + plane + "_range";
}
/// In its metadata, as "model".
std::string model_of(const ModelSpec& spec) {
  return spec.architecture + " of hidden size " + std::to_string(spec.hidden);
}

}  // namespace

Result<KvLayers> kv_scales_of(const ModelSpec& spec, const Checkpoint* checkpoint,
                              KvFormat format) {
  KvLayers out;
  for (const CacheLayer& layer : cache_layers(spec)) {
    KvChannels& scales = out.emplace_back();
    if (!layer.attention) continue;
    if (checkpoint) {
      scales.k = TRY(find_scales(*checkpoint, layer, 'k', format, spec.kv_format));
      scales.v = TRY(find_scales(*checkpoint, layer, 'v', format, spec.kv_format));
    }
    const bool any = !scales.k.empty() || !scales.v.empty();
    for (const auto& [plane, values] : {std::pair('k', &scales.k), {'v', &scales.v}}) {
      if (format == KvFormat::kFp8 && !any) {
        values->assign(static_cast<size_t>(layer.heads() * layer.dim()), 1.0f);
      }
      const std::string name = layer.prefix + plane + "_scale";
      if (values->empty() && any) {
        return data_loss(name + " is not in the checkpoint, which has the other plane's" +
                         kDynamicHint);
      }
      if (values->empty()) {
        return invalid_argument("the checkpoint has no scales of its cache (" + name +
                                "); fp8 does with 1.0" + kDynamicHint);
      }
      if (format == KvFormat::kFp8) take_largest_of_heads(*values, layer.dim());
    }
  }
  return out;
}

Result<KvLayers> read_kv_scales(const ModelSpec& spec, const std::string& path, KvFormat format) {
  const SafetensorsFile file = TRY(SafetensorsFile::open(path));
  const auto made_for = file.metadata().find("model");  // early files don't say
  if (made_for != file.metadata().end() && made_for->second != model_of(spec)) {
    return data_loss(path + ": is of " + made_for->second + ", and this is " + model_of(spec));
  }
  const std::vector<CacheLayer> layers = cache_layers(spec);
  std::set<std::string> names, left_out;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i].attention) continue;
    for (const char* plane : {"k", "v"}) names.insert(range_name(i, plane));
  }
  for (int i = 0; spec.mtp_left_out && i < spec.mtp_left_out->num_layers; ++i) {
    const size_t layer = layers.size() + static_cast<size_t>(i);
    for (const char* plane : {"k", "v"}) left_out.insert(range_name(layer, plane));
  }
  const std::string expected =
      "; of the model's layers " + std::to_string(names.size() / 2) + " have a KV cache (" +
      std::to_string(names.size()) + " tensors), and the file has " +
      std::to_string(file.tensors().size()) + " tensors: it is of another model";
  for (const TensorInfo& info : file.tensors()) {
    if (!names.contains(info.name) && !left_out.contains(info.name)) {
      return data_loss(path + ": tensor " + info.name + " is of no such layer" + expected);
    }
  }
  KvLayers out;
  for (size_t i = 0; i < layers.size(); ++i) {
    KvChannels& scales = out.emplace_back();
    if (!layers[i].attention) continue;
    const auto fill = [&](const char* plane) -> Result<std::vector<float>> {
      const std::string name = range_name(i, plane);
      const TensorInfo* info = file.find(name);
      if (!info) return data_loss(path + ": no tensor " + name + expected);
      const int64_t heads = layers[i].heads(), dim = layers[i].dim();
      if (info->shape != std::vector<int64_t>{heads, dim}) {
        std::string shape;
        for (const int64_t extent : info->shape) {
          shape += (shape.empty() ? "" : ", ") + std::to_string(extent);
        }
        return data_loss(path + ": " + name + " is [" + shape + "], and the model's layer [" +
                         std::to_string(heads) + ", " + std::to_string(dim) +
                         "] (kv heads, dims of a head): it is of another model");
      }
      std::vector<float> range = TRY(to_floats(path + ": " + name, *info, TRY(file.load(name))));
      if (format == KvFormat::kFp8) take_largest_of_heads(range, dim);
      for (int64_t g = 0; g < heads; ++g) {
        const auto begin = range.begin() + g * dim, end = begin + dim;
        // A channel that calibration saw next to nothing of may wake up later.
        const float least = *std::max_element(begin, end) / 64;
        std::transform(begin, end, begin,
                       [&](float x) { return std::max(x, least) / kv_largest_code(format); });
      }
      return range;
    };
    scales.k = TRY(fill("k"));
    scales.v = TRY(fill("v"));
  }
  return out;
}

Result<> write_kv_range(const std::string& path, const ModelSpec& spec, const KvLayers& range) {
  const std::vector<CacheLayer> layers = cache_layers(spec);
  CHECK(layers.size() == range.size());
  std::vector<TensorToWrite> tensors;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!layers[i].attention) continue;
    for (const auto& [plane, values] : {std::pair("k", &range[i].k), {"v", &range[i].v}}) {
      tensors.push_back({.name = range_name(i, plane),
                         .shape = {layers[i].heads(), layers[i].dim()},
                         .data = std::as_bytes(std::span(*values))});
    }
  }
  return write_safetensors(path, tensors, {{"format", "weft kv range"}, {"model", model_of(spec)}});
}

KvLayers unit_kv_scales(const ModelSpec& spec, KvFormat format) {
  KvLayers out;
  for (const CacheLayer& layer : cache_layers(spec)) {
    KvChannels& scales = out.emplace_back();
    if (!layer.attention) continue;
    const float scale = 4.0f / kv_largest_code(format);
    scales.k.assign(static_cast<size_t>(layer.heads() * layer.dim()), scale);
    scales.v = scales.k;
  }
  return out;
}

}  // namespace weft
