// RMS norms: y = x * rsqrt(mean(x^2) + eps) * w, one row (or one head of a row) at a time, so that
// a row's bits depend on nothing beside it. Bound: one read and one write of the activations.

#include "kernels/cpu/norm.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth handing to another thread

const float* row_of(const TensorView& v, int64_t t) {
  return static_cast<const float*>(v.data) + t * v.stride[0];
}
float* row_of_mutable(const TensorView& v, int64_t t) {
  return static_cast<float*>(v.data) + t * v.stride[0];
}

void add_into(const float* x, float* sum, int64_t n) {
  for_lanes(
      n, [&](int64_t i, int64_t m) { store_n(sum + i, load_n(sum + i, m) + load_n(x + i, m), m); });
}

}  // namespace

void rms_norm(Stream& stream, const RmsNormArgs& args) {
  const int64_t n = args.weight.shape[0];
  const auto* weight = static_cast<const float*>(args.weight.data);
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = row_of(args.x, t);
      if (args.residual.defined()) {
        float* residual = row_of_mutable(args.residual, t);
        add_into(x, residual, n);
        x = residual;
      }
      rms_norm_row(x, weight, n, args.eps, row_of_mutable(args.out, t));
    }
  };
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (n + 1), body);
}

void gated_norm(Stream& stream, const GatedNormArgs& args) {
  const int64_t heads = args.x.shape[1], width = args.x.shape[2];
  const GatedNorm norm{static_cast<const float*>(args.weight.data), args.eps, args.activation};
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        gated_norm_row(norm, row_of(args.x, t) + h * args.x.stride[1],
                       row_of(args.z, t) + h * args.z.stride[1], width,
                       row_of_mutable(args.out, t) + h * args.out.stride[1]);
      }
    }
  };
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (heads * width + 1), body);
}

}  // namespace weft::WEFT_ISA_NS
