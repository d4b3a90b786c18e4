#include "app/local_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "app/image_plan.h"
#include "app/kernel_needs.h"
#include "app/model_location.h"
#include "app/prefill_plan.h"
#include "app/progress.h"
#include "app/refusals.h"
#include "base/log.h"
#include "base/random_key.h"
#include "checkpoint/checkpoint.h"
#include "device/gpu_health.h"
#include "models/prefill.h"
#include "runtime/executor_gpu.h"
#include "runtime/executor_local.h"

namespace weft {
namespace {

constexpr int kBlockSize = 64;
/// From this size of the hidden state on reading an MTP module's weights is what it takes on a GPU.
constexpr int64_t kLargeHidden = 2048;

WeightFormat weight_format(const EngineOptions& options) {
  if (options.dtype == "float32") return WeightFormat::kF32;
  if (options.quantization == "int8") return WeightFormat::kInt8;
  if (options.quantization == "int4") return WeightFormat::kInt4;
  if (options.quantization == "fp8") return WeightFormat::kFp8Block;
  return WeightFormat::kBf16;
}

Result<CpuIsa> choose_isa(const EngineOptions& options, const CpuInfo& cpu) {
  if (!cpu.supported) {
    return unsupported("this CPU (" + cpu.model + ") has no AVX2, FMA and F16C, which weft needs");
  }
  if (options.cpu_isa == "auto") return cpu.isa;
  for (CpuIsa isa : {CpuIsa::kAvx2, CpuIsa::kAvx512, CpuIsa::kAvx512Bf16, CpuIsa::kAmx}) {
    if (cpu_isa_name(isa) != options.cpu_isa) continue;
    if (isa <= cpu.isa) return isa;
    return invalid_argument("--cpu-isa: this CPU has no " + options.cpu_isa + "; it has up to " +
                            std::string(cpu_isa_name(cpu.isa)));
  }
  return invalid_argument("--cpu-isa: '" + options.cpu_isa +
                          "' is not one of auto, avx2, avx512, avx512_bf16, amx");
}

Result<int64_t> size_or_auto(const std::string& flag, const std::string& text) {
  if (text == "auto") return int64_t{0};
  return parse_size(flag, text);
}

/// The weights that will be loaded. Without readable ones the configuration alone must do (`weft
/// info`); load() says what's wrong.
std::optional<Checkpoint> readable_weights(const EngineOptions& options,
                                           const std::string& directory) {
  if (options.load_format == "dummy") return {};
  Result<Checkpoint> checkpoint = Checkpoint::open(directory);
  if (!checkpoint) return {};
  return std::move(checkpoint).value();
}

bool on_gpu(const EnginePlan& plan) {
  return plan.ops->device == DeviceKind::kCuda;
}

/// Chooses the device of --device: with `auto` a GPU where one can run the model.
Result<void> choose_device(const EngineOptions& options, const CpuInfo& cpu, EnginePlan& plan,
                           std::optional<CudaDeviceInfo>& gpu) {
  plan.isa = TRY(choose_isa(options, cpu));
  plan.ops = &cpu_ops(plan.isa);
  plan.device_name = "cpu " + std::string(cpu_isa_name(plan.isa));
  if (options.device == "cpu") return {};
  if (options.device == "auto" && options.dtype == "float32") return {};  // the GPU has bf16 alone
  const GpuFacts facts = gpu_facts();
  Result<CudaDeviceInfo> found = usable_gpu(facts);
  if (!found.ok()) {
    if (options.device != "auto") return with_context(std::move(found).error(), "--device cuda");
    if (facts.on_bus || facts.has_node) plan.not_on_gpu = found.error().message;
    return {};
  }
  gpu = std::move(found).value();
  plan.ops = cuda_ops();
  plan.device_name = "cuda " + gpu->name;
  return {};
}

/// The instruction sets are the CPU's rivals: one of them serves all ops.
KernelChoice choose_cpu(CpuIsa chosen, const CpuInfo& cpu) {
  KernelChoice choice{.op = "all ops", .name = std::string(cpu_isa_name(chosen))};
  for (CpuIsa isa : {CpuIsa::kAmx, CpuIsa::kAvx512Bf16, CpuIsa::kAvx512, CpuIsa::kAvx2}) {
    if (isa == chosen) continue;
    const char* why_not = isa > cpu.isa ? "not on this CPU" : isa > chosen ? "--cpu-isa" : "slower";
    choice.others.push_back({std::string(cpu_isa_name(isa)), why_not});
  }
  return choice;
}

/// Chooses the kernels. Where the GPU has none for a shape of the model, --device auto goes on with
/// the CPU.
Result<void> choose_kernels(const EngineOptions& options, const CpuInfo& cpu,
                            const Checkpoint* checkpoint, EnginePlan& plan,
                            std::optional<CudaDeviceInfo>& gpu) {
  if (gpu && plan.ops->choices) {
    const WeightFormat format = kept_format(plan.load.format, *plan.ops, checkpoint);
    plan.kernels = plan.ops->choices(kernel_needs(plan.spec, format, plan.load.kv_format));
    for (const KernelChoice& choice : plan.kernels) {
      if (!choice.name.empty()) continue;
      plan.not_on_gpu = "no kernel for " + choice.op + ": " + choice.others.front().why_not;
      if (options.device != "auto") {
        return unsupported("--device cuda: " + plan.not_on_gpu + "; use --device cpu");
      }
      gpu.reset();
      plan.ops = &cpu_ops(plan.isa);
      plan.device_name = "cpu " + std::string(cpu_isa_name(plan.isa));
      break;
    }
  }
  if (gpu) return {};
  const KernelNeeds needs = kernel_needs(plan.spec, plan.load.format, plan.load.kv_format);
  const Result<void> taken = check_cpu_needs(needs);
  if (!taken) return with_context(taken.error(), plan.directory + "/config.json");
  plan.kernels = {choose_cpu(plan.isa, cpu)};
  return {};
}

Error no_kv_format(const std::string& asked, const std::string& why) {
  return unsupported(asked + ": " + why);
}

/// The format of --kv-cache-dtype, or what config.json asks for, with its static scales.
Result<void> choose_kv_format(const EngineOptions& options, const Checkpoint* checkpoint,
                              EnginePlan& plan) {
  KvFormat& format = plan.load.kv_format;
  std::string asked = "--kv-cache-dtype " + options.kv_cache_dtype;
  if (options.kv_cache_dtype == "auto") {
    format = plan.load.format == WeightFormat::kF32 ? KvFormat::kF32 : KvFormat::kBf16;
    if (plan.spec.kv_format) {
      format = *plan.spec.kv_format;
      asked = "config.json: quantization_config.kv_cache_quant_type " +
              std::string(kv_format_name(format));
    }
  } else {
    for (const KvFormat f : {KvFormat::kBf16, KvFormat::kFp8, KvFormat::kFp8Block, KvFormat::kInt8,
                             KvFormat::kInt8Dynamic, KvFormat::kInt4}) {
      if (kv_format_name(f) == options.kv_cache_dtype) format = f;
    }
  }
  for (const LayerSpec& layer : plan.spec.layers) {
    const auto* attention = std::get_if<AttentionSpec>(&layer.mixer);
    if (!attention || format != KvFormat::kInt4 || attention->head_dim % 32 == 0) continue;
    return no_kv_format(asked, "int4 needs heads of a multiple of 32 dims, and this model's have " +
                                   std::to_string(attention->head_dim) +
                                   "; int8_dynamic and fp8_block take all");
  }
  if (!kv_has_static_scales(format)) {
    if (options.kv_scales.empty()) return {};
    return invalid_argument("--kv-scales: the KV cache is " + std::string(kv_format_name(format)) +
                            " without static scales; give "
                            "--kv-cache-dtype int8 or fp8 with it");
  }
  // Without weights (dummy ones, or `weft info` where there are none) any scales do.
  const bool from_file = !options.kv_scales.empty();
  if (!from_file && checkpoint == nullptr) {
    plan.load.kv_scales = unit_kv_scales(plan.spec, format);
    return {};
  }
  auto scales = from_file ? read_kv_scales(plan.spec, options.kv_scales, format)
                          : kv_scales_of(plan.spec, checkpoint, format);
  if (!scales) {
    return with_context(std::move(scales).error(), from_file ? "--kv-scales" : asked);
  }
  plan.load.kv_scales = std::move(*scales);
  return {};
}

/// Room for longer steps may take one block of the KV cache in so many.
constexpr int64_t kLoneCost = 25;

/// Bytes that may be used on the GPU: its share by --gpu-memory-utilization less what is taken.
int64_t gpu_limit(const EngineOptions& options, const CudaDeviceInfo& gpu) {
  const double share = options.gpu_memory_utilization * static_cast<double>(gpu.total_bytes);
  return static_cast<int64_t>(share) - (gpu.total_bytes - gpu.free_bytes);
}

Result<MemoryPlan> plan_for(const EnginePlan& plan, const EngineOptions& options,
                            const CpuInfo& cpu, const std::optional<CudaDeviceInfo>& gpu) {
  ModelMemory model{.weight_bytes = plan.footprint.weight_bytes,
                    .cache = plan.cache,
                    .block_size = plan.load.block_size,
                    .max_positions = plan.spec.max_positions,
                    .bytes_per_position = plan.footprint.rope_bytes_per_position,
                    .vocab_size = plan.spec.vocab,
                    .hidden_size = plan.spec.hidden,
                    .arena_bytes = plan.footprint.arena_bytes,
                    .multimodal = plan.spec.rope.multimodal(),
                    .chunk = plan.chunk,
                    .plan_tokens = plan.plan_tokens,
                    .sparse_from = plan.sparse_from};
  add_images(plan, options, model);
  MemoryOptions memory{
      .max_model_len = TRY(size_or_auto("--max-model-len", options.max_model_len)),
      .max_num_seqs = options.max_num_seqs,
      .max_num_batched_tokens = batched_tokens(options, gpu.has_value()),
      .kv_cache_bytes = TRY(size_or_auto("--kv-cache-memory", options.kv_cache_memory)),
      .num_threads = plan.threads,
      .speculation = options.speculation,
      .swap_bytes = static_cast<int64_t>(options.swap_space * (int64_t{1} << 30))};
  if (!gpu) return plan_memory(model, memory, cpu.available_bytes);
  if (memory.swap_bytes > cpu.available_bytes) {
    return exhausted(fmt::format("--swap-space {:g}: the host has {:.1f} GiB of memory left for it",
                                 options.swap_space,
                                 static_cast<double>(cpu.available_bytes) / (int64_t{1} << 30)));
  }
  memory.device = DeviceKind::kCuda;
  memory.memory_fraction = 1.0;  // the share is taken already
  const int64_t limit = std::max<int64_t>(0, gpu_limit(options, *gpu));
  // Steps of a sequence alone may be longer, where the cache loses little by it. What a router
  // decides by has steps of its own.
  MemoryPlan usual = TRY(plan_memory(model, memory, limit));
  const bool chooses = options.max_num_batched_tokens == 0 && has_sparse_prefill(plan.spec) &&
                       !has_prefill_router(plan.spec);
  if (!chooses) return usual;
  memory.max_num_batched_tokens = kLoneBatchedTokens;
  auto longer = plan_memory(model, memory, limit);
  const bool pays = longer && longer->max_model_len == usual.max_model_len &&
                    GpuExecutor::check_limits(longer->limits) &&
                    longer->limits.max_seqs == usual.limits.max_seqs &&
                    longer->num_slots == usual.num_slots &&
                    longer->block_bytes * kLoneCost >= usual.block_bytes * (kLoneCost - 1);
  return pays ? std::move(longer) : std::move(usual);
}

/// Leaves the MTP module out where nobody drafts with it.
Result<void> plan_mtp(const EngineOptions& options, ModelSpec& spec) {
  if (options.speculation.uses_mtp() && !spec.mtp) {
    return unsupported(
        "--speculative-config: this checkpoint has no multi-token prediction module; allowed: "
        "method ngram");
  }
  if (!options.speculation.uses_mtp() && !options.load_mtp) leave_out_mtp(spec);
  return {};
}

/// What a configuration of speculation asks of the device.
Result<void> check_speculation(const SpeculationConfig& config, const EnginePlan& plan) {
  if (!config.on()) return {};
  if (config.verify == VerifyStrategy::kTopP && on_gpu(plan)) {
    return unsupported(
        "--speculative-config: verify_strategy: topp (lossy) runs on the CPU alone; allowed on a "
        "GPU: target_match");
  }
  return {};
}

std::string shown_name(const std::string& model, const std::string& directory) {
  if (!model.empty() && !std::filesystem::is_directory(model)) return model;
  const std::string name = std::filesystem::path(directory).lexically_normal().filename().string();
  return name.empty() ? directory : name;
}

int max_drafts(const SpeculationConfig& config) {
  return config.on() ? config.num_speculative_tokens : 0;
}

}  // namespace

Result<EnginePlan> plan_engine(const EngineOptions& options, ModelParts parts) {
  TRY(check_refusals(options));
  const CpuInfo cpu = cpu_info();
  EnginePlan plan;
  std::optional<CudaDeviceInfo> gpu;
  TRY(choose_device(options, cpu, plan, gpu));
  plan.threads = options.threads > 0 ? options.threads : cpu.num_cpus;
  if (parts == ModelParts::kAll && options.load_format == "dummy") parts = ModelParts::kTokenizer;
  plan.directory = TRY(locate_model(options.model, parts));
  plan.name = shown_name(options.model, plan.directory);
  const ModelConfig config = TRY(load_config(plan.directory));
  plan.generation = config.generation;
  plan.spec = TRY(parse_model(config.config));
  const std::optional<Checkpoint> weights = readable_weights(options, plan.directory);
  // What only the weights tell: a tied head, an MTP module.
  if (weights) adapt_to_checkpoint(plan.spec, *weights);
  plan.parameters = count_parameters(plan.spec);
  TRY(plan_mtp(options, plan.spec));
  TRY(plan_prefill(options, weights ? &*weights : nullptr, plan));
  plan.load.format = weight_format(options);
  TRY(choose_kv_format(options, weights ? &*weights : nullptr, plan));
  TRY(choose_kernels(options, cpu, weights ? &*weights : nullptr, plan, gpu));
  if (plan.load.format == WeightFormat::kFp8Block && !plan.ops->fp8_blocks) {
    return unsupported("--quantization fp8 needs a Hopper GPU and this is " + plan.device_name +
                       "; allowed here: none, int8, int4");
  }
  if (options.state_dtype == "bfloat16") plan.load.state_dtype = DType::kBF16;
  plan.load.block_size = kBlockSize;
  plan.load.dummy_weights = options.load_format == "dummy";
  plan.load.num_threads = plan.threads;
  plan.load.max_num_seqs = options.max_num_seqs;
  TRY(plan_images(options, plan));
  TRY(check_speculation(options.speculation, plan));
  const OpTable& ops = *plan.ops;
  // A draft would read as much for its logits as for all its layers, and more.
  plan.load.draft_head = options.speculation.uses_mtp();
  const WeightFormat format = plan.load.format;
  if (plan.load.draft_head && !gpu && format != WeightFormat::kInt4) {
    plan.load.mtp_format = WeightFormat::kInt8;
  } else if (plan.load.draft_head && gpu && format == WeightFormat::kBf16 &&
             plan.spec.hidden >= kLargeHidden) {
    plan.load.mtp_format = WeightFormat::kFp8Block;
  }
  plan.footprint = measure_model(plan.spec, plan.load, ops, weights ? &*weights : nullptr);
  plan.cache =
      cache_bytes(plan.footprint.cache_specs, ops, kept_rows(options.speculation, ops.device));
  auto memory = plan_for(plan, options, cpu, gpu);
  if (!memory && parts == ModelParts::kConfig && memory.error().kind == ErrorKind::kExhausted) {
    plan.not_here = memory.error().message;
    return plan;
  }
  plan.memory = TRY(std::move(memory));
  if (gpu) TRY(GpuExecutor::check_limits(plan.memory.limits));
  plan.load.max_model_len = plan.memory.max_model_len;
  return plan;
}

Result<std::unique_ptr<LocalEngine>> LocalEngine::start(const EngineOptions& options,
                                                        const EngineConfig& config) {
  return start(TRY(plan_engine(options)), options, config);
}

Result<std::unique_ptr<LocalEngine>> LocalEngine::start(EnginePlan plan,
                                                        const EngineOptions& options,
                                                        const EngineConfig& config) {
  std::unique_ptr<LocalEngine> local(new LocalEngine(std::move(plan)));
  TRY(local->load(options, config));
  return local;
}

Result<void> LocalEngine::load(const EngineOptions& options, const EngineConfig& config) {
  const OpTable& ops = *plan_.ops;
  const StepLimits& limits = plan_.memory.limits;
  pool_ = std::make_unique<ThreadPool>(plan_.threads);
  if (on_gpu(plan_)) gpu_.emplace(TRY(GpuStream::create()));
  scratch_ = std::make_unique<Arena>(TRY(
      Buffer::allocate(ops.device, scratch_bytes(plan_, limits.all_rows(), limits.image_tokens))));
  stream_ = std::make_unique<Stream>(*pool_, *scratch_, gpu_ ? gpu_->native() : nullptr);

  ProgressLines lines;
  plan_.load.progress = [&lines](uint64_t done, uint64_t total) {
    lines.update("loading weights", done, total, done == total);
  };
  std::optional<Checkpoint> checkpoint;
  if (!plan_.load.dummy_weights) checkpoint = TRY(Checkpoint::open(plan_.directory));
  model_ =
      TRY(Model::load(plan_.spec, checkpoint ? &*checkpoint : nullptr, plan_.load, *stream_, ops));
  plan_.load.progress = nullptr;

  kv_ = std::make_unique<KvStore>(TRY(KvStore::create(model_->cache_specs(), ops, limits.num_blocks,
                                                      limits.all_slots(), limits.kept_rows)));
  const MemoryPlan& memory = plan_.memory;
  TRY(kv_->reserve_swap(memory.num_swap_blocks, memory.num_swap_slots));
  std::unique_ptr<Executor> executor;
  if (on_gpu(plan_)) {
    executor = TRY(GpuExecutor::create(
        *model_, *kv_, *stream_, ops, limits,
        {.graphs = !options.enforce_eager, .speculation = options.speculation}));
  } else {
    executor =
        TRY(LocalExecutor::create(*model_, *kv_, *stream_, ops, limits, options.speculation));
  }
  auto scheduler =
      TRY(Scheduler::create({.block_size = plan_.load.block_size,
                             .num_blocks = static_cast<int>(limits.num_blocks),
                             .num_state_slots = static_cast<int>(limits.num_slots),
                             .num_swap_blocks = static_cast<int>(memory.num_swap_blocks),
                             .num_swap_slots = static_cast<int>(memory.num_swap_slots),
                             .max_batched_tokens = std::min(static_cast<int>(limits.max_rows),
                                                            batched_tokens(options, on_gpu(plan_))),
                             .lone_batched_tokens = static_cast<int>(limits.max_rows),
                             .max_seqs = static_cast<int>(limits.max_seqs),
                             .max_model_len = static_cast<int>(limits.max_model_len),
                             .prefix_caching = options.prefix_caching,
                             .reuse_generated = options.reuse_generated,
                             .max_drafts = max_drafts(options.speculation),
                             .image_tokens = static_cast<int>(limits.image_tokens),
                             .image_pages = static_cast<int>(limits.image_pages),
                             .chunk = plan_.chunk,
                             .plan_tokens = plan_.plan_tokens,
                             .num_layers = static_cast<int>(plan_.spec.layers.size()),
                             .sparse_from = plan_.sparse_from,
                             .hash_key = random_key()}));
  engine_ = std::make_unique<Engine>(config, std::move(scheduler), std::move(executor));
  return {};
}

LocalEngine::~LocalEngine() {
  if (engine_) engine_->stop();
}

ModelLimits limits_of(const EnginePlan& plan) {
  return {.vocab_size = plan.spec.vocab, .max_model_len = plan.memory.max_model_len};
}

GenerationDefaults defaults_of(const EnginePlan& plan) {
  const GenerationConfig& g = plan.generation;
  GenerationDefaults out{.temperature = g.temperature,
                         .top_p = g.top_p,
                         .min_p = g.min_p,
                         .repetition_penalty = g.repetition_penalty,
                         .top_k = g.top_k};
  if (g.do_sample && !*g.do_sample) out.temperature = 0;
  for (int64_t id : g.eos_token_ids) out.eos_ids.push_back(static_cast<int32_t>(id));
  return out;
}

}  // namespace weft
