// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q for a few chains of several tokens
// (verification) and for slots with kept rows (gdn_slots.h): gdn_decode.cu's function in another
// order, bit for bit. docs/kernels/gated_delta.md
//
// Tile: that of gdn_decode.cu. Of the tokens only the state depends on those before. So up to 8 are
// convolved at once, two neighbouring channels a thread, while the last warp makes their gates, a
// lane a token; then a warp makes the factors of a token's q and k, while the others have begun
// with the first token's products. What is left one after the other is s.k, u and the update.
// Bound: latency of that chain.

#include "kernels/cuda/gdn_block.h"

namespace weft::cuda {
namespace {

// Where few blocks run, a thread has a part of one row of S: two warps a scheduler.
template <int K, int Rows>
inline constexpr int kVerifyThreads = K == 128 && Rows == 32 ? 256 : kGdnBlockThreads;
// There the lanes of a row lie apart in their warp: neighbours read the same piece of q and k.
template <int K, int Rows>
inline constexpr int kStride = kVerifyThreads<K, Rows> == 256 ? 32 / (K / 16) : 1;
constexpr int kBatch = kGdnBatch;  // rows that are convolved together
constexpr int kPart = 4;           // of them without a branch

template <int K, int V, int Rows>
struct Shared {
  // q, k and the slice's v after the convolution; neighbouring rows lie in other banks.
  alignas(16) float y[kBatch][2 * K + Rows + K / 16];
  float decay[kBatch], beta[kBatch];
  GdnFactors factors[kBatch];
  float2 inputs[3 + kBatch][K + Rows / 2];  // pairs of channels: the window, then the batch's rows
  GdnOutputs<V, Rows> outputs;
};

/// `Kept`: built for slots with kept rows.
template <int K, int V, int Rows, class State, bool Kept>
class Block : GdnBlock<K, V, Rows, State, Kept, kVerifyThreads<K, Rows>, kStride<K, Rows>> {
  using Base = GdnBlock<K, V, Rows, State, Kept, kVerifyThreads<K, Rows>, kStride<K, Rows>>;
  using Base::p_, Base::hk_, Base::hv_, Base::row_, Base::rank_, Base::first_, Base::last_,
      Base::lane_;
  using typename Base::T;
  using Token = GdnQueryKey<K, State, kStride<K, Rows>>;
  static constexpr int kThreads = kVerifyThreads<K, Rows>;
  static constexpr int kPairs = K + Rows / 2;  // of channels: of q, of k, of the slice's v
  static constexpr int kOwned = (kPairs + kThreads - 1) / kThreads;  // a thread

 public:
  __device__ Block(const GdnView& p, Shared<K, V, Rows>& shared)
      : Base(p, shared.outputs), shared_(shared), thread_(static_cast<int>(threadIdx.x)) {}

  /// What may be done before the kernels in front have finished.
  __device__ void prepare() {
    this->prepare_norm();
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int at = 2 * min(pair(i), kPairs - 1);
      channels_[i] = at < K       ? hk_ * K + at
                     : at < 2 * K ? p_.k_channel(hk_) + at - K
                                  : p_.v_channel(hv_) + row_ + at - 2 * K;
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float* w = p_.conv + (channels_[i] + c) * p_.conv_row;
#pragma unroll
        for (int j = 0; j < 4; ++j) taps_[i][c][j] = w[j];
      }
    }
    this->find_chain();
    if (first_ == last_) return;
    if (Kept) prefetch(this->first_segment_.slots);
    locate(this->first_segment_);
  }
  using Base::meet;

  __device__ void run() {
#pragma unroll 1
    for (int s = first_; s < last_; ++s) {
      if (s > first_) cluster_sync();  // the windows of the segments before are written
      const GdnSegment segment = s == first_ ? this->first_segment_ : this->segment(s);
      if (s > first_) locate(segment);
      run_segment(segment);
    }
  }

 private:
  /// Pair i of this thread.
  __device__ __forceinline__ int pair(int i) const {
    return thread_ + i * kThreads;
  }
  __device__ __forceinline__ bool has_pair(int i) const {
    return pair(i) < kPairs;
  }
  /// All blocks of the cluster have q and k: the first one stores their channels.
  __device__ __forceinline__ bool stores_pair(int i) const {
    return has_pair(i) && (pair(i) >= K || rank_ == 0);
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

  /// Where a segment's first rows, window and state lie. Opaque, or the compiler would work it out
  /// where it is used, behind the wait for the kernels in front. Not pointers: of opaque ones it
  /// doesn't know that they are global.
  __device__ __forceinline__ void locate(const GdnSegment& segment) {
    const GdnSlots& slots = segment.slots;
    const int64_t first = int64_t{segment.begin} - slots.count;
    at_.rows = first * p_.qkv_row + channels_[0];
    at_.a = (first + gate_row()) * p_.a_row + hv_;
    at_.b = (first + gate_row()) * p_.b_row + hv_;
    at_.window = max(slots.read, 0) * p_.window_slot + channels_[0];
    at_.state = this->state(max(slots.read, 0), 0) - static_cast<State*>(p_.states);
    asm volatile("" : "+l"(at_.rows), "+l"(at_.a), "+l"(at_.b), "+l"(at_.window), "+l"(at_.state));
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
      load_inputs(slots, v, count);
      __nv_bfloat16 z[T::kNormed];
      this->load_z(first + own, first + count, z);
      if (v == 0) {
        load_window(slots.read);
        load_state(slots.read);
      } else {
        next_window();
      }
      let_successor_begin();  // its states don't hold up what this kernel waits for
      convolve(count);
      if (!arrived && slots.count <= v + count) {
        __syncwarp();
        cluster_arrive_relaxed();  // this block has used windows and kept rows
        arrived = true;
      }
      __syncthreads();
      make_factors(count);
      if (own > 0) {
        __syncthreads();  // all factors are made
        advance(own);
      }
      if (slots.keep >= 0 && v <= slots.count && slots.count <= v + count &&
          (own < count || v + count == rows)) {
        this->store_state(slots.keep);
      }
#pragma unroll 1
      for (int j = own; j < count; ++j) {
        step(j, j - own, j == 0);
      }
      // The state is stored while the squares are on their way.
      const bool norm = p_.z != nullptr && own < count, ends = v + count == rows;
      if (norm) this->begin_norm(count - own);
      if (ends && slots.write >= 0) this->store_state(slots.write);
      if (norm) this->end_norm(first + own, count - own, z);
      if (p_.z == nullptr) {
        __syncthreads();
        this->write_outputs(first + own, count - own);
      }
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
    return *reinterpret_cast<const uint32_t*>(row + (channels_[i] - channels_[0]));
  }
  /// Of rows [v, v + count).
  __device__ __forceinline__ void load_inputs(const GdnSlots& slots, int v, int count) {
    const __nv_bfloat16* own = p_.qkv + at_.rows + v * p_.qkv_row;
    const auto* kept = reinterpret_cast<const char*>(p_.kept(max(slots.read, 0), v) + channels_[0]);
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      const __nv_bfloat16* row =
          Kept && v + j < slots.count
              ? reinterpret_cast<const __nv_bfloat16*>(kept + j * p_.kept_row)
              : own + j * p_.qkv_row;
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        x_[i][j] = 0;
        if (j < count && has_pair(i)) x_[i][j] = load_pair(row, i);
      }
    }
    const int gate = v + gate_row();
    const float *a = p_.a + at_.a + v * p_.a_row, *b = p_.b + at_.b + v * p_.b_row;
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
    const float* window = p_.windows + at_.window - channels_[0];
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
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
  __device__ __forceinline__ void load_state(int read) {
    const State* state = static_cast<const State*>(p_.states) + at_.state;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      if (read < 0) {
#pragma unroll
        for (int j = 0; j < 16; ++j) this->s_[pass][j] = 0;
      } else {
        load_row<T::kLanes>(state + pass * T::kGroups * K, lane_, this->s_[pass]);
      }
    }
  }

  /// Behind a whole batch.
  __device__ __forceinline__ void next_window() {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (has_pair(i)) window_[i][j] = shared_.inputs[kBatch + j][pair(i)];
      }
    }
  }

  /// The rows that are loaded, into shared memory.
  __device__ __forceinline__ void convolve(int count) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      if (has_pair(i)) convolve_pair(i, count);
    }
    if (makes_gates() && gate_row() < count) {
      shared_.decay[gate_row()] = gdn_decay(a_, this->rate_, this->bias_);
      shared_.beta[gate_row()] = gdn_beta(b_);
    }
  }
  __device__ __forceinline__ void convolve_pair(int i, int count) {
    float2(&window)[3] = window_[i];
#pragma unroll
    for (int j = 0; j < 3; ++j) shared_.inputs[j][pair(i)] = window[j];
#pragma unroll
    for (int begin = 0; begin < kBatch; begin += kPart) {
      if (begin >= count) continue;
#pragma unroll
      for (int j = begin; j < begin + kPart; ++j) {
        const float2 x = {__uint_as_float(x_[i][j] << 16), __uint_as_float(x_[i][j] & 0xffff0000u)};
        float low[3] = {window[0].x, window[1].x, window[2].x};
        float high[3] = {window[0].y, window[1].y, window[2].y};
        const float2 out = {gdn_convolve(taps_[i][0], low, x.x),
                            gdn_convolve(taps_[i][1], high, x.y)};
        window[0] = window[1];
        window[1] = window[2];
        window[2] = x;
        shared_.inputs[3 + j][pair(i)] = x;
        // Rows beyond the last are zeros, which nobody reads.
        *reinterpret_cast<float2*>(&shared_.y[j][2 * pair(i)]) = out;
      }
    }
  }

  /// Of the rows' q and k: a row in a warp, or more in groups of lanes.
  __device__ __forceinline__ void make_factors(int count) const {
    constexpr int kWarps = kThreads / 32, kRows = kBatch / kWarps;  // of a warp
    static_assert(kBatch % kWarps == 0 && kRows <= 32 / T::kLanes);
    const int warp = thread_ / 32, group = this->group_ % (32 / T::kLanes);
    const int j = warp + group % kRows * kWarps;
    if (warp >= count) return;
    const float* y = shared_.y[min(j, count - 1)];
    const Token both(y, y + K, lane_, typename Token::Together{});
    if (lane_ == 0 && group < kRows && j < count) shared_.factors[j] = both.factors();
  }

  /// The batch's first rows, for the state alone.
  __device__ __forceinline__ void advance(int count) {
#pragma unroll 1
    for (int j = 0; j < count; ++j) {
      const float* y = shared_.y[j];
      const GdnKey<K, State, kStride<K, Rows>> key(y + K, lane_, shared_.factors[j].k);
      float v[T::kPasses];
      this->load_values(y + 2 * K, v);
      key.advance(this->s_, v, shared_.decay[j], shared_.beta[j]);
    }
  }

  /// Row j of the batch, number `at` of those with outputs. `first`: factors may be under way.
  __device__ __forceinline__ void step(int j, int at, bool first) {
    const float* y = shared_.y[j];
    Token token(y, y + K, lane_, GdnFactors{});
    float sums[2 * T::kPasses], v[T::kPasses], o[T::kPasses];
    token.products(this->s_, sums);
    if (first) __syncthreads();
    token.set_factors(shared_.factors[j]);
    this->load_values(y + 2 * K, v);
    token.step(this->s_, sums, v, shared_.decay[j], shared_.beta[j], o);
    if (lane_ != 0) return;
#pragma unroll
    for (int pass = 0; pass < T::kPasses; ++pass) {
      shared_.outputs.o[at][pass * T::kGroups + this->group_] = o[pass];
    }
  }

  /// When all blocks of the cluster have read theirs: windows of the slots that the segment writes,
  /// and what it keeps of rows [v, v + count), of which those from `own` on are no kept ones.
  __device__ __forceinline__ void store_inputs(const GdnSlots& slots, int v, int own, int count,
                                               bool ends) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      if (!stores_pair(i)) continue;
      const auto store_window = [&](int slot, int row) {
        float* window = p_.windows + slot * p_.window_slot + channels_[i];
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          *reinterpret_cast<float2*>(window + j * p_.window_row) = shared_.inputs[row + j][pair(i)];
        }
      };
      if (ends && slots.write >= 0) store_window(slots.write, count);
      if (slots.keep < 0) continue;
      if (v <= slots.count && slots.count <= v + count && (own < count || ends)) {
        store_window(slots.keep, own);
      }
#pragma unroll 1
      for (int j = own; j < count; ++j) {
        const float2 x = shared_.inputs[3 + j][pair(i)];
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
  struct {
    int64_t rows, a, b, window, state;  // elements
  } at_;                                // of the segment
  int channels_[kOwned];                // the first of each pair
  float taps_[kOwned][2][4];
  float2 window_[kOwned][3];    // before the batch
  uint32_t x_[kOwned][kBatch];  // of bf16
  float a_ = 0, b_ = 0;
};

template <int K, int V, int Rows, class State, bool Kept>
__global__ void __launch_bounds__(kVerifyThreads<K, Rows>, kVerifyThreads<K, Rows> == 256 ? 2 : 3)
    gdn_verify_kernel(const __grid_constant__ GdnView p) {
  __shared__ Shared<K, V, Rows> shared;
  Block<K, V, Rows, State, Kept> block(p, shared);
  block.prepare();
  block.meet();
  wait_for_predecessor();
  block.run();
}

template <int K, int V, int Rows, class State>
struct Plain {
  static constexpr int kThreads = kVerifyThreads<K, Rows>;
  static constexpr auto kernel = gdn_verify_kernel<K, V, Rows, State, false>;
};
template <int K, int V, int Rows, class State>
struct Keeping {
  static constexpr int kThreads = kVerifyThreads<K, Rows>;
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
