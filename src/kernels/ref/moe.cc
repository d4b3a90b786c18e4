#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>
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
  const int64_t rows = args.x.dim(0), hidden = args.x.dim(1), inner = args.down->shape.k;
  std::vector<float> total(static_cast<size_t>(rows * hidden), 0.0f);
  for (int64_t e = 0; e < args.gate_up->shape.experts; ++e) {
    std::vector<std::pair<int64_t, float>> users;  // row and weight
    std::vector<float> x;
    for (int64_t t = 0; t < rows; ++t) {
      for (int64_t j = 0; j < args.ids.dim(1); ++j) {
        if (args.ids.row<int32_t>(t)[j] != e) continue;
        users.emplace_back(t, args.weights.row<float>(t)[j]);
        x.insert(x.end(), args.x.row<float>(t), args.x.row<float>(t) + hidden);
      }
    }
    if (users.empty()) continue;
    const int64_t m = static_cast<int64_t>(users.size());
    std::vector<float> gate_up(static_cast<size_t>(m * 2 * inner));
    std::vector<float> act(static_cast<size_t>(m * inner)), y(static_cast<size_t>(m * hidden));
    matmul(stream, *args.gate_up, e, {x.data(), DType::kF32, {m, hidden}}, gate_up.data());
    for (int64_t i = 0; i < m; ++i) {
      const float* gate = gate_up.data() + i * 2 * inner;
      for (int64_t c = 0; c < inner; ++c) {
        act[static_cast<size_t>(i * inner + c)] = silu(gate[c]) * gate[inner + c];
      }
    }
    matmul(stream, *args.down, e, {act.data(), DType::kF32, {m, inner}}, y.data());
    for (int64_t i = 0; i < m; ++i) {
      const auto& [t, weight] = users[static_cast<size_t>(i)];
      for (int64_t c = 0; c < hidden; ++c) {
        total[static_cast<size_t>(t * hidden + c)] +=
            weight * y[static_cast<size_t>(i * hidden + c)];
      }
    }
  }
  for (int64_t t = 0; t < rows; ++t) {
    float* out = args.out.row<float>(t);
    for (int64_t c = 0; c < hidden; ++c) {
      const float value = total[static_cast<size_t>(t * hidden + c)];
      out[c] = args.accumulate ? out[c] + value : value;
    }
  }
}

}  // namespace weft::ref
