#include "runtime/op_scratch.h"

#include <algorithm>

#include "kernels/cpu/scratch.h"
#include "kernels/cpu/scratch_bound.h"
#include "runtime/runner.h"

namespace weft {
namespace {

/// Collects the greatest demand of the ops of a model.
class Demand {
 public:
  Demand(const ModelSpec& spec, WeightFormat format, const StepLimits& limits, int num_threads)
      : spec_(spec), format_(format), limits_(limits), num_threads_(num_threads) {}

  int64_t of_model() {
    for (const LayerSpec& layer : spec_.layers) add(layer);
    if (spec_.mtp) {
      add(spec_.mtp->layer);
      linear(format_, spec_.hidden, 2 * spec_.hidden);
    }
    bytes_ = std::max(bytes_,
                      linear_scratch_bytes({format_, spec_.vocab, spec_.hidden},
                                           std::min(kLogitRows, limits_.max_rows), num_threads_));
    return bytes_;
  }

 private:
  void linear(WeightFormat format, int64_t n, int64_t k) {
    bytes_ = std::max(bytes_, linear_scratch_bytes({format, n, k}, limits_.max_rows, num_threads_));
  }

  void add(const LayerSpec& layer) {
    std::visit([this](const auto& part) { add(part); }, layer.mixer);
    std::visit([this](const auto& part) { add(part); }, layer.mlp);
  }

  void add(const AttentionSpec& a) {
    const int64_t width = int64_t{a.q_heads} * a.head_dim;
    linear(format_, (a.output_gate ? 2 : 1) * width + 2 * int64_t{a.kv_heads} * a.head_dim,
           spec_.hidden);
    linear(format_, spec_.hidden, width);
    // Enough to spread one sequence of the greatest length; many short ones need less, and many
    // long ones keep every thread busy without.
    const AttnShape shape{a.q_heads, a.kv_heads, a.head_dim, 1.0f};
    bytes_ = std::max(
        bytes_, attention_scratch_bound(shape, limits_.max_segments(), limits_.max_model_len));
  }

  void add(const GdnSpec& g) {
    const GdnShape& s = g.shape;
    const int64_t keys = int64_t{s.key_heads} * s.key_dim;
    const int64_t values = int64_t{s.value_heads} * s.value_dim;
    linear(format_, 2 * keys + 2 * values, spec_.hidden);
    linear(WeightFormat::kF32, 2 * int64_t{s.value_heads}, spec_.hidden);
    linear(format_, spec_.hidden, values);
    bytes_ = std::max(bytes_, gdn_scratch_bound(s, num_threads_));
  }

  void add(const DenseMlpSpec& m) {
    linear(format_, 2 * m.inner, spec_.hidden);
    linear(format_, spec_.hidden, m.inner);
  }

  void add(const MoeSpec& m) {
    linear(WeightFormat::kF32, m.num_experts + 1, spec_.hidden);
    if (m.shared_inner > 0) add(DenseMlpSpec{m.shared_inner});
    bytes_ = std::max(bytes_, moe_scratch_bytes({format_, 2 * m.inner, spec_.hidden, m.num_experts},
                                                limits_.max_rows, m.rule.top_k, num_threads_));
  }

  const ModelSpec& spec_;
  WeightFormat format_;
  const StepLimits& limits_;
  int num_threads_;
  int64_t bytes_ = 0;
};

}  // namespace

int64_t op_scratch_bytes(const ModelSpec& spec, WeightFormat format, const StepLimits& limits,
                         int num_threads) {
  return Demand(spec, format, limits, num_threads).of_model();
}

}  // namespace weft
