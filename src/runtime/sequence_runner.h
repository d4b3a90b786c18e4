#pragma once

#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "device/buffer.h"
#include "models/model.h"

namespace weft {

/// Runs known tokens through a model on the CPU, one text sequence after the other, with a cache of
/// its own in any format: what comparisons and calibration need of an engine.
class SequenceRunner {
 public:
  /// A cache of `max_len` tokens whose paged layers have `format`; static formats take the scales
  /// that the model was loaded with. All arguments outlive the runner; the stream's scratch memory
  /// must do for kStepRows rows.
  static Result<std::unique_ptr<SequenceRunner>> create(const Model& model, KvFormat format,
                                                        int64_t max_len, Stream& stream,
                                                        const OpTable& ops);

  static constexpr int64_t kStepRows = 512;  ///< rows of one step, a multiple of kChunk

  using OnLogits = std::function<void(int64_t first, const TensorView& logits)>;
  /// Forgets the sequence before and runs `tokens`; `on_logits` (or empty) gets the logits [n, V]
  /// of tokens first .. first + n. With `mtp` the MTP module runs behind it too.
  void run(std::span<const int32_t> tokens, const OnLogits& on_logits, bool mtp = false);

  /// Of layer `layer`: calls visit(token, K, V) with [G * D] values each, for every token of the
  /// last run.
  void read_cache(int layer,
                  const std::function<void(int64_t token, const float* k, const float* v)>& visit);

 private:
  SequenceRunner(const Model& model, Stream& stream, const OpTable& ops)
      : model_(model), stream_(stream), ops_(ops) {}
  void step(std::span<const int32_t> tokens, int64_t first, const OnLogits& on_logits, bool mtp);

  const Model& model_;
  Stream& stream_;
  const OpTable& ops_;
  std::vector<CacheSpec> specs_;
  std::unique_ptr<KvStore> kv_;
  Arena arena_;
  std::vector<int32_t> blocks_;
  int64_t length_ = 0;
};

}  // namespace weft
