#pragma once

#include <array>
#include <map>
#include <memory>
#include <optional>

#include "device/gpu.h"
#include "models/model.h"
#include "runtime/row_sampler.h"
#include "sched/executor.h"

namespace weft {

struct GpuExecutorOptions {
  bool graphs = true;  ///< decode steps are captured once a batch size and replayed
};

/// Runs steps of one model on a GPU: launch() packs and enqueues on the calling thread and returns;
/// collect() waits for the oldest step. At most two steps in flight. All memory is taken by
/// create().
///
/// A step of one token each for some sequences is padded to one of a few batch sizes, and its
/// forward is a graph from the second time on: the padding changes no bit of a real row (design.md
/// section 4, rule 1).
class GpuExecutor : public Executor {
 public:
  /// `model`, `kv`, `stream` and `ops` must outlive it. Error when memory can't be had.
  static Result<std::unique_ptr<GpuExecutor>> create(const Model& model, KvStore& kv,
                                                     Stream& stream, const OpTable& ops,
                                                     const StepLimits& limits,
                                                     const GpuExecutorOptions& options);
  ~GpuExecutor() override;

  void launch(const StepPlan& plan) override;
  StepResult collect() override;

  /// Device memory that create() takes, but for the model's arena.
  static int64_t device_bytes(const StepLimits& limits, int64_t hidden_size);
  /// Rows that a decode step of `rows` sequences is padded to.
  static int64_t padded_rows(int64_t rows, int64_t max_seqs);

 private:
  static constexpr size_t kStepsInFlight = 2;
  struct Parts {
    const Model& model;
    KvStore& kv;
    Stream& stream;
    const OpTable& ops;
  };
  struct Flight {
    size_t index = 0;
    PackedStep step;
    GpuEvent done;
    Buffer logit_buffer;  // pinned
    TensorView logits;    // of the rows that are not sampled yet
    std::span<const LogitRow> rows;
    StepResult result;
    bool pending = false;
  };
  GpuExecutor(const Parts& parts, const StepLimits& limits, const GpuExecutorOptions& options);

  void run(Flight& flight, int64_t padded);
  void run_decode(Flight& flight);
  void run_mixed(Flight& flight);
  void forward_decode(const PackedStep& step);
  void fetch(Flight& flight, std::span<const LogitRow> rows, bool in_place);
  void finish(Flight& flight);

  Parts parts_;
  StepLimits limits_;
  GpuExecutorOptions options_;
  std::array<std::optional<Flight>, kStepsInFlight> flights_;  // step i of the launches is in i % 2
  uint64_t num_launched_ = 0, num_collected_ = 0;
  PackedStep::Sequences sequences_;
  Arena arena_;
  Buffer logit_buffer_;
  TensorView gathered_;  // [logit rows, hidden]
  TensorView logits_;    // [logit rows, V]
  RowSampler sampler_;
  // By batch size; empty: it ran once, and is captured when it comes again. One for each flight:
  // the batches of the two lie in different memory.
  std::map<int64_t, std::array<std::optional<GpuGraph>, kStepsInFlight>> graphs_;
};

}  // namespace weft
