// out = weight * x * rsqrt(mean_V(x^2) + eps) * act(z), per head. docs/kernels/gated_delta.md
//
// 8 elements a lane, V / 8 lanes a head; 6 bytes an element moved; bound: bandwidth.

#include <cuda_bf16.h>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;

struct Params {
  const __nv_bfloat16 *x, *z;
  const float* weight;
  __nv_bfloat16* out;
  int64_t x_row, x_head, z_row, z_head, out_row, out_head;
  int64_t rows;  // T * heads
  int heads, dim;
  float eps;
  bool silu;
};

__device__ float activate(float z, bool silu) {
  const float gate = __fdividef(1.0f, 1.0f + __expf(-z));
  return silu ? z * gate : gate;
}

/// `Lanes` lanes of 8 elements each make a head.
template <int Lanes>
__global__ void __launch_bounds__(kThreads) gated_norm_kernel(Params p) {
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / Lanes;
  const int at = static_cast<int>(threadIdx.x) % Lanes * 8;
  float weight[8];
  *reinterpret_cast<float4*>(weight) = *reinterpret_cast<const float4*>(p.weight + at);
  *reinterpret_cast<float4*>(weight + 4) = *reinterpret_cast<const float4*>(p.weight + at + 4);
  wait_for_predecessor();
  let_successor_begin();
  // Every lane of a warp takes part in the sums.
  const int64_t row = item < p.rows ? item : p.rows - 1, t = row / p.heads, head = row % p.heads;
  const uint4 x4 = *reinterpret_cast<const uint4*>(p.x + t * p.x_row + head * p.x_head + at);
  const uint4 z4 = *reinterpret_cast<const uint4*>(p.z + t * p.z_row + head * p.z_head + at);
  const uint32_t xs[4] = {x4.x, x4.y, x4.z, x4.w}, zs[4] = {z4.x, z4.y, z4.z, z4.w};
  float x[8], sum = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    x[i] = __uint_as_float(i % 2 == 0 ? xs[i / 2] << 16 : xs[i / 2] & 0xffff0000u);
    sum = fmaf(x[i], x[i], sum);
  }
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  const float factor = rsqrtf(sum * (1.0f / (8 * Lanes)) + p.eps);
  uint32_t out[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float low = activate(__uint_as_float(zs[i] << 16), p.silu);
    const float high = activate(__uint_as_float(zs[i] & 0xffff0000u), p.silu);
    out[i] = pack_bf16(weight[2 * i] * (x[2 * i] * factor) * low,
                       weight[2 * i + 1] * (x[2 * i + 1] * factor) * high);
  }
  if (item < p.rows) {
    *reinterpret_cast<uint4*>(p.out + t * p.out_row + head * p.out_head + at) =
        make_uint4(out[0], out[1], out[2], out[3]);
  }
}

/// Any V: a warp a head.
__global__ void __launch_bounds__(kThreads) gated_norm_any_kernel(Params p) {
  const int64_t item = (int64_t{blockIdx.x} * kThreads + threadIdx.x) / 32;
  wait_for_predecessor();
  let_successor_begin();
  if (item >= p.rows) return;
  const int64_t t = item / p.heads, head = item % p.heads;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const __nv_bfloat16* x = p.x + t * p.x_row + head * p.x_head;
  const __nv_bfloat16* z = p.z + t * p.z_row + head * p.z_head;
  __nv_bfloat16* out = p.out + t * p.out_row + head * p.out_head;
  float sum = 0;
  for (int i = lane; i < p.dim; i += 32) {
    const float value = __bfloat162float(x[i]);
    sum = fmaf(value, value, sum);
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, step);
  const float factor = rsqrtf(sum / static_cast<float>(p.dim) + p.eps);
  for (int i = lane; i < p.dim; i += 32) {
    out[i] = __float2bfloat16_rn(p.weight[i] * (__bfloat162float(x[i]) * factor) *
                                 activate(__bfloat162float(z[i]), p.silu));
  }
}

bool vectors(const TensorView& x) {
  return x.stride[0] % 8 == 0 && x.stride[1] % 8 == 0 &&
         reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

}  // namespace

void gated_norm(Stream& stream, const GatedNormArgs& args) {
  const int64_t rows = args.x.dim(0) * args.x.dim(1);
  if (rows == 0) return;
  CHECK(args.x.dtype == DType::kBF16 && args.z.dtype == DType::kBF16);
  CHECK(args.out.dtype == DType::kBF16 && args.weight.dtype == DType::kF32);
  const Params p{.x = static_cast<const __nv_bfloat16*>(args.x.data),
                 .z = static_cast<const __nv_bfloat16*>(args.z.data),
                 .weight = static_cast<const float*>(args.weight.data),
                 .out = static_cast<__nv_bfloat16*>(args.out.data),
                 .x_row = args.x.stride[0],
                 .x_head = args.x.stride[1],
                 .z_row = args.z.stride[0],
                 .z_head = args.z.stride[1],
                 .out_row = args.out.stride[0],
                 .out_head = args.out.stride[1],
                 .rows = rows,
                 .heads = static_cast<int>(args.x.dim(1)),
                 .dim = static_cast<int>(args.x.dim(2)),
                 .eps = args.eps,
                 .silu = args.activation == GateActivation::kSilu};
  const bool fast = (p.dim == 128 || p.dim == 64) && vectors(args.x) && vectors(args.z) &&
                    vectors(args.out) && reinterpret_cast<uintptr_t>(p.weight) % 16 == 0;
  const int lanes = fast ? p.dim / 8 : 32;
  const LaunchShape shape{.grid = static_cast<unsigned>((rows * lanes + kThreads - 1) / kThreads),
                          .block = kThreads,
                          .overlap = true};
  launch(stream, shape,
         !fast          ? gated_norm_any_kernel
         : p.dim == 128 ? gated_norm_kernel<16>
                        : gated_norm_kernel<8>,
         p);
}

}  // namespace weft::cuda
