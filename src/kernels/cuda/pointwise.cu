// embed, add, add_gated, mul_sigmoid: eight values a thread; bound by memory for prompts and by
// latency for a few rows. docs/kernels/small_ops_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/common/vec.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;

/// Rows of eight values each: thread (x, row) has piece x of its row.
LaunchShape by_row(int64_t rows, int64_t width) {
  CHECK(width % 8 == 0, "a width must be a multiple of 8");
  const auto pieces = static_cast<unsigned>(width / 8);
  const unsigned threads = pieces < kThreads ? (pieces + 31) / 32 * 32 : kThreads;
  return {.grid = dim3(static_cast<unsigned>(rows), (pieces + threads - 1) / threads),
          .block = dim3(threads),
          .overlap = true};
}

__device__ __forceinline__ int piece_of_thread() {
  return static_cast<int>(blockIdx.y * blockDim.x + threadIdx.x) * 8;
}

struct EmbedParams {
  const int32_t* ids;
  const void* table;
  void* out;
  int64_t table_stride, out_stride;
  int width;
};

template <class In, class Out>
__global__ __launch_bounds__(kThreads) void embed_kernel(EmbedParams p) {
  let_successor_begin();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int at = piece_of_thread();
  if (at >= p.width) return;
  const int64_t id = p.ids[row];
  store8(static_cast<Out*>(p.out) + row * p.out_stride + at,
         load8(static_cast<const In*>(p.table) + id * p.table_stride + at));
}

struct AddParams {
  const __nv_bfloat16* x;
  const float* gate;  // null: 1
  void* out;
  int64_t x_stride, gate_stride, out_stride;
  int width;
};

template <class Out>
__global__ __launch_bounds__(kThreads) void add_kernel(AddParams p) {
  let_successor_begin();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int at = piece_of_thread();
  if (at >= p.width) return;
  const float gate = p.gate ? sigmoid(p.gate[row * p.gate_stride]) : 1.0f;
  const Floats8 x = load8(p.x + row * p.x_stride + at);
  Out* out = static_cast<Out*>(p.out) + row * p.out_stride + at;
  Floats8 sum = load8(out);
#pragma unroll
  for (int i = 0; i < 8; ++i) sum.v[i] = fmaf(gate, x.v[i], sum.v[i]);
  store8(out, sum);
}

struct MulSigmoidParams {
  __nv_bfloat16* x;
  const __nv_bfloat16* gate;
  int64_t x_row, x_head, gate_row, gate_head;
  int heads, head_dim;
};

__global__ __launch_bounds__(kThreads) void mul_sigmoid_kernel(MulSigmoidParams p) {
  let_successor_begin();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int at = piece_of_thread();
  if (at >= p.heads * p.head_dim) return;
  const int64_t head = at / p.head_dim, column = at % p.head_dim;
  __nv_bfloat16* x = p.x + row * p.x_row + head * p.x_head + column;
  const Floats8 gate = load8(p.gate + row * p.gate_row + head * p.gate_head + column);
  Floats8 v = load8(x);
#pragma unroll
  for (int i = 0; i < 8; ++i) v.v[i] *= sigmoid(gate.v[i]);
  store8(x, v);
}

void add_rows(Stream& stream, const TensorView& x, const TensorView& gate, const TensorView& out) {
  if (x.dim(0) == 0) return;
  const AddParams p{.x = static_cast<const __nv_bfloat16*>(x.data),
                    .gate = static_cast<const float*>(gate.data),
                    .out = out.data,
                    .x_stride = x.stride[0],
                    .gate_stride = gate.stride[0],
                    .out_stride = out.stride[0],
                    .width = static_cast<int>(x.dim(1))};
  const bool f32 = out.dtype == DType::kF32;
  launch(stream, by_row(x.dim(0), x.dim(1)), f32 ? add_kernel<float> : add_kernel<__nv_bfloat16>,
         p);
}

}  // namespace

void embed(Stream& stream, const EmbedArgs& args) {
  const int64_t rows = args.ids.dim(0), width = args.table.dim(1);
  if (rows == 0) return;
  const EmbedParams p{.ids = args.ids.ptr<int32_t>(),
                      .table = args.table.data,
                      .out = args.out.data,
                      .table_stride = args.table.stride[0],
                      .out_stride = args.out.stride[0],
                      .width = static_cast<int>(width)};
  if (args.table.dtype == DType::kF32) {
    CHECK(args.out.dtype == DType::kF32, "embed: rows of f32 stay f32");
    launch(stream, by_row(rows, width), embed_kernel<float, float>, p);
  } else if (args.out.dtype == DType::kF32) {
    launch(stream, by_row(rows, width), embed_kernel<__nv_bfloat16, float>, p);
  } else {
    launch(stream, by_row(rows, width), embed_kernel<__nv_bfloat16, __nv_bfloat16>, p);
  }
}

void add(Stream& stream, const AddArgs& args) {
  add_rows(stream, args.x, {}, args.out);
}

void add_gated(Stream& stream, const AddGatedArgs& args) {
  add_rows(stream, args.x, args.gate, args.out);
}

void mul_sigmoid(Stream& stream, const MulSigmoidArgs& args) {
  const int64_t rows = args.x.dim(0), heads = args.x.dim(1), head_dim = args.x.dim(2);
  if (rows == 0) return;
  CHECK(head_dim % 8 == 0, "mul_sigmoid: a head must be a multiple of 8 wide");
  const MulSigmoidParams p{.x = static_cast<__nv_bfloat16*>(args.x.data),
                           .gate = static_cast<const __nv_bfloat16*>(args.gate.data),
                           .x_row = args.x.stride[0],
                           .x_head = args.x.stride[1],
                           .gate_row = args.gate.stride[0],
                           .gate_head = args.gate.stride[1],
                           .heads = static_cast<int>(heads),
                           .head_dim = static_cast<int>(head_dim)};
  launch(stream, by_row(rows, heads * head_dim), mul_sigmoid_kernel, p);
}

}  // namespace weft::cuda
