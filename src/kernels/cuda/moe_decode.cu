// out[t] (+)= sum_j w[t,j] down_e(silu(gate_e x_t) * up_e x_t), e = ids[t,j], with decode
// arithmetic: one kernel finds each (token, expert) pair's place in the order of experts and copies
// its row of x there, two grouped products (gemm_decode) read each chosen expert's weights once,
// and each token sums its rows in ascending expert id. Bytes: the chosen experts' weights. Bound:
// memory. docs/kernels/gemm_decode.md.

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/moe_device.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxDecodeExperts = 1024;
constexpr int kMaxTopK = 32;

struct Placing {
  const int32_t* ids;  ///< [pairs]
  int pairs, top_k, experts, num_groups;
  ExpertRows* groups;  ///< [num_groups], ascending experts, empty ones last
  int* place_of;       ///< [pairs]
  const uint4* x;
  int64_t x_stride;  ///< in vectors
  uint4* out;        ///< [pairs] of `vectors`
  int vectors;
};

/// One block a pair. Equal experts keep the order of pairs.
__global__ void __launch_bounds__(kThreads) place_rows(const Placing p) {
  __shared__ uint32_t present[kMaxDecodeExperts / 32];
  __shared__ int counts[3];
  const int thread = static_cast<int>(threadIdx.x), pair = static_cast<int>(blockIdx.x);
  if (thread < kMaxDecodeExperts / 32) present[thread] = 0;
  if (thread < 3) counts[thread] = 0;
  wait_for_predecessor();
  let_successor_begin();
  const auto expert_of = [&](int i) { return min(max(p.ids[i], 0), p.experts - 1); };
  const int mine = expert_of(pair);
  __syncthreads();
  int lower = 0, before = 0, equal = 0;
  for (int i = thread; i < p.pairs; i += kThreads) {
    const int id = expert_of(i);
    lower += id < mine;
    before += id == mine && i < pair;
    equal += id == mine;
    atomicOr(&present[id / 32], 1u << id % 32);
  }
  const int sums[3] = {__reduce_add_sync(0xffffffffu, lower),
                       __reduce_add_sync(0xffffffffu, before),
                       __reduce_add_sync(0xffffffffu, equal)};
  if (thread % 32 == 0) {
#pragma unroll
    for (int i = 0; i < 3; ++i) atomicAdd(&counts[i], sums[i]);
  }
  __syncthreads();
  lower = counts[0], before = counts[1], equal = counts[2];
  const int place = lower + before;
  if (thread < 32) {
    const uint32_t word = present[thread];
    const uint32_t below = thread < mine / 32    ? word
                           : thread == mine / 32 ? word & ((1u << mine % 32) - 1)
                                                 : 0;
    const int distinct = __reduce_add_sync(0xffffffffu, __popc(word));
    const int rank = __reduce_add_sync(0xffffffffu, __popc(below));
    if (thread == 0) {
      p.place_of[pair] = place;
      if (before == 0) p.groups[rank] = {mine, lower, equal};
      if (pair >= distinct && pair < p.num_groups) p.groups[pair] = {0, 0, 0};
    }
  }
  const uint4* from = p.x + pair / p.top_k * p.x_stride;
  for (int i = thread; i < p.vectors; i += kThreads) {
    p.out[int64_t{place} * p.vectors + i] = from[i];
  }
}

struct Combining {
  const float4* y;      ///< [pairs, hidden / 4] by place
  const int* place_of;  ///< [T, top_k]
  const float* weights;
  int64_t weights_stride;
  void* out;
  int64_t out_stride;
  int top_k, fours;  ///< fours: hidden / 4
  bool accumulate, f32;
};

/// Blocks (part of the row, token). Ascending place is ascending expert.
__global__ void __launch_bounds__(kThreads) combine_rows(const Combining c) {
  __shared__ int places[kMaxTopK];
  __shared__ float weights[kMaxTopK];
  wait_for_predecessor();
  let_successor_begin();
  const int64_t token = blockIdx.y;
  const int j = static_cast<int>(threadIdx.x);
  order_places(c.place_of + token * c.top_k, c.weights + token * c.weights_stride, c.top_k, places,
               weights);
  const int four = static_cast<int>(blockIdx.x) * kThreads + j;
  if (four >= c.fours) return;
  float4 sum{};
  for (int i = 0; i < c.top_k; ++i) {
    const float4 y = c.y[int64_t{places[i]} * c.fours + four];
    sum.x = __fmaf_rn(weights[i], y.x, sum.x);
    sum.y = __fmaf_rn(weights[i], y.y, sum.y);
    sum.z = __fmaf_rn(weights[i], y.z, sum.z);
    sum.w = __fmaf_rn(weights[i], y.w, sum.w);
  }
  const int64_t at = token * c.out_stride + four * 4;
  if (c.f32) {
    float4* out = reinterpret_cast<float4*>(static_cast<float*>(c.out) + at);
    if (c.accumulate) {
      const float4 old = *out;
      sum = {old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w};
    }
    *out = sum;
    return;
  }
  uint2* out = reinterpret_cast<uint2*>(static_cast<uint16_t*>(c.out) + at);
  if (c.accumulate) {
    const uint2 old = *out;
    sum.x += __uint_as_float(old.x << 16);
    sum.y += __uint_as_float(old.x & 0xffff0000u);
    sum.z += __uint_as_float(old.y << 16);
    sum.w += __uint_as_float(old.y & 0xffff0000u);
  }
  *out = {pack_bf16(sum.x, sum.y), pack_bf16(sum.z, sum.w)};
}

int64_t aligned(int64_t bytes) {
  return ceil_div(bytes, 256) * 256;
}

}  // namespace

int64_t moe_decode_scratch(const WeightShape& gate_up, int64_t rows, int top_k) {
  const int64_t pairs = rows * top_k, inner = gate_up.n / 2;
  return aligned(std::min(pairs, gate_up.experts) * int64_t{sizeof(ExpertRows)}) +
         aligned(pairs * 4) + aligned(pairs * gate_up.k * 2) + aligned(pairs * inner * 2) +
         aligned(pairs * gate_up.k * 4) + decode_gemm_scratch(gate_up, Epilogue::kSiluMul, pairs);
}

void moe_decode(Stream& stream, const MoeArgs& args) {
  const int64_t rows = args.x.dim(0), hidden = args.x.dim(1), inner = args.down->shape.k;
  const WeightShape& shape = args.gate_up->shape;
  const int top_k = static_cast<int>(args.ids.dim(1));
  if (rows == 0) return;
  CHECK(args.ids.contiguous() && top_k <= kMaxTopK && shape.experts <= kMaxDecodeExperts,
        "moe: ids");
  CHECK(
      hidden % 8 == 0 && inner % 8 == 0 && args.x.stride[0] % 8 == 0 && args.out.stride[0] % 8 == 0,
      "moe: rows of 16 bytes");
  const int64_t pairs = rows * top_k, num_groups = std::min(pairs, shape.experts);
  ArenaScope scope(stream.scratch());
  auto* groups =
      static_cast<ExpertRows*>(stream.scratch().take(num_groups * int64_t{sizeof(ExpertRows)}));
  auto* place_of = static_cast<int*>(stream.scratch().take(pairs * 4));
  const TensorView x(stream.scratch().take(pairs * hidden * 2), DType::kBF16, {pairs, hidden});
  const TensorView act(stream.scratch().take(pairs * inner * 2), DType::kBF16, {pairs, inner});
  const TensorView y(stream.scratch().take(pairs * hidden * 4), DType::kF32, {pairs, hidden});

  Placing placing{};
  placing.ids = args.ids.ptr<int32_t>();
  placing.pairs = static_cast<int>(pairs);
  placing.top_k = top_k;
  placing.experts = static_cast<int>(shape.experts);
  placing.num_groups = static_cast<int>(num_groups);
  placing.groups = groups;
  placing.place_of = place_of;
  placing.x = static_cast<const uint4*>(args.x.data);
  placing.x_stride = args.x.stride[0] / 8;
  placing.out = static_cast<uint4*>(x.data);
  placing.vectors = static_cast<int>(hidden / 8);
  launch(stream, {.grid = static_cast<unsigned>(pairs), .block = kThreads, .overlap = true},
         place_rows, placing);

  // Twice the mean; a busier expert is read again from L2.
  const int64_t expected = std::min(rows, ceil_div(2 * pairs, shape.experts));
  DecodeGemm gemm;
  gemm.groups = groups;
  gemm.num_groups = static_cast<int>(num_groups);
  gemm.max_group_rows = rows;  // a token chooses an expert once
  gemm.x = x;
  gemm.weight = args.gate_up;
  gemm.out = act;
  gemm.epilogue = Epilogue::kSiluMul;
  decode_gemm(stream, gemm, decode_cut(shape, gemm.epilogue, expected));
  gemm.x = act;
  gemm.weight = args.down;
  gemm.out = y;
  gemm.epilogue = Epilogue::kStore;
  decode_gemm(stream, gemm, decode_cut(args.down->shape, gemm.epilogue, expected));

  Combining combining{};
  combining.y = static_cast<const float4*>(y.data);
  combining.place_of = place_of;
  combining.weights = args.weights.ptr<float>();
  combining.weights_stride = args.weights.stride[0];
  combining.out = args.out.data;
  combining.out_stride = args.out.stride[0];
  combining.top_k = top_k;
  combining.fours = static_cast<int>(hidden / 4);
  combining.accumulate = args.accumulate;
  combining.f32 = args.out.dtype == DType::kF32;
  const dim3 grid(static_cast<unsigned>(ceil_div(hidden / 4, kThreads)),
                  static_cast<unsigned>(rows));
  launch(stream, {.grid = grid, .block = kThreads, .overlap = true}, combine_rows, combining);
}

}  // namespace weft::cuda
