// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, one token after the other, with
// convolution, SiLU, l2norm and gates in front: one kernel. docs/kernels/gated_delta.md
//
// Tile: kRows rows of S [V, K] of one value head in registers while a chain's tokens pass. Moved:
// S once read and once written a segment, 8 V K bytes a head. Bound: bandwidth.
//
// Both products with the old row come from one pass: o = exp(g) s.q + u (k.q), and l2norm is a
// factor on s.k, s.q, k.q, so q and k are used as the convolution left them (gdn_step.h). The
// blocks of one key head form a cluster: all of them convolve its q and k, and block 0 stores their
// windows once all have read them. With the layer's gated norm the blocks of a value head send each
// other their sums of squares, a few tokens at a time (gdn_block.h). Segments of several tokens:
// gdn_verify.cu, the same bits sooner.

#include "kernels/cuda/gdn_block.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = kGdnBlockThreads;
constexpr int kWidth = 4;

/// A token as the block's threads see it.
template <int K, int Rows>
struct Token {
  alignas(16) float y[2 * K + Rows];  // q, k and the slice's v after the convolution
  float decay, beta;
};

template <int K, int V, int Rows>
struct Shared {
  Token<K, Rows> tokens[2];
  GdnOutputs<V, Rows> outputs;
};

template <int K, int V, int Rows, class State>
class Block : GdnBlock<K, V, Rows, State, false> {
  using Base = GdnBlock<K, V, Rows, State, false>;
  using Base::p_, Base::hk_, Base::hv_, Base::row_, Base::rank_, Base::first_, Base::last_,
      Base::lane_;
  using typename Base::T;
  static constexpr int kChannels = 2 * K + Rows;                        // q, k, the slice's v
  static constexpr int kOwned = (kChannels + kThreads - 1) / kThreads;  // a thread
  // Four rows a thread and stores of whole pieces: registers in local memory.
  static constexpr GdnStore kStore =
      T::kPasses == 4 && sizeof(State) == 4 ? GdnStore::kWords : GdnStore::kPieces;

 public:
  __device__ Block(const GdnView& p, Shared<K, V, Rows>& shared)
      : Base(p, shared.outputs), shared_(shared) {}

  /// What may be done before the kernels in front have finished.
  __device__ void prepare() {
    this->prepare_norm();
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const float* w = p_.conv + channel(i) * p_.conv_row;
#pragma unroll
      for (int j = 0; j < kWidth; ++j) taps_[i][j] = w[j];
    }
    this->find_chain();
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
  /// Channel i of this thread (a thread beyond the last channel repeats the last one).
  __device__ int channel(int i) const {
    const int at = min(static_cast<int>(threadIdx.x) + i * kThreads, kChannels - 1);
    return at < K       ? hk_ * K + at
           : at < 2 * K ? p_.k_channel(hk_) + at - K
                        : p_.v_channel(hv_) + row_ + at - 2 * K;
  }
  __device__ bool has_channel(int i) const {
    return static_cast<int>(threadIdx.x) + i * kThreads < kChannels;
  }

  __device__ void run_segment(const GdnSegment& segment) {
    const auto [begin, end, slots] = segment;
    const int read = slots.read, write = slots.write;
    if (begin < end) load_inputs(begin);
    __nv_bfloat16 z[T::kNormed];
    this->load_z(begin, end, z);
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const float* window = p_.windows + read * p_.window_slot + channel(i);
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) {
        window_[i][j] = read < 0 ? 0.0f : window[j * p_.window_row];
      }
    }
    this->load_state(read);
    bool arrived = false;
    int turn = 0;  // of the two tokens
    int t = begin, first = begin;
    do {
#pragma unroll 1
      for (; t < min(first + kGdnBatch, end); ++t, turn ^= 1) {
        Token<K, Rows>& token = shared_.tokens[turn];
        convolve(token);
        if (!arrived) {
          __syncwarp();
          cluster_arrive_relaxed();  // this block has used the windows
          arrived = true;
        }
        if (t + 1 < end) load_inputs(t + 1);
        __syncthreads();
        this->step(t, t - first, GdnQueryKey<K, State>(token.y, token.y + K, lane_),
                   token.y + 2 * K, token.decay, token.beta);
      }
      // The state is stored while the squares are on their way.
      const bool norm = p_.z != nullptr && first < t;
      if (norm) this->begin_norm(t - first);
      if (t == end && write >= 0) this->template store_state<kStore>(write);
      if (norm) this->end_norm(first, t - first, z);
      if (t < end) this->load_z(t, end, z);
      first = t;
    } while (t < end);
    if (!arrived) cluster_arrive();
    cluster_wait();
    if (write >= 0) store_windows(write);
    __syncthreads();  // the tokens are free for the next segment
  }

  /// What a token takes of this thread.
  struct Inputs {
    __nv_bfloat16 x[kOwned];
    float a, b;
  };
  __device__ void load_inputs(int t) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) inputs_.x[i] = p_.qkv[t * p_.qkv_row + channel(i)];
    inputs_.a = p_.a[t * p_.a_row + hv_];
    inputs_.b = p_.b[t * p_.b_row + hv_];
  }

  __device__ void convolve(Token<K, Rows>& token) {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const float y = gdn_convolve(taps_[i], window_[i], __bfloat162float(inputs_.x[i]));
      if (has_channel(i)) token.y[threadIdx.x + i * kThreads] = y;
    }
    if (threadIdx.x == kThreads - 1) {
      token.decay = gdn_decay(inputs_.a, this->rate_, this->bias_);
      token.beta = gdn_beta(inputs_.b);
    }
  }

  /// All blocks of the cluster have q and k: the first one stores their channels.
  __device__ bool stores_channel(int i) const {
    const bool shared = static_cast<int>(threadIdx.x) + i * kThreads < 2 * K;
    return has_channel(i) && (!shared || rank_ == 0);
  }
  __device__ void store_windows(int slot) const {
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      if (!stores_channel(i)) continue;
      float* window = p_.windows + slot * p_.window_slot + channel(i);
#pragma unroll
      for (int j = 0; j < kWidth - 1; ++j) window[j * p_.window_row] = window_[i][j];
    }
  }

  Shared<K, V, Rows>& shared_;
  float taps_[kOwned][kWidth], window_[kOwned][kWidth - 1];
  Inputs inputs_;
};

template <int K, int V, int Rows, class State>
__global__ void __launch_bounds__(kThreads, 3)
    gdn_decode_kernel(const __grid_constant__ GdnView p) {
  __shared__ Shared<K, V, Rows> shared;
  Block<K, V, Rows, State> block(p, shared);
  block.prepare();
  block.meet();
  wait_for_predecessor();
  let_successor_begin();
  block.run();
}

template <int K, int V, int Rows, class State>
struct Kernel {
  static constexpr int kThreads = kGdnBlockThreads;
  static constexpr auto kernel = gdn_decode_kernel<K, V, Rows, State>;
};

}  // namespace

bool gdn_decode(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  p.first_chain = first;
  static_assert(kWidth == 4);
  return p.kept_row == 0 &&
         GdnBlockLauncher<Kernel>::run(stream, args, p, gdn_chains(first, count));
}

}  // namespace weft::cuda
