// logits = MLP(mean of the first and last 100 normed K rows), kinds = argmax, per kv head and
// layer: the router of Elastic-Attention (arXiv 2601.17367) in one launch.
//
// A cluster of eight blocks (of two where segments and heads are many) a (segment, kv head): each
// pools all 200 rows and computes its part of every layer (of 4 matrices of 4 D^2, bf16: 527 KB at
// D = 128, asked into L2 before the predecessor ends), which it writes into the shared memory of
// all. One block alone would read them at the pace of its multiprocessor's port: 27 us. The order
// of every sum depends on D and on the rows of the segment alone.
// docs/kernels/attention_prefill.md

#include <cuda_bf16.h>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/head_kinds.h"

namespace weft::cuda {
namespace {

constexpr int kWarps = 16;
constexpr int kMaxDim = 256;

struct RouterLayer {
  const __nv_bfloat16* weight = nullptr;  // [n, k]
  const float* bias = nullptr;
};

struct RouterParams {
  const __nv_bfloat16* k = nullptr;
  int64_t row = 0, head = 0;  ///< strides
  const float* k_norm = nullptr;
  const int32_t* cu_q = nullptr;
  float* logits = nullptr;
  int64_t logits_row = 0;
  HeadKinds kinds;
  float eps = 0;
  int32_t dim = 0, kv_heads = 0, group = 0;
  int32_t retrieval = 0, sparse = 0;
  RouterLayer layers[5];
};

__device__ __forceinline__ float sum_of_warp(float x) {
#pragma unroll
  for (int lane = 16; lane > 0; lane /= 2) x += __shfl_xor_sync(0xffffffffu, x, lane);
  return x;
}
__device__ __forceinline__ void unpack(const uint4& words, float (&x)[8]) {
  const uint32_t w[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    x[2 * i] = __uint_as_float(w[i] << 16);
    x[2 * i + 1] = __uint_as_float(w[i] & 0xffff0000u);
  }
}

/// Into the same place of block `rank`'s shared memory; seen there after cluster_sync().
__device__ __forceinline__ void store_remote(float* to, uint32_t rank, float value) {
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(map_to_block(shared_address(to), rank)),
               "f"(value)
               : "memory");
}

/// y [n] = weight x + bias, then silu; x [k] with k a multiple of 8, both in shared memory. Each
/// block of the cluster computes its part of y for all of them; lanes enough for k / 8 share `Rows`
/// rows at a time.
template <int Cluster, int Rows>
__device__ __forceinline__ void layer(const RouterLayer& l, const float* x, float* y, int n, int k,
                                      bool activate) {
  const int thread = static_cast<int>(threadIdx.x);
  const int width = k > 128 ? 32 : k > 64 ? 16 : 8;  // lanes
  const int lane = thread % width, at_once = kWarps * 32 / width * Rows;
  const int part = (n + Cluster - 1) / Cluster;
  const int begin = static_cast<int>(cluster_rank()) * part, end = min(n, begin + part);
  for (int base = begin; base < end; base += at_once) {  // the same for all threads
    const int first = base + thread / width * Rows;
    float sum[Rows] = {};
    const float mine = lane < Rows && first + lane < end ? l.bias[first + lane] : 0.0f;
#pragma unroll 2
    for (int at = lane * 8; at < k; at += width * 8) {
      uint4 words[Rows];
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        const int row = min(first + r, n - 1);
        words[r] = *reinterpret_cast<const uint4*>(l.weight + int64_t{row} * k + at);
      }
      const float4 low = *reinterpret_cast<const float4*>(x + at);
      const float4 high = *reinterpret_cast<const float4*>(x + at + 4);
      const float v[8] = {low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w};
#pragma unroll
      for (int r = 0; r < Rows; ++r) {
        float w[8];
        unpack(words[r], w);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum[r] = fmaf(w[i], v[i], sum[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < Rows; ++r) {
      float total = sum[r];
      for (int step = width / 2; step > 0; step /= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, step);
      }
      total += __shfl_sync(0xffffffffu, mine, r, width);
      if (activate) total /= 1 + __expf(-total);
      if (lane < Cluster && first + r < end) {
        store_remote(y + first + r, static_cast<uint32_t>(lane), total);
      }
    }
  }
  cluster_sync();
}

/// The block's share of a matrix, into L2.
__device__ __forceinline__ void prefetch(const RouterLayer& l, int64_t elements) {
  const int64_t blocks = int64_t{gridDim.x} * gridDim.y;
  const int64_t block = int64_t{blockIdx.y} * gridDim.x + blockIdx.x;
  for (int64_t at = (block * kWarps * 32 + threadIdx.x) * 64; at < elements;
       at += blocks * kWarps * 32 * 64) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(l.weight + at));
  }
}

template <int Cluster>
__global__ void __launch_bounds__(kWarps * 32)
    route_heads_kernel(const __grid_constant__ RouterParams p) {
  __shared__ float partial[kWarps][kMaxDim];
  __shared__ __align__(16) float narrow[kMaxDim], wide[4 * kMaxDim];
  const int segment = static_cast<int>(blockIdx.x) / Cluster;
  const int head = static_cast<int>(blockIdx.y);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  for (int i = 0; i < 4; ++i) prefetch(p.layers[i], int64_t{4} * p.dim * p.dim);
  wait_for_predecessor();
  const int begin = p.cu_q[segment], end = p.cu_q[segment + 1];
  if (begin == end) return;

  const int ends = min(end - begin, RouterArgs::kPooled);
  const int at = lane * 8;  // of the row
  float pool[8] = {};
  constexpr int kMost = (2 * RouterArgs::kPooled + kWarps - 1) / kWarps;  // rows of a warp
  uint4 rows[kMost];
#pragma unroll
  for (int n = 0; n < kMost; ++n) {
    const int i = warp + n * kWarps;
    rows[n] = make_uint4(0, 0, 0, 0);
    if (i < 2 * ends && at < p.dim) {
      const int64_t row = i < ends ? begin + i : end - 1 - (i - ends);
      rows[n] = *reinterpret_cast<const uint4*>(p.k + row * p.row + head * p.head + at);
    }
  }
#pragma unroll
  for (int n = 0; n < kMost; ++n) {
    if (warp + n * kWarps >= 2 * ends) continue;
    float x[8];
    unpack(rows[n], x);
    float factor = 1;
    if (p.k_norm != nullptr) {
      float square = 0;
#pragma unroll
      for (int d = 0; d < 8; ++d) square = fmaf(x[d], x[d], square);
      factor = rsqrtf(sum_of_warp(square) / static_cast<float>(p.dim) + p.eps);
    }
#pragma unroll
    for (int d = 0; d < 8; ++d) pool[d] = fmaf(x[d], factor, pool[d]);
  }
#pragma unroll
  for (int d = 0; d < 8; ++d) {
    if (at + d < p.dim) partial[warp][at + d] = pool[d];
  }
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < p.dim; d += kWarps * 32) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += partial[w][d];
    const float norm = p.k_norm != nullptr ? p.k_norm[d] : 1.0f;
    narrow[d] = sum * norm / static_cast<float>(2 * ends);
  }
  cluster_sync();

  // Rows so that a turn or two do at D = 128.
  constexpr int kNarrowRows = 16 / Cluster, kWideRows = 8 / Cluster;
  layer<Cluster, kNarrowRows>(p.layers[0], narrow, wide, 4 * p.dim, p.dim, true);
  layer<Cluster, kWideRows>(p.layers[1], wide, narrow, p.dim, 4 * p.dim, false);
  layer<Cluster, kNarrowRows>(p.layers[2], narrow, wide, 4 * p.dim, p.dim, true);
  layer<Cluster, kWideRows>(p.layers[3], wide, narrow, p.dim, 4 * p.dim, true);
  layer<Cluster, 1>(p.layers[4], narrow, wide, 2, p.dim, false);
  if (cluster_rank() != 0) return;
  if (static_cast<int>(threadIdx.x) < p.group) {
    const int32_t kind = wide[1] > wide[0] ? p.retrieval : p.sparse;
    p.kinds.at(segment, head * p.group + static_cast<int>(threadIdx.x)) = kind;
  }
  if (threadIdx.x < 2) {
    p.logits[segment * p.logits_row + head * 2 + static_cast<int>(threadIdx.x)] = wide[threadIdx.x];
  }
}

template <int Cluster>
void launch_router(Stream& stream, const RouterParams& p, int segments) {
  launch(
      stream,
      {.grid = dim3(static_cast<unsigned>(segments * Cluster), static_cast<unsigned>(p.kv_heads)),
       .block = kWarps * 32,
       .cluster = Cluster,
       .overlap = true},
      route_heads_kernel<Cluster>, p);
}

}  // namespace

void route_heads(Stream& stream, const RouterArgs& args) {
  if (args.num_segments == 0) return;
  const RouterWeights& weights = args.weights;
  CHECK(args.k.dtype == DType::kBF16 && args.k.stride[2] == 1);
  RouterParams p;
  p.dim = static_cast<int32_t>(args.k.dim(2));
  CHECK(p.dim > 0 && p.dim <= kMaxDim && p.dim % 8 == 0, "router: head_dim is 8, 16, .. 256");
  p.k = args.k.ptr<__nv_bfloat16>();
  p.row = args.k.stride[0];
  p.head = args.k.stride[1];
  p.k_norm = args.k_norm.defined() ? args.k_norm.ptr<float>() : nullptr;
  p.eps = args.eps;
  p.cu_q = args.cu_q.ptr<int32_t>();
  p.logits = args.logits.ptr<float>();
  p.logits_row = args.logits.stride[0];
  p.kinds = HeadKinds(args.kinds, args.rows);
  p.kv_heads = static_cast<int32_t>(args.k.dim(1));
  p.group = static_cast<int32_t>(args.kinds.dim(1)) / p.kv_heads;
  p.retrieval = static_cast<int32_t>(args.retrieval);
  p.sparse = static_cast<int32_t>(args.sparse);
  for (int i = 0; i < 5; ++i) {
    const TensorView& weight = i < 2 ? weights.feature[i] : weights.router[i - 2];
    const TensorView& bias = i < 2 ? weights.feature_bias[i] : weights.router_bias[i - 2];
    CHECK(weight.dtype == DType::kBF16 && weight.contiguous());
    p.layers[i] = {weight.ptr<__nv_bfloat16>(), bias.ptr<float>()};
  }
  // A second round of blocks would cost as much as the first.
  constexpr int kBlocks = 132;
  const int pairs = args.num_segments * p.kv_heads;
  if (pairs * 8 <= kBlocks) {
    launch_router<8>(stream, p, args.num_segments);
  } else {
    launch_router<2>(stream, p, args.num_segments);
  }
}

}  // namespace weft::cuda
