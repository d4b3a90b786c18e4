// rms_norm: y = x rsqrt(mean(x^2) + eps) w, with residual += x before. One block a row, eight
// values a thread and turn, the row kept in registers between the two passes. Bytes: x, the
// residual twice and y once (half as much as codes); bound by memory for prompts and by latency for
// a few rows.
// docs/kernels/small_ops_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/fp8_rows.h"

namespace weft::cuda {
namespace {

constexpr int kMaxThreads = 512;
constexpr int kMaxTurns = 8;  // widths up to 32768

struct NormParams {
  const void* x;
  float* residual;
  const float* weight;
  __nv_bfloat16* out;
  QuantizedRows codes;  ///< in place of `out`
  int64_t x_stride, residual_stride, out_stride;
  int width;
  float eps;
};

template <class X, int Turns, bool Codes>
__global__ __launch_bounds__(kMaxThreads) void rms_norm_kernel(NormParams p) {
  __shared__ float partial[32];
  let_successor_begin();
  // The last rows first: what the kernel before wrote last is in L2 still.
  const int64_t row = gridDim.x - 1 - blockIdx.x;
  const int step = static_cast<int>(blockDim.x) * 8;
  // Weights come from no kernel; a wide row's are too many to hold.
  constexpr bool kEarly = Turns <= 2;
  Floats8 weights[kEarly ? Turns : 1];
  if constexpr (kEarly) {
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      const int at = static_cast<int>(threadIdx.x) * 8 + turn * step;
      if (at < p.width) weights[turn] = load8(p.weight + at);
    }
  }
  wait_for_predecessor();
  const X* x = static_cast<const X*>(p.x) + row * p.x_stride;
  float* residual = p.residual ? p.residual + row * p.residual_stride : nullptr;
  Floats8 values[Turns];
  float sum = 0;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = static_cast<int>(threadIdx.x) * 8 + turn * step;
    if (at >= p.width) break;
    Floats8& v = values[turn];
    v = load_added(x + at, residual ? residual + at : nullptr);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum = fmaf(v.v[i], v.v[i], sum);
  }
  const float mean = block_sum(sum, partial) / static_cast<float>(p.width);
  const float scale = rsqrtf(mean + p.eps);
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = static_cast<int>(threadIdx.x) * 8 + turn * step;
    if (!Codes && at >= p.width) break;
    Floats8 y = {};
    if (at < p.width) {
      const Floats8 weight = kEarly ? weights[turn % (kEarly ? Turns : 1)] : load8(p.weight + at);
#pragma unroll
      for (int i = 0; i < 8; ++i) y.v[i] = values[turn].v[i] * (scale * weight.v[i]);
    }
    if constexpr (Codes) {
#pragma unroll
      for (int i = 0; i < 8; i += 2) round_to_bf16(y.v[i], y.v[i + 1]);
      store_codes(p.codes, row, at / 128, p.width, y);
    } else {
      store8(p.out + row * p.out_stride + at, y);
    }
  }
}

template <class X, bool Codes>
void run(Stream& stream, const NormParams& p, int64_t rows) {
  const int pieces = p.width / 8;
  int turns = 1;
  while (turns * kMaxThreads < pieces) turns *= 2;
  CHECK(turns <= kMaxTurns, "rms_norm: the row is too wide");
  const int threads = ((pieces + turns - 1) / turns + 31) / 32 * 32;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(rows)),
                          .block = dim3(static_cast<unsigned>(threads)),
                          .overlap = true};
  switch (turns) {
    case 1: return launch(stream, shape, rms_norm_kernel<X, 1, Codes>, p);
    case 2: return launch(stream, shape, rms_norm_kernel<X, 2, Codes>, p);
    case 4: return launch(stream, shape, rms_norm_kernel<X, 4, Codes>, p);
    default: return launch(stream, shape, rms_norm_kernel<X, 8, Codes>, p);
  }
}

template <bool Codes>
void run(Stream& stream, const RmsNormArgs& args, const QuantizedRows& codes) {
  CHECK(args.x.dim(1) % 8 == 0, "rms_norm: the width must be a multiple of 8");
  const NormParams p{.x = args.x.data,
                     .residual = static_cast<float*>(args.residual.data),
                     .weight = args.weight.ptr<float>(),
                     .out = static_cast<__nv_bfloat16*>(args.out.data),
                     .codes = codes,
                     .x_stride = args.x.stride[0],
                     .residual_stride = args.residual.stride[0],
                     .out_stride = args.out.stride[0],
                     .width = static_cast<int>(args.x.dim(1)),
                     .eps = args.eps};
  const int64_t rows = args.x.dim(0);
  if (rows == 0) return;
  if (args.x.dtype == DType::kF32) {
    run<float, Codes>(stream, p, rows);
  } else {
    run<__nv_bfloat16, Codes>(stream, p, rows);
  }
}

}  // namespace

void rms_norm(Stream& stream, const RmsNormArgs& args) {
  run<false>(stream, args, {});
}

QuantizedRows quantize_norm(Stream& stream, const RmsNormArgs& norm) {
  const int64_t rows = norm.x.dim(0), k = norm.x.dim(1);
  const QuantizedRows codes =
      quantized_rows_at(stream.scratch().take(quantized_rows_bytes(rows, k)), rows, k);
  run<true>(stream, norm, codes);
  return codes;
}

}  // namespace weft::cuda
