#pragma once

// Shared by the kernels of the gated delta rule (gdn*.cu): the arguments as kernels take them, and
// what all of them compute of a token. docs/kernels/gated_delta.md

#include <cuda_bf16.h>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/gdn_slots.h"

namespace weft::cuda {

/// GdnArgs with raw pointers and strides in elements.
struct GdnView {
  const __nv_bfloat16* qkv;  // [T, C]
  const float *a, *b;        // [T, HV]
  const float* conv;         // [C, W]
  const float *a_log, *dt_bias;
  float* windows;  // [slots, W-1, C]
  void* states;    // [slots, HV, V, K], f32 or bf16
  __nv_bfloat16* out;
  const int32_t *cu_q, *read_slot, *write_slot, *chains;
  int64_t qkv_row, a_row, b_row, conv_row, window_slot, window_row, state_slot, state_head, out_row,
      out_head;
  int64_t kept_row;  // bytes; 0: the slots have no kept rows (gdn_slots.h)
  int key_heads, value_heads, key_dim, value_dim, width;
  int first_chain;  // blocks count chains from here
  int num_slots;
  bool half_states;        // bf16: the state is rounded after every token (prompt: chunk)
  const __nv_bfloat16* z;  // of the norm; null: none
  const float* norm_weight;
  int64_t z_row, z_head;
  float norm_eps;
  bool norm_silu;

  __device__ int group() const { return value_heads / key_heads; }
  __device__ int k_channel(int hk) const { return (key_heads + hk) * key_dim; }
  __device__ int v_channel(int hv) const { return 2 * key_heads * key_dim + hv * value_dim; }

  /// Kept row `row` of a slot, and its gates.
  __device__ __nv_bfloat16* kept(int slot, int row) const {
    return reinterpret_cast<__nv_bfloat16*>(
        reinterpret_cast<char*>(windows + slot * window_slot + (width - 1) * window_row) +
        row * kept_row);
  }
  __device__ float* kept_gates(int slot, int row) const {
    return reinterpret_cast<float*>(kept(slot, row) + v_channel(value_heads));
  }
};

GdnView gdn_view(const GdnArgs& args);
/// Whether neighbouring channels of rows and windows can be moved together.
bool gdn_has_pairs(const GdnView& p);

/// The prompt chains in the chunked form; false if the shape is none of those it can do.
bool gdn_prompt(Stream& stream, const GdnArgs& args);
/// Chains [first, first + count) token by token, in the order of their segments; any shape.
void gdn_recurrent(Stream& stream, const GdnArgs& args, int first, int count);
/// The same for the shapes of released models; false if the shape is none of them, or the slots
/// have room for kept rows.
bool gdn_decode(Stream& stream, const GdnArgs& args, int first, int count);
/// gdn_decode() for segments of several tokens and for kept rows, the same bits; false if the shape
/// is none that it can do.
bool gdn_verify(Stream& stream, const GdnArgs& args, int first, int count);
/// gdn_decode() for many chains, the same bits; false if the shape is none that it can do.
bool gdn_stream(Stream& stream, const GdnArgs& args, int first, int count);

/// Chains that are computed token by token, as their kernels are built and launched.
struct GdnChains {
  int count;
  bool overlap;  ///< not behind a prompt's chains, whose kernels wrote states just now
};
inline GdnChains gdn_chains(int first, int count) {
  return {count, first == 0};
}

#ifdef __CUDACC__

constexpr float kGdnL2Eps = 1e-6f;

__device__ __forceinline__ float gdn_round_bf16(float x) {
  return __bfloat162float(__float2bfloat16_rn(x));
}

/// 1 / x by the special-function unit (1 ulp); results below 2^-126 become 0.
__device__ __forceinline__ float gdn_reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// x sigmoid(x), to about 4 ulp.
__device__ __forceinline__ float gdn_silu(float x) {
  return x * gdn_reciprocal(1.0f + exp2_approx(-1.4426950408889634f * x));
}

/// log(1 + e^x) = max(x, 0) + 2 artanh(z), z = e / (2 + e), e = e^-|x|, to about 2e-7 (and what
/// e^-|x| is off by, 2e-7 (1 + |x|), where x is negative). It stands in front of every token.
__device__ __forceinline__ float gdn_softplus(float x) {
  const float e = exp2_approx(-1.4426950408889634f * fabsf(x));
  const float z = e * gdn_reciprocal(2.0f + e), square = z * z;
  float series = fmaf(square, 1.0f / 13, 1.0f / 11);
  series = fmaf(square, series, 1.0f / 9);
  series = fmaf(square, series, 1.0f / 7);
  series = fmaf(square, series, 1.0f / 5);
  series = fmaf(square, series, 1.0f / 3);
  series = fmaf(square, series, 1.0f);
  return fmaf(z + z, series, fmaxf(x, 0.0f));
}

/// Log-decay -exp(a_log) softplus(a + dt_bias), <= 0.
__device__ __forceinline__ float gdn_log_decay(float a, float a_log, float dt_bias) {
  return -expf(a_log) * gdn_softplus(a + dt_bias);
}

__device__ __forceinline__ float gdn_beta(float b) {
  return gdn_reciprocal(1.0f + exp2_approx(-1.4426950408889634f * b));
}

/// What a segment says of slots (gdn_slots.h); -1: none.
struct GdnSlots {
  int read = -1, write = -1;
  int count = 0;  // kept rows of `read` that come first
  int keep = -1;  // takes the state before the segment's own rows, and their inputs
};
__device__ __forceinline__ GdnSlots gdn_slots(const GdnView& p, int segment) {
  const int read = p.read_slot[segment], write = p.write_slot[segment];
  return {read < 0 ? -1 : read % kMostStateSlots, max(write, -1),
          read < 0 ? 0 : read / kMostStateSlots, write < -1 ? -2 - write : -1};
}

/// Where the convolution's input before a segment comes from: rows of the step from `begin` on,
/// before them the window in `slot` (-1: zeros). A segment that reads the slot that its predecessor
/// in the chain writes continues its rows. `Kept`: between the two are `count` kept rows.
struct GdnHistory {
  int begin = 0, slot = -1, count = 0;
};
template <bool Kept = false>
__device__ __forceinline__ GdnHistory gdn_history(const GdnView& p, int segment, int first) {
  int s = segment;
  while (s > first && p.read_slot[s] >= 0 && p.read_slot[s] == p.write_slot[s - 1]) --s;
  if constexpr (!Kept) return {p.cu_q[s], p.read_slot[s]};
  const GdnSlots slots = gdn_slots(p, s);
  return {p.cu_q[s], slots.read, slots.count};
}
/// Input of channel c at row t >= history.begin - history.count - (W - 1).
template <bool Kept = false>
__device__ __forceinline__ float gdn_input(const GdnView& p, const GdnHistory& history, int t,
                                           int c) {
  if (t >= history.begin) return __bfloat162float(p.qkv[int64_t{t} * p.qkv_row + c]);
  if (history.slot < 0) return 0.0f;
  const int row = t - history.begin + (Kept ? history.count : 0);
  if (Kept && row >= 0) return __bfloat162float(p.kept(history.slot, row)[c]);
  return p.windows[history.slot * p.window_slot + int64_t{p.width - 1 + row} * p.window_row + c];
}

/// Writes the windows of channel c for all segments of a chain, in order, by one thread, after
/// everything that reads the chain's windows. W is the width of the convolution, at most.
template <int W, bool Exact = false, bool Kept = false>
__device__ __forceinline__ void gdn_store_windows(const GdnView& p, int first, int last, int c) {
  const int rows = Exact ? W - 1 : p.width - 1;
  float window[W - 1] = {};  // before row `begin`
  int begin = 0;
  GdnHistory history;
  const auto store = [&](int end, int slot) {
    float x[W - 1];
#pragma unroll
    for (int i = 0; i < W - 1; ++i) {
      const int t = end - rows + i;
      x[i] = 0;
      if (i < rows && t >= begin) {
        x[i] = Kept ? gdn_input<true>(p, history, t, c)
                    : __bfloat162float(p.qkv[int64_t{t} * p.qkv_row + c]);
      } else {
#pragma unroll
        for (int j = 0; j < W - 1; ++j) x[i] = j == rows + t - begin ? window[j] : x[i];
      }
    }
#pragma unroll
    for (int i = 0; i < W - 1; ++i) {
      if (i < rows) p.windows[slot * p.window_slot + int64_t{i} * p.window_row + c] = x[i];
    }
  };
  for (int s = first; s < last; ++s) {
    const GdnSlots slots = Kept ? gdn_slots(p, s) : GdnSlots{p.read_slot[s], p.write_slot[s]};
    const int end = p.cu_q[s + 1];
    if (s == first || slots.read < 0 || p.read_slot[s] != p.write_slot[s - 1]) {
      history = {p.cu_q[s], slots.read, slots.count};
      begin = history.begin - slots.count;
      if (Kept || end - begin < rows) {  // else nobody looks back that far
#pragma unroll
        for (int i = 0; i < W - 1; ++i) {
          if (i < rows) {
            window[i] = slots.read < 0
                            ? 0.0f
                            : p.windows[slots.read * p.window_slot + int64_t{i} * p.window_row + c];
          }
        }
      }
    }
    if (Kept && slots.keep >= 0) store(p.cu_q[s], slots.keep);
    if (slots.write >= 0) store(end, slots.write);
  }
}

#endif  // __CUDACC__

}  // namespace weft::cuda
