#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "nn/mixer.h"

namespace weft {

/// Decides what the heads of one attention layer see in prompts (docs/kernels/elastic.md): the
/// router of Elastic-Attention, where the layer has one, and the blocks of XAttention. What a
/// router decided stays with block 0 of the sequence (PagedKv::kinds), so that later chunks and
/// whoever reuses the cache goes by it.
class HeadPlanner {
 public:
  HeadPlanner(const AttentionSpec& attention, const MixerOptions& options)
      : attention_(attention), spec_(*attention.sparse), options_(options) {}

  /// Below `prefix` ("model.layers.3.self_attn.").
  void declare(WeightPlan& plan, const std::string& prefix);
  /// Takes memory for what is constant.
  Result<> prepare(Stream& stream, DeviceKind device);
  int64_t arena_bytes(const StepQuery& query) const;
  int64_t scratch_bytes(const StepQuery& query) const;

  bool routed() const { return spec_.routed; }
  /// Decides for the step's deciding segments: k [T, G, D] before its norm, `kv` of this layer.
  void decide(StepContext& context, const PagedKv& kv, LayerId layer, TensorView k,
              TensorView k_norm) const;
  /// Some prompt segment of the step has heads that may see less than all keys.
  bool needed(const StepBatch& batch) const;
  /// The plan of the prompt segments of `attention` (whose `heads` is not set yet), its lists in
  /// the arena. There is one at least.
  HeadPlan plan(StepContext& context, LayerId layer, const AttnArgs& attention) const;

 private:
  bool lists() const {
    if (!spec_.heads.empty()) {
      return std::find(spec_.heads.begin(), spec_.heads.end(), HeadKind::kBlocks) !=
             spec_.heads.end();
    }
    return spec_.sparse == HeadKind::kBlocks ||
           (spec_.routed && spec_.retrieval == HeadKind::kBlocks);
  }
  int64_t num_words(int64_t max_len) const;
  TensorView fixed_rows(StepContext& context, int64_t segments) const;
  TensorView gather_kinds(StepContext& context, const AttnArgs& attention) const;
  void record(StepContext& context, LayerId layer, const AttnArgs& attention, const HeadPlan& plan,
              TensorView mass) const;

  AttentionSpec attention_;
  SparsePrefillSpec spec_;
  MixerOptions options_;
  RouterWeights router_;
  Buffer constants_;
  TensorView thresholds_;   // [H]
  TensorView fixed_kinds_;  // [2, H]: of prompts, and of those too short for it (all full)
  bool long_lists_ = false;
};

}  // namespace weft
