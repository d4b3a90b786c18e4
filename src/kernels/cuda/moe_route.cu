// moe_route: softmax over all experts in fp32, the top k by probability + correction. One warp a
// row, the row in registers; k rounds of a warp-wide maximum (ties: the lower id).
// docs/kernels/small_ops_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kMaxExperts = 1024;
constexpr int kMaxTopK = 32;

struct RouteParams {
  const float* logits;
  const float* correction;  // null: none
  int32_t* ids;
  float* weights;
  int64_t logits_stride, ids_stride, weights_stride;
  int num_experts;
  RoutingRule rule;
};

/// `Turns` experts a lane: expert e is turn e / 32 of lane e % 32.
template <int Turns>
__global__ __launch_bounds__(32) void route_kernel(RouteParams p) {
  let_successor_begin();
  wait_for_predecessor();
  constexpr float kNone = -3.0e38f;
  const int64_t row = blockIdx.x;
  const int lane = static_cast<int>(threadIdx.x);
  const float* logits = p.logits + row * p.logits_stride;
  float probability[Turns], choice[Turns];
  float largest = kNone;
#pragma unroll
  for (int i = 0; i < Turns; ++i) {
    const int e = i * 32 + lane;
    probability[i] = e < p.num_experts ? logits[e] : kNone;
    largest = fmaxf(largest, probability[i]);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, step));
  }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < Turns; ++i) {
    const int e = i * 32 + lane;
    probability[i] = e < p.num_experts ? expf(probability[i] - largest) : 0.0f;
    sum += probability[i];
  }
  sum = warp_sum(sum);
#pragma unroll
  for (int i = 0; i < Turns; ++i) {
    const int e = i * 32 + lane;
    probability[i] /= sum;
    choice[i] = kNone;
    if (e < p.num_experts) choice[i] = probability[i] + (p.correction ? p.correction[e] : 0.0f);
  }
  float chosen = 0, mine = 0;  // lane j keeps the weight of round j
  int my_id = 0;
  for (int j = 0; j < p.rule.top_k; ++j) {
    float best = kNone, weight = 0;
    int id = 0x7fffffff;
#pragma unroll
    for (int i = 0; i < Turns; ++i) {
      if (choice[i] > best) {  // ascending ids: the first of equals stays
        best = choice[i];
        id = i * 32 + lane;
        weight = probability[i];
      }
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      const float other = __shfl_xor_sync(0xffffffffu, best, step);
      const int other_id = __shfl_xor_sync(0xffffffffu, id, step);
      const float other_weight = __shfl_xor_sync(0xffffffffu, weight, step);
      if (other > best || (other == best && other_id < id)) {
        best = other;
        id = other_id;
        weight = other_weight;
      }
    }
    // NaN logits choose nobody: any expert will do, the row is lost either way.
    if (id == 0x7fffffff) id = j;
#pragma unroll
    for (int i = 0; i < Turns; ++i) {
      if (i * 32 + lane == id) choice[i] = kNone;
    }
    chosen += weight;
    if (lane == j) {
      mine = weight;
      my_id = id;
    }
  }
  if (lane >= p.rule.top_k) return;
  const float norm = p.rule.renormalize ? fmaxf(chosen, p.rule.norm_min) : 1.0f;
  p.ids[row * p.ids_stride + lane] = my_id;
  p.weights[row * p.weights_stride + lane] = mine / norm * p.rule.scale;
}

}  // namespace

void moe_route(Stream& stream, const MoeRouteArgs& args) {
  const int64_t rows = args.logits.dim(0), experts = args.logits.dim(1);
  if (rows == 0) return;
  CHECK(experts <= kMaxExperts && args.rule.top_k <= kMaxTopK && args.rule.top_k <= experts,
        "moe_route: up to 1024 experts and 32 of them a token");
  const RouteParams p{.logits = args.logits.ptr<float>(),
                      .correction = static_cast<const float*>(args.correction.data),
                      .ids = args.ids.ptr<int32_t>(),
                      .weights = args.weights.ptr<float>(),
                      .logits_stride = args.logits.stride[0],
                      .ids_stride = args.ids.stride[0],
                      .weights_stride = args.weights.stride[0],
                      .num_experts = static_cast<int>(experts),
                      .rule = args.rule};
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(rows)), .block = dim3(32), .overlap = true};
  if (experts <= 128) {
    launch(stream, shape, route_kernel<4>, p);
  } else if (experts <= 512) {
    launch(stream, shape, route_kernel<16>, p);
  } else {
    launch(stream, shape, route_kernel<32>, p);
  }
}

}  // namespace weft::cuda
