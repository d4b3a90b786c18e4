// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q for a few chains of several tokens
// (verification) and for slots with kept rows (gdn_slots.h): gdn_decode.cu's function in another
// order, bit for bit. docs/kernels/gated_delta.md
//
// Tile: that of gdn_decode.cu. Of the tokens only the state depends on those before. So up to 8 are
// convolved at once, two neighbouring channels a thread, while the last warp makes their gates, a
// lane a token; then each warp makes the factors of their q and k, a group of lanes a token. What
// is left one after the other is s.k, u and the update. Bound: latency of that chain.

#include "kernels/cuda/gdn_block.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = kGdnBlockThreads, kWarps = kThreads / 32;
constexpr int kBatch = kGdnBatch;  // rows that are convolved together
constexpr int kPart = 4;           // of them without a branch

template <int K, int V, int Rows>
struct Shared {
  alignas(16) float y[kBatch][2 * K + Rows];  // q, k and the slice's v after the convolution
  float decay[kBatch], beta[kBatch];
  GdnFactors factors[kWarps][kBatch];  // each warp's own
  // Of q and k, of v, a pair of channels: the window, then the inputs of the batch.
  float2 qk[3 + kBatch][K];
  float2 v[3 + kBatch][Rows / 2];
  GdnOutputs<V, Rows> outputs;
};

/// `Kept`: built for slots with kept rows.
template <int K, int V, int Rows, class State, bool Kept>
class Block : GdnBlock<K, V, Rows, State, Kept> {
  using Base = GdnBlock<K, V, Rows, State, Kept>;
  using Base::p_, Base::hk_, Base::hv_, Base::row_, Base::rank_, Base::first_, Base::last_,
      Base::lane_;
  using typename Base::T;
  static_assert(2 * K <= 2 * kThreads && Rows <= 2 * kThreads);

 public:
  __device__ Block(const GdnView& p, Shared<K, V, Rows>& shared)
      : Base(p, shared.outputs), shared_(shared), thread_(static_cast<int>(threadIdx.x)) {}

  /// What may be done before the kernels in front have finished.
  __device__ void prepare() {
    this->prepare_norm();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int at = 2 * thread_;
      channels_[i] = i > 0    ? p_.v_channel(hv_) + row_ + min(at, Rows - 2)
                     : at < K ? hk_ * K + at
                              : p_.k_channel(hk_) + min(at, 2 * K - 2) - K;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float* w = p_.conv + (channels_[i] + c) * p_.conv_row;
#pragma unroll
        for (int j = 0; j < 4; ++j) taps_[i][c][j] = w[j];
      }
    }
    this->find_chain();
    if (Kept && first_ < last_) prefetch(this->first_segment_.slots);
  }
  using Base::meet;

  __device__ void run() {
#pragma unroll 1
    for (int s = first_; s < last_; ++s) {
      if (s > first_) cluster_sync();  // the windows of the segments before are written
      run_segment(s == first_ ? this->first_segment_ : this->segment(s));
    }
  }

 private:
  /// Pair 0 of a thread is of q or k, pair 1 of v.
  static constexpr int pairs(int i) {
    return i == 0 ? K : Rows / 2;
  }
  __device__ __forceinline__ bool has_pair(int i) const {
    return thread_ < pairs(i);
  }
  __device__ __forceinline__ float2* inputs(int i) const {
    return (i == 0 ? shared_.qk[0] : shared_.v[0]) + thread_;
  }
  /// All blocks of the cluster have q and k: the first one stores their channels.
  __device__ __forceinline__ bool stores_pair(int i) const {
    return has_pair(i) && (i == 1 || rank_ == 0);
  }
  __device__ __forceinline__ bool makes_gates() const {
    return thread_ >= kThreads - 32;
  }
  __device__ __forceinline__ int gate_row() const {
    return thread_ - (kThreads - 32);
  }

  /// Kept rows are older than what L2 holds: two lines of q and of k, the slice's v, the gates.
  __device__ void prefetch(const GdnSlots& slots) const {
    constexpr int kLines = 6, kLine = 64;
    if (slots.read < 0 || slots.read >= p_.num_slots) return;
#pragma unroll 1
    for (int i = thread_; i < slots.count * kLines; i += kThreads) {
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

  /// Rows are counted from the first kept one, whose outputs nobody wants.
  __device__ void run_segment(const GdnSegment& segment) {
    const GdnSlots& slots = segment.slots;
    const int rows = slots.count + segment.end - segment.begin;
    bool arrived = false, met = false;
    int v = 0;
    do {
      const int count = min(kBatch, rows - v);
      const int own = min(max(slots.count - v, 0), count);  // the first one with an output
      const int first = segment.begin - slots.count + v;    // of the step's rows
      load_inputs(segment, v, count);
      __nv_bfloat16 z[T::kNormed];
      this->load_z(first + own, first + count, z);
      if (v == 0) {
        load_window(slots.read);
        this->load_state(slots.read);
      } else {
        next_window();
      }
      convolve(count);
      if (!arrived && slots.count <= v + count) {
        cluster_arrive();  // this block has read windows and kept rows
        arrived = true;
      }
      __syncthreads();
      make_factors(count);
      advance(own);
      if (slots.keep >= 0 && v <= slots.count && slots.count <= v + count &&
          (own < count || v + count == rows)) {
        this->store_state(slots.keep);
      }
#pragma unroll 1
      for (int j = own; j < count; ++j) {
        const float* y = shared_.y[j];
        this->step_together(
            first + j, j - own,
            GdnQueryKey<K, State>(y, y + K, lane_, shared_.factors[thread_ / 32][j]), y + 2 * K,
            shared_.decay[j], shared_.beta[j]);
      }
      // The state is stored while the squares are on their way.
      const bool norm = p_.z != nullptr && own < count, ends = v + count == rows;
      if (norm) this->begin_norm(count - own);
      if (ends && slots.write >= 0) this->store_state(slots.write);
      if (norm) this->end_norm(first + own, count - own, z);
      if (ends || slots.keep >= 0) {
        if (arrived && !met) {
          cluster_wait();
          met = true;
        }
        store_inputs(slots, v, own, count, ends);
      }
      __syncthreads();  // y is free for the next rows
      v += count;
    } while (v < rows);
  }

  __device__ __forceinline__ uint32_t load_pair(const __nv_bfloat16* row, int i) const {
    return *reinterpret_cast<const uint32_t*>(row + channels_[i]);
  }
  /// Of rows [v, v + count).
  __device__ __forceinline__ void load_inputs(const GdnSegment& segment, int v, int count) {
    const GdnSlots& slots = segment.slots;
    const int64_t first = int64_t{segment.begin} - slots.count + v;
    const __nv_bfloat16* own = p_.qkv + first * p_.qkv_row;
    const auto* kept = reinterpret_cast<const char*>(p_.kept(max(slots.read, 0), v));
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const __nv_bfloat16* row =
          Kept && v + j < slots.count
              ? reinterpret_cast<const __nv_bfloat16*>(kept + j * p_.kept_row)
              : own + j * p_.qkv_row;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        x_[i][j] = 0;
        if (j < count && has_pair(i)) x_[i][j] = load_pair(row, i);
      }
    }
    const int gate = v + gate_row();
    const int64_t t = int64_t{segment.begin} - slots.count + gate;
    const float *a = p_.a + t * p_.a_row + hv_, *b = p_.b + t * p_.b_row + hv_;
    if (Kept && gate < slots.count) {
      a = p_.kept_gates(max(slots.read, 0), gate) + hv_;
      b = a + p_.value_heads;
    }
    if (makes_gates() && gate_row() < count) {
      a_ = *a;
      b_ = *b;
    }
  }
  __device__ __forceinline__ void load_window(int read) {
    const float* window = p_.windows + max(read, 0) * p_.window_slot;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        window_[i][j] = {0, 0};
        if (read >= 0 && has_pair(i)) {
          window_[i][j] =
              *reinterpret_cast<const float2*>(window + j * p_.window_row + channels_[i]);
        }
      }
    }
  }

  /// Behind a whole batch.
  __device__ __forceinline__ void next_window() {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (has_pair(i)) window_[i][j] = inputs(i)[(kBatch + j) * pairs(i)];
      }
    }
  }

  /// The rows that are loaded, into shared memory.
  __device__ __forceinline__ void convolve(int count) {
    convolve_pairs<0>(count);
    convolve_pairs<1>(count);
    if (makes_gates() && gate_row() < count) {
      shared_.decay[gate_row()] = gdn_decay(a_, this->rate_, this->bias_);
      shared_.beta[gate_row()] = gdn_beta(b_);
    }
  }
  template <int I>
  __device__ __forceinline__ void convolve_pairs(int count) {
    if (!has_pair(I)) return;
    float2* inputs = this->inputs(I);
    float* y = &shared_.y[0][(I == 0 ? 0 : 2 * K) + 2 * thread_];
    float2(&window)[3] = window_[I];
#pragma unroll
    for (int j = 0; j < 3; ++j) inputs[j * pairs(I)] = window[j];
#pragma unroll
    for (int begin = 0; begin < kBatch; begin += kPart) {
      if (begin >= count) continue;
#pragma unroll
      for (int j = begin; j < begin + kPart; ++j) {
        const float2 x = {__uint_as_float(x_[I][j] << 16), __uint_as_float(x_[I][j] & 0xffff0000u)};
        float low[3] = {window[0].x, window[1].x, window[2].x};
        float high[3] = {window[0].y, window[1].y, window[2].y};
        const float2 out = {gdn_convolve(taps_[I][0], low, x.x),
                            gdn_convolve(taps_[I][1], high, x.y)};
        window[0] = window[1];
        window[1] = window[2];
        window[2] = x;
        inputs[(3 + j) * pairs(I)] = x;
        // Rows beyond the last are zeros, which nobody reads.
        *reinterpret_cast<float2*>(y + j * (2 * K + Rows)) = out;
      }
    }
  }

  /// Of the rows' q and k: a group of lanes a row.
  __device__ __forceinline__ void make_factors(int count) const {
    constexpr int kGroups = 32 / T::kLanes;
    GdnFactors* factors = shared_.factors[thread_ / 32];
#pragma unroll 1
    for (int begin = 0; begin < count; begin += kGroups) {
      const int j = begin + thread_ % 32 / T::kLanes;
      const float* y = shared_.y[min(j, count - 1)];
      const GdnQueryKey<K, State> both(y, y + K, lane_, typename GdnQueryKey<K, State>::Together{});
      if (lane_ == 0 && j < count) factors[j] = both.factors();
    }
    __syncwarp();
  }

  /// The batch's first rows, for the state alone.
  __device__ __forceinline__ void advance(int count) {
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      const float* y = shared_.y[j];
      const GdnKey<K, State> key(y + K, lane_, shared_.factors[thread_ / 32][j].k);
      float v[T::kPasses];
      this->load_values(y + 2 * K, v);
      key.advance(this->s_, v, shared_.decay[j], shared_.beta[j]);
    }
  }

  /// When all blocks of the cluster have read theirs: windows of the slots that the segment writes,
  /// and what it keeps of rows [v, v + count), of which those from `own` on are no kept ones.
  __device__ __forceinline__ void store_inputs(const GdnSlots& slots, int v, int own, int count,
                                               bool ends) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      if (!stores_pair(i)) continue;
      const float2* inputs = this->inputs(i);
      const auto store_window = [&](int slot, int row) {
        float* window = p_.windows + slot * p_.window_slot + channels_[i];
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          *reinterpret_cast<float2*>(window + j * p_.window_row) = inputs[(row + j) * pairs(i)];
        }
      };
      if (ends && slots.write >= 0) store_window(slots.write, count);
      if (slots.keep < 0) continue;
      if (v <= slots.count && slots.count <= v + count && (own < count || ends)) {
        store_window(slots.keep, own);
      }
#pragma unroll 1
      for (int j = own; j < count; ++j) {
        const float2 x = inputs[(3 + j) * pairs(i)];
        *reinterpret_cast<uint32_t*>(p_.kept(slots.keep, v + j - slots.count) + channels_[i]) =
            pack_bf16(x.x, x.y);
      }
    }
    if (slots.keep >= 0 && row_ == 0 && makes_gates() && gate_row() >= own && gate_row() < count) {
      float* gates = p_.kept_gates(slots.keep, v + gate_row() - slots.count) + hv_;
      gates[0] = a_;
      gates[p_.value_heads] = b_;
    }
  }

  Shared<K, V, Rows>& shared_;
  int thread_;
  int channels_[2];  // the first of each pair
  float taps_[2][2][4];
  float2 window_[2][3];    // before the batch
  uint32_t x_[2][kBatch];  // of bf16
  float a_ = 0, b_ = 0;
};

template <int K, int V, int Rows, class State, bool Kept>
__global__ void __launch_bounds__(kThreads, 3)
    gdn_verify_kernel(const __grid_constant__ GdnView p) {
  __shared__ Shared<K, V, Rows> shared;
  Block<K, V, Rows, State, Kept> block(p, shared);
  block.prepare();
  block.meet();
  wait_for_predecessor();
  let_successor_begin();
  block.run();
}

template <int K, int V, int Rows, class State>
struct Plain {
  static constexpr auto kernel = gdn_verify_kernel<K, V, Rows, State, false>;
};
template <int K, int V, int Rows, class State>
struct Keeping {
  static constexpr auto kernel = gdn_verify_kernel<K, V, Rows, State, true>;
};

}  // namespace

bool gdn_verify(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  p.first_chain = first;
  const GdnChains chains = gdn_chains(first, count);
  return gdn_has_pairs(p) &&
         (p.kept_row > 0 ? GdnBlockLauncher<Keeping>::run(stream, args, p, chains)
                         : GdnBlockLauncher<Plain>::run(stream, args, p, chains));
}

}  // namespace weft::cuda
