#pragma once

// What the two kernels for few chains have in common (gdn_decode.cu: a token at a time,
// gdn_verify.cu: several): kRows rows of S [V, K] of one value head in a block's registers, the
// blocks of one key head a cluster, the layer's gated norm. docs/kernels/gated_delta.md

#include "kernels/cuda/gdn_step.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {

inline constexpr int kGdnBlockThreads = 128;  // where no other number is given
inline constexpr int kGdnMaxCluster = 8;
inline constexpr int kGdnBatch = 8;  // tokens that are normalised together

template <int K, int V, int Rows, int Threads>
struct GdnTile {
  static constexpr int kLanes = K / 16;                // a row of S
  static constexpr int kGroups = Threads / kLanes;     // rows at a time
  static constexpr int kPasses = Rows / kGroups;       // rows a thread has a part of
  static constexpr int kSlices = V / Rows;             // blocks a value head
  static constexpr int kUnits = Rows / 32;             // of rows, summed first
  static constexpr int kTokens = Threads / Rows;       // normalised at a time
  static constexpr int kNormed = kGdnBatch / kTokens;  // outputs a thread
  static_assert(Rows % kGroups == 0 && V % Rows == 0 && kGdnBatch % kTokens == 0);
};

/// Outputs that wait for the norm of their head.
template <int V, int Rows>
struct GdnOutputs {
  float o[kGdnBatch][Rows];
  float squares[2][kGdnBatch][V / 32];  // of 32 rows each, from all blocks of the head; by turns
  Barrier sent[2];                      // a turn's squares are here
};

/// A segment of a chain.
struct GdnSegment {
  int begin, end;
  GdnSlots slots;
};

/// `Kept`: built for slots with kept rows (gdn_slots.h).
/// `Stride`: how far a row's lanes lie apart in their warp.
template <int K, int V, int Rows, class State, bool Kept, int Threads = kGdnBlockThreads,
          int Stride = 1>
class GdnBlock {
 protected:
  using T = GdnTile<K, V, Rows, Threads>;

  __device__ GdnBlock(const GdnView& p, GdnOutputs<V, Rows>& outputs) : p_(p), outputs_(outputs) {
    const int blocks = p.group() * T::kSlices;
    const int rank = static_cast<int>(blockIdx.x) % blocks;
    const int unit = static_cast<int>(blockIdx.x) / blocks;
    hk_ = unit % p.key_heads;
    chain_ = p.first_chain + unit / p.key_heads;
    hv_ = hk_ * p.group() + rank / T::kSlices;
    row_ = rank % T::kSlices * Rows;
    rank_ = rank;
    const int lane = static_cast<int>(threadIdx.x) % 32, block = T::kLanes * Stride;
    lane_ = lane / Stride % T::kLanes;
    group_ = static_cast<int>(threadIdx.x) / block * Stride + lane % Stride;
  }

  /// Before the kernels in front have finished: barriers of the norm and its weight.
  __device__ void prepare_norm() {
    if (p_.z == nullptr) return;
    if (threadIdx.x == 0) {
      for (Barrier& barrier : outputs_.sent) barrier_init(&barrier, 1);
      fence_barrier_init();
    }
    __syncthreads();
    cluster_arrive();  // whoever waits for this may write into this block's memory
    weight_ = p_.norm_weight[row_ + static_cast<int>(threadIdx.x) % Rows];
  }
  /// All blocks of the cluster have begun.
  __device__ void meet() const {
    if (p_.z != nullptr) cluster_wait();
  }

  __device__ GdnSegment segment(int s) const {
    if constexpr (Kept) return {p_.cu_q[s], p_.cu_q[s + 1], gdn_slots(p_, s)};
    return {p_.cu_q[s], p_.cu_q[s + 1], {p_.read_slot[s], p_.write_slot[s]}};
  }
  /// Before the kernels in front have finished: gates' parameters, the chain and its first segment
  /// (slots and rows are from the host, older than any kernel of the step), whose state and window
  /// are on their way to L2 then.
  __device__ void find_chain() {
    rate_ = expf(p_.a_log[hv_]);
    bias_ = p_.dt_bias[hv_];
    first_ = p_.chains[chain_];
    last_ = p_.chains[chain_ + 1];
    if (first_ == last_) return;
    first_segment_ = segment(first_);
    const int read = first_segment_.slots.read;
    if (read < 0 || read >= p_.num_slots) return;
    const State* row = state(read, 0);
    constexpr int kLine = 128 / sizeof(State);
    for (int i = static_cast<int>(threadIdx.x) * kLine; i < Rows * K; i += Threads * kLine) {
      asm volatile("prefetch.global.L2 [%0];" ::"l"(row - group_ * K + i));
    }
    prefetch_window(read);
  }
  /// The window of q, k and the slice's v on its way to L2.
  __device__ void prefetch_window(int slot) const {
    constexpr int kLine = 32, kLines = (2 * K + Rows) / kLine;  // of a row
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < 3 * kLines; i += Threads) {
      const int at = i % kLines * kLine;
      const int channel = at < K       ? hk_ * K + at
                          : at < 2 * K ? p_.k_channel(hk_) + at - K
                                       : p_.v_channel(hv_) + row_ + at - 2 * K;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(p_.windows + slot * p_.window_slot +
                                                    i / kLines * p_.window_row + channel));
    }
  }

  /// Row `pass` of this thread in a slot.
  __device__ State* state(int slot, int pass) const {
    return static_cast<State*>(p_.states) + slot * p_.state_slot + hv_ * p_.state_head +
           int64_t{row_ + pass * T::kGroups + group_} * K;
  }
  __device__ void load_state(int slot) {
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      if (slot < 0) {
#pragma unroll
        for (int j = 0; j < 16; ++j) s_[pass][j] = 0;
      } else {
        load_row<T::kLanes>(state(slot, pass), lane_, s_[pass]);
      }
    }
  }
  template <GdnStore How = GdnStore::kPieces>
  __device__ void store_state(int slot) const {
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      store_row<T::kLanes, How>(state(slot, pass), lane_, s_[pass]);
    }
  }

  /// Row t of the step, number `at` of those that are normalised together; v from `values`.
  __device__ void step(int t, int at, const GdnQueryKey<K, State, Stride>& qk, const float* values,
                       float decay, float beta) {
    __nv_bfloat16* out = p_.out + t * p_.out_row + hv_ * p_.out_head + row_;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      const int row = pass * T::kGroups + group_;
      const float o = qk.step(s_[pass], values[row], decay, beta);
      if (lane_ != 0) continue;
      if (p_.z == nullptr) {
        out[row] = __float2bfloat16_rn(o);
      } else {
        outputs_.o[at][row] = o;
      }
    }
  }

  /// v of this thread's rows.
  __device__ __forceinline__ void load_values(const float* values, float (&v)[T::kPasses]) const {
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) v[pass] = values[pass * T::kGroups + group_];
  }

  /// z of the next kGdnBatch tokens from `first` on.
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
  __device__ int turn() const {
    return turns_ % 2;
  }
  /// Sends the sums of squares of `count` tokens to the head's blocks, this one too.
  __device__ void begin_norm(int count) {
    __syncthreads();
    const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
    if (thread == 0) arrive_expect(&outputs_.sent[turn()], count * V / 32 * sizeof(float));
#pragma unroll 1
    for (int i = thread / 32; i < count * T::kUnits; i += Threads / 32) {
      const int unit = i % T::kUnits, at = i / T::kUnits;
      const float o = outputs_.o[at][32 * unit + lane];
      const float sum = sum_lanes<32>(o * o);
      if (lane < T::kSlices) {
        send_remote(&outputs_.squares[turn()][at][row_ / 32 + unit], &outputs_.sent[turn()],
                    static_cast<uint32_t>(rank_ / T::kSlices * T::kSlices + lane), sum);
      }
    }
  }
  /// Waits for the others' and writes the outputs. A head's squares are added in one order however
  /// it is cut into blocks. A block sends the next turn but one only after it has what this block
  /// sent after reading this one.
  __device__ void end_norm(int first, int count, const __nv_bfloat16 (&z)[T::kNormed]) {
    wait(&outputs_.sent[turn()], static_cast<uint32_t>(turns_ / 2) & 1);
    const int row = static_cast<int>(threadIdx.x) % Rows;
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int at = static_cast<int>(threadIdx.x) / Rows + i * T::kTokens;
      if (at >= count) continue;
      float squares[V / 32];
#pragma unroll
      for (int j = 0; j < V / 32; ++j) squares[j] = outputs_.squares[turn()][at][j];
      p_.out[(first + at) * p_.out_row + hv_ * p_.out_head + row_ + row] = __float2bfloat16_rn(
          gdn_normed<V>(p_, outputs_.o[at][row], squares, weight_, __bfloat162float(z[i])));
    }
    ++turns_;
  }

  /// Outputs without a norm, when all of them are there.
  __device__ void write_outputs(int first, int count) const {
    const int row = static_cast<int>(threadIdx.x) % Rows;
#pragma unroll
    for (int i = 0; i < T::kNormed; ++i) {
      const int at = static_cast<int>(threadIdx.x) / Rows + i * T::kTokens;
      if (at >= count) continue;
      p_.out[(first + at) * p_.out_row + hv_ * p_.out_head + row_ + row] =
          __float2bfloat16_rn(outputs_.o[at][row]);
    }
  }

  const GdnView& p_;
  GdnOutputs<V, Rows>& outputs_;
  int turns_ = 0;
  float weight_ = 0;
  int chain_, hk_, hv_, row_, rank_, lane_, group_, first_, last_;
  GdnSegment first_segment_;
  float rate_, bias_;
  float s_[T::kPasses][16];
};

/// Launches Kernel<K, V, Rows, State>::kernel, of ::kThreads, for the shapes that it is for; false
/// for others.
template <template <int, int, int, class> class Kernel>
class GdnBlockLauncher {
 public:
  static bool run(Stream& stream, const GdnArgs& args, const GdnView& p, const GdnChains& chains) {
    const GdnShape& s = args.shape;
    if (!gdn_decode_supports(s) || p.state_slot % 8 != 0 || p.state_head % 8 != 0) return false;
    const int64_t heads = int64_t{chains.count} * s.value_heads;
    if (s.key_dim == 128 && p.half_states) {
      using Bf16 = __nv_bfloat16;
      return (small<128, 128, Bf16>(heads) && try_tile<128, 128, 32, Bf16>(stream, p, chains)) ||
             try_tile<128, 128, 64, Bf16>(stream, p, chains);
    }
    if (p.half_states) return false;
    if (s.key_dim == 128) {
      return (small<128, 128, float>(heads) && try_tile<128, 128, 32, float>(stream, p, chains)) ||
             try_tile<128, 128, 64, float>(stream, p, chains);
    }
    return (small<64, 64, float>(heads) && try_tile<64, 64, 32, float>(stream, p, chains)) ||
           try_tile<64, 64, 64, float>(stream, p, chains);
  }

 private:
  /// Small tiles only where they are needed to reach every multiprocessor; in larger blocks only
  /// one to each, or the next kernel's find no room beside them. The bits are the same.
  template <int K, int V, class State>
  static bool small(int64_t heads) {
    const bool large_blocks = Kernel<K, V, 32, State>::kThreads > kGdnBlockThreads;
    return large_blocks ? heads * (V / 32) <= num_processors() : heads < 128;
  }
  template <int K, int V, int Rows, class State>
  static bool try_tile(Stream& stream, const GdnView& p, const GdnChains& chains) {
    using Built = Kernel<K, V, Rows, State>;
    const int cluster = p.value_heads / p.key_heads * (V / Rows);
    if (cluster > kGdnMaxCluster) return false;
    launch(stream,
           {.grid = static_cast<unsigned>(chains.count * p.key_heads * cluster),
            .block = Built::kThreads,
            .cluster = static_cast<unsigned>(cluster),
            .overlap = chains.overlap},
           Built::kernel, p);
    return true;
  }
};

}  // namespace weft::cuda
