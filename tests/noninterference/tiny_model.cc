#include "tests/noninterference/tiny_model.h"

#include <fmt/format.h>

#include "checkpoint/model_file.h"
#include "tests/support/oracle.h"

namespace weft {

std::string describe(const Variant& v) {
  return fmt::format("{} ops {} weights {} cache {} block {}", v.family, v.ops->name,
                     weight_format_name(v.format), v.kv_format == KvFormat::kF32 ? "f32" : "bf16",
                     v.block_size);
}

std::vector<std::string> tiny_families() {
  return {"qwen3_next", "qwen3", "ernie4_5_moe", "qwen3_5", "qwen2", "qwen3_moe", "llama3"};
}

std::vector<const OpTable*> all_op_tables() {
  std::vector<const OpTable*> out = {&ref_ops()};
  const CpuInfo cpu = cpu_info();
  for (int isa = 0; isa <= static_cast<int>(cpu.isa); ++isa) {
    out.push_back(&cpu_ops(static_cast<CpuIsa>(isa)));
  }
  return out;
}

Result<std::unique_ptr<Model>> load_tiny(const Variant& variant) {
  const std::string path = oracle_dir() + "/models/" + variant.family;
  const ModelDirectory directory = TRY(ModelDirectory::open(path));
  const ConfigJson config = TRY(ConfigJson::load(directory, "config.json"));
  const ModelSpec spec = TRY(parse_model(config));
  const Checkpoint checkpoint = TRY(Checkpoint::open(path));
  LoadOptions options;
  options.format = variant.format;
  options.kv_format = variant.kv_format;
  options.block_size = variant.block_size;
  options.max_model_len = kTinyModelLen;
  options.num_threads = kTinyThreads;
  ThreadPool pool(1);
  Arena scratch(TRY(Buffer::allocate(DeviceKind::kCpu, int64_t{64} << 20)));
  Stream stream(pool, scratch);
  return Model::load(spec, &checkpoint, options, stream, *variant.ops);
}

TinyStream::TinyStream(const Model& model, int64_t max_rows, int num_threads)
    : pool_(num_threads),
      scratch_(Buffer::allocate(DeviceKind::kCpu, model.arena_bytes(max_rows)).value()),
      stream_(pool_, scratch_) {
  CHECK(num_threads <= kTinyThreads);
}

}  // namespace weft
