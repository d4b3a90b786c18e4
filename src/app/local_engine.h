#pragma once

#include <memory>
#include <optional>
#include <string>

#include "api/images.h"
#include "api/validate.h"
#include "app/engine_options.h"
#include "checkpoint/config_json.h"
#include "checkpoint/hub.h"
#include "device/gpu.h"
#include "engine/engine.h"
#include "kernels/choose.h"
#include "models/model.h"
#include "runtime/memory_plan.h"

namespace weft {

/// What the options mean for one model on this machine; known before anything is loaded.
struct EnginePlan {
  std::string directory;  ///< of the model
  std::string name;       ///< what the user called it
  ModelSpec spec;
  GenerationConfig generation;
  LoadOptions load;
  const OpTable* ops = nullptr;  ///< of the device that runs it
  CpuIsa isa = CpuIsa::kAvx2;    ///< of the CPU backend
  std::string device_name;       ///< "cpu amx", "cuda NVIDIA H100 80GB HBM3"
  /// The kernels of this model, and why not their rivals.
  std::vector<KernelChoice> kernels;
  std::string not_on_gpu;  ///< why --device auto did not take the GPU that is there, or empty
  int threads = 1;
  ModelFootprint footprint;
  int64_t parameters = 0;  ///< of the checkpoint; the footprint's are those that are loaded
  CacheBytes cache;
  std::optional<ImageInputConfig> images;  ///< none: the model takes no images here
  int chunk = kChunk;                      ///< prompts are cut at multiples of it
  int64_t plan_tokens = 0;                 ///< see SchedulerConfig
  int64_t sparse_from = 0;                 ///< see SchedulerConfig
  MemoryPlan memory;
  std::string not_here;  ///< of ModelParts::kConfig: why it can't run here for want of memory
};

/// Finds the model, reads its configuration, checks the options against it and plans the memory.
/// Where the model has to be downloaded, only these parts are; the configuration alone will do.
/// What it is can then be told also where it does not fit: `memory` is left empty, and `not_here`
/// says it.
Result<EnginePlan> plan_engine(const EngineOptions& options, ModelParts parts = ModelParts::kAll);

/// What makes patches of images for the planned model; null where it takes none. `fetch` and
/// `read_file`: see ImageInputConfig.
std::shared_ptr<const ImageReader> image_reader_of(
    const EnginePlan& plan,
    std::function<Result<std::vector<uint8_t>>(const std::string& url)> fetch = {},
    std::function<Result<std::vector<uint8_t>>(const std::string& url)> read_file = {});

/// What a request may ask of the planned model, and what it gets where it asks nothing.
ModelLimits limits_of(const EnginePlan& plan);
GenerationDefaults defaults_of(const EnginePlan& plan);

/// A running engine on this machine's GPU or CPU: the one composition that run, bench, eval and
/// serve use.
class LocalEngine {
 public:
  /// plan_engine(), then loads the weights (progress on standard error) and starts the engine.
  static Result<std::unique_ptr<LocalEngine>> start(const EngineOptions& options,
                                                    const EngineConfig& config = {});
  /// The same with a plan made before.
  static Result<std::unique_ptr<LocalEngine>> start(EnginePlan plan, const EngineOptions& options,
                                                    const EngineConfig& config);
  ~LocalEngine();

  Engine& engine() { return *engine_; }
  const EnginePlan& plan() const { return plan_; }
  const ModelSpec& spec() const { return plan_.spec; }
  int64_t weight_bytes() const { return model_->weight_bytes(); }
  ModelLimits limits() const { return limits_of(plan_); }
  GenerationDefaults defaults() const { return defaults_of(plan_); }

 private:
  explicit LocalEngine(EnginePlan plan) : plan_(std::move(plan)) {}
  Result<void> load(const EngineOptions& options, const EngineConfig& config);

  EnginePlan plan_;
  // In order of need: each uses those before it.
  std::unique_ptr<ThreadPool> pool_;
  std::optional<GpuStream> gpu_;
  std::unique_ptr<Arena> scratch_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Model> model_;
  std::unique_ptr<KvStore> kv_;
  std::unique_ptr<Engine> engine_;
};

}  // namespace weft
