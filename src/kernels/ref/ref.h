#pragma once

// The oracle backend: every op as plain loops over row-major layouts, in f32 with sums in double.
// Clear before fast. Layouts: a weight is [N, K] row-major in its format (a quantised group is its
// f16 scale followed by its codes); a KV block is K [B, G, D], then V [B, G, D], then the scales
// of the rows [2, B, G, scales a row] f32 where the format has them.

#include <array>
#include <cmath>
#include <span>
#include <vector>

#include "kernels/op_table.h"

namespace weft::ref {

inline float sigmoid(float x) {
  return 1.0f / (1.0f + std::exp(-x));
}
inline float silu(float x) {
  return x / (1.0f + std::exp(-x));
}

/// Pointer to x[i, j, 0] of a rank-3 f32 tensor.
inline float* row3(const TensorView& x, int64_t i, int64_t j) {
  return x.ptr<float>() + i * x.stride[0] + j * x.stride[1];
}

/// (t, h, w) of a row.
std::array<int32_t, 3> position_of(const RopePositions& positions, int64_t row);

/// Row `n` of expert `expert` as f32 [K].
void weight_row(const Weight& weight, int64_t expert, int64_t n, float* out);
/// out [T, N] = x [T, K] times the rows, x rounded to bf16 first where the format asks for it.
void matmul(Stream& stream, const Weight& weight, int64_t expert, const TensorView& x, float* out);

/// One head of one cached token, K (plane 0) or V (plane 1), [D].
void kv_load(const PagedKv& kv, int plane, int64_t block, int64_t offset, int head, float* out);
void kv_store(const PagedKv& kv, int plane, int64_t slot, int head, const float* in);

int64_t weight_bytes(const WeightShape& shape);
void pack_weight(Stream&, const Weight& weight, int64_t expert, std::span<const TensorView> pieces);
void unpack_weight(const Weight& weight, int64_t expert, TensorView out);
int64_t kv_block_bytes(const KvShape& shape);
void kv_read_block(const PagedKv& kv, int64_t block, TensorView k, TensorView v);
void embed(Stream&, const EmbedArgs& args);
void rms_norm(Stream&, const RmsNormArgs& args);
void linear(Stream&, const LinearArgs& args);
void moe_route(Stream&, const MoeRouteArgs& args);
void moe(Stream&, const MoeArgs& args);
void add(Stream&, const AddArgs& args);
void add_gated(Stream&, const AddGatedArgs& args);
void mul_sigmoid(Stream&, const MulSigmoidArgs& args);
void qkv_prepare(Stream&, const QkvPrepareArgs& args);
void attention(Stream&, const AttnArgs& args);
void route_heads(Stream&, const RouterArgs& args);
/// s[b, 0 .. b] of SelectArgs; and the blocks chosen by them (`quirk`: SelectArgs::quirk_blocks).
std::vector<double> block_scores(const SelectArgs& args, int64_t segment, int64_t head, int64_t b);
std::vector<bool> choose_blocks(const std::vector<double>& scores, double threshold,
                                bool quirk = false);
void select_blocks(Stream&, const SelectArgs& args);
void gdn(Stream&, const GdnArgs& args);
void gated_norm(Stream&, const GatedNormArgs& args);
void layer_norm(Stream&, const LayerNormArgs& args);
void gelu(Stream&, const GeluArgs& args);
void interpolate(Stream&, const InterpolateArgs& args);
void axial_rope(Stream&, const AxialRopeArgs& args);
void segment_attention(Stream&, const SegmentAttnArgs& args);

}  // namespace weft::ref
