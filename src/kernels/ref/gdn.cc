#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

float softplus(float x) {
  return x > 20.0f ? x : std::log1p(std::exp(x));
}

/// x * rsqrt(sum(x^2) + 1e-6) * scale
void l2_normalise(float* x, int n, float scale) {
  double sum = 0;
  for (int i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float factor = static_cast<float>(1.0 / std::sqrt(sum + 1e-6)) * scale;
  for (int i = 0; i < n; ++i) x[i] *= factor;
}

/// One segment's working copy of the state.
struct State {
  std::vector<float> conv;       // [W-1, C], the oldest row first
  std::vector<float> recurrent;  // [HV, V, K]
};

bool is_half(const GdnArgs& args) {
  return args.state.recurrent.dtype == DType::kBF16;
}

State load_state(const GdnArgs& args, int64_t slot) {
  const TensorView& conv = args.state.conv;
  const TensorView& recurrent = args.state.recurrent;
  State out;
  out.conv.assign(static_cast<size_t>(conv.dim(1) * conv.dim(2)), 0.0f);
  out.recurrent.assign(static_cast<size_t>(recurrent.dim(1) * recurrent.dim(2) * recurrent.dim(3)),
                       0.0f);
  if (slot < 0) return out;
  std::copy_n(conv.row<float>(slot), out.conv.size(), out.conv.begin());
  if (is_half(args)) {
    const uint16_t* from = recurrent.row<uint16_t>(slot);
    for (size_t i = 0; i < out.recurrent.size(); ++i) out.recurrent[i] = bf16_to_float(from[i]);
  } else {
    std::copy_n(recurrent.row<float>(slot), out.recurrent.size(), out.recurrent.begin());
  }
  return out;
}

void store_state(const GdnArgs& args, int64_t slot, const State& state) {
  if (slot < 0) return;
  std::copy(state.conv.begin(), state.conv.end(), args.state.conv.row<float>(slot));
  if (is_half(args)) {
    uint16_t* to = args.state.recurrent.row<uint16_t>(slot);
    for (const float x : state.recurrent) *to++ = float_to_bf16(x);
  } else {
    std::copy(state.recurrent.begin(), state.recurrent.end(),
              args.state.recurrent.row<float>(slot));
  }
}

/// y[c] = silu(sum_j w[c, j] * x_{t-W+1+j}[c]); shifts the window.
void convolve(const GdnArgs& args, const float* x, std::vector<float>& window, float* y) {
  const int64_t channels = args.qkv.dim(1), width = args.shape.conv_width;
  for (int64_t c = 0; c < channels; ++c) {
    const float* w = args.conv.row<float>(c);
    double sum = static_cast<double>(w[width - 1]) * x[c];
    for (int64_t j = 0; j + 1 < width; ++j) {
      sum += static_cast<double>(w[j]) * window[static_cast<size_t>(j * channels + c)];
    }
    y[c] = silu(static_cast<float>(sum));
  }
  std::copy(window.begin() + channels, window.end(), window.begin());
  std::copy_n(x, channels, window.end() - channels);
}

/// What the delta rule reads of one value head at one token.
struct HeadToken {
  const float *q, *k, *v;  // [K], [K], [V]
  float decay, beta;
};

/// One value head, one token. S [V, K]:
///   S <- decay S;  u = beta (v - S k);  S <- S + u k^T;  o = S q (unless `out` is null).
void delta_rule(const GdnShape& shape, const HeadToken& x, float* s, float* out) {
  for (int i = 0; i < shape.value_dim; ++i) {
    float* row = s + static_cast<int64_t>(i) * shape.key_dim;
    double predicted = 0;
    for (int j = 0; j < shape.key_dim; ++j) {
      row[j] *= x.decay;
      predicted += static_cast<double>(row[j]) * x.k[j];
    }
    const float u = x.beta * (x.v[i] - static_cast<float>(predicted));
    double sum = 0;
    for (int j = 0; j < shape.key_dim; ++j) {
      row[j] += u * x.k[j];
      sum += static_cast<double>(row[j]) * x.q[j];
    }
    if (out != nullptr) out[i] = static_cast<float>(sum);
  }
}

void token(const GdnArgs& args, int64_t t, State& state, std::vector<float>& y) {
  const GdnShape& shape = args.shape;
  const int group = shape.value_heads / shape.key_heads;
  convolve(args, args.qkv.row<float>(t), state.conv, y.data());
  float* q = y.data();
  float* k = q + shape.key_heads * shape.key_dim;
  const float* v = k + shape.key_heads * shape.key_dim;
  const float scale = 1.0f / std::sqrt(static_cast<float>(shape.key_dim));
  for (int h = 0; h < shape.key_heads; ++h) {
    l2_normalise(q + h * shape.key_dim, shape.key_dim, scale);
    l2_normalise(k + h * shape.key_dim, shape.key_dim, 1.0f);
  }
  for (int h = 0; h < shape.value_heads; ++h) {
    const float a = args.a.row<float>(t)[h], b = args.b.row<float>(t)[h];
    const float g =
        -std::exp(args.a_log.ptr<float>()[h]) * softplus(a + args.dt_bias.ptr<float>()[h]);
    const int64_t head = h / group;
    const HeadToken x{q + head * shape.key_dim, k + head * shape.key_dim, v + h * shape.value_dim,
                      std::exp(g), sigmoid(b)};
    delta_rule(shape, x, state.recurrent.data() + int64_t{h} * shape.value_dim * shape.key_dim,
               args.out.defined() ? row3(args.out, t, h) : nullptr);
  }
}

}  // namespace

/// The recurrence token by token, for prompt and decode segments alike: the chunked form of a real
/// backend is the same function in another order of operations.
void gdn(Stream& stream, const GdnArgs& args) {
  std::vector<float> y(static_cast<size_t>(args.qkv.rank == 2 ? args.qkv.dim(1) : 0));
  for (int s = 0; s < args.num_segments; ++s) {
    State state = load_state(args, args.read_slot.ptr<int32_t>()[s]);
    const int64_t begin = args.cu_q.ptr<int32_t>()[s], end = args.cu_q.ptr<int32_t>()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      token(args, t, state, y);
      if (!is_half(args)) continue;
      if (s < args.num_prompt_segments && (t + 1 - begin) % 64 != 0 && t + 1 < end) continue;
      for (float& x : state.recurrent) x = bf16_to_float(float_to_bf16(x));
    }
    store_state(args, args.write_slot.ptr<int32_t>()[s], state);
  }
  if (args.norm.z.defined()) {
    gated_norm(stream, {.x = args.out,
                        .z = args.norm.z,
                        .weight = args.norm.weight,
                        .out = args.out,
                        .eps = args.norm.eps,
                        .activation = args.norm.activation});
  }
}

}  // namespace weft::ref
