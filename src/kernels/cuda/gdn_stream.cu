// S <- exp(g) S;  u = beta (v - S k);  S <- S + u k^T;  o = S q, token by token, for many chains:
// gdn_decode.cu's function in another schedule, bit for bit. docs/kernels/gated_delta.md
//
// Tile: a value head's S [128, 128] in the registers of 8 warps. Moved: S once read and once
// written a segment, 8 V K bytes a head. Bound: bandwidth.
//
// A persistent block has one key head and goes through every so many chains. One more warp has the
// copy engine fetch the states of the heads to come into a ring, two norm the outputs; slots,
// inputs and windows of the next chain are loaded while the heads of this one pass: behind those
// loads stands a chain of dependent ones (chain, slot, window), which would take longer than a
// chain's states.

#include <algorithm>

#include "kernels/cuda/gdn_step.h"
#include "kernels/cuda/supports.h"

namespace weft::cuda {
namespace {

constexpr int kDim = 128;
constexpr int kThreads = 256;  // of the warps that compute
constexpr int kWarps = kThreads / 32;
// One more warpgroup: a thread fetches states, two warps finish outputs. What it has of registers
// goes to the others, whose inputs of the next chain must not be spilled (a spill waits for the
// load).
constexpr int kBlock = kThreads + 128;
constexpr int kFinishers = 2;  // warps, each with one of the two buffers of outputs
constexpr int kRegisters = 224, kHelperRegisters = 56;
constexpr int kLanes = kDim / 16;
constexpr int kGroups = kThreads / kLanes;  // rows at a time
constexpr int kPasses = kDim / kGroups;
constexpr int kBatch = 8;     // tokens that are convolved together
constexpr int kMaxGroup = 4;  // value heads a key head
constexpr int kRing = 3 * kDim * kDim * 4;

template <class State>
struct Shared {
  static constexpr int kStages = kRing / (kDim * kDim * static_cast<int>(sizeof(State)));
  alignas(128) State ring[kStages][kDim * kDim];
  float o[2][kBatch][kDim];  // by turns
  float decay[kBatch][kMaxGroup], beta[kBatch][kMaxGroup];
  GdnFactors
      factors[kBatch];  // where there are kept rows: several tokens' cost more than a meeting
  Barrier full[kStages], empty[kStages];
  Barrier o_full[2], o_empty[2];
  alignas(16) float y[1];  // [kBatch][2 K + group V]: q, k, v after the convolution
};

/// A ring's place.
template <int Stages>
struct Place {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// Segments of a chain.
struct Chain {
  int first = 0, last = 0;
};
/// A segment's rows are counted from its first kept one: those from slots.count on are the step's
/// from `begin` on.
struct Segment {
  int begin = 0, end = 0;
  GdnSlots slots;
  __device__ __forceinline__ int rows() const { return slots.count + end - begin; }
  __device__ __forceinline__ bool is_short() const { return rows() <= kBatch; }
  /// Whether anything becomes of the state in its read slot.
  __device__ __forceinline__ bool takes_state() const {
    return slots.read >= 0 && (rows() > 0 || slots.write >= 0 || slots.keep >= 0);
  }
};

/// Chain number i of this block, empty beyond the last one.
__device__ __forceinline__ Chain load_chain(const GdnView& p, int count, int i) {
  const int step = static_cast<int>(gridDim.x) / p.key_heads;
  const int chain = static_cast<int>(blockIdx.x) / p.key_heads + i * step;
  if (chain >= count) return {};
  return {p.chains[p.first_chain + chain], p.chains[p.first_chain + chain + 1]};
}
__device__ __forceinline__ int num_chains(const GdnView& p, int count) {
  const int step = static_cast<int>(gridDim.x) / p.key_heads;
  const int own = static_cast<int>(blockIdx.x) / p.key_heads;
  return (count - own + step - 1) / step;
}
template <bool Kept>
__device__ __forceinline__ Segment load_segment(const GdnView& p, int s) {
  if constexpr (Kept) return {p.cu_q[s], p.cu_q[s + 1], gdn_slots(p, s)};
  return {p.cu_q[s], p.cu_q[s + 1], {p.read_slot[s], p.write_slot[s]}};
}
template <bool Kept>
__device__ __forceinline__ Segment load_first(const GdnView& p, const Chain& chain) {
  return chain.first < chain.last ? load_segment<Kept>(p, chain.first) : Segment{};
}

template <class State>
__device__ __forceinline__ State* head_state(const GdnView& p, int slot, int hv) {
  return static_cast<State*>(p.states) + slot * p.state_slot + hv * p.state_head;
}

/// The first chain's states on their way to L2 while the kernels in front finish (the slot numbers
/// are from the host and older than any kernel of the step).
template <bool Kept, class State>
__device__ void prefetch(const GdnView& p, int count, int hk) {
  const int read = load_first<Kept>(p, load_chain(p, count, 0)).slots.read;
  if (read < 0 || read >= p.num_slots) return;
  for (int r = 0; r < p.group(); ++r) {
    bulk_prefetch(head_state<State>(p, read, hk * p.group() + r), kDim * kDim * sizeof(State));
  }
}

/// One thread: the first segment's states of all chains, in order.
template <bool Kept, class State>
__device__ void fetch(const GdnView& p, Shared<State>& shared, int count, int hk) {
  constexpr uint32_t kBytes = kDim * kDim * sizeof(State);
  Place<Shared<State>::kStages> place;
  const int group = p.group(), chains = num_chains(p, count);
  for (int i = 0; i < chains; ++i) {
    const Segment first = load_first<Kept>(p, load_chain(p, count, i));
    if (!first.takes_state()) continue;
    for (int r = 0; r < group; ++r) {
      wait(&shared.empty[place.stage], place.phase ^ 1);
      arrive_expect(&shared.full[place.stage], kBytes);
      bulk_load(shared.ring[place.stage], head_state<State>(p, first.slots.read, hk * group + r),
                kBytes, &shared.full[place.stage]);
      place.next();
    }
  }
}

/// A warp: every second of the outputs, as the workers give them, through the layer's norm to
/// memory.
template <bool Kept, class State>
__device__ void finish(const GdnView& p, Shared<State>& shared, int count, int hk) {
  const int own = warp_index() - kWarps - 1, lane = static_cast<int>(threadIdx.x) % 32;
  float weight[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) weight[i] = p.z != nullptr ? p.norm_weight[32 * i + lane] : 0.0f;
  const int chains = num_chains(p, count), group = p.group();
  int item = 0;
  // Outputs [first, behind) of an item; number 0 is row t.
  const auto finish_rows = [&](int t, int first, int behind, int hv) {
    const __nv_bfloat16* from = p.z + t * p.z_row + hv * p.z_head + lane;
    __nv_bfloat16* out = p.out + t * p.out_row + hv * p.out_head + lane;
    if (Kept && first >= behind)
      wait(&shared.o_full[item % 2], static_cast<uint32_t>(item / 2) & 1);
    for (int j = first; j < behind; ++j) {
      __nv_bfloat16 z[4];
      if (p.z != nullptr) {
#pragma unroll
        for (int i = 0; i < 4; ++i) z[i] = from[j * p.z_row + 32 * i];
      }
      if (j == first) wait(&shared.o_full[item % 2], static_cast<uint32_t>(item / 2) & 1);
      float o[4], squares[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        o[i] = shared.o[item % 2][j][32 * i + lane];
        squares[i] = sum_lanes<32>(o[i] * o[i]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if (p.z != nullptr) {
          o[i] = gdn_normed<kDim>(p, o[i], squares, weight[i], __bfloat162float(z[i]));
        }
        out[j * p.out_row + 32 * i] = __float2bfloat16_rn(o[i]);
      }
    }
    arrive(&shared.o_empty[item % 2]);
  };
  for (int i = 0; i < chains; ++i) {
    const Chain chain = load_chain(p, count, i);
    for (int s = chain.first; s < chain.last; ++s) {
      const Segment segment = load_segment<Kept>(p, s);
      const int rows = segment.rows(), kept = segment.slots.count;
      for (int r = 0; r < group; ++r) {
        for (int v = 0; v < rows; v += kBatch, ++item) {
          if (item % kFinishers != own) continue;
          finish_rows(segment.begin - kept + v, max(kept - v, 0), min(kBatch, rows - v),
                      hk * group + r);
        }
      }
    }
  }
}

/// `Pairs`: of neighbouring channels of q, k and v a thread. `Kept`: built for slots with kept
/// rows.
template <class State, int Pairs, bool Kept>
class Worker {
  // Rows whose inputs are loaded a chain ahead.
  static constexpr int kAhead = Kept ? kBatch : kBatch / 2;
  // Whether the first chains are looked up before the kernels in front have finished (all that says
  // where they are is from the host). With bf16 states the code that comes of it is slower.
  static constexpr bool kEarly = sizeof(State) == 4;

 public:
  __device__ Worker(const GdnView& p, Shared<State>& shared, int hk, int count)
      : p_(p), shared_(shared), hk_(hk), count_(count) {
    if constexpr (kEarly) find_first();
    group_ = p.group();
    thread_ = static_cast<int>(threadIdx.x);
    lane_ = thread_ % kLanes;
    width_ = (2 + group_) * kDim;
#pragma unroll
    for (int i = 0; i < Pairs; ++i) {
      channels_[i] = channel(i);
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const float* w = p_.conv + (channels_[i] + c) * p_.conv_row;
#pragma unroll
        for (int j = 0; j < 4; ++j) taps_[i][c][j] = has_channels(i) ? w[j] : 0.0f;
      }
    }
    // Gates: a thread a token and head.
    const int gate = thread_ - (kThreads - kBatch * kMaxGroup);
    gate_token_ = gate >= 0 && gate % kMaxGroup < group_ ? gate / kMaxGroup : kBatch;
    gate_head_ = gate_token_ < kBatch ? gate % kMaxGroup : 0;
    rate_ = expf(p.a_log[hk * group_ + gate_head_]);
    bias_ = p.dt_bias[hk * group_ + gate_head_];
  }

  __device__ void run() {
    const int chains = num_chains(p_, count_);
    if constexpr (!kEarly) find_first();
    load_inputs(first_, 0);
    for (int i = 0; i < chains; ++i) {
      const Segment after_first = load_first<Kept>(p_, after_);
      const Chain later = load_chain(p_, count_, i + 3);
      if (now_.first == now_.last) load_inputs(next_first_, 0);
      for (int s = now_.first; s < now_.last; ++s) {
        const bool is_first = s == now_.first;
        const Segment segment = is_first ? first_ : load_segment<Kept>(p_, s);
        if (!is_first) load_inputs(segment, 0);
        run_segment(segment, is_first && first_.takes_state(),
                    s + 1 == now_.last ? next_first_ : Segment{});
      }
      now_ = next_;
      next_ = after_;
      after_ = later;
      first_ = next_first_;
      next_first_ = after_first;
    }
  }

 private:
  __device__ __forceinline__ void find_first() {
    now_ = load_chain(p_, count_, 0);
    next_ = load_chain(p_, count_, 1);
    after_ = load_chain(p_, count_, 2);
    first_ = load_first<Kept>(p_, now_);
    next_first_ = load_first<Kept>(p_, next_);
  }
  static __device__ __forceinline__ void sync() {
    barrier_sync(1, kThreads);
  }

  /// The first channel of pair i of this thread in y, and in the rows.
  __device__ __forceinline__ int column(int i) const {
    return 2 * (thread_ + i * kThreads);
  }
  __device__ __forceinline__ bool has_channels(int i) const {
    return column(i) < width_;
  }
  __device__ __forceinline__ int channel(int i) const {
    const int at = min(column(i), width_ - 2);
    return at < kDim       ? hk_ * kDim + at
           : at < 2 * kDim ? p_.k_channel(hk_) + at - kDim
                           : p_.v_channel(hk_ * group_) + at - 2 * kDim;
  }

  /// Where rows v + [0, kBatch) of a segment lie. Both origins are made before one is taken: no
  /// branch.
  __device__ __forceinline__ void find_rows(const Segment& segment, int v,
                                            const __nv_bfloat16* (&rows)[kBatch]) const {
    const GdnSlots& slots = segment.slots;
    const __nv_bfloat16* own = p_.qkv + (int64_t{segment.begin} + v - slots.count) * p_.qkv_row;
    const auto* kept =
        Kept ? reinterpret_cast<const char*>(p_.kept(max(slots.read, 0), v)) : nullptr;
#pragma unroll
    for (int j = 0; j < kBatch; ++j) {
      rows[j] = Kept && v + j < slots.count
                    ? reinterpret_cast<const __nv_bfloat16*>(kept + j * p_.kept_row)
                    : own + j * p_.qkv_row;
    }
  }
  __device__ __forceinline__ uint32_t load_pair(const __nv_bfloat16* row, int i) const {
    return *reinterpret_cast<const uint32_t*>(row + channels_[i]);
  }

  /// What convolve() needs of rows v.. of the segment; the window at its beginning. All addresses
  /// are made before the first load: a parameter that is read between two loads, or a branch, may
  /// wait for the first (a warp has six scoreboards).
  __device__ __forceinline__ void load_inputs(const Segment& segment, int v) {
    const int count = segment.rows() - v, read = segment.slots.read;
    const __nv_bfloat16* rows[kBatch];
    find_rows(segment, v, rows);
    const float* window = p_.windows + max(read, 0) * p_.window_slot;
    const float* windows[3] = {window, window + p_.window_row, window + 2 * p_.window_row};
    const int hv = hk_ * group_ + gate_head_, gate = v + gate_token_;
    const int64_t t = int64_t{segment.begin} + gate - segment.slots.count;
    const float *a = p_.a + t * p_.a_row + hv, *b = p_.b + t * p_.b_row + hv;
    if (Kept && gate < segment.slots.count) {
      a = p_.kept_gates(max(read, 0), gate) + hv;
      b = a + p_.value_heads;
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
#pragma unroll
      for (int i = 0; i < Pairs; ++i) {
        if (j < count) x_[i][j] = load_pair(rows[j], i);
      }
    }
    if (v == 0) {
#pragma unroll
      for (int i = 0; i < Pairs; ++i) {
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          float2 two{};
          if (read >= 0) two = *reinterpret_cast<const float2*>(windows[j] + channels_[i]);
          window_[i][0][j] = two.x;
          window_[i][1][j] = two.y;
        }
      }
    }
    if (gate_token_ < count) {
      a_ = *a;
      b_ = *b;
    }
  }

  /// A segment whose inputs are loaded; then those of `next`, the first one of the next chain.
  __device__ __forceinline__ void run_segment(const Segment& segment, bool fetched,
                                              const Segment& next) {
    const bool is_short = segment.is_short();
    const int rows = segment.rows();
    // A short segment's q, k, v are made once for all heads.
    if (is_short) {
      convolve(segment, 0, rows, true);
      load_inputs(next, 0);
    }
    for (int r = 0; r < group_; ++r) {
      load_state(segment.slots.read, r, fetched);
      int v = 0;
      do {
        const int count = min(kBatch, rows - v);
        if (!is_short) {
          if (r > 0 || v > 0) load_inputs(segment, v);
          convolve(segment, v, count, r == group_ - 1);
        }
        step(segment, v, count, r);
        v += count;
      } while (v < rows);
      if (segment.slots.write >= 0) store_state(segment.slots.write, r);
      free_stage();
    }
    if (!is_short) load_inputs(next, 0);
  }

  /// q, k, v and gates of rows [v, v + count) into shared memory. The window stays in registers
  /// from one call of a segment to the next; if `last`, it is stored at the segment's end, and what
  /// the segment keeps.
  __device__ __forceinline__ void convolve(const Segment& segment, int v, int count, bool last) {
    const GdnSlots& slots = segment.slots;
    const int own = slots.count - v;  // the first one that is no kept row
    const bool keeps = Kept && last && slots.keep >= 0;
    const __nv_bfloat16* rows[kBatch];
    find_rows(segment, v, rows);
    sync();  // y is free
#pragma unroll
    for (int i = 0; i < Pairs; ++i) {
      if (!has_channels(i)) continue;
      uint32_t more[kBatch];  // behind those that are loaded
#pragma unroll
      for (int j = kAhead; j < kBatch; ++j) {
        if (j < count) more[j] = load_pair(rows[j], i);
      }
      float* y = shared_.y + column(i);
      const auto store_window = [&](int slot) {
        float* window = p_.windows + slot * p_.window_slot + channels_[i];
#pragma unroll
        for (int j = 0; j < 3; ++j) {
          *reinterpret_cast<float2*>(window + j * p_.window_row) = {window_[i][0][j],
                                                                    window_[i][1][j]};
        }
      };
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        if (j >= count) continue;
        const uint32_t x = j < kAhead ? x_[i][j % kAhead] : more[j];
        if (keeps && j == own) store_window(slots.keep);
        if (keeps && j >= own) {
          *reinterpret_cast<uint32_t*>(p_.kept(slots.keep, j - own) + channels_[i]) = x;
        }
        *reinterpret_cast<float2*>(y + j * width_) = {
            gdn_convolve(taps_[i][0], window_[i][0], __uint_as_float(x << 16)),
            gdn_convolve(taps_[i][1], window_[i][1], __uint_as_float(x & 0xffff0000u))};
      }
      if (last && v + count == segment.rows()) {
        if (keeps && own == count) store_window(slots.keep);
        if (slots.write >= 0) store_window(slots.write);
      }
    }
    if (gate_token_ < count) {
      shared_.decay[gate_token_][gate_head_] = gdn_decay(a_, rate_, bias_);
      shared_.beta[gate_token_][gate_head_] = gdn_beta(b_);
    }
    sync();
    if constexpr (Kept) {
      // A token's lanes are of one warp, all of whose lanes take part.
      const int token = min(thread_ / kLanes, count - 1);
      if (thread_ / 32 * (32 / kLanes) < count) {
        const float* y = shared_.y + token * width_;
        const GdnQueryKey<kDim, State> both(y, y + kDim, lane_);
        if (lane_ == 0) shared_.factors[token] = both.factors();
      }
      sync();
    }
    if (keeps && gate_token_ >= own && gate_token_ < count) {
      float* gates = p_.kept_gates(slots.keep, gate_token_ - own) + hk_ * group_ + gate_head_;
      gates[0] = a_;
      gates[p_.value_heads] = b_;
    }
  }

  /// This thread's part of row `pass` of a head.
  __device__ __forceinline__ int row(int pass) const {
    return pass * kGroups + thread_ / kLanes;
  }

  __device__ __forceinline__ void load_state(int slot, int r, bool fetched) {
    if (fetched) {
      wait(&shared_.full[place_.stage], place_.phase);
#pragma unroll
      for (int i = 0; i < kPasses; ++i) {
        load_row<kLanes>(shared_.ring[place_.stage] + row(i) * kDim, lane_, s_[i]);
      }
      holds_stage_ = true;
      return;
    }
    const State* from = head_state<State>(p_, max(slot, 0), hk_ * group_ + r);
#pragma unroll
    for (int i = 0; i < kPasses; ++i) {
      if (slot >= 0) {
        load_row<kLanes>(from + row(i) * kDim, lane_, s_[i]);
      } else {
#pragma unroll
        for (int j = 0; j < 16; ++j) s_[i][j] = 0;
      }
    }
  }
  /// Behind a first use of all that load_state() read: the stage is filled again at once, and ptxas
  /// lets an arrival pass reads whose values nobody has asked for yet.
  __device__ __forceinline__ void free_stage() {
    if (!holds_stage_) return;
    holds_stage_ = false;
    __syncwarp();
    if (thread_ % 32 == 0) arrive(&shared_.empty[place_.stage]);
    place_.next();
  }
  __device__ __forceinline__ void store_state(int slot, int r) const {
    State* to = head_state<State>(p_, slot, hk_ * group_ + r);
#pragma unroll
    for (int i = 0; i < kPasses; ++i)
      store_row<kLanes, GdnStore::kPassing>(to + row(i) * kDim, lane_, s_[i]);
  }

  /// Of token j in y.
  __device__ __forceinline__ GdnQueryKey<kDim, State> query_key(int j) const {
    const float* y = shared_.y + j * width_;
    if constexpr (Kept) return {y, y + kDim, lane_, shared_.factors[j]};
    return {y, y + kDim, lane_};
  }

  /// Rows [v, v + count) of a segment: kept ones for the state alone; the outputs of the others go
  /// to a finishing warp.
  __device__ __forceinline__ void step(const Segment& segment, int v, int count, int r) {
    const int own = Kept ? segment.slots.count - v : 0;
    const bool keeps = Kept && segment.slots.keep >= 0;
    if (count > 0) {
      const int turn = item_ % 2;
      int j = 0;
      if constexpr (Kept) {
        for (; j < min(own, count); ++j) {
          const float* y = shared_.y + j * width_;
          const GdnKey<kDim, State> token(y + kDim, lane_, shared_.factors[j].k);
          const float decay = shared_.decay[j][r], beta = shared_.beta[j][r];
#pragma unroll
          for (int i = 0; i < kPasses; ++i) {
            token.advance(s_[i], y[(2 + r) * kDim + row(i)], decay, beta);
          }
          free_stage();
        }
        if (keeps && j == own && j < count) store_state(segment.slots.keep, r);
      }
      wait(&shared_.o_empty[turn], (static_cast<uint32_t>(item_ / 2) & 1) ^ 1);
      for (; j < count; ++j) {
        const float* y = shared_.y + j * width_;
        const GdnQueryKey<kDim, State> token = query_key(j);
        const float decay = shared_.decay[j][r], beta = shared_.beta[j][r];
#pragma unroll
        for (int i = 0; i < kPasses; ++i) {
          const float o = token.step(s_[i], y[(2 + r) * kDim + row(i)], decay, beta);
          if (lane_ == 0) shared_.o[turn][j][row(i)] = o;
        }
        free_stage();
      }
      if (lane_ == 0) arrive(&shared_.o_full[turn]);
      ++item_;
    }
    // Nothing but kept rows.
    if (keeps && own == count && v + count == segment.rows()) store_state(segment.slots.keep, r);
  }

  const GdnView& p_;
  Shared<State>& shared_;
  int hk_, count_, group_, thread_, lane_, width_, gate_token_, gate_head_;
  // The loads of chain i + 1's inputs need its first segment, that needs where it begins.
  Chain now_, next_, after_;
  Segment first_, next_first_;
  int item_ = 0;  // outputs given away
  Place<Shared<State>::kStages> place_;
  bool holds_stage_ = false;  // place_'s: read, not yet free
  float rate_, bias_, a_ = 0, b_ = 0;
  int channels_[Pairs];  // of the rows, the first of each pair
  float taps_[Pairs][2][4], window_[Pairs][2][3];
  uint32_t x_[Pairs][kAhead];  // of bf16
  float s_[kPasses][16];
};

template <class State, int Pairs, bool Kept>
__global__ void __launch_bounds__(kBlock, 1)
    gdn_stream_kernel(const __grid_constant__ GdnView p, int count) {
  extern __shared__ __align__(128) std::byte memory[];
  Shared<State>& shared = *reinterpret_cast<Shared<State>*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared<State>::kStages; ++i) {
      barrier_init(&shared.full[i], 1);
      barrier_init(&shared.empty[i], kWarps);
    }
    for (int i = 0; i < 2; ++i) {
      barrier_init(&shared.o_full[i], kThreads / kLanes);
      barrier_init(&shared.o_empty[i], 32);
    }
    fence_barrier_init();
  }
  __syncthreads();
  const int hk = static_cast<int>(blockIdx.x) % p.key_heads;
  if (warp_index() >= kWarps) {
    drop_registers_to<kHelperRegisters>();
    const int helper = warp_index() - kWarps;
    if (helper >= 1 && helper <= kFinishers) {
      wait_for_predecessor();
      let_successor_begin();
      finish<Kept>(p, shared, count, hk);
    } else if (helper == 0 && elect_one()) {
      prefetch<Kept, State>(p, count, hk);
      wait_for_predecessor();
      let_successor_begin();
      fetch<Kept>(p, shared, count, hk);
    }
  } else {
    raise_registers_to<kRegisters>();
    Worker<State, Pairs, Kept> worker(p, shared, hk, count);
    wait_for_predecessor();
    let_successor_begin();
    worker.run();
  }
}

/// Blocks: as many a key head as there are multiprocessors for.
template <class State, int Pairs>
void launch_stream(Stream& stream, const GdnView& p, const GdnChains& chains) {
  const int64_t width = (2 + p.value_heads / p.key_heads) * kDim;
  const int blocks = p.key_heads * std::min(chains.count, num_processors() / p.key_heads);
  const LaunchShape shape{
      .grid = static_cast<unsigned>(blocks),
      .block = kBlock,
      .shared_bytes = sizeof(Shared<State>) + static_cast<size_t>(kBatch * width * 4),
      .overlap = chains.overlap};
  if (p.kept_row > 0) {
    launch(stream, shape, gdn_stream_kernel<State, Pairs, true>, p, chains.count);
  } else {
    launch(stream, shape, gdn_stream_kernel<State, Pairs, false>, p, chains.count);
  }
}
template <class State>
void launch_group(Stream& stream, const GdnView& p, const GdnChains& chains) {
  if (p.value_heads / p.key_heads <= 2) {
    launch_stream<State, 1>(stream, p, chains);
  } else {
    launch_stream<State, 2>(stream, p, chains);
  }
}
static_assert((2 + kMaxGroup) * kDim <= 2 * 2 * kThreads);

}  // namespace

bool gdn_stream(Stream& stream, const GdnArgs& args, int first, int count) {
  GdnView p = gdn_view(args);
  p.first_chain = first;
  const GdnShape& s = args.shape;
  if (!gdn_decode_supports(s) || s.key_dim != kDim || s.value_heads / s.key_heads > kMaxGroup ||
      s.key_heads > num_processors() || p.state_slot % 8 != 0 || p.state_head % 8 != 0 ||
      reinterpret_cast<uintptr_t>(p.states) % 16 != 0 || !gdn_has_pairs(p)) {
    return false;
  }
  const GdnChains chains = gdn_chains(first, count);
  if (p.half_states) {
    launch_group<__nv_bfloat16>(stream, p, chains);
  } else {
    launch_group<float>(stream, p, chains);
  }
  return true;
}

}  // namespace weft::cuda
