#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/ref/ref.h"

namespace weft::ref {

void moe_route(Stream&, const MoeRouteArgs& args) {
  const int64_t num_experts = args.logits.dim(1);
  const int top_k = args.rule.top_k;
  std::vector<float> probability(static_cast<size_t>(num_experts));
  std::vector<float> choice(probability.size());
  std::vector<int32_t> order(probability.size());
  for (int64_t t = 0; t < args.logits.dim(0); ++t) {
    const float* logits = args.logits.row<float>(t);
    const float largest = *std::max_element(logits, logits + num_experts);
    double sum = 0;
    for (size_t e = 0; e < probability.size(); ++e) {
      probability[e] = std::exp(logits[e] - largest);
      sum += probability[e];
    }
    for (size_t e = 0; e < probability.size(); ++e) {
      probability[e] = static_cast<float>(probability[e] / sum);
      choice[e] =
          probability[e] + (args.correction.defined() ? args.correction.ptr<float>()[e] : 0.0f);
    }
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t x, int32_t y) {
      return choice[static_cast<size_t>(x)] > choice[static_cast<size_t>(y)];
    });
    int32_t* ids = args.ids.row<int32_t>(t);
    float* weights = args.weights.row<float>(t);
    float chosen = 0;
    for (int j = 0; j < top_k; ++j) {
      ids[j] = order[static_cast<size_t>(j)];
      weights[j] = probability[static_cast<size_t>(ids[j])];
      chosen += weights[j];
    }
    const float norm = args.rule.renormalize ? std::max(chosen, args.rule.norm_min) : 1.0f;
    for (int j = 0; j < top_k; ++j) weights[j] = weights[j] / norm * args.rule.scale;
  }
}

void moe(Stream& stream, const MoeArgs& args) {
  const int64_t hidden = args.x.dim(1), top_k = args.ids.dim(1), inner = args.down->shape.k;
  stream.pool().for_each(args.x.dim(0), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> gate_up(static_cast<size_t>(2 * inner)), act(static_cast<size_t>(inner));
    std::vector<float> y(static_cast<size_t>(hidden)), total(y.size());
    std::vector<int64_t> order(static_cast<size_t>(top_k));
    for (int64_t t = begin; t < end; ++t) {
      const int32_t* ids = args.ids.row<int32_t>(t);
      std::iota(order.begin(), order.end(), 0);
      std::stable_sort(order.begin(), order.end(),
                       [&](int64_t i, int64_t j) { return ids[i] < ids[j]; });
      std::fill(total.begin(), total.end(), 0.0f);
      for (const int64_t j : order) {
        matvec(*args.gate_up, ids[j], args.x.row<float>(t), gate_up.data());
        for (size_t i = 0; i < act.size(); ++i) {
          act[i] = silu(gate_up[i]) * gate_up[act.size() + i];
        }
        matvec(*args.down, ids[j], act.data(), y.data());
        const float w = args.weights.row<float>(t)[j];
        for (size_t i = 0; i < y.size(); ++i) total[i] += w * y[i];
      }
      float* out = args.out.row<float>(t);
      for (size_t i = 0; i < total.size(); ++i) {
        out[i] = args.accumulate ? out[i] + total[i] : total[i];
      }
    }
  });
}

}  // namespace weft::ref
