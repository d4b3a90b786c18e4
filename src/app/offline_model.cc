#include "app/offline_model.h"

#include "app/progress.h"
#include "checkpoint/checkpoint.h"

namespace weft {

Result<std::unique_ptr<OfflineModel>> OfflineModel::load(EngineOptions options) {
  if (options.device == "cuda") {
    return invalid_argument("--device cuda: this runs on the CPU; allowed: auto, cpu");
  }
  options.device = "cpu";
  std::unique_ptr<OfflineModel> out(new OfflineModel());
  out->plan_ = TRY(plan_engine(options));
  EnginePlan& plan = out->plan_;
  if (plan.chunk != kChunk) {
    return unsupported(plan.spec.architecture +
                       ": this runs prompts in pieces; give --prefill-attention dense");
  }
  plan.load.images = false;
  out->pool_ = std::make_unique<ThreadPool>(plan.threads);
  out->scratch_ = std::make_unique<Arena>(TRY(
      Buffer::allocate(DeviceKind::kCpu, plan.footprint.arena_bytes(SequenceRunner::kStepRows))));
  out->stream_ = std::make_unique<Stream>(*out->pool_, *out->scratch_);
  ProgressLines lines;
  plan.load.progress = [&lines](uint64_t done, uint64_t total) {
    lines.update("loading weights", done, total, done == total);
  };
  std::optional<Checkpoint> checkpoint;
  if (!plan.load.dummy_weights) checkpoint = TRY(Checkpoint::open(plan.directory));
  out->model_ = TRY(Model::load(plan.spec, checkpoint ? &*checkpoint : nullptr, plan.load,
                                *out->stream_, *plan.ops));
  plan.load.progress = nullptr;
  return out;
}

Result<std::unique_ptr<SequenceRunner>> OfflineModel::runner(KvFormat format, int64_t max_len) {
  return SequenceRunner::create(*model_, format, max_len, *stream_, *plan_.ops);
}

}  // namespace weft
