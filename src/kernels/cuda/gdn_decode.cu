// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, one token after the other, with
// convolution, SiLU, l2norm and gates in front: one kernel. docs/kernels/gated_delta.md
//
// Tile: kRows rows of S [V, K] of one value head in registers while a chain's tokens pass. Moved:
// S once read and once written a segment, 8 V K bytes a head. Bound: bandwidth.
//
// Both products with the old row come from one pass: o = exp(g) s.q + u (k.q), and l2norm is a
// factor on s.k, s.q, k.q, so q and k are used as
// the convolution left them (gdn_step.h). The blocks of one key head form a cluster: all of them
// convolve its q and k, and block 0 stores their windows once all have read them. With the layer's
// gated norm the blocks of a value head send each other their sums of squares, a few tokens at a
// time.

#include <algorithm>

#include "kernels/cuda/gdn_step.h"
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
  Barrier sent[2];                   // a turn's squares are here
};

/// Each thread's window before a segment's own rows.
template <int Owned, bool Kept>
struct KeptWindow {
  float x[Owned][kWidth - 1][kThreads];
};
template <int Owned>
struct KeptWindow<Owned, false> {};

template <int K, int V, int Rows, bool Kept>
struct Shared {
  Token<K, Rows> tokens[2];
  Outputs<V, Rows> outputs;
  KeptWindow<Tile<K, V, Rows>::kOwned, Kept> window;
};

/// `Kept`: built for slots with kept rows (gdn_slots.h).
template <int K, int V, int Rows, class State, bool Kept>
class Block {
  using T = Tile<K, V, Rows>;

 public:
  __device__ Block(const GdnView& p, Shared<K, V, Rows, Kept>& shared) : p_(p), shared_(shared) {
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
      if (threadIdx.x == 0) {
        for (Barrier& barrier : shared_.outputs.sent) barrier_init(&barrier, 1);
        fence_barrier_init();
      }
      __syncthreads();
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
    const GdnSlots slots = slots_of(first_);
    const int read = slots.read;
    if (read < 0 || read >= p_.num_slots) return;
    if constexpr (Kept) prefetch_kept(slots);
    const State* row = state(read, 0);
    constexpr int kLine = 128 / sizeof(State);
    for (int i = static_cast<int>(threadIdx.x) * kLine; i < Rows * K; i += kThreads * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row - group_ * K + i));
    }
  }

  /// All blocks of the cluster have begun.
  __device__ void meet() const {
    if (p_.z != nullptr) cluster_wait();
  }

  __device__ void run() {
    for (int s = first_; s < last_; ++s) {
      if (s > first_) cluster_sync();  // the windows of the segments before are written
      run_segment(p_.cu_q[s], p_.cu_q[s + 1], slots_of(s));
    }
  }

 private:
  __device__ GdnSlots slots_of(int segment) const {
    if constexpr (Kept) return gdn_slots(p_, segment);
    return {p_.read_slot[segment], p_.write_slot[segment]};
  }
  /// Kept rows are older than what L2 holds: two lines of q and of k, the slice's v, the gates.
  __device__ void prefetch_kept(const GdnSlots& slots) const {
    constexpr int kLines = 6, kLine = 64;
    for (int i = static_cast<int>(threadIdx.x); i < slots.count * kLines; i += kThreads) {
      const __nv_bfloat16* row = p_.kept(slots.read, i / kLines);
      const int line = i % kLines;
      const void* at = line < 2   ? row + hk_ * K + line * (K - kLine)
                       : line < 4 ? row + p_.k_channel(hk_) + (line - 2) * (K - kLine)
                       : line == 4
                           ? row + p_.v_channel(hv_) + row_
                           : static_cast<const void*>(p_.kept_gates(slots.read, i / kLines) + hv_);
      asm volatile("prefetch.global.L2 [%0];" ::"l"(at));
    }
  }
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

  /// Kept rows first, whose outputs nobody wants: at [-slots.count, 0) from `begin`.
  __device__ void run_segment(int begin, int end, const GdnSlots& slots) {
    const int read = slots.read, write = slots.write, kept = Kept ? slots.count : 0;
    if (begin - kept < end) load_inputs(begin - kept, begin, read, kept);
    __nv_bfloat16 z[T::kNormed];
    load_z(begin, end, z);
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
    int turn = 0;  // of the two tokens
    if constexpr (Kept) {
      for (int t = begin - kept; t < begin; ++t, turn ^= 1) {
        Token<K, Rows>& token = shared_.tokens[turn];
        convolve(token);
        if (t + 1 < end) load_inputs(t + 1, begin, read, kept);
        __syncthreads();
        advance(token);
      }
      if (slots.keep >= 0) store_state(slots.keep);
#pragma unroll
      for (int i = 0; i < T::kOwned; ++i) {
#pragma unroll
        for (int j = 0; j < kWidth - 1; ++j) shared_.window.x[i][j][threadIdx.x] = window_[i][j];
      }
    }
    cluster_arrive();  // this block has read windows and kept rows
    bool met = false;
    const auto keep_window = [&] {
      if constexpr (Kept) {
        if (met || slots.keep < 0) return;
        cluster_wait();
        met = true;
        store_windows(slots.keep,
                      [&](int i, int j) { return shared_.window.x[i][j][threadIdx.x]; });
      }
    };
    int t = begin, first = begin;
    do {
      for (; t < min(first + kBatch, end); ++t, turn ^= 1) {
        Token<K, Rows>& token = shared_.tokens[turn];
        [[maybe_unused]] Inputs inputs;
        if constexpr (Kept) inputs = inputs_;
        convolve(token);
        if (t + 1 < end) load_inputs(t + 1, begin, read, kept);
        __syncthreads();
        step(t, t - first, token);
        if constexpr (Kept) {
          keep_window();
          if (slots.keep >= 0) store_inputs(slots.keep, t - begin, inputs);
        }
      }
      // The state is stored while the squares are on their way.
      const bool norm = p_.z != nullptr && first < t;
      if (norm) begin_norm(t - first);
      if (t == end && write >= 0) store_state(write);
      if (norm) end_norm(first, t - first, z);
      if (t < end) load_z(t, end, z);
      first = t;
    } while (t < end);
    keep_window();
    if (!met) cluster_wait();
    if (write >= 0) store_windows(write, [&](int i, int j) { return window_[i][j]; });
    __syncthreads();  // the tokens are free for the next segment
  }

  __device__ void store_state(int slot) const {
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      store_row<T::kLanes>(state(slot, pass), lane_, s_[pass]);
    }
  }

  /// What a token takes of this thread.
  struct Inputs {
    __nv_bfloat16 x[T::kOwned];
    float a, b;
  };
  /// Of row t of a segment that begins at `begin` behind `kept` kept rows of slot `read`.
  __device__ void load_inputs(int t, int begin, int read, int kept) {
    if (Kept && t < begin) {
      const __nv_bfloat16* row = p_.kept(read, t - begin + kept);
      const float* gates = p_.kept_gates(read, t - begin + kept) + hv_;
#pragma unroll
      for (int i = 0; i < T::kOwned; ++i) inputs_.x[i] = row[channel(i)];
      inputs_.a = gates[0];
      inputs_.b = gates[p_.value_heads];
      return;
    }
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) inputs_.x[i] = p_.qkv[t * p_.qkv_row + channel(i)];
    inputs_.a = p_.a[t * p_.a_row + hv_];
    inputs_.b = p_.b[t * p_.b_row + hv_];
  }
  __device__ void store_inputs(int slot, int kept, const Inputs& inputs) const {
    __nv_bfloat16* row = p_.kept(slot, kept);
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      if (stores_channel(i)) row[channel(i)] = inputs.x[i];
    }
    if (row_ == 0 && threadIdx.x == 0) {
      float* gates = p_.kept_gates(slot, kept) + hv_;
      gates[0] = inputs.a;
      gates[p_.value_heads] = inputs.b;
    }
  }
  /// Of the next kBatch tokens from `first` on.
  __device__ void load_z(int first, int end, __nv_bfloat16 (&z)[T::kNormed]) const {
    if (p_.z == nullptr) return;
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int t = first + static_cast<int>(threadIdx.x) / Rows + i * T::kTokens;
      if (t < end) {
        z[i] = p_.z[t * p_.z_row + hv_ * p_.z_head + row_ + static_cast<int>(threadIdx.x) % Rows];
      }
    }
  }

  __device__ void convolve(Token<K, Rows>& token) {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      const float y = gdn_convolve(taps_[i], window_[i], __bfloat162float(inputs_.x[i]));
      if (has_channel(i)) token.y[threadIdx.x + i * kThreads] = y;
    }
    if (threadIdx.x == kThreads - 1) {
      token.decay = gdn_decay(inputs_.a, rate_, bias_);
      token.beta = gdn_beta(inputs_.b);
    }
  }

  /// A kept row: the state goes on.
  __device__ void advance(const Token<K, Rows>& token) {
    const GdnKey<K, State> key(token.y + K, lane_);
    const float decay = token.decay, beta = token.beta;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      key.advance(s_[pass], token.y[2 * K + pass * T::kGroups + group_], decay, beta);
    }
  }

  __device__ void step(int t, int at, const Token<K, Rows>& token) {
    const GdnQueryKey<K, State> qk(token.y, token.y + K, lane_);
    const float decay = token.decay, beta = token.beta;
    __nv_bfloat16* out = p_.out + t * p_.out_row + hv_ * p_.out_head + row_;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      const int row = pass * T::kGroups + group_;
      const float o = qk.step(s_[pass], token.y[2 * K + row], decay, beta);
      if (lane_ != 0) continue;
      if (p_.z == nullptr) {
        out[row] = __float2bfloat16_rn(o);
      } else {
        shared_.outputs.o[at][row] = o;
      }
    }
  }

  __device__ int turn() const {
    return turns_ % 2;
  }

  /// Sends the sums of squares of `count` tokens to the head's blocks, this one too.
  __device__ void begin_norm(int count) {
    Outputs<V, Rows>& outputs = shared_.outputs;
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    if (thread == 0) arrive_expect(&outputs.sent[turn()], count * V / 32 * sizeof(float));
    for (int i = thread / 32; i < count * T::kUnits; i += kThreads / 32) {
      const int unit = i % T::kUnits, at = i / T::kUnits;
      const float o = outputs.o[at][32 * unit + lane];
      const float sum = sum_lanes<32>(o * o);
      if (lane < T::kSlices) {
        send_remote(&outputs.squares[turn()][at][row_ / 32 + unit], &outputs.sent[turn()],
                    static_cast<uint32_t>(rank_ / T::kSlices * T::kSlices + lane), sum);
      }
    }
  }

  /// Waits for the others' and writes the outputs. A head's squares are added in one order however
  /// it is cut into blocks. A block sends the next turn but one only after it has what this block
  /// sent after reading this one.
  __device__ void end_norm(int first, int count, const __nv_bfloat16 (&z)[T::kNormed]) {
    Outputs<V, Rows>& outputs = shared_.outputs;
    wait(&outputs.sent[turn()], static_cast<uint32_t>(turns_ / 2) & 1);
    const int row = static_cast<int>(threadIdx.x) % Rows;
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int at = static_cast<int>(threadIdx.x) / Rows + i * T::kTokens;
      if (at >= count) continue;
      float squares[V / 32];
#pragma unroll
      for (int j = 0; j < V / 32; ++j) squares[j] = outputs.squares[turn()][at][j];
      p_.out[(first + at) * p_.out_row + hv_ * p_.out_head + row_ + row] = __float2bfloat16_rn(
          gdn_normed<V>(p_, outputs.o[at][row], squares, weight_, __bfloat162float(z[i])));
    }
    ++turns_;
  }

  /// All blocks of the cluster have q and k: the first one stores their channels.
  __device__ bool stores_channel(int i) const {
    const bool shared = static_cast<int>(threadIdx.x) + i * kThreads < 2 * K;
    return has_channel(i) && (!shared || rank_ == 0);
  }
  template <class Value>
  __device__ void store_windows(int slot, const Value& value) const {
#pragma unroll
    for (int i = 0; i < T::kOwned; ++i) {
      if (!stores_channel(i)) continue;
      float* window = p_.windows + slot * p_.window_slot + channel(i);
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) window[j * p_.window_row] = value(i, j);
    }
  }

  const GdnView& p_;
  Shared<K, V, Rows, Kept>& shared_;
  int turns_ = 0;
  float weight_ = 0;
  int chain_, hk_, hv_, row_, rank_, lane_, group_, first_, last_;
  float taps_[T::kOwned][kWidth], window_[T::kOwned][kWidth - 1];
  Inputs inputs_;
  float rate_, bias_;
  float s_[T::kPasses][16];
};

template <int K, int V, int Rows, class State, bool Kept>
__global__ void __launch_bounds__(kThreads, Rows == 64 || Kept ? 3 : 4)
    gdn_decode_kernel(const __grid_constant__ GdnView p) {
  __shared__ Shared<K, V, Rows, Kept> shared;
  Block<K, V, Rows, State, Kept> block(p, shared);
  block.prepare();
  block.meet();
  wait_for_predecessor();
  let_successor_begin();
  block.run();
}

template <int K, int V, int Rows, class State = float>
bool try_tile(Stream& stream, const GdnView& p, const GdnChains& chains) {
  const int cluster = p.value_heads / p.key_heads * Tile<K, V, Rows>::kSlices;
  if (cluster > kMaxCluster) return false;
  const LaunchShape shape{.grid = static_cast<unsigned>(chains.count * p.key_heads * cluster),
                          .block = kThreads,
                          .cluster = static_cast<unsigned>(cluster),
                          .overlap = chains.overlap};
  if (p.kept_row > 0) {
    launch(stream, shape, gdn_decode_kernel<K, V, Rows, State, true>, p);
  } else {
    launch(stream, shape, gdn_decode_kernel<K, V, Rows, State, false>, p);
  }
  return true;
}

}  // namespace

bool gdn_decode(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  p.first_chain = first;
  const GdnShape& s = args.shape;
  static_assert(kWidth == 4);
  if (!gdn_decode_supports(s) || p.state_slot % 8 != 0 || p.state_head % 8 != 0) return false;
  const GdnChains chains = gdn_chains(first, count);
  // Small tiles only where they are needed to reach every multiprocessor; the bits are the same.
  const bool small = int64_t{count} * s.value_heads < 128;
  if (s.key_dim == 128 && p.half_states) {
    using Bf16 = __nv_bfloat16;
    return (small && try_tile<128, 128, 32, Bf16>(stream, p, chains)) ||
           try_tile<128, 128, 64, Bf16>(stream, p, chains);
  }
  if (p.half_states) return false;
  if (s.key_dim == 128) {
    return (small && try_tile<128, 128, 32>(stream, p, chains)) ||
           try_tile<128, 128, 64>(stream, p, chains);
  }
  return (small && try_tile<64, 64, 32>(stream, p, chains)) ||
         try_tile<64, 64, 64>(stream, p, chains);
}

}  // namespace weft::cuda
