// layer_norm, gelu, interpolate and axial_rope of vision towers. One block a row (layer_norm),
// eight values a thread (the others; two pairs in axial_rope): bound by memory. Everything in fp32
// between one read and one rounding to bf16. docs/images.md

#include <algorithm>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxTurns = 8;  // widths up to 16384

struct NormParams {
  const void* x;
  float* residual;
  const float *weight, *bias;
  __nv_bfloat16* out;
  int64_t x_stride, residual_stride, out_stride;
  int width;
  float eps;
};

/// A block of `kThreads`, or of fewer where they do; `Turns` is for the registers' sake.
template <class X, int Turns>
__global__ __launch_bounds__(kThreads) void layer_norm_kernel(NormParams p) {
  __shared__ float partial[2][32];
  const int64_t row = blockIdx.x;
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  float* residual = p.residual ? p.residual + row * p.residual_stride : nullptr;
  Floats8 values[Turns];
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = (static_cast<int>(threadIdx.x) + turn * kThreads) * 8;
    if (at >= p.width) break;
    Floats8& v = values[turn];
    v = load_added(x + at, residual ? residual + at : nullptr);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += v.v[i];
  }
  const float mean = block_sum(sum, partial[0]) / static_cast<float>(p.width);
  float squares = 0;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    if ((static_cast<int>(threadIdx.x) + turn * kThreads) * 8 >= p.width) break;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[turn].v[i] -= mean;
      squares = fmaf(values[turn].v[i], values[turn].v[i], squares);
    }
  }
  const float variance = block_sum(squares, partial[1]) / static_cast<float>(p.width);
  const float scale = rsqrtf(variance + p.eps);
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = (static_cast<int>(threadIdx.x) + turn * kThreads) * 8;
    if (at >= p.width) break;
    const Floats8 weight = load8(p.weight + at), bias = load8(p.bias + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      values[turn].v[i] = fmaf(values[turn].v[i] * scale, weight.v[i], bias.v[i]);
    }
    store8(p.out + row * p.out_stride + at, values[turn]);
  }
}

/// Thread (x, row) has `each` values of its row. Blocks are as small as their number allows.
LaunchShape by_row(int64_t rows, int64_t width, int64_t each = 8) {
  CHECK(width % each == 0, "a width must be a multiple of 8");
  const auto pieces = static_cast<unsigned>(width / each);
  const unsigned blocks = (pieces + kThreads - 1) / kThreads;
  const unsigned threads = (pieces + blocks - 1) / blocks;
  return {.grid = dim3(static_cast<unsigned>(rows), blocks),
          .block = dim3((threads + 31) / 32 * 32)};
}

__device__ __forceinline__ int piece_of_thread() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * 8;
}

struct GeluParams {
  __nv_bfloat16* x;
  int64_t stride;
  int width;
  bool tanh_form;
};

__global__ __launch_bounds__(kThreads) void gelu_kernel(GeluParams p) {
  const int at = piece_of_thread();
  if (at >= p.width) return;
  __nv_bfloat16* x = p.x + int64_t{blockIdx.x} * p.stride + at;
  Floats8 v = load8(x);
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const float value = v.v[i];
    // 0.5 (1 + tanh(u)) = sigmoid(2 u).
    v.v[i] = p.tanh_form
                 ? value * sigmoid(1.5957691216f * fmaf(0.044715f * value * value, value, value))
                 : 0.5f * value * (1.0f + erff(value * 0.70710678f));
  }
  store8(x, v);
}

struct InterpolateParams {
  const __nv_bfloat16* table;
  const int32_t* ids;
  const float* weights;
  float* out;
  int64_t table_stride, out_stride;
  int width;
};

__global__ __launch_bounds__(kThreads) void interpolate_kernel(InterpolateParams p) {
  const int at = piece_of_thread();
  if (at >= p.width) return;
  const int64_t row = blockIdx.x;
  float* out = p.out + row * p.out_stride + at;
  Floats8 sum = load8(out);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float weight = p.weights[4 * row + j];
    const Floats8 entry = load8(p.table + p.ids[4 * row + j] * p.table_stride + at);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum.v[i] = fmaf(weight, entry.v[i], sum.v[i]);
  }
  store8(out, sum);
}

struct RopeParams {
  __nv_bfloat16 *q, *k;
  const float* cos_sin;  // [positions][D / 4][2]
  const int32_t* positions;
  int64_t q_row, q_head, k_row, k_head;
  int heads, head_dim;
};

/// Thread x of row y has two pairs of one head side by side, of q and of k: both turn by one axis.
__global__ __launch_bounds__(kThreads) void axial_rope_kernel(RopeParams p) {
  const int half = p.head_dim / 2, quarter = half / 2;
  const int at = 2 * static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x);
  if (at >= p.heads * half) return;
  const int64_t row = blockIdx.x, head = at / half;
  const int i = at % half, axis = i / quarter;
  const int64_t position = p.positions[2 * row + axis];
  const float4 turn =
      *reinterpret_cast<const float4*>(p.cos_sin + 2 * (position * quarter + i % quarter));
  __nv_bfloat16* q = p.q + row * p.q_row + head * p.q_head + i;
  __nv_bfloat16* k = p.k + row * p.k_row + head * p.k_head + i;
  __nv_bfloat162 pairs[2][2];
  pairs[0][0] = *reinterpret_cast<const __nv_bfloat162*>(q);
  pairs[0][1] = *reinterpret_cast<const __nv_bfloat162*>(q + half);
  pairs[1][0] = *reinterpret_cast<const __nv_bfloat162*>(k);
  pairs[1][1] = *reinterpret_cast<const __nv_bfloat162*>(k + half);
#pragma unroll
  for (int j = 0; j < 2; ++j) {
    const float2 a = __bfloat1622float2(pairs[j][0]), b = __bfloat1622float2(pairs[j][1]);
    __nv_bfloat16* x = j == 0 ? q : k;
    *reinterpret_cast<__nv_bfloat162*>(x) = __floats2bfloat162_rn(
        fmaf(a.x, turn.x, -__fmul_rn(b.x, turn.y)), fmaf(a.y, turn.z, -__fmul_rn(b.y, turn.w)));
    *reinterpret_cast<__nv_bfloat162*>(x + half) = __floats2bfloat162_rn(
        fmaf(b.x, turn.x, __fmul_rn(a.x, turn.y)), fmaf(b.y, turn.z, __fmul_rn(a.y, turn.w)));
  }
}

template <class X>
void launch_norm(Stream& stream, const NormParams& p, int64_t rows) {
  const int threads = std::min(kThreads, (p.width / 8 + 31) / 32 * 32);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(rows)),
                          .block = dim3(static_cast<unsigned>(threads))};
  if (p.width <= kThreads * 8) return launch(stream, shape, layer_norm_kernel<X, 1>, p);
  launch(stream, shape, layer_norm_kernel<X, kMaxTurns>, p);
}

}  // namespace

void layer_norm(Stream& stream, const LayerNormArgs& args) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  CHECK(width % 8 == 0 && width <= kThreads * 8 * kMaxTurns,
        "layer_norm: a row is a multiple of 8, at most 16384");
  const NormParams p{.x = args.x.data,
                     .residual = static_cast<float*>(args.residual.data),
                     .weight = args.weight.ptr<float>(),
                     .bias = args.bias.ptr<float>(),
                     .out = static_cast<__nv_bfloat16*>(args.out.data),
                     .x_stride = args.x.stride[0],
                     .residual_stride = args.residual.stride[0],
                     .out_stride = args.out.stride[0],
                     .width = static_cast<int>(width),
                     .eps = args.eps};
  if (args.x.dtype == DType::kF32) {
    launch_norm<float>(stream, p, rows);
  } else {
    launch_norm<__nv_bfloat16>(stream, p, rows);
  }
}

void gelu(Stream& stream, const GeluArgs& args) {
  const int64_t rows = args.x.dim(0), width = args.x.dim(1);
  if (rows == 0) return;
  const GeluParams p{.x = static_cast<__nv_bfloat16*>(args.x.data),
                     .stride = args.x.stride[0],
                     .width = static_cast<int>(width),
                     .tanh_form = args.form == Gelu::kTanh};
  launch(stream, by_row(rows, width), gelu_kernel, p);
}

void interpolate(Stream& stream, const InterpolateArgs& args) {
  const int64_t rows = args.out.dim(0), width = args.out.dim(1);
  if (rows == 0) return;
  CHECK(args.table.dtype == DType::kBF16, "interpolate: the table must be bf16");
  const InterpolateParams p{.table = static_cast<const __nv_bfloat16*>(args.table.data),
                            .ids = args.ids.ptr<int32_t>(),
                            .weights = args.weights.ptr<float>(),
                            .out = args.out.ptr<float>(),
                            .table_stride = args.table.stride[0],
                            .out_stride = args.out.stride[0],
                            .width = static_cast<int>(width)};
  launch(stream, by_row(rows, width), interpolate_kernel, p);
}

void axial_rope(Stream& stream, const AxialRopeArgs& args) {
  const int64_t rows = args.q.dim(0), heads = args.q.dim(1), dim = args.q.dim(2);
  if (rows == 0) return;
  CHECK(dim % 8 == 0);
  const RopeParams p{.q = static_cast<__nv_bfloat16*>(args.q.data),
                     .k = static_cast<__nv_bfloat16*>(args.k.data),
                     .cos_sin = args.cos_sin.ptr<float>(),
                     .positions = args.positions.ptr<int32_t>(),
                     .q_row = args.q.stride[0],
                     .q_head = args.q.stride[1],
                     .k_row = args.k.stride[0],
                     .k_head = args.k.stride[1],
                     .heads = static_cast<int>(heads),
                     .head_dim = static_cast<int>(dim)};
  launch(stream, by_row(rows, heads * dim / 4, 1), axial_rope_kernel, p);
}

}  // namespace weft::cuda
