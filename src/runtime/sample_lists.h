#pragma once

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

#include "kernels/sample_args.h"
#include "sched/request.h"

namespace weft {

/// The lists of ids that rows of logits are sampled with, one behind the other, as SampleArgs takes
/// them; ids that the vocabulary of `vocab` tokens doesn't have are left out.
struct SampleLists {
  int64_t vocab = 0;
  std::vector<TokenBias> biases;
  std::vector<int32_t> ids;

  void clear() {
    biases.clear();
    ids.clear();
  }
  ListRange add(const std::vector<int32_t>& values) {
    const auto begin = static_cast<int32_t>(ids.size());
    std::copy_if(values.begin(), values.end(), std::back_inserter(ids),
                 [&](int32_t id) { return known(id); });
    return {begin, static_cast<int32_t>(ids.size()) - begin};
  }
  ListRange add(const std::vector<std::pair<int32_t, float>>& values) {
    const auto begin = static_cast<int32_t>(biases.size());
    for (const auto& [id, bias] : values) {
      if (known(id)) biases.push_back({id, bias});
    }
    return {begin, static_cast<int32_t>(biases.size()) - begin};
  }

  /// What a draw by `params` depends on, but for what was counted and what ends an answer.
  void add_draw(const SamplingParams& params, SampleSpec& spec) {
    spec.temperature = params.temperature;
    spec.top_k = params.top_k;
    spec.top_p = params.top_p;
    spec.min_p = params.min_p;
    spec.repetition_penalty = params.repetition_penalty;
    spec.frequency_penalty = params.frequency_penalty;
    spec.presence_penalty = params.presence_penalty;
    spec.seed = params.seed;
    spec.biases = add(params.logit_bias);
    spec.banned_ids = add(params.banned_ids);
    spec.allowed_ids = add(params.allowed_ids);
  }

 private:
  bool known(int32_t id) const { return id >= 0 && id < vocab; }
};

}  // namespace weft
