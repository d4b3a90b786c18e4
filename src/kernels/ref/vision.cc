#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/ref/ref.h"

namespace weft::ref {

void layer_norm(Stream&, const LayerNormArgs& args) {
  const int64_t n = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const float* x = args.x.row<float>(t);
    if (args.residual.defined()) {
      float* residual = args.residual.row<float>(t);
      for (int64_t i = 0; i < n; ++i) residual[i] += x[i];
      x = residual;
    }
    double mean = 0, variance = 0;
    for (int64_t i = 0; i < n; ++i) mean += x[i];
    mean /= static_cast<double>(n);
    for (int64_t i = 0; i < n; ++i) variance += (x[i] - mean) * (x[i] - mean);
    const double scale = 1 / std::sqrt(variance / static_cast<double>(n) + args.eps);
    for (int64_t i = 0; i < n; ++i) {
      const auto normal = static_cast<float>((x[i] - mean) * scale);
      args.out.row<float>(t)[i] = normal * args.weight.ptr<float>()[i] + args.bias.ptr<float>()[i];
    }
  }
}

void gelu(Stream&, const GeluArgs& args) {
  const auto value = [&](double x) {
    if (args.form == Gelu::kErf) return 0.5 * x * (1 + std::erf(x * std::sqrt(0.5)));
    return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  };
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    float* x = args.x.row<float>(t);
    for (int64_t i = 0; i < args.x.dim(1); ++i) x[i] = static_cast<float>(value(x[i]));
  }
}

void interpolate(Stream&, const InterpolateArgs& args) {
  for (int64_t t = 0; t < args.out.dim(0); ++t) {
    for (int64_t i = 0; i < args.out.dim(1); ++i) {
      double sum = 0;
      for (int64_t j = 0; j < 4; ++j) {
        const int64_t id = args.ids.row<int32_t>(t)[j];
        const float entry = args.table.dtype == DType::kF32
                                ? args.table.row<float>(id)[i]
                                : bf16_to_float(args.table.row<bf16>(id)[i]);
        sum += double{args.weights.row<float>(t)[j]} * entry;
      }
      args.out.row<float>(t)[i] += static_cast<float>(sum);
    }
  }
}

void axial_rope(Stream&, const AxialRopeArgs& args) {
  const int64_t half = args.q.dim(2) / 2, quarter = half / 2;
  for (const TensorView* x : {&args.q, &args.k}) {
    for (int64_t t = 0; t < x->dim(0); ++t) {
      for (int64_t h = 0; h < x->dim(1); ++h) {
        float* head = row3(*x, t, h);
        for (int64_t i = 0; i < half; ++i) {
          const int64_t axis = i / quarter;
          const float* turn =
              args.cos_sin.row<float>(args.positions.row<int32_t>(t)[axis]) + 2 * (i % quarter);
          const float a = head[i], b = head[i + half];
          head[i] = a * turn[0] - b * turn[1];
          head[i + half] = b * turn[0] + a * turn[1];
        }
      }
    }
  }
}

void segment_attention(Stream&, const SegmentAttnArgs& args) {
  const int64_t dim = args.q.dim(2);
  for (int s = 0; s < args.num_segments; ++s) {
    const int64_t begin = args.bounds.ptr<int32_t>()[s], end = args.bounds.ptr<int32_t>()[s + 1];
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t h = 0; h < args.q.dim(1); ++h) {
        std::vector<double> weights;
        double largest = -INFINITY, sum = 0;
        for (int64_t key = begin; key < end; ++key) {
          double dot = 0;
          for (int64_t i = 0; i < dim; ++i)
            dot += double{row3(args.q, t, h)[i]} * row3(args.k, key, h)[i];
          weights.push_back(dot * args.scale);
          largest = std::max(largest, weights.back());
        }
        for (double& weight : weights) sum += weight = std::exp(weight - largest);
        for (int64_t i = 0; i < dim; ++i) {
          double value = 0;
          for (int64_t key = begin; key < end; ++key) {
            value += weights[static_cast<size_t>(key - begin)] * row3(args.v, key, h)[i];
          }
          row3(args.out, t, h)[i] = static_cast<float>(value / sum);
        }
      }
    }
  }
}

}  // namespace weft::ref
