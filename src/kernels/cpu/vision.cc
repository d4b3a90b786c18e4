// Layer norm, GELU, learned positions and rotary positions of vision towers, a row at a time: a
// row's bits depend on nothing beside it. Bound: one read and one write of the activations.

#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth handing to another thread

float* row_of(const TensorView& v, int64_t t) {
  return static_cast<float*>(v.data) + t * v.stride[0];
}

float sum_row(const float* x, int64_t n) {
  Vec sum = splat(0);
  for_lanes(n, [&](int64_t i, int64_t m) { sum = sum + load_n(x + i, m); });
  return sum_lanes(sum);
}

void layer_norm_row(const LayerNormArgs& args, const float* x, float* out) {
  const int64_t n = args.weight.shape[0];
  const float mean = sum_row(x, n) / static_cast<float>(n);
  Vec squares = splat(0);
  for_lanes(n, [&](int64_t i, int64_t m) {
    const Vec d = keep_first(load_n(x + i, m) - splat(mean), m, 0);
    squares = fma(d, d, squares);
  });
  const float variance = sum_lanes(squares) / static_cast<float>(n);
  const Vec scale = splat(1.0f / __builtin_sqrtf(variance + args.eps));
  const auto* weight = static_cast<const float*>(args.weight.data);
  const auto* bias = static_cast<const float*>(args.bias.data);
  for_lanes(n, [&](int64_t i, int64_t m) {
    const Vec normal = (load_n(x + i, m) - splat(mean)) * scale;
    store_n(out + i, fma(normal, load_n(weight + i, m), load_n(bias + i, m)), m);
  });
}

/// erf, absolute error 1.5e-7 (Abramowitz & Stegun 7.1.26).
Vec erf(Vec x) {
  const Vec z = abs(x);
  const Vec t = splat(1.0f) / fma(z, splat(0.3275911f), splat(1.0f));
  Vec p = splat(1.061405429f);
  p = fma(p, t, splat(-1.453152027f));
  p = fma(p, t, splat(1.421413741f));
  p = fma(p, t, splat(-0.284496736f));
  p = fma(p, t, splat(0.254829592f));
  const Vec positive = fnma(p * t, exp(splat(0.0f) - z * z), splat(1.0f));
  // The sign of x: z is |x|.
  return positive * (x / max(z, splat(1e-30f)));
}

Vec gelu(Vec x, Gelu form) {
  if (form == Gelu::kErf) {
    const Vec half = x * splat(0.5f);
    return fma(half, erf(x * splat(0.70710678f)), half);
  }
  // 0.5 (1 + tanh(u)) = sigmoid(2 u).
  const Vec cube = x * x * x;
  return x * sigmoid(splat(1.5957691216f) * fma(cube, splat(0.044715f), x));
}

void add_entry(const InterpolateArgs& args, int64_t id, float weight, float* out) {
  const int64_t n = args.out.shape[1];
  ISA_CHECK(id >= 0 && id < args.table.shape[0]);
  if (args.table.dtype == DType::kF32) {
    const float* entry = row_of(args.table, id);
    for_lanes(n, [&](int64_t i, int64_t m) {
      store_n(out + i, fma(splat(weight), load_n(entry + i, m), load_n(out + i, m)), m);
    });
    return;
  }
  const bf16* entry = static_cast<const bf16*>(args.table.data) + id * args.table.stride[0];
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = static_cast<uint32_t>(entry[i]) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof(value));
    out[i] = __builtin_fmaf(weight, value, out[i]);
  }
}

/// Turns the pairs (i, i + half) of `count` values of one axis.
void turn(const float* cos_sin, int64_t count, int64_t half, float* x) {
  for (int64_t i = 0; i < count; ++i) {
    const float c = cos_sin[2 * i], s = cos_sin[2 * i + 1];
    const float a = x[i], b = x[i + half];
    x[i] = __builtin_fmaf(-b, s, a * c);
    x[i + half] = __builtin_fmaf(a, s, b * c);
  }
}

}  // namespace

void layer_norm(Stream& stream, const LayerNormArgs& args) {
  const int64_t n = args.weight.shape[0];
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = row_of(args.x, t);
      if (args.residual.defined()) {
        float* sum = row_of(args.residual, t);
        for_lanes(n, [&](int64_t i, int64_t m) {
          store_n(sum + i, load_n(sum + i, m) + load_n(x + i, m), m);
        });
        x = sum;
      }
      layer_norm_row(args, x, row_of(args.out, t));
    }
  };
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (n + 1), body);
}

void gelu(Stream& stream, const GeluArgs& args) {
  const int64_t n = args.x.shape[1];
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      float* x = row_of(args.x, t);
      for_lanes(
          n, [&](int64_t i, int64_t m) { store_n(x + i, gelu(load_n(x + i, m), args.form), m); });
    }
  });
}

void interpolate(Stream& stream, const InterpolateArgs& args) {
  const int64_t n = args.out.shape[1];
  stream.pool().for_each(args.out.shape[0], 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto* ids = static_cast<const int32_t*>(args.ids.data) + t * args.ids.stride[0];
      for (int64_t j = 0; j < 4; ++j) {
        add_entry(args, ids[j], row_of(args.weights, t)[j], row_of(args.out, t));
      }
    }
  });
}

void axial_rope(Stream& stream, const AxialRopeArgs& args) {
  const int64_t heads = args.q.shape[1], dim = args.q.shape[2], quarter = dim / 4;
  ISA_CHECK(dim % 4 == 0);
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const auto* at = static_cast<const int32_t*>(args.positions.data) + t * 2;
      for (int64_t axis = 0; axis < 2; ++axis) {
        ISA_CHECK(at[axis] >= 0 && at[axis] < args.cos_sin.shape[0]);
        const float* cos_sin = row_of(args.cos_sin, at[axis]);
        for (int64_t h = 0; h < heads; ++h) {
          turn(cos_sin, quarter, dim / 2,
               row_of(args.q, t) + h * args.q.stride[1] + axis * quarter);
          turn(cos_sin, quarter, dim / 2,
               row_of(args.k, t) + h * args.k.stride[1] + axis * quarter);
        }
      }
    }
  };
  stream.pool().for_each(args.q.shape[0], 1 + kGrain / (2 * heads * dim + 1), body);
}

}  // namespace weft::WEFT_ISA_NS
