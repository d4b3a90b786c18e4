#pragma once

// Arguments of the ops that only vision towers need. Letters: N patches, H heads, D head dim.
// Types and strides as in args.h.

#include <cstdint>

#include "tensor/view.h"

namespace weft {

/// y = (x - mean(x)) * rsqrt(var(x) + eps) * weight + bias (Ba et al. 2016); with `residual`:
/// residual += x first, and the norm is taken of the sum.
struct LayerNormArgs {
  TensorView x;         ///< [N, hidden]
  TensorView residual;  ///< [N, hidden] f32 updated in place, or undefined
  TensorView weight;    ///< [hidden] f32
  TensorView bias;      ///< [hidden] f32
  TensorView out;       ///< [N, hidden]; may be x
  float eps = 1e-6f;
};

enum class Gelu : uint8_t {
  kErf,   ///< x Phi(x)
  kTanh,  ///< 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))
};

/// x = gelu(x), [N, width].
struct GeluArgs {
  TensorView x;
  Gelu form = Gelu::kErf;
};

/// out[n] += sum_j weights[n, j] * table[ids[n, j]]: learned positions between four of the grid.
struct InterpolateArgs {
  TensorView table;    ///< [P, hidden] f32 or bf16
  TensorView ids;      ///< [N, 4] i32
  TensorView weights;  ///< [N, 4] f32
  TensorView out;      ///< [N, hidden] f32
};

/// Rotary positions of two axes: of the D / 2 pairs (i, i + D / 2) the first half turns by the
/// row, the second half by the column of the patch.
struct AxialRopeArgs {
  TensorView q, k;       ///< [N, H, D] in place
  TensorView cos_sin;    ///< [positions, D / 4, 2] f32
  TensorView positions;  ///< [N, 2] i32 (row, column), checked on the host
};

/// Softmax attention of all rows of a segment among each other, no mask. A row's bits depend on its
/// segment alone. Segments are not empty.
struct SegmentAttnArgs {
  TensorView q, k, v;  ///< [N, H, D]
  TensorView out;      ///< [N, H, D]
  TensorView bounds;   ///< [S + 1] i32: segment s has rows bounds[s] .. bounds[s + 1]
  const int32_t* host_bounds = nullptr;  ///< the same on the host
  int num_segments = 0;
  float scale = 1.0f;
};

}  // namespace weft
