#include "kernels/cpu/simd.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kGrain = 16384;  // elements worth handing to another thread

float* row_of(const TensorView& v, int64_t t) {
  return static_cast<float*>(v.data) + t * v.stride[0];
}

}  // namespace

void add(Stream& stream, const AddArgs& args) {
  const int64_t n = args.x.shape[1];
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = row_of(args.x, t);
      float* out = row_of(args.out, t);
      for_lanes(n, [&](int64_t i, int64_t m) {
        store_n(out + i, load_n(out + i, m) + load_n(x + i, m), m);
      });
    }
  });
}

void add_gated(Stream& stream, const AddGatedArgs& args) {
  const int64_t n = args.x.shape[1];
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (n + 1), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      const float* x = row_of(args.x, t);
      float* out = row_of(args.out, t);
      const Vec gate = sigmoid(splat(*row_of(args.gate, t)));
      for_lanes(n, [&](int64_t i, int64_t m) {
        store_n(out + i, fma(gate, load_n(x + i, m), load_n(out + i, m)), m);
      });
    }
  });
}

void mul_sigmoid(Stream& stream, const MulSigmoidArgs& args) {
  const int64_t heads = args.x.shape[1], width = args.x.shape[2];
  const auto body = [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < heads; ++h) {
        float* x = row_of(args.x, t) + h * args.x.stride[1];
        const float* gate = row_of(args.gate, t) + h * args.gate.stride[1];
        for_lanes(width, [&](int64_t i, int64_t m) {
          store_n(x + i, load_n(x + i, m) * sigmoid(load_n(gate + i, m)), m);
        });
      }
    }
  };
  stream.pool().for_each(args.x.shape[0], 1 + kGrain / (heads * width + 1), body);
}

}  // namespace weft::WEFT_ISA_NS
