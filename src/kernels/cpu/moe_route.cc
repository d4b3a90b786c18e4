#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kMaxExperts = 4096;
constexpr int64_t kGrain = 16;  // rows

float max_of(const float* x, int64_t n) {
  Vec best = splat(kNegInf);
  for_lanes(
      n, [&](int64_t i, int64_t m) { best = max(best, keep_first(load_n(x + i, m), m, kNegInf)); });
  return max_lanes(best);
}

/// probs = softmax(logits).
void softmax(const float* logits, int64_t n, float* probs) {
  const Vec top = splat(max_of(logits, n));
  Vec sum = splat(0);
  for_lanes(n, [&](int64_t i, int64_t m) {
    const Vec e = keep_first(exp(load_n(logits + i, m) - top), m, 0.0f);
    store_n(probs + i, e, m);
    sum = sum + e;
  });
  const Vec total = splat(sum_lanes(sum));
  for_lanes(n, [&](int64_t i, int64_t m) { store_n(probs + i, load_n(probs + i, m) / total, m); });
}

/// The lowest id with the largest value; with NaN about, any id not taken.
int64_t take_largest(float* choice, int64_t n, const int32_t* taken, int num_taken) {
  const float largest = max_of(choice, n);
  for (int64_t e = 0; e < n; ++e) {
    if (choice[e] == largest && largest > kNegInf) {
      choice[e] = kNegInf;
      return e;
    }
  }
  for (int64_t e = 0; e < n; ++e) {
    bool used = false;
    for (int j = 0; j < num_taken; ++j) used |= taken[j] == e;
    if (!used) return e;
  }
  return 0;
}

void route_row(const MoeRouteArgs& args, int64_t t) {
  const int64_t n = args.logits.shape[1];
  alignas(64) float probs[kMaxExperts];
  alignas(64) float choice[kMaxExperts];
  softmax(static_cast<const float*>(args.logits.data) + t * args.logits.stride[0], n, probs);
  const auto* correction = static_cast<const float*>(args.correction.data);
  for_lanes(n, [&](int64_t i, int64_t m) {
    const Vec p = load_n(probs + i, m);
    store_n(choice + i, correction == nullptr ? p : p + load_n(correction + i, m), m);
  });
  auto* ids = static_cast<int32_t*>(args.ids.data) + t * args.ids.stride[0];
  auto* weights = static_cast<float*>(args.weights.data) + t * args.weights.stride[0];
  float sum = 0;
  for (int j = 0; j < args.rule.top_k; ++j) {
    ids[j] = static_cast<int32_t>(take_largest(choice, n, ids, j));
    weights[j] = probs[ids[j]];
    sum += weights[j];
  }
  if (sum < args.rule.norm_min) sum = args.rule.norm_min;
  for (int j = 0; j < args.rule.top_k; ++j) {
    if (args.rule.renormalize) weights[j] /= sum;
    weights[j] *= args.rule.scale;
  }
}

}  // namespace

void moe_route(Stream& stream, const MoeRouteArgs& args) {
  ISA_CHECK(args.logits.shape[1] <= kMaxExperts && args.rule.top_k <= args.logits.shape[1]);
  stream.pool().for_each(args.logits.shape[0], kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) route_row(args, t);
  });
}

}  // namespace weft::WEFT_ISA_NS
