// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, one token after the other, with
// convolution, SiLU, l2norm and gates in front: one kernel. docs/kernels/gated_delta.md
//
// Tile: kRows rows of S [V, K] of one value head in registers while a chain's tokens pass. Moved:
// S once read and once written a segment, 8 V K bytes a head. Bound: bandwidth.
//
// A row of S lies in K / 16 lanes, 16 elements each. Both products with the old row come from one
// pass: o = exp(g) s.q + u (k.q), and l2norm is a factor on s.k, s.q, k.q, so q and k are used as
// the convolution left them. The blocks of one key head form a cluster: all of them convolve its q
// and k, and block 0 stores their windows once all have read them.

#include <algorithm>

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gdn.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxCluster = 8;
constexpr int kWidth = 4;

template <int K, int V, int Rows>
struct Tile {
  static constexpr int kLanes = K / 16;              // a row of S
  static constexpr int kGroups = kThreads / kLanes;  // rows at a time
  static constexpr int kPasses = Rows / kGroups;     // rows a thread has a part of
  static constexpr int kSlices = V / Rows;           // blocks a value head
  static constexpr int kChannels = 2 * K + Rows;     // q, k, the slice's v
  static constexpr int kOwned = (kChannels + kThreads - 1) / kThreads;  // a thread
  static_assert(Rows % kGroups == 0 && V % Rows == 0);
};

/// A token as the block's threads see it.
template <int K, int Rows>
struct Token {
  alignas(16) float y[2 * K + Rows];  // q, k and the slice's v after the convolution
  float decay, beta;
};

template <int Lanes>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

/// The four 16-byte pieces of lane `lane` in a row of 16 * Lanes elements.
template <int Lanes>
__device__ __forceinline__ void load_row(const float* row, int lane, float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(x + 4 * j) =
        *reinterpret_cast<const float4*>(row + 4 * (lane + Lanes * j));
  }
}
template <int Lanes>
__device__ __forceinline__ void store_row(float* row, int lane, const float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(row + 4 * (lane + Lanes * j)) =
        *reinterpret_cast<const float4*>(x + 4 * j);
  }
}

template <int K, int V, int Rows>
class Block {
  using T = Tile<K, V, Rows>;

 public:
  __device__ Block(const GdnView& p, Token<K, Rows>* tokens) : p_(p), tokens_(tokens) {
    const int blocks = p.group() * T::kSlices;
    const int rank = static_cast<int>(blockIdx.x) % blocks;
    const int unit = static_cast<int>(blockIdx.x) / blocks;
    hk_ = unit % p.key_heads;
    chain_ = p.first_chain + unit / p.key_heads;
    hv_ = hk_ * p.group() + rank / T::kSlices;
    row_ = rank % T::kSlices * Rows;
    rank_ = rank;
    lane_ = static_cast<int>(threadIdx.x) % T::kLanes;
    group_ = static_cast<int>(threadIdx.x) / T::kLanes;
  }

  /// What may be done before the kernels in front have finished: weights, and the state on its way
  /// to L2 (the slot numbers are from the host and older than any kernel of the step).
  __device__ void prepare() {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      const float* w = p_.conv + channel(i) * p_.conv_row;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) taps_[i][j] = w[j];
    }
    rate_ = expf(p_.a_log[hv_]);
    bias_ = p_.dt_bias[hv_];
    first_ = p_.chains[chain_];
    last_ = p_.chains[chain_ + 1];
    if (first_ == last_) return;
    const int read = p_.read_slot[first_];
    if (read < 0 || read >= p_.num_slots) return;
    const float* row = state(read, 0);
    for (int i = static_cast<int>(threadIdx.x) * 32; i < Rows * K; i += kThreads * 32) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row - group_ * K + i));
    }
  }

  __device__ void run() {
    for (int s = first_; s < last_; ++s) {
      if (s > first_) cluster_sync();  // the windows of the segment before are written
      run_segment(s);
    }
  }

 private:
  /// Channel i of this thread (a thread beyond the last channel repeats the last one).
  __device__ int channel(int i) const {
    const int at = min(static_cast<int>(threadIdx.x) + i * kThreads, T::kChannels - 1);
    return at < K       ? hk_ * K + at
           : at < 2 * K ? p_.k_channel(hk_) + at - K
                        : p_.v_channel(hv_) + row_ + at - 2 * K;
  }
  __device__ bool has_channel(int i) const {
    return static_cast<int>(threadIdx.x) + i * kThreads < T::kChannels;
  }
  /// Row `pass` of this thread in a slot.
  __device__ float* state(int slot, int pass) const {
    return p_.states + slot * p_.state_slot + hv_ * p_.state_head +
           int64_t{row_ + pass * T::kGroups + group_} * K;
  }

  __device__ void run_segment(int segment) {
    const int begin = p_.cu_q[segment], end = p_.cu_q[segment + 1];
    const int read = p_.read_slot[segment], write = p_.write_slot[segment];
    if (begin < end) load_inputs(begin);
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      const float* window = p_.windows + read * p_.window_slot + channel(i);
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) {
        window_[i][j] = read < 0 ? 0.0f : window[j * p_.window_row];
      }
    }
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      if (read < 0) {
#pragma unroll
        for (int j = 0; j < 16; ++j) s_[pass][j] = 0;
      } else {
        load_row<T::kLanes>(state(read, pass), lane_, s_[pass]);
      }
    }
    cluster_arrive();  // this block has read the windows
    for (int t = begin; t < end; ++t) {
      Token<K, Rows>& token = tokens_[(t - begin) % 2];
      convolve(t, end, token);
      __syncthreads();
      step(t, token);
    }
    if (write >= 0) {
#pragma unroll
      for (int pass = 0; pass < T::kPasses; ++pass) {
        store_row<T::kLanes>(state(write, pass), lane_, s_[pass]);
      }
    }
    cluster_wait();
    if (write >= 0) store_windows(write);
    __syncthreads();  // tokens_ is free for the next segment
  }

  __device__ void load_inputs(int t) {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) x_[i] = p_.qkv[t * p_.qkv_row + channel(i)];
    a_ = p_.a[t * p_.a_row + hv_];
    b_ = p_.b[t * p_.b_row + hv_];
  }

  __device__ void convolve(int t, int end, Token<K, Rows>& token) {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      const float x = __bfloat162float(x_[i]);
      float sum = taps_[i][0] * window_[i][0];
      sum = fmaf(taps_[i][1], window_[i][1], sum);
      sum = fmaf(taps_[i][2], window_[i][2], sum);
      sum = fmaf(taps_[i][3], x, sum);
      window_[i][0] = window_[i][1];
      window_[i][1] = window_[i][2];
      window_[i][2] = x;
      if (has_channel(i)) token.y[threadIdx.x + i * kThreads] = gdn_silu(sum);
    }
    if (threadIdx.x == kThreads - 1) {
      const float x = a_ + bias_;
      token.decay = expf(-rate_ * (x > 20.0f ? x : log1pf(expf(x))));
      token.beta = gdn_beta(b_);
    }
    if (t + 1 < end) load_inputs(t + 1);
  }

  __device__ void step(int t, const Token<K, Rows>& token) {
    float q[16], k[16];
    load_row<T::kLanes>(token.y, lane_, q);
    load_row<T::kLanes>(token.y + K, lane_, k);
    float qq = 0, kk = 0, qk = 0;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      qq = fmaf(q[j], q[j], qq);
      kk = fmaf(k[j], k[j], kk);
      qk = fmaf(q[j], k[j], qk);
    }
    const float decay = token.decay, beta = token.beta;
    const float q_factor =
        rsqrtf(sum_lanes<T::kLanes>(qq) + kGdnL2Eps) * (K == 128 ? 0.08838834764831845f : 0.125f);
    const float k_factor = rsqrtf(sum_lanes<T::kLanes>(kk) + kGdnL2Eps);
    qk = sum_lanes<T::kLanes>(qk) * q_factor * k_factor;
    __nv_bfloat16* out = p_.out + t * p_.out_row + hv_ * p_.out_head + row_;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      float(&s)[16] = s_[pass];
      float sk = 0, sq = 0;
#pragma unroll
      for (int j = 0; j < 16; ++j) {
        sk = fmaf(s[j], k[j], sk);
        sq = fmaf(s[j], q[j], sq);
      }
      sk = sum_lanes<T::kLanes>(sk) * k_factor;
      sq = sum_lanes<T::kLanes>(sq) * q_factor;
      const int row = pass * T::kGroups + group_;
      const float u = beta * fmaf(-decay, sk, token.y[2 * K + row]);
      const float uk = u * k_factor;
#pragma unroll
      for (int j = 0; j < 16; ++j) s[j] = fmaf(uk, k[j], decay * s[j]);
      if (lane_ == 0) out[row] = __float2bfloat16_rn(fmaf(decay, sq, u * qk));
    }
  }

  __device__ void store_windows(int slot) {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      const bool shared = static_cast<int>(threadIdx.x) + i * kThreads < 2 * K;
      if (!has_channel(i) || (shared && rank_ != 0)) continue;
      float* window = p_.windows + slot * p_.window_slot + channel(i);
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) window[j * p_.window_row] = window_[i][j];
    }
  }

  const GdnView& p_;
  Token<K, Rows>* tokens_;
  int chain_, hk_, hv_, row_, rank_, lane_, group_, first_, last_;
  float taps_[T::kOwned][kWidth], window_[T::kOwned][kWidth - 1];
  __nv_bfloat16 x_[T::kOwned];
  float a_, b_, rate_, bias_;
  float s_[T::kPasses][16];
};

template <int K, int V, int Rows>
__global__ void __launch_bounds__(kThreads) gdn_decode_kernel(const __grid_constant__ GdnView p) {
  __shared__ Token<K, Rows> tokens[2];
  Block<K, V, Rows> block(p, tokens);
  block.prepare();
  wait_for_predecessor();
  let_successor_begin();
  block.run();
}

template <int K, int V, int Rows>
bool try_tile(Stream& stream, const GdnView& p, int count, bool overlap) {
  const int cluster = p.value_heads / p.key_heads * Tile<K, V, Rows>::kSlices;
  if (cluster > kMaxCluster) return false;
  const auto blocks = static_cast<unsigned>(count * p.key_heads * cluster);
  launch(stream,
         {.grid = blocks,
          .block = kThreads,
          .cluster = static_cast<unsigned>(cluster),
          .overlap = overlap},
         gdn_decode_kernel<K, V, Rows>, p);
  return true;
}

}  // namespace

bool gdn_decode(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  p.first_chain = first;
  const GdnShape& s = args.shape;
  static_assert(kWidth == 4);
  if (!gdn_decode_supports(s) || p.state_slot % 4 != 0 || p.state_head % 4 != 0) return false;
  const bool overlap = first == 0;  // else the prompt's kernels wrote states just now
  // Small tiles only where they are needed to reach every multiprocessor; the bits are the same.
  const bool small = int64_t{count} * s.value_heads < 128;
  if (s.key_dim == 128) {
    return (small && try_tile<128, 128, 32>(stream, p, count, overlap)) ||
           try_tile<128, 128, 64>(stream, p, count, overlap);
  }
  return (small && try_tile<64, 64, 32>(stream, p, count, overlap)) ||
         try_tile<64, 64, 64>(stream, p, count, overlap);
}

}  // namespace weft::cuda
