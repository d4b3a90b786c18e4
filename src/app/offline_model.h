#pragma once

#include "app/local_engine.h"
#include "runtime/sequence_runner.h"

namespace weft {

/// A planned model loaded on the CPU without an engine, for tools that look inside it.
class OfflineModel {
 public:
  /// plan_engine() and the weights (progress on standard error). --device cuda is an Error.
  static Result<std::unique_ptr<OfflineModel>> load(EngineOptions options);

  const EnginePlan& plan() const { return plan_; }
  const Model& model() const { return *model_; }
  /// A runner with a cache of its own for sequences of up to `max_len` tokens.
  Result<std::unique_ptr<SequenceRunner>> runner(KvFormat format, int64_t max_len);

 private:
  OfflineModel() = default;

  EnginePlan plan_;
  std::unique_ptr<ThreadPool> pool_;
  std::unique_ptr<Arena> scratch_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Model> model_;
};

}  // namespace weft
