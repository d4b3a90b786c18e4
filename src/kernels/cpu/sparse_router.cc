// Which heads are retrieval heads: p = mean of the first and the last 100 rows of K (normed, before
// rope), two small MLPs, the larger of two logits. Bound: one read of the weights (1 MB a layer at
// D = 128) and of 200 rows of K; a piece of work is one kv head of one prompt.

#include "kernels/cpu/limits.h"
#include "kernels/cpu/norm.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kMaxDim = kCpuMaxDim;     // D
constexpr int64_t kMaxWidth = 4 * kMaxDim;  // of a layer

const float* row_of(const TensorView& x, int64_t i) {
  return static_cast<const float*>(x.data) + i * x.stride[0];
}

/// y = W x + bias, or silu of it.
void layer(const TensorView& weight, const TensorView& bias, const float* x, bool activate,
           float* y) {
  const int64_t rows = weight.shape[0], width = weight.shape[1];
  for (int64_t n = 0; n < rows; ++n) {
    const float* w = row_of(weight, n);
    Vec even = splat(0), odd = splat(0);
    int64_t i = 0;
    for (; i + 2 * kLanes <= width; i += 2 * kLanes) {
      even = fma(load(w + i), load(x + i), even);
      odd = fma(load(w + i + kLanes), load(x + i + kLanes), odd);
    }
    for (; i < width; i += kLanes) {
      const int64_t m = width - i < kLanes ? width - i : kLanes;
      even = fma(load_n(w + i, m), load_n(x + i, m), even);
    }
    y[n] = sum_lanes(even + odd) + static_cast<const float*>(bias.data)[n];
  }
  if (!activate) return;
  for_lanes(rows, [&](int64_t i, int64_t m) { store_n(y + i, silu(load_n(y + i, m)), m); });
}

/// The mean of rows [begin, begin + n) and [end - n, end) of kv head g, normed.
void pool(const RouterArgs& args, int64_t begin, int64_t end, int64_t g, float* sum) {
  const int64_t d = args.k.shape[2];
  const int64_t n = end - begin < RouterArgs::kPooled ? end - begin : RouterArgs::kPooled;
  const auto* weight = static_cast<const float*>(args.k_norm.data);
  for (int64_t i = 0; i < d; ++i) sum[i] = 0;
  for (int64_t r = 0; r < 2 * n; ++r) {
    const float* k = row_of(args.k, r < n ? begin + r : end - 2 * n + r) + g * args.k.stride[1];
    const Vec scale = splat(weight == nullptr ? 1.0f : rms_scale(k, d, args.eps));
    for_lanes(d, [&](int64_t i, int64_t m) {
      const Vec w = weight == nullptr ? splat(1.0f) : load_n(weight + i, m);
      store_n(sum + i, fma(load_n(k + i, m) * scale, w, load_n(sum + i, m)), m);
    });
  }
  const Vec inverse = splat(1.0f / (2.0f * static_cast<float>(n)));
  for_lanes(d, [&](int64_t i, int64_t m) { store_n(sum + i, load_n(sum + i, m) * inverse, m); });
}

void route_head(const RouterArgs& args, int64_t s, int64_t g) {
  const auto* cu = static_cast<const int32_t*>(args.cu_q.data);
  if (cu[s] == cu[s + 1]) return;
  alignas(64) float narrow[kMaxDim], wide[kMaxWidth];
  const RouterWeights& w = args.weights;
  pool(args, cu[s], cu[s + 1], g, narrow);
  layer(w.feature[0], w.feature_bias[0], narrow, true, wide);
  layer(w.feature[1], w.feature_bias[1], wide, false, narrow);
  layer(w.router[0], w.router_bias[0], narrow, true, wide);
  layer(w.router[1], w.router_bias[1], wide, true, narrow);
  float* logits =
      static_cast<float*>(args.logits.data) + s * args.logits.stride[0] + g * args.logits.stride[1];
  layer(w.router[2], w.router_bias[2], narrow, false, logits);
  const HeadKind kind = logits[1] > logits[0] ? args.retrieval : args.sparse;
  const int64_t row = args.rows.data == nullptr
                          ? s
                          : static_cast<const int32_t*>(args.rows.data)[s * args.rows.stride[0]];
  const int64_t group = args.kinds.shape[1] / args.k.shape[1];
  auto* kinds = static_cast<int32_t*>(args.kinds.data) + row * args.kinds.stride[0] + g * group;
  for (int64_t h = 0; h < group; ++h) kinds[h] = static_cast<int32_t>(kind);
}

}  // namespace

void route_heads(Stream& stream, const RouterArgs& args) {
  const int64_t heads = args.k.shape[1], d = args.k.shape[2];
  ISA_CHECK(d <= kMaxDim && args.weights.feature[0].shape[0] <= kMaxWidth);
  stream.pool().for_each(args.num_segments * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) route_head(args, i / heads, i % heads);
  });
}

}  // namespace weft::WEFT_ISA_NS
