// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, with convolution, SiLU, l2norm and
// gates in front: which kernel takes which chain, and the kernel for shapes that no other takes.
// docs/kernels/gated_delta.md
//
// gdn_recurrent: a block takes a chain and a key head, a slice of at most 64 KiB of S at a time in
// shared memory, tokens in order, a warp a row of S. It is for odd shapes: right, not fast.

#include <algorithm>

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gdn.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kMaxWidth = 8;
constexpr int kSliceFloats = 16 * 1024;
// Chains times key heads that the streaming kernel is for; with kept rows, which are more tokens.
constexpr int kManyUnits = 256, kManyKeptUnits = 128;

struct Slice {
  int hk, hv, row, rows;  // of S: rows [row, row + rows) of value head hv
};

__device__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

/// q, k and the slice's v of row t after convolution and SiLU; then q and k normalised.
__device__ void load_token(const GdnView& p, const Slice& slice, const GdnHistory& history, int t,
                           float* y) {
  const int kd = p.key_dim;
  for (int i = threadIdx.x; i < 2 * kd + slice.rows; i += kThreads) {
    const int c = i < kd       ? slice.hk * kd + i
                  : i < 2 * kd ? p.k_channel(slice.hk) + i - kd
                               : p.v_channel(slice.hv) + slice.row + i - 2 * kd;
    float sum = 0;
    for (int j = 0; j < p.width; ++j) {
      sum = fmaf(p.conv[c * p.conv_row + j], gdn_input<true>(p, history, t - p.width + 1 + j, c),
                 sum);
    }
    y[i] = gdn_silu(sum);
  }
  __syncthreads();
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < 2) {
    float* x = y + warp * kd;
    float sum = 0;
    for (int i = lane; i < kd; i += 32) sum = fmaf(x[i], x[i], sum);
    float factor = rsqrtf(warp_sum(sum) + kGdnL2Eps);
    if (warp == 0) factor *= rsqrtf(static_cast<float>(kd));
    for (int i = lane; i < kd; i += 32) x[i] *= factor;
  }
  __syncthreads();
}

struct Gates {
  float a, b;
};

/// A token; without `out` (of the slice's rows) for its state alone.
__device__ void step_slice(const GdnView& p, const Slice& slice, const Gates& gates, const float* y,
                           float* s, __nv_bfloat16* out) {
  const int kd = p.key_dim, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* k = y + kd;
  const float decay = expf(gdn_log_decay(gates.a, p.a_log[slice.hv], p.dt_bias[slice.hv]));
  const float beta = gdn_beta(gates.b);
  for (int i = warp; i < slice.rows; i += kThreads / 32) {
    float* row = s + i * kd;
    float predicted = 0;
    for (int j = lane; j < kd; j += 32) {
      row[j] *= decay;
      predicted = fmaf(row[j], k[j], predicted);
    }
    const float u = beta * (y[2 * kd + i] - warp_sum(predicted));
    float sum = 0;
    for (int j = lane; j < kd; j += 32) {
      const float x = fmaf(u, k[j], row[j]);
      sum = fmaf(x, y[j], sum);
      row[j] = p.half_states ? gdn_round_bf16(x) : x;
    }
    sum = warp_sum(sum);
    if (lane == 0 && out != nullptr) out[i] = __float2bfloat16_rn(sum);
  }
}

__device__ float load_state(const GdnView& p, int64_t at) {
  return p.half_states ? __bfloat162float(static_cast<const __nv_bfloat16*>(p.states)[at])
                       : static_cast<const float*>(p.states)[at];
}
__device__ void store_state(const GdnView& p, int64_t at, float x) {
  if (p.half_states) {
    static_cast<__nv_bfloat16*>(p.states)[at] = __float2bfloat16_rn(x);
  } else {
    static_cast<float*>(p.states)[at] = x;
  }
}

__device__ void run_slice(const GdnView& p, const Slice& slice, int first, int last, float* s,
                          float* y) {
  const int floats = slice.rows * p.key_dim;
  const int64_t at = slice.hv * p.state_head + int64_t{slice.row} * p.key_dim;
  // The next segment may read such a slot: each thread reads what it wrote.
  const auto store = [&](int slot) {
    __syncthreads();
    for (int i = threadIdx.x; i < floats && slot >= 0; i += kThreads) {
      store_state(p, slot * p.state_slot + at + i, s[i]);
    }
    __syncthreads();
  };
  for (int segment = first; segment < last; ++segment) {
    const GdnSlots slots = gdn_slots(p, segment);
    for (int i = threadIdx.x; i < floats; i += kThreads) {
      s[i] = slots.read < 0 ? 0.0f : load_state(p, slots.read * p.state_slot + at + i);
    }
    const GdnHistory history = gdn_history<true>(p, segment, first);
    for (int i = 0; i < slots.count; ++i) {
      const float* gates = p.kept_gates(slots.read, i) + slice.hv;
      load_token(p, slice, history, p.cu_q[segment] - slots.count + i, y);
      step_slice(p, slice, {gates[0], gates[p.value_heads]}, y, s, nullptr);
      __syncthreads();
    }
    store(slots.keep);
    for (int t = p.cu_q[segment]; t < p.cu_q[segment + 1]; ++t) {
      load_token(p, slice, history, t, y);
      step_slice(p, slice, {p.a[t * p.a_row + slice.hv], p.b[t * p.b_row + slice.hv]}, y, s,
                 p.out + int64_t{t} * p.out_row + slice.hv * p.out_head + slice.row);
      __syncthreads();
    }
    store(slots.write);
  }
}

/// The inputs of channel c, when nobody needs the kept rows before them any more.
__device__ void keep_rows(const GdnView& p, int first, int last, int c) {
  for (int s = first; s < last; ++s) {
    const int keep = gdn_slots(p, s).keep, begin = p.cu_q[s];
    for (int t = begin; t < p.cu_q[s + 1] && keep >= 0; ++t) {
      p.kept(keep, t - begin)[c] = p.qkv[int64_t{t} * p.qkv_row + c];
    }
  }
}
__device__ void keep_gates(const GdnView& p, int first, int last, int hv) {
  for (int s = first; s < last; ++s) {
    const int keep = gdn_slots(p, s).keep, begin = p.cu_q[s];
    for (int t = begin; t < p.cu_q[s + 1] && keep >= 0; ++t) {
      float* gates = p.kept_gates(keep, t - begin) + hv;
      gates[0] = p.a[t * p.a_row + hv];
      gates[p.value_heads] = p.b[t * p.b_row + hv];
    }
  }
}

__global__ void __launch_bounds__(kThreads) gdn_recurrent_kernel(GdnView p, int slice_rows) {
  extern __shared__ float shared[];
  float* y = shared;  // q, k, v of a token
  float* s = shared + 2 * p.key_dim + slice_rows;
  const int hk = static_cast<int>(blockIdx.x) % p.key_heads;
  const int chain = p.first_chain + static_cast<int>(blockIdx.x) / p.key_heads;
  const int first = p.chains[chain], last = p.chains[chain + 1], group = p.group();
  for (int hv = hk * group; hv < (hk + 1) * group; ++hv) {
    for (int row = 0; row < p.value_dim; row += slice_rows) {
      run_slice(p, {hk, hv, row, min(slice_rows, p.value_dim - row)}, first, last, s, y);
    }
  }
  for (int i = threadIdx.x; i < 2 * p.key_dim + group * p.value_dim; i += kThreads) {
    const int c = i < p.key_dim       ? hk * p.key_dim + i
                  : i < 2 * p.key_dim ? p.k_channel(hk) + i - p.key_dim
                                      : p.v_channel(hk * group) + i - 2 * p.key_dim;
    gdn_store_windows<kMaxWidth, false, true>(p, first, last, c);
    keep_rows(p, first, last, c);
  }
  for (int r = threadIdx.x; r < group; r += kThreads) keep_gates(p, first, last, hk * group + r);
}

/// Chains [first, first + count); `several`: they have more rows than segments. Whether the outputs
/// already have their norm.
bool run(Stream& stream, const GdnArgs& args, int first, int count, bool several) {
  if (count == 0) return true;
  // Which of the three fast kernels: the bits are the same.
  const bool kept = args.state.conv.dim(1) >= args.shape.conv_width;
  const bool many = int64_t{count} * args.shape.key_heads >= (kept ? kManyKeptUnits : kManyUnits);
  if (many && gdn_stream(stream, args, first, count)) return true;
  if ((kept || several) && gdn_verify(stream, args, first, count)) return true;
  if (gdn_decode(stream, args, first, count)) return true;
  gdn_recurrent(stream, args, first, count);
  return false;
}

/// The norm of the rows [first, last) as a kernel of its own.
void normalise(Stream& stream, const GdnArgs& args, int64_t first, int64_t last) {
  if (!args.norm.z.defined()) return;
  const TensorView x = args.out.rows(first, last);
  gated_norm(stream, {.x = x,
                      .z = args.norm.z.rows(first, last),
                      .weight = args.norm.weight,
                      .out = x,
                      .eps = args.norm.eps,
                      .activation = args.norm.activation});
}

}  // namespace

GdnView gdn_view(const GdnArgs& args) {
  const TensorView &windows = args.state.conv, &states = args.state.recurrent;
  GdnView p{};
  p.qkv = static_cast<const __nv_bfloat16*>(args.qkv.data);
  p.a = static_cast<const float*>(args.a.data);
  p.b = static_cast<const float*>(args.b.data);
  p.conv = static_cast<const float*>(args.conv.data);
  p.a_log = static_cast<const float*>(args.a_log.data);
  p.dt_bias = static_cast<const float*>(args.dt_bias.data);
  p.windows = static_cast<float*>(windows.data);
  p.states = states.data;
  p.half_states = states.dtype == DType::kBF16;
  p.out = static_cast<__nv_bfloat16*>(args.out.data);
  p.cu_q = static_cast<const int32_t*>(args.cu_q.data);
  p.read_slot = static_cast<const int32_t*>(args.read_slot.data);
  p.write_slot = static_cast<const int32_t*>(args.write_slot.data);
  p.chains = static_cast<const int32_t*>(args.chains.data);
  p.qkv_row = args.qkv.stride[0];
  p.a_row = args.a.stride[0];
  p.b_row = args.b.stride[0];
  p.conv_row = args.conv.stride[0];
  p.window_slot = windows.stride[0];
  p.window_row = windows.stride[1];
  p.state_slot = states.stride[0];
  p.state_head = states.stride[1];
  p.out_row = args.out.stride[0];
  p.out_head = args.out.stride[1];
  p.key_heads = args.shape.key_heads;
  p.value_heads = args.shape.value_heads;
  p.key_dim = args.shape.key_dim;
  p.value_dim = args.shape.value_dim;
  p.width = args.shape.conv_width;
  if (windows.dim(1) > p.width - 1) {
    p.kept_row = kept_row_bytes(windows.dim(2), args.shape.value_heads);
  }
  p.num_slots = static_cast<int>(states.dim(0));
  if (args.norm.z.defined()) {
    p.z = static_cast<const __nv_bfloat16*>(args.norm.z.data);
    p.norm_weight = static_cast<const float*>(args.norm.weight.data);
    p.z_row = args.norm.z.stride[0];
    p.z_head = args.norm.z.stride[1];
    p.norm_eps = args.norm.eps;
    p.norm_silu = args.norm.activation == GateActivation::kSilu;
  }
  return p;
}

bool gdn_has_pairs(const GdnView& p) {
  return p.qkv_row % 2 == 0 && p.window_slot % 2 == 0 && p.window_row % 2 == 0 &&
         p.kept_row % 4 == 0 && reinterpret_cast<uintptr_t>(p.qkv) % 4 == 0 &&
         reinterpret_cast<uintptr_t>(p.windows) % 8 == 0;
}

void gdn_recurrent(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  CHECK(p.width <= kMaxWidth && p.key_dim <= kSliceFloats);
  const int rows = std::min(p.value_dim, kSliceFloats / p.key_dim);
  p.first_chain = first;
  launch(stream,
         {.grid = static_cast<unsigned>(count * p.key_heads),
          .block = kThreads,
          .shared_bytes = sizeof(float) * (2 * p.key_dim + rows + rows * p.key_dim)},
         gdn_recurrent_kernel, p, rows);
}

void gdn(Stream& stream, const GdnArgs& args) {
  const GdnShape& s = args.shape;
  CHECK(s.key_heads > 0 && s.value_heads % s.key_heads == 0);
  CHECK(args.qkv.dtype == DType::kBF16 && args.out.dtype == DType::kBF16);
  CHECK(args.state.conv.dtype == DType::kF32);
  CHECK(args.state.recurrent.dtype == DType::kF32 || args.state.recurrent.dtype == DType::kBF16);
  CHECK(args.state.conv.dim(0) <= kMostStateSlots);
  if (args.num_chains == 0) return;
  CHECK(args.chains.defined());
  const int64_t rows = args.out.dim(0);
  int64_t prompt_rows = 0;
  if (args.num_prompt_chains > 0) {
    CHECK(args.host_cu_q != nullptr);
    prompt_rows = args.host_cu_q[args.num_prompt_segments];
    if (gdn_prompt(stream, args) || !run(stream, args, 0, args.num_prompt_chains, true)) {
      normalise(stream, args, 0, prompt_rows);
    }
  }
  const bool several = rows - prompt_rows > args.num_segments - args.num_prompt_segments;
  if (!run(stream, args, args.num_prompt_chains, args.num_chains - args.num_prompt_chains,
           several)) {
    normalise(stream, args, prompt_rows, rows);
  }
}

}  // namespace weft::cuda
