// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, one token after the other, with
// convolution, SiLU, l2norm and gates in front: one kernel. docs/kernels/gated_delta.md
//
// Tile: kRows rows of S [V, K] of one value head in registers while a chain's tokens pass. Moved:
// S once read and once written a segment, 8 V K bytes a head. Bound: bandwidth.
//
// A row of S lies in K / 16 lanes, 16 elements each. Both products with the old row come from one
// pass: o = exp(g) s.q + u (k.q), and l2norm is a factor on s.k, s.q, k.q, so q and k are used as
// the convolution left them. The blocks of one key head form a cluster: all of them convolve its q
// and k, and block 0 stores their windows once all have read them. With the layer's gated norm the
// blocks of a value head tell each other their sums of squares, a few tokens at a time.

#include <algorithm>

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gdn.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxCluster = 8;
constexpr int kWidth = 4;
constexpr int kBatch = 8;  // tokens that are normalised together

template <int K, int V, int Rows>
struct Tile {
  static constexpr int kLanes = K / 16;              // a row of S
  static constexpr int kGroups = kThreads / kLanes;  // rows at a time
  static constexpr int kPasses = Rows / kGroups;     // rows a thread has a part of
  static constexpr int kSlices = V / Rows;           // blocks a value head
  static constexpr int kUnits = Rows / 32;           // of rows, summed first
  static constexpr int kTokens = kThreads / Rows;    // normalised at a time
  static constexpr int kNormed = kBatch / kTokens;   // outputs a thread
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

/// Outputs that wait for the norm of their head.
template <int V, int Rows>
struct Outputs {
  float o[kBatch][Rows];
  float squares[2][kBatch][V / 32];  // of 32 rows each, from all blocks of the head; by turns
};

template <int K, int V, int Rows>
struct Shared {
  Token<K, Rows> tokens[2];
  Outputs<V, Rows> outputs;
};

template <int Lanes>
__device__ __forceinline__ float sum_lanes(float x) {
#pragma unroll
  for (int step = Lanes / 2; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

/// The four 4-element pieces of lane `lane` in a row of 16 * Lanes elements.
template <int Lanes>
__device__ __forceinline__ void load_row(const float* row, int lane, float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<float4*>(x + 4 * j) =
        *reinterpret_cast<const float4*>(row + 4 * (lane + Lanes * j));
  }
}
template <int Lanes>
__device__ __forceinline__ void load_row(const __nv_bfloat16* row, int lane, float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint2 raw = *reinterpret_cast<const uint2*>(row + 4 * (lane + Lanes * j));
    x[4 * j] = __uint_as_float(raw.x << 16);
    x[4 * j + 1] = __uint_as_float(raw.x & 0xffff0000u);
    x[4 * j + 2] = __uint_as_float(raw.y << 16);
    x[4 * j + 3] = __uint_as_float(raw.y & 0xffff0000u);
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
template <int Lanes>
__device__ __forceinline__ void store_row(__nv_bfloat16* row, int lane, const float (&x)[16]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    *reinterpret_cast<uint2*>(row + 4 * (lane + Lanes * j)) =
        make_uint2(pack_bf16(x[4 * j], x[4 * j + 1]), pack_bf16(x[4 * j + 2], x[4 * j + 3]));
  }
}

template <int K, int V, int Rows, class State>
class Block {
  using T = Tile<K, V, Rows>;

 public:
  __device__ Block(const GdnView& p, Shared<K, V, Rows>& shared) : p_(p), shared_(shared) {
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
    if (p_.z != nullptr) {
      cluster_arrive();  // whoever waits for this may write into this block's memory
      weight_ = p_.norm_weight[row_ + static_cast<int>(threadIdx.x) % Rows];
    }
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
    const State* row = state(read, 0);
    constexpr int kLine = 128 / sizeof(State);
    for (int i = static_cast<int>(threadIdx.x) * kLine; i < Rows * K; i += kThreads * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row - group_ * K + i));
    }
  }

  __device__ void run() {
    for (int s = first_; s < last_; ++s) {
      if (s > first_) cluster_sync();  // the windows of the segment before are written
      run_segment(s);
    }
    if (p_.z != nullptr && !met_) cluster_wait();
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
  __device__ State* state(int slot, int pass) const {
    return static_cast<State*>(p_.states) + slot * p_.state_slot + hv_ * p_.state_head +
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
    if (p_.z == nullptr) cluster_arrive();  // this block has read the windows
    int t = begin, first = begin;
    do {
      for (; t < min(first + kBatch, end); ++t) {
        Token<K, Rows>& token = shared_.tokens[(t - begin) % 2];
        convolve(t, end, token);
        __syncthreads();
        step(t, t - first, token);
      }
      // The state is stored while the blocks of the cluster meet: a store in front of that would
      // have to arrive first.
      float z[T::kNormed];
      if (p_.z != nullptr) begin_norm(first, t - first, z);
      if (t == end && write >= 0) {
#pragma unroll
        for (int pass = 0; pass < T::kPasses; ++pass) {
          store_row<T::kLanes>(state(write, pass), lane_, s_[pass]);
        }
      }
      if (p_.z != nullptr) end_norm(first, t - first, z);
      first = t;
    } while (t < end);
    if (p_.z == nullptr) cluster_wait();
    if (write >= 0) store_windows(write);
    __syncthreads();  // the tokens are free for the next segment
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

  __device__ void step(int t, int at, const Token<K, Rows>& token) {
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
      for (int j = 0; j < 16; ++j) {
        s[j] = fmaf(uk, k[j], decay * s[j]);
        if (sizeof(State) == 2) s[j] = gdn_round_bf16(s[j]);
      }
      if (lane_ == 0) {
        const float o = fmaf(decay, sq, u * qk);
        if (p_.z == nullptr) {
          out[row] = __float2bfloat16_rn(o);
        } else {
          shared_.outputs.o[at][row] = o;
        }
      }
    }
  }

  /// The norm of tokens [first, first + count): tells the head's other blocks the sums of squares,
  /// and arrives where all blocks of the cluster meet.
  __device__ void begin_norm(int first, int count, float (&z)[T::kNormed]) {
    Outputs<V, Rows>& outputs = shared_.outputs;
    __syncthreads();
    if (!met_) cluster_wait();  // all blocks have begun
    met_ = true;
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    for (int i = thread / 32; i < count * T::kUnits; i += kThreads / 32) {
      const int unit = i % T::kUnits, at = i / T::kUnits;
      const float o = outputs.o[at][32 * unit + lane];
      const float sum = sum_lanes<32>(o * o);
      if (lane < T::kSlices) {
        float* to = &outputs.squares[turn_][at][row_ / 32 + unit];
        store_remote(to, static_cast<uint32_t>(rank_ / T::kSlices * T::kSlices + lane), sum);
      }
    }
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int t = first + thread / Rows + i * T::kTokens;
      if (t < first + count) {
        z[i] = __bfloat162float(p_.z[t * p_.z_row + hv_ * p_.z_head + row_ + thread % Rows]);
      }
    }
    cluster_arrive();
  }

  /// Waits for the others and writes the outputs. A head's squares are added in one order however
  /// it is cut into blocks.
  __device__ void end_norm(int first, int count, const float (&z)[T::kNormed]) {
    const Outputs<V, Rows>& outputs = shared_.outputs;
    cluster_wait();
    const int row = static_cast<int>(threadIdx.x) % Rows;
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int at = static_cast<int>(threadIdx.x) / Rows + i * T::kTokens;
      if (at >= count) continue;
      const float* squares = outputs.squares[turn_][at];
      float sum = squares[0] + squares[1];
      if (V == 128) sum += squares[2] + squares[3];
      const float factor = rsqrtf(sum * (1.0f / V) + p_.norm_eps);
      const float gate = gdn_beta(z[i]);
      p_.out[(first + at) * p_.out_row + hv_ * p_.out_head + row_ + row] = __float2bfloat16_rn(
          weight_ * (outputs.o[at][row] * factor) * (p_.norm_silu ? z[i] * gate : gate));
    }
    turn_ ^= 1;
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
  Shared<K, V, Rows>& shared_;
  bool met_ = false;  // the other blocks of the cluster
  int turn_ = 0;
  float weight_ = 0;
  int chain_, hk_, hv_, row_, rank_, lane_, group_, first_, last_;
  float taps_[T::kOwned][kWidth], window_[T::kOwned][kWidth - 1];
  __nv_bfloat16 x_[T::kOwned];
  float a_, b_, rate_, bias_;
  float s_[T::kPasses][16];
};

template <int K, int V, int Rows, class State>
__global__ void __launch_bounds__(kThreads, Rows == 64 ? 3 : 4)
    gdn_decode_kernel(const __grid_constant__ GdnView p) {
  __shared__ Shared<K, V, Rows> shared;
  Block<K, V, Rows, State> block(p, shared);
  block.prepare();
  wait_for_predecessor();
  let_successor_begin();
  block.run();
}

template <int K, int V, int Rows, class State = float>
bool try_tile(Stream& stream, const GdnView& p, int count, bool overlap) {
  const int cluster = p.value_heads / p.key_heads * Tile<K, V, Rows>::kSlices;
  if (cluster > kMaxCluster) return false;
  const auto blocks = static_cast<unsigned>(count * p.key_heads * cluster);
  launch(stream,
         {.grid = blocks,
          .block = kThreads,
          .cluster = static_cast<unsigned>(cluster),
          .overlap = overlap},
         gdn_decode_kernel<K, V, Rows, State>, p);
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
  if (s.key_dim == 128 && p.half_states) {
    using Bf16 = __nv_bfloat16;
    return (small && try_tile<128, 128, 32, Bf16>(stream, p, count, overlap)) ||
           try_tile<128, 128, 64, Bf16>(stream, p, count, overlap);
  }
  if (p.half_states) return false;
  if (s.key_dim == 128) {
    return (small && try_tile<128, 128, 32>(stream, p, count, overlap)) ||
           try_tile<128, 128, 64>(stream, p, count, overlap);
  }
  return (small && try_tile<64, 64, 32>(stream, p, count, overlap)) ||
         try_tile<64, 64, 64>(stream, p, count, overlap);
}

}  // namespace weft::cuda
