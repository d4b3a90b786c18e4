#include <algorithm>
#include <cmath>

#include "kernels/ref/ref.h"

namespace weft::ref {
namespace {

/// out = x * rsqrt(mean(x^2) + eps) * weight over `n` elements.
void normalise(const float* x, const float* weight, int64_t n, float eps, float* out) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  const float scale = static_cast<float>(1.0 / std::sqrt(sum / static_cast<double>(n) + eps));
  for (int64_t i = 0; i < n; ++i) out[i] = x[i] * scale * weight[i];
}

}  // namespace

void embed(Stream&, const EmbedArgs& args) {
  const int64_t hidden = args.table.dim(1);
  for (int64_t t = 0; t < args.ids.dim(0); ++t) {
    const int64_t id = args.ids.ptr<int32_t>()[t];
    float* out = args.out.row<float>(t);
    if (args.table.dtype == DType::kF32) {
      std::copy_n(args.table.row<float>(id), hidden, out);
    } else {
      for (int64_t i = 0; i < hidden; ++i) out[i] = bf16_to_float(args.table.row<bf16>(id)[i]);
    }
  }
}

void rms_norm(Stream&, const RmsNormArgs& args) {
  const int64_t hidden = args.x.dim(1);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const float* x = args.x.row<float>(t);
    if (args.residual.defined()) {
      float* residual = args.residual.row<float>(t);
      for (int64_t i = 0; i < hidden; ++i) residual[i] += x[i];
      x = residual;
    }
    normalise(x, args.weight.ptr<float>(), hidden, args.eps, args.out.row<float>(t));
  }
}

void add(Stream&, const AddArgs& args) {
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t i = 0; i < args.x.dim(1); ++i) {
      args.out.row<float>(t)[i] += args.x.row<float>(t)[i];
    }
  }
}

void add_gated(Stream&, const AddGatedArgs& args) {
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    const float gate = sigmoid(args.gate.row<float>(t)[0]);
    for (int64_t i = 0; i < args.x.dim(1); ++i) {
      args.out.row<float>(t)[i] += gate * args.x.row<float>(t)[i];
    }
  }
}

void mul_sigmoid(Stream&, const MulSigmoidArgs& args) {
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      float* x = row3(args.x, t, h);
      const float* gate = row3(args.gate, t, h);
      for (int64_t i = 0; i < args.x.dim(2); ++i) x[i] *= sigmoid(gate[i]);
    }
  }
}

void gated_norm(Stream&, const GatedNormArgs& args) {
  const int64_t width = args.x.dim(2);
  for (int64_t t = 0; t < args.x.dim(0); ++t) {
    for (int64_t h = 0; h < args.x.dim(1); ++h) {
      float* out = row3(args.out, t, h);
      const float* z = row3(args.z, t, h);
      normalise(row3(args.x, t, h), args.weight.ptr<float>(), width, args.eps, out);
      for (int64_t i = 0; i < width; ++i) {
        out[i] *= args.activation == GateActivation::kSilu ? silu(z[i]) : sigmoid(z[i]);
      }
    }
  }
}

std::array<int32_t, 3> position_of(const RopePositions& positions, int64_t row) {
  if (positions.triples.defined()) {
    const auto* p = positions.triples.row<int32_t>(row);
    if (p[0] != p[1] || p[0] != p[2]) return {p[0], p[1], p[2]};
  }
  const int32_t delta = positions.delta.defined() ? positions.delta.ptr<int32_t>()[row] : 0;
  const int32_t p = positions.index.ptr<int32_t>()[row] + delta;
  return {p, p, p};
}

namespace {

/// Rotates the first rotary_dim of `x`; frequency i is turned by the position of its axis.
void rotate(const RopeTable& rope, const std::array<int32_t, 3>& position, float* x) {
  const int half = rope.rotary_dim / 2;
  const uint8_t* axis = rope.axis.ptr<uint8_t>();
  for (int i = 0; i < half; ++i) {
    const float* entry = rope.cos_sin.row<float>(position[axis[i]]) + 2 * i;
    const int first = rope.style == RopeStyle::kNeox ? i : 2 * i;
    const int second = rope.style == RopeStyle::kNeox ? i + half : 2 * i + 1;
    const float a = x[first], b = x[second];
    x[first] = a * entry[0] - b * entry[1];
    x[second] = b * entry[0] + a * entry[1];
  }
}

}  // namespace

void qkv_prepare(Stream&, const QkvPrepareArgs& args) {
  const int64_t head_dim = args.q.dim(2);
  for (int64_t t = 0; t < args.q.dim(0); ++t) {
    const std::array<int32_t, 3> position = position_of(args.positions, t);
    for (int64_t h = 0; h < args.q.dim(1); ++h) {
      float* q = row3(args.q, t, h);
      if (args.q_norm.defined()) normalise(q, args.q_norm.ptr<float>(), head_dim, args.eps, q);
      rotate(args.rope, position, q);
    }
    const int64_t slot = args.kv_slot.ptr<int64_t>()[t];
    for (int64_t g = 0; g < args.k.dim(1); ++g) {
      float* k = row3(args.k, t, g);
      if (args.k_norm.defined()) normalise(k, args.k_norm.ptr<float>(), head_dim, args.eps, k);
      rotate(args.rope, position, k);
      if (slot < 0) continue;
      kv_store(args.kv, 0, slot, static_cast<int>(g), k);
      kv_store(args.kv, 1, slot, static_cast<int>(g), row3(args.v, t, g));
    }
  }
}

}  // namespace weft::ref
