#pragma once

#include <cstdint>
#include <vector>

#include "models/model.h"
#include "sched/request.h"

namespace weft {

/// A model for tests of the runtime: the KV entry of a token and the recurrent state are the hash
/// of everything up to it (ids, positions, arithmetic), read back through block tables and state
/// slots, and the logits are a function of that hash. A wrong block, slot, position, order or id
/// changes every later token.
class ToyModel : public Model {
 public:
  static constexpr int64_t kVocab = 50;
  static constexpr int64_t kHidden = 4;
  static constexpr int kBlockSize = 16;
  static constexpr int32_t kPoison = 49;  ///< a prompt that holds it has NaN logits from there on
  static constexpr int32_t kPanic = 48;   ///< hidden() panics when it sees it

  ToyModel();
  const ModelSpec& spec() const override { return spec_; }
  std::span<const CacheSpec> cache_specs() const override { return specs_; }
  int64_t weight_bytes() const override { return 0; }
  int64_t arena_bytes(int64_t rows) const override { return rows * kHidden * 4 + 64; }
  TensorView hidden(StepContext& context) const override;
  void logits(StepContext& context, TensorView rows, int64_t prompt_rows,
              TensorView out) const override;

  /// The hidden row behind `tokens` (prompt, then generated) of a request, by definition.
  static void expected_hidden(const Request& request, const std::vector<int32_t>& tokens,
                              float* out);
  static void row_logits(const float* hidden, bool prompt, float* out);

 private:
  ModelSpec spec_;
  std::vector<CacheSpec> specs_;
};

}  // namespace weft
