#include "app/kernel_needs.h"

#include <algorithm>
#include <tuple>

#include "kernels/cpu/limits.h"

namespace weft {
namespace {

template <class T, class Key>
void add_once(std::vector<T>& list, const T& value, Key key) {
  const bool known = std::any_of(list.begin(), list.end(),
                                 [&](const T& other) { return key(other) == key(value); });
  if (!known) list.push_back(value);
}

void add_matrix(std::vector<KernelNeeds::Matrix>& list, const WeightShape& shape,
                Epilogue epilogue) {
  add_once(list, KernelNeeds::Matrix{shape, epilogue}, [](const KernelNeeds::Matrix& m) {
    return std::tuple(m.shape.n, m.shape.k, m.epilogue);
  });
}

/// gate and up as one matrix, and down.
void add_mlp(std::vector<KernelNeeds::Matrix>& list, WeightFormat format, int64_t hidden,
             int64_t inner, int64_t experts) {
  add_matrix(list, {format, 2 * inner, hidden, experts}, Epilogue::kSiluMul);
  add_matrix(list, {format, hidden, inner, experts}, Epilogue::kStore);
}

Result<void> check_cpu_dim(const char* field, int value) {
  if (value % kCpuDimStep == 0 && value <= kCpuMaxDim) return {};
  return unsupported(std::string(field) + " is " + std::to_string(value) +
                     ": the CPU kernels take multiples of " + std::to_string(kCpuDimStep) +
                     " up to " + std::to_string(kCpuMaxDim));
}

}  // namespace

Result<void> check_cpu_needs(const KernelNeeds& needs) {
  for (const AttnShape& shape : needs.attention) TRY(check_cpu_dim("head_dim", shape.head_dim));
  for (const GdnShape& shape : needs.gdn) {
    TRY(check_cpu_dim("linear_key_head_dim", shape.key_dim));
    TRY(check_cpu_dim("linear_value_head_dim", shape.value_dim));
    if (shape.conv_width > kCpuMaxConvWidth) {
      return unsupported("linear_conv_kernel_dim is " + std::to_string(shape.conv_width) +
                         ": the CPU kernels take up to " + std::to_string(kCpuMaxConvWidth));
    }
  }
  return {};
}

KernelNeeds kernel_needs(const ModelSpec& spec, WeightFormat format, KvFormat kv_format) {
  KernelNeeds needs{.kv_format = kv_format, .vocab = spec.vocab};
  for (const LayerSpec& layer : spec.layers) {
    if (const auto* attention = std::get_if<AttentionSpec>(&layer.mixer)) {
      const AttnShape shape{attention->q_heads, attention->kv_heads, attention->head_dim};
      add_once(needs.attention, shape,
               [](const AttnShape& s) { return std::tuple(s.q_heads, s.kv_heads, s.head_dim); });
    } else {
      add_once(needs.gdn, std::get<GdnSpec>(layer.mixer).shape, [](const GdnShape& s) {
        return std::tuple(s.key_heads, s.value_heads, s.key_dim, s.value_dim, s.conv_width);
      });
    }
    if (const auto* dense = std::get_if<DenseMlpSpec>(&layer.mlp)) {
      add_mlp(needs.dense, format, spec.hidden, dense->inner, 1);
      continue;
    }
    const auto& moe = std::get<MoeSpec>(layer.mlp);
    add_mlp(needs.experts, format, spec.hidden, moe.inner, moe.num_experts);
    if (moe.shared_inner > 0) add_mlp(needs.dense, format, spec.hidden, moe.shared_inner, 1);
  }
  return needs;
}

WeightFormat kept_format(WeightFormat wanted, const OpTable& ops, const Checkpoint* checkpoint) {
  if (wanted != WeightFormat::kBf16 || !ops.fp8_blocks || !checkpoint) return wanted;
  for (const std::string_view name : checkpoint->names()) {
    if (checkpoint->find(name)->dtype == DType::kFP8E4M3) return WeightFormat::kFp8Block;
  }
  return wanted;
}

}  // namespace weft
