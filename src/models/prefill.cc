#include "models/prefill.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <optional>
#include <set>

#include "checkpoint/model_file.h"

namespace weft {
namespace {

constexpr int64_t kBlock = HeadPlan::kBlock;
constexpr int64_t kMaxTokens = int64_t{1} << 24;

std::string quoted(std::string_view text) {
  return "\"" + std::string(text) + "\"";
}

std::optional<float> parse_float(std::string_view text) {
  float value = 0;
  const auto result = std::from_chars(text.data(), text.data() + text.size(), value);
  const bool whole = result.ec == std::errc() && result.ptr == text.data() + text.size();
  if (!whole || !std::isfinite(value)) return std::nullopt;
  return value;
}

Result<> check_stride(const std::string& field, int64_t stride) {
  if (stride == 4 || stride == 8 || stride == 16) return {};
  return invalid_argument(field + " is " + std::to_string(stride) + "; allowed: 4, 8, 16");
}

/// A mode of Elastic-Attention as a kind of head.
std::optional<HeadKind> kind_of_mode(std::string_view mode) {
  if (mode == "full") return HeadKind::kFull;
  if (mode == "xattn") return HeadKind::kBlocks;
  if (mode == "streaming") return HeadKind::kStreaming;
  return std::nullopt;
}

Result<ConfigJson> load_json(const std::string& path) {
  const size_t slash = path.rfind('/');
  const ModelDirectory directory =
      TRY(ModelDirectory::open(slash == std::string::npos ? "." : path.substr(0, slash + 1)));
  return ConfigJson::load(directory, slash == std::string::npos ? path : path.substr(slash + 1));
}

/// Thresholds of every layer from a file; each entry has one value or one a head.
Result<std::vector<std::vector<float>>> load_thresholds(const std::string& path) {
  const ConfigJson json = TRY(load_json(path));
  std::vector<std::vector<float>> table;
  for (const ConfigJson& layer : TRY(json.objects("layers"))) {
    std::vector<float> values;
    for (const double value : TRY(layer.numbers("thresholds"))) {
      if (value < 0 || value > 1) {
        return invalid_argument(layer.field("thresholds") + ": " + std::to_string(value) +
                                " is not within 0 and 1");
      }
      values.push_back(static_cast<float>(value));
    }
    table.push_back(std::move(values));
  }
  return table;
}

/// Sink and window in blocks, from the fields of Elastic-Attention.
Result<> read_window(const ConfigJson& json, SparsePrefillSpec& out) {
  const int64_t sink = TRY(json.integer_in_or("sink_size", 0, kMaxTokens, 128));
  const int64_t window = TRY(json.integer_in_or("local_window_size", 1, kMaxTokens, 2048));
  out.sink_blocks = static_cast<int>((sink + kBlock - 1) / kBlock);
  out.window_blocks = static_cast<int>((window + kBlock - 1) / kBlock);
  return {};
}

/// Kinds of the kv heads of every layer, with sink and window, from a file; one a layer.
Result<std::vector<SparsePrefillSpec>> load_heads(const std::string& path) {
  const ConfigJson json = TRY(load_json(path));
  SparsePrefillSpec common;
  TRY(read_window(json, common));
  std::vector<SparsePrefillSpec> table;
  for (const ConfigJson& layer : TRY(json.objects("layers"))) {
    table.push_back(common);
    for (const std::string& mode : TRY(layer.strings("heads"))) {
      const std::optional<HeadKind> kind = kind_of_mode(mode);
      if (!kind) {
        return invalid_argument(layer.field("heads") + ": " + quoted(mode) +
                                " is not one of full, streaming, xattn");
      }
      table.back().heads.push_back(*kind);
    }
  }
  return table;
}

Error wrong_layers(const std::string& file, size_t want, size_t got) {
  return invalid_argument(file + ": layers must have one entry a layer, " + std::to_string(want) +
                          ", got " + std::to_string(got));
}

AttentionSpec* attention_of(LayerSpec& layer) {
  return std::get_if<AttentionSpec>(&layer.mixer);
}

template <class Predicate>
bool any_layer(const ModelSpec& spec, Predicate predicate) {
  return std::any_of(spec.layers.begin(), spec.layers.end(), [&](const LayerSpec& layer) {
    const auto* attention = std::get_if<AttentionSpec>(&layer.mixer);
    return attention != nullptr && attention->sparse && predicate(*attention->sparse);
  });
}

/// Some head may see the blocks of an estimate.
bool has_lists(const SparsePrefillSpec& sparse) {
  return !sparse.routed || sparse.retrieval == HeadKind::kBlocks ||
         sparse.sparse == HeadKind::kBlocks;
}

/// A file of `setting`, one entry a layer.
template <class Load>
auto load_table(const std::string& setting, const std::string& path, Load load,
                const ModelSpec& spec) -> decltype(load(path)) {
  auto table = load(path);
  if (!table.ok()) return with_context(table.error(), "--prefill-attention " + setting);
  if (table->size() != spec.layers.size()) {
    return wrong_layers(path, spec.layers.size(), table->size());
  }
  return table;
}

constexpr float kThreshold = 0.9f;
constexpr int kStride = 16;

constexpr std::array<std::string_view, 4> kXattnFamilies = {
    "Qwen3ForCausalLM", "Qwen2ForCausalLM", "LlamaForCausalLM", "PawQwen3ForCausalLM"};

}  // namespace

Result<PrefillOptions> parse_prefill(const std::string& flag, std::string_view text) {
  PrefillOptions out;
  const std::string_view kind = text.substr(0, text.find(':'));
  std::string_view rest = text.substr(kind.size());
  const auto bad = [&](const std::string& what) {
    return invalid_argument(flag + ": " + what +
                            "; allowed: auto, dense, xattn, "
                            "auto:threshold=0.9,stride=16,thresholds=FILE, "
                            "xattn:threshold=0.9,stride=16,from=10240,thresholds=FILE,heads=FILE");
  };
  if (kind == "dense") {
    if (!rest.empty()) return bad(quoted(kind) + " takes no settings");
    out.kind = PrefillOptions::Kind::kDense;
    return out;
  }
  if (kind != "xattn" && kind != "auto") return bad(quoted(text) + " is unknown");
  out.kind = kind == "auto" ? PrefillOptions::Kind::kModel : PrefillOptions::Kind::kXattn;
  std::set<std::string_view> seen;
  while (!rest.empty()) {
    rest.remove_prefix(1);  // ':' or ','
    const std::string_view setting = rest.substr(0, rest.find(','));
    rest.remove_prefix(setting.size());
    const size_t equals = setting.find('=');
    if (equals == std::string_view::npos) return bad(quoted(setting) + " has no value");
    const std::string_view name = setting.substr(0, equals), value = setting.substr(equals + 1);
    if (!seen.emplace(name).second) return bad(quoted(name) + " is given twice");
    if (kind == "auto" && (name == "heads" || name == "from")) {
      return bad(quoted(name) + " is no setting of auto");
    }
    if (name == "thresholds" || name == "heads") {
      if (value.empty()) return bad(std::string(name) + " names no file");
      (name == "heads" ? out.heads_file : out.thresholds_file) = value;
      continue;
    }
    const std::optional<float> number = parse_float(value);
    if (!number) return bad(quoted(value) + " is not a number");
    if (name == "threshold") {
      if (*number < 0 || *number > 1) return bad("threshold must be within 0 and 1");
      out.threshold = *number;
    } else if (name == "from") {
      const bool whole = *number == std::floor(*number) && *number >= 0;
      if (!whole || *number > static_cast<float>(kMaxTokens)) return bad("from must be tokens");
      out.from = static_cast<int64_t>(*number);
    } else if (name == "stride") {
      if (*number != 4 && *number != 8 && *number != 16) return bad("stride must be 4, 8 or 16");
      out.stride = static_cast<int>(*number);
    } else {
      return bad(quoted(name) + " is no setting of " + std::string(kind));
    }
  }
  if (seen.contains("threshold") && seen.contains("thresholds")) {
    return bad("threshold and thresholds exclude each other");
  }
  return out;
}

Result<SparsePrefillSpec> parse_elastic(const ConfigJson& text, const AttentionSpec& attention) {
  SparsePrefillSpec out{.routed = true};
  const std::string retrieval = TRY(text.string_or("retrieval_mode", "full"));
  const std::string toggle = TRY(text.string_or("toggle_type", "xattn"));
  const std::optional<HeadKind> kept = kind_of_mode(retrieval), sparse = kind_of_mode(toggle);
  const std::string pair = retrieval + "/" + toggle;
  const bool known = pair == "full/xattn" || pair == "full/streaming" ||
                     pair == "xattn/streaming" || pair == "xattn/xattn" || pair == "full/full";
  if (!kept || !sparse || !known) {
    return unsupported(text.field("retrieval_mode") + " and toggle_type: " + pair +
                       " is not supported; full/xattn, full/streaming, xattn/streaming, "
                       "xattn/xattn and full/full are");
  }
  out.retrieval = *kept;
  out.sparse = *sparse;
  out.routed = out.retrieval != out.sparse;
  const std::string pooling = TRY(text.string_or("pooling_mode", "ctx_q"));
  if (pooling != "ctx_q") {
    return unsupported(text.field("pooling_mode") + " " + quoted(pooling) +
                       " is not supported; ctx_q is");
  }
  if (!TRY(text.flag_or("enable_ada_sparsity", true))) {
    return unsupported(text.field("enable_ada_sparsity") +
                       " false (a static mask from attn_mask_log_alphas) is not supported");
  }
  if (!TRY(text.flag_or("use_softmax", true))) {
    return unsupported(text.field("use_softmax") +
                       " false is not supported: such a router draws random numbers");
  }
  TRY(read_window(text, out));
  const int64_t block = TRY(text.integer_or("block_size", kBlock));
  if (block != kBlock) {
    return unsupported(text.field("block_size") + " " + std::to_string(block) +
                       " is not supported; 128 is");
  }
  const int64_t stride = TRY(text.integer_or("xattn_stride", 16));
  TRY(check_stride(text.field("xattn_stride"), stride));
  out.stride = static_cast<int>(stride);
  out.norm = static_cast<float>(TRY(text.number_in_or("xattn_norm", 1e-6, 1e6, 1)));
  out.thresholds = {static_cast<float>(TRY(text.number_in_or("xattn_threshold", 0, 1, 0.9)))};
  if (attention.head_dim > 256) {
    return unsupported(text.field("head_dim") + ": routers work up to 256");
  }
  return out;
}

Result<> apply_prefill(const PrefillOptions& options, ModelSpec& spec) {
  const bool as_trained = options.kind == PrefillOptions::Kind::kModel;
  const bool dense = options.kind == PrefillOptions::Kind::kDense;
  if (as_trained && !spec.prefill_refusal.empty()) {
    return unsupported(spec.prefill_refusal + "; use --prefill-attention dense or xattn");
  }
  if (as_trained && options == PrefillOptions()) return {};
  if (as_trained && !any_layer(spec, has_lists)) {
    return invalid_argument("--prefill-attention auto: no head of " + spec.architecture +
                            " chooses blocks, so there is nothing to set; allowed: auto");
  }
  spec.prefill_refusal.clear();
  const bool known = std::find(kXattnFamilies.begin(), kXattnFamilies.end(), spec.architecture) !=
                     kXattnFamilies.end();
  if (!as_trained && !dense && !known) {
    return unsupported("--prefill-attention xattn: " + spec.architecture +
                       " has no sparse prefill; LlamaForCausalLM, PawQwen3ForCausalLM, "
                       "Qwen2ForCausalLM and Qwen3ForCausalLM have");
  }
  if (!as_trained && has_prefill_router(spec)) {
    spec.names.ignored_parts.push_back(".self_attn.mask_allocator.");
  }
  std::vector<std::vector<float>> table;
  if (!dense && !options.thresholds_file.empty()) {
    table = TRY(load_table("thresholds", options.thresholds_file, load_thresholds, spec));
  }
  std::vector<SparsePrefillSpec> heads(spec.layers.size());
  if (!dense && !options.heads_file.empty()) {
    heads = TRY(load_table("heads", options.heads_file, load_heads, spec));
  }
  for (size_t i = 0; i < spec.layers.size(); ++i) {
    AttentionSpec* attention = attention_of(spec.layers[i]);
    if (attention == nullptr || (as_trained && !attention->sparse)) continue;
    if (!as_trained) attention->sparse.reset();
    if (dense) continue;
    SparsePrefillSpec sparse = as_trained ? *attention->sparse : std::move(heads[i]);
    if (options.stride || !as_trained) sparse.stride = options.stride.value_or(kStride);
    if (options.threshold || !as_trained) {
      sparse.thresholds = {options.threshold.value_or(kThreshold)};
    }
    if (!sparse.heads.empty() && std::ssize(sparse.heads) != attention->kv_heads) {
      return invalid_argument(options.heads_file + ": layer " + std::to_string(i) + " must have " +
                              std::to_string(attention->kv_heads) + " heads, got " +
                              std::to_string(sparse.heads.size()));
    }
    if (!table.empty()) {
      sparse.thresholds = table[i];
      const auto count = static_cast<int>(sparse.thresholds.size());
      if (count != 1 && count != attention->q_heads) {
        return invalid_argument(options.thresholds_file + ": layer " + std::to_string(i) +
                                " must have 1 or " + std::to_string(attention->q_heads) +
                                " thresholds, got " + std::to_string(count));
      }
    }
    attention->sparse = std::move(sparse);
  }
  return {};
}

bool has_sparse_prefill(const ModelSpec& spec) {
  return any_layer(spec, [](const SparsePrefillSpec&) { return true; });
}

bool has_prefill_router(const ModelSpec& spec) {
  return any_layer(spec, [](const SparsePrefillSpec& sparse) { return sparse.routed; });
}

Result<> check_prefill_router(const ModelSpec& spec, const Checkpoint& checkpoint) {
  if (!has_prefill_router(spec)) return {};
  const std::string name =
      spec.names.model + "layers.0.self_attn.mask_allocator.cls_feat_extractor.0.weight";
  const TensorInfo* info = checkpoint.find(name);
  const auto* attention = std::get_if<AttentionSpec>(&spec.layers[0].mixer);
  if (info == nullptr || attention == nullptr || info->shape.size() != 2) return {};
  const int64_t d = attention->head_dim;
  if (info->shape[0] != 8 * d || info->shape[1] != d) return {};
  return unsupported(checkpoint.dir() + ": " + name + " is [" + std::to_string(info->shape[0]) +
                     ", " + std::to_string(info->shape[1]) +
                     "]: a router of Flux Attention, which decides by layers, is not supported; "
                     "Elastic-Attention's ([4 head_dim, head_dim]) is; use --prefill-attention "
                     "dense");
}

}  // namespace weft
