// out (+)= x W^T + bias with f32 weights (the routers of MoE layers), x in bf16 or f32. A warp has
// R rows of x and C rows of W; its lanes share K by fours (lane l takes k = 4 l + 128 i, ascending
// i) and are summed by a fixed butterfly, so that the bits don't depend on R and C. Bytes: W and x
// once a warp, from L2. Bound: latency for few rows, fp32 units for many.
// docs/kernels/gemm_decode.md.

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/weight_layout.h"

namespace weft::cuda {
namespace {

constexpr int kWarps = 4;

struct F32Params {
  const void* x;
  const float* weight;
  const float* bias;
  void* out;
  int64_t x_stride, weight_stride, out_stride;
  int rows, n, k;
  Epilogue epilogue;
  bool x_f32, out_f32;
};

/// Elements k .. k + 3 of a row, zeros beyond K.
__device__ __forceinline__ float4 load_x(const F32Params& p, int row, int k) {
  float v[4] = {};
  if (p.x_f32) {
    const float* from = static_cast<const float*>(p.x) + row * p.x_stride + k;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = k + i < p.k ? from[i] : 0.0f;
  } else {
    const uint16_t* from = static_cast<const uint16_t*>(p.x) + row * p.x_stride + k;
    if (k + 4 <= p.k) {
      const uint2 raw = *reinterpret_cast<const uint2*>(from);
      v[0] = __uint_as_float(raw.x << 16);
      v[1] = __uint_as_float(raw.x & 0xffff0000u);
      v[2] = __uint_as_float(raw.y << 16);
      v[3] = __uint_as_float(raw.y & 0xffff0000u);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        v[i] = k + i < p.k ? __uint_as_float(uint32_t{from[i]} << 16) : 0.0f;
      }
    }
  }
  return {v[0], v[1], v[2], v[3]};
}

__device__ __forceinline__ float fma4(const float4& a, const float4& b, float sum) {
  sum = __fmaf_rn(a.x, b.x, sum);
  sum = __fmaf_rn(a.y, b.y, sum);
  sum = __fmaf_rn(a.z, b.z, sum);
  return __fmaf_rn(a.w, b.w, sum);
}

__device__ __forceinline__ float read_out(const F32Params& p, int64_t at) {
  if (p.out_f32) return static_cast<const float*>(p.out)[at];
  return __uint_as_float(uint32_t{static_cast<const uint16_t*>(p.out)[at]} << 16);
}

template <int R, int C>
__global__ void __launch_bounds__(kWarps * 32) f32_kernel(const F32Params p) {
  wait_for_predecessor();
  let_successor_begin();
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const int row0 = static_cast<int>(blockIdx.y) * R;
  const int n0 = (static_cast<int>(blockIdx.x) * kWarps + warp) * C;
  if (n0 >= p.n) return;
  float sum[R][C] = {};
  for (int k = lane * 4; k < p.k; k += 128) {
    float4 x[R];
#pragma unroll
    for (int r = 0; r < R; ++r) x[r] = load_x(p, min(row0 + r, p.rows - 1), k);
#pragma unroll
    for (int c = 0; c < C; ++c) {
      const int n = min(n0 + c, p.n - 1);
      // Rows are padded with zeros to a multiple of 8.
      const float4 w = *reinterpret_cast<const float4*>(p.weight + n * p.weight_stride + k);
#pragma unroll
      for (int r = 0; r < R; ++r) sum[r][c] = fma4(x[r], w, sum[r][c]);
    }
  }
#pragma unroll
  for (int r = 0; r < R; ++r) {
#pragma unroll
    for (int c = 0; c < C; ++c) {
      float total = sum[r][c];
#pragma unroll
      for (int step = 16; step > 0; step /= 2) {
        total += __shfl_xor_sync(0xffffffffu, total, step);
      }
      const int row = row0 + r, n = n0 + c;
      if (lane != 0 || row >= p.rows || n >= p.n) continue;
      if (p.bias != nullptr) total += p.bias[n];
      const int64_t at = row * p.out_stride + n;
      if (p.epilogue == Epilogue::kAdd) total += read_out(p, at);
      if (p.out_f32) {
        static_cast<float*>(p.out)[at] = total;
      } else {
        static_cast<uint16_t*>(p.out)[at] = static_cast<uint16_t>(pack_bf16(total, 0.0f));
      }
    }
  }
}

}  // namespace

void linear_f32(Stream& stream, const LinearArgs& args) {
  const WeightShape& shape = args.weight->shape;
  CHECK(args.x.dim(1) == shape.k && args.epilogue != Epilogue::kSiluMul, "linear f32: shape");
  F32Params p{};
  p.x = args.x.data;
  p.weight = reinterpret_cast<const float*>(args.weight->data);
  p.bias = args.bias.defined() ? args.bias.ptr<float>() : nullptr;
  p.out = args.out.data;
  p.x_stride = args.x.stride[0];
  p.weight_stride = weight_row_bytes(shape) / 4;
  p.out_stride = args.out.stride[0];
  p.rows = static_cast<int>(args.x.dim(0));
  p.n = static_cast<int>(shape.n);
  p.k = static_cast<int>(shape.k);
  p.epilogue = args.epilogue;
  p.x_f32 = args.x.dtype == DType::kF32;
  p.out_f32 = args.out.dtype == DType::kF32;
  CHECK(p.x_f32 || args.x.stride[0] % 4 == 0, "linear f32: rows of 8 bytes");
  const auto run = [&](int r, int c, void (*kernel)(F32Params)) {
    const dim3 grid(static_cast<unsigned>(ceil_div(p.n, c * kWarps)),
                    static_cast<unsigned>(ceil_div(p.rows, r)));
    launch(stream, {.grid = grid, .block = kWarps * 32, .overlap = true}, kernel, p);
  };
  if (p.rows <= 4) {
    run(1, 1, f32_kernel<1, 1>);
  } else if (p.rows <= 64) {
    run(4, 2, f32_kernel<4, 2>);
  } else {
    run(8, 4, f32_kernel<8, 4>);
  }
}

}  // namespace weft::cuda
