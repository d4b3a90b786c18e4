#include "tests/noninterference/tiny_model.h"

#include <fmt/format.h>

#include <random>

#include "checkpoint/model_file.h"
#include "tests/golden/ernie_mtp.h"
#include "tests/support/oracle.h"

namespace weft {

std::string describe(const Variant& v) {
  return fmt::format("{} ops {} weights {} cache {} block {}{}{}", v.family, v.ops->name,
                     weight_format_name(v.format), kv_format_name(v.kv_format), v.block_size,
                     v.prefill.kind == PrefillOptions::Kind::kXattn ? " xattn" : "",
                     v.heads_seed != 0 ? fmt::format(" heads {}", v.heads_seed) : "");
}

std::vector<std::string> tiny_families() {
  std::vector<std::string> out = {"qwen3_next",
                                  "qwen3",
                                  "ernie4_5_moe",
                                  "qwen3_5",
                                  "pawqwen3_xattn_streaming",
                                  "qwen2",
                                  "qwen3_moe",
                                  "pawqwen3_full_xattn",
                                  "llama3",
                                  "qwen3_vl",
                                  "pawqwen3_full_streaming",
                                  "qwen2_5_vl",
                                  std::string(kMtpFamily),
                                  std::string(kErnieMtpFamily)};
  std::erase_if(out, [](const std::string& f) {
    return f.starts_with("pawqwen3_full") && !oracle_has("models/" + f);
  });
  return out;
}

std::vector<const OpTable*> all_op_tables(bool cuda) {
  if (cuda) {
    CHECK(cuda_ops() != nullptr, "this binary was built without CUDA");
    return {cuda_ops()};
  }
  std::vector<const OpTable*> out = {&ref_ops()};
  const CpuInfo cpu = cpu_info();
  for (int isa = 0; isa <= static_cast<int>(cpu.isa); ++isa) {
    out.push_back(&cpu_ops(static_cast<CpuIsa>(isa)));
  }
  return out;
}

namespace {

/// Full heads beside streaming ones beside such with lists, in another order in each layer.
void mix_heads(uint64_t seed, ModelSpec& spec) {
  constexpr HeadKind kKinds[] = {HeadKind::kFull, HeadKind::kStreaming, HeadKind::kBlocks};
  std::mt19937_64 rng(seed);
  const int sink = static_cast<int>(rng() % 2), window = 1 + static_cast<int>(rng() % 2);
  for (LayerSpec& layer : spec.layers) {
    auto* attention = std::get_if<AttentionSpec>(&layer.mixer);
    if (attention == nullptr || !attention->sparse) continue;
    SparsePrefillSpec& sparse = *attention->sparse;
    sparse.sink_blocks = sink;
    sparse.window_blocks = window;
    const uint64_t first = rng() % 3, step = 1 + rng() % 2;
    for (int g = 0; g < attention->kv_heads; ++g) {
      sparse.heads.push_back(kKinds[(first + step * static_cast<uint64_t>(g)) % 3]);
    }
  }
}

Result<std::unique_ptr<Model>> load_wide(const LoadOptions& options, Stream& stream,
                                         const OpTable& ops) {
  LoadOptions dummy = options;
  dummy.dummy_weights = true;
  const ModelDirectory directory =
      TRY(ModelDirectory::open(WEFT_SOURCE_DIR "/tests/noninterference/wide"));
  const ModelSpec spec = TRY(parse_model(TRY(ConfigJson::load(directory, "config.json"))));
  if (kv_has_static_scales(dummy.kv_format)) {
    dummy.kv_scales = unit_kv_scales(spec, dummy.kv_format);
  }
  return Model::load(spec, nullptr, dummy, stream, ops);
}

}  // namespace

Result<std::unique_ptr<Model>> load_tiny(const Variant& variant) {
  LoadOptions options;
  options.format = variant.format;
  options.kv_format = variant.kv_format;
  options.block_size = variant.block_size;
  options.max_model_len = kTinyModelLen;
  options.num_threads = kTinyThreads;
  options.images = true;
  options.max_image_patches = 4 * kTinyImageTokens;
  TinyStream stream(variant.ops->device, int64_t{64} << 20, kTinyThreads);
  if (variant.family == kWideFamily) return load_wide(options, stream.get(), *variant.ops);
  const std::string path = variant.family == kErnieMtpFamily
                               ? testing::ernie_mtp_dir("ernie4_5")
                               : oracle_dir() + "/models/" + variant.family;
  const ModelDirectory directory = TRY(ModelDirectory::open(path));
  const ConfigJson config = TRY(ConfigJson::load(directory, "config.json"));
  ModelSpec spec = TRY(parse_model(config));
  TRY(apply_prefill(variant.prefill, spec));
  if (variant.heads_seed != 0) mix_heads(variant.heads_seed, spec);
  const Checkpoint checkpoint = TRY(Checkpoint::open(path));
  if (kv_has_static_scales(options.kv_format)) {
    adapt_to_checkpoint(spec, checkpoint);
    options.kv_scales = unit_kv_scales(spec, options.kv_format);
  }
  return Model::load(spec, &checkpoint, options, stream.get(), *variant.ops);
}

TinyStream::TinyStream(DeviceKind device, int64_t scratch_bytes, int num_threads)
    : pool_(num_threads), scratch_(Buffer::allocate(device, scratch_bytes).value()) {
  CHECK(num_threads <= kTinyThreads);
  if (device == DeviceKind::kCuda) gpu_.emplace(GpuStream::create().value());
  stream_.emplace(pool_, scratch_, gpu_ ? gpu_->native() : nullptr);
}

}  // namespace weft
