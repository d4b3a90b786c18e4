#pragma once

#include <cstdint>
#include <vector>

#include "device/buffer.h"
#include "models/model.h"
#include "runtime/sampler.h"
#include "runtime/step_upload.h"

namespace weft {

/// Rows of logits that are alive at once, [kLogitRows, V]: a step that needs more (many sequences,
/// prompt logprobs) computes them in pieces, which changes no bit of them.
inline constexpr int64_t kLogitRows = 64;

/// Runs packed steps on the CPU: layers, logits of the rows that need them, sampling.
/// All memory is taken by create(); a step allocates nothing but its results.
class Runner {
 public:
  /// `model`, `kv`, `stream` and `ops` must outlive it. Makes the memory of all of them resident.
  static Result<Runner> create(const Model& model, KvStore& kv, Stream& stream, const OpTable& ops,
                               const StepLimits& limits);

  /// Bytes of the logits and of the sampler's working memory for `num_threads` threads.
  static int64_t logit_bytes(const StepLimits& limits, int64_t hidden_size, int num_threads);

  /// Rows of `result` are those of the step, in order.
  void run(PackedStep& step, StepResult& result);

  const Arena& arena() const { return arena_; }

 private:
  struct Parts {
    const Model& model;
    KvStore& kv;
    Stream& stream;
    const OpTable& ops;
  };
  Runner(const Parts& parts, const StepLimits& limits);

  void feed(PackedStep& step);
  static bool advance_grammar(ExecutorSequence& sequence, int32_t token);
  void sample_piece(const PackedStep& step, std::span<const LogitRow> rows, StepResult& result);

  Parts parts_;
  int64_t vocab_size_;
  Arena arena_;
  Buffer logit_buffer_;
  TensorView gathered_;  // [kLogitRows, hidden]
  TensorView logits_;    // [kLogitRows, V]
  Sampler sampler_;
  // One entry a row of a piece.
  std::vector<SampleRow> sample_rows_;
  std::vector<LogprobRow> logprob_rows_;
  std::vector<SampledToken> sampled_;
  std::vector<LogprobResult> logprobs_;
};

}  // namespace weft
