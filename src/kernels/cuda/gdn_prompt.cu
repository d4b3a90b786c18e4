// The chunked gated delta rule, C = 64, S [V, K] of a head, rows i, j of the chunk:
//   U = T (beta V - beta exp(G) K S^T), T = (I + A)^-1;  O = exp(G) Q S^T + P U;
//   S <- exp(G_last) S + (exp(G_last - G) U)^T K.            docs/kernels/gated_delta.md
//
// Two kernels: gdn_chunks.cu prepares k, q, T, P of all chunks in parallel; the scan in this file
// goes through a sequence's chunks and follows the preparation by a flag a chunk and key head.
//
// Scan tile: 64 rows of S (half a value head) in one warpgroup's registers, fp32. All products are
// transposed, S K^T and so on: S, V - .., U are the left operands, straight from registers as f16,
// and the chunk's tiles the right ones, in shared memory. Two more warpgroups by turns copy tiles,
// convolve v and write the outputs. Moved a token and value head: 6 V bytes and 256 of T, P;
// bound: the chain of products a chunk (1024 clocks of tensor core), instruction slots with many
// sequences.
//
// f16 holds what is at most 1 (q, k, T, P) to 2^-12. Rows of S and beta V outside of f16's
// comfortable range are scaled by a power of two that depends on the row of S and the chunk's beta
// V alone.

#include <algorithm>

#include "kernels/cuda/gdn_mma.h"
#include "kernels/cuda/gdn_prompt.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 384;
constexpr int kProducers = 2;  // warpgroups, each of which takes every second chunk
constexpr int kHalf = 64;      // rows of S a block
constexpr int kStages = 3;
constexpr int kRawRows = kGdnChunk + 3;                   // a chunk's input and what is before it
constexpr float kSmallest = 0x1p-10f, kLargest = 0x1p7f;  // rows that need no scale

/// A chunk.
struct Stage {
  std::byte k[2 * kGdnTile], q[2 * kGdnTile];
  std::byte t[kGdnTile], p[kGdnTile];
  float v[kHalf * kGdnChunk];  // beta v, as v_offset() says; then the outputs, as out_offset() says
  float gates[kGdnGates];
  float v_max[kHalf][4];  // of v a row, of 16 tokens each
};

struct __align__(1024) Shared {
  Stage stage[kStages];
  uint32_t raw[kProducers][kRawRows][kHalf / 2];  // v before the convolution, a word two channels
  float beta[kProducers][4][16];                  // of each warp's tokens, times -ln 2
  Barrier full[kStages], empty[kStages];
};
static_assert(sizeof(Stage) % 1024 == 0);

/// Where Stage::v has row `row`, the four tokens 16 i + 2 q + {0, 1, 8, 9}, in floats: what a
/// thread of the product's layout (q = lane % 4) takes is four 16-byte pieces. Without bank
/// conflicts for the consumer (rows of two neighbours, all q) and the producer (every second row,
/// one i and q).
__device__ __forceinline__ int v_offset(int row, int i, int q) {
  return row * kGdnChunk + (((4 * i + q) ^ (((row >> 1) & 7) ^ ((row & 1) << 2))) << 2);
}
/// Where Stage::v has 8 channels (16 bytes) of an output, in bytes: within the rows of v that the
/// writing warp alone reads.
__device__ __forceinline__ int out_offset(int token, int piece) {
  const int warp = piece / 2, half = piece % 2;
  return warp * (16 * kGdnChunk * 4) + (token ^ warp) * 32 + (half ^ ((token >> 2) & 1)) * 16;
}

__device__ __forceinline__ float2 widen_bf16(uint32_t raw) {
  return make_float2(__uint_as_float(raw << 16), __uint_as_float(raw & 0xffff0000u));
}

/// A ring of stages.
struct Ring {
  int stage = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void next() {
    if (++stage == kStages) {
      stage = 0;
      phase ^= 1;
    }
  }
};

/// What this block computes.
struct Job {
  int hk, hv, half;
  int first, last;  // segments
  int chunk;        // of the first segment
  bool leads;       // of all blocks with this key head
};

__device__ Job make_job(const GdnView& p) {
  Job job;
  const int unit = static_cast<int>(blockIdx.x) / 2;
  const int chain = unit / p.value_heads;
  job.half = static_cast<int>(blockIdx.x) % 2;
  job.hv = unit % p.value_heads;
  job.hk = job.hv / p.group();
  job.first = p.chains[chain];
  job.last = p.chains[chain + 1];
  job.leads = job.hv % p.group() == 0 && job.half == 0;
  int sum = 0;
  for (int s = static_cast<int>(threadIdx.x) % 32; s < job.first; s += 32) {
    sum += gdn_num_chunks(p, s);
  }
  job.chunk = __reduce_add_sync(0xffffffffu, sum);
  return job;
}

// ---- Producers: copies, v, and the outputs' way to memory

class Producer {
 public:
  __device__ Producer(const GdnView& p, const GdnChunks& chunks, Shared& shared, const Job& job)
      : p_(p), chunks_(chunks), shared_(shared), job_(job) {
    thread_ = static_cast<int>(threadIdx.x) % 128;
    warp_ = thread_ / 32;
    turn_ = warp_index() / 4 - 1;
    row_ = thread_ % 32 * 2;
    head_channel_ = p.v_channel(job.hv) + job.half * kHalf;
    input_ = p.qkv + head_channel_ + thread_ % 8 * 8;
    output_ = p.out + job.hv * p.out_head + job.half * kHalf + thread_ % 8 * 8;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 taps =
          *reinterpret_cast<const float4*>(p.conv + int64_t{head_channel_ + row_ + i} * p.conv_row);
      taps_[i][0] = taps.x * kMinusLog2E;
      taps_[i][1] = taps.y * kMinusLog2E;
      taps_[i][2] = taps.z * kMinusLog2E;
      taps_[i][3] = taps.w * kMinusLog2E;
    }
  }

  __device__ void run() {
    At at;
    at.segment = job_.first - 1;
    at.begin = at.end = 0;
    advance(at);
    Rows before[kStages] = {};  // of the last chunks
    int count = 0;
    if (turn_ == 1) skip(at, before, count);
    load_raw(at);
    while (at.begin < at.end) {
      const At now = at;
      copy_async_wait<0>();
      sync();  // all rows are here
      uint32_t raw[19];
#pragma unroll
      for (int i = 0; i < 19; ++i) raw[i] = shared_.raw[turn_][16 * warp_ + i][row_ / 2];
      if (thread_ % 32 < 16) {
        const bool there = 16 * warp_ + thread_ % 16 < now.end - now.begin;
        shared_.beta[turn_][warp_][thread_ % 16] = there ? gdn_beta(b_) * kMinusLn2 : 0.0f;
      }
      const int chunk = job_.chunk + count;
      const Rows out = before[kStages - 1];
      skip(at, before, count);
      skip(at, before, count);
      if (warp_ == 0 && chunk >= ready_) wait_ready(chunk);
      wait(&shared_.empty[ring_.stage], ring_.phase ^ 1);
      Stage& stage = shared_.stage[ring_.stage];
      if (thread_ == 0) copy_tiles(stage, chunk);
      uint4 pieces[4];
      load_out(stage, pieces);
      sync();  // all have their rows of v and of the outputs
      store_out(pieces, out);
      load_raw(at);
      convolve(stage, now, raw);
      arrive(&shared_.full[ring_.stage]);
      ring_.next();
      ring_.next();
    }
    drain(before, count);
  }

 private:
  static constexpr float kMinusLog2E = -1.4426950408889634f, kMinusLn2 = -0.6931471805599453f;

  /// The chunk from row `begin` on; begin == end behind the last one.
  struct At {
    int segment, begin, end;
    GdnHistory history;
  };
  struct Rows {
    int begin, count;
  };

  __device__ __forceinline__ void sync() const {
    barrier_sync(2 + turn_, 128);
  }

  __device__ __forceinline__ void advance(At& at) const {
    at.begin = min(at.begin + kGdnChunk, at.end);
    while (at.begin == at.end && ++at.segment < job_.last) {
      at.begin = p_.cu_q[at.segment];
      at.end = p_.cu_q[at.segment + 1];
      at.history = gdn_history(p_, at.segment, job_.first);
    }
  }
  /// One chunk on, if there is one.
  __device__ __forceinline__ void skip(At& at, Rows (&before)[kStages], int& count) {
    if (at.begin == at.end) return;
#pragma unroll
    for (int i = kStages - 1; i > 0; --i) before[i] = before[i - 1];
    before[0] = {at.begin, min(at.end - at.begin, kGdnChunk)};
    ++count;
    if (count == 1 && turn_ == 1) ring_.next();
    advance(at);
  }

  /// The input rows from three before the chunk on, zeros where the segment has none; b.
  __device__ __forceinline__ void load_raw(const At& at) {
    if (at.begin < at.end) {
      const int row = thread_ / 8, first = at.begin - 3 + row;
      const __nv_bfloat16* from = input_ + first * p_.qkv_row;
      const int64_t step = 16 * p_.qkv_row;
      uint32_t* to = &shared_.raw[turn_][row][thread_ % 8 * 4];
#pragma unroll
      for (int i = 0; i < 5; ++i) {
        const int t = first + 16 * i;
        const bool there = t >= at.history.begin && t < at.end;
        if (i < 4 || row < 3) {
          copy_async_16(to + i * 16 * (kHalf / 2), there ? from : input_, there ? 16 : 0);
        }
        from += step;
      }
      const int t = min(at.begin + 16 * warp_ + thread_ % 16, at.end - 1);
      b_ = p_.b[t * p_.b_row + job_.hv];
      // The rows of the chunk after the next on their way to L2.
      const int ahead = at.begin + 2 * kGdnChunk + thread_;
      if (thread_ < kGdnChunk && ahead < at.end) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(p_.qkv + ahead * p_.qkv_row + head_channel_));
      }
    }
    copy_async_commit();
  }

  __device__ __forceinline__ void copy_tiles(Stage& stage, int chunk) {
    Barrier* full = &shared_.full[ring_.stage];
    const int64_t at = int64_t{chunk} * p_.value_heads + job_.hv;
    arrive_expect(full, kGdnKqBytes + kGdnTpBytes + kGdnGates * 4);
    bulk_load(stage.k, chunks_.kq + (int64_t{chunk} * p_.key_heads + job_.hk) * kGdnKqBytes,
              kGdnKqBytes, full);
    bulk_load(stage.t, chunks_.tp + at * kGdnTpBytes, kGdnTpBytes, full);
    bulk_load(stage.gates, chunks_.gates + at * kGdnGates, kGdnGates * 4, full);
  }

  /// Warp 0: until `chunk` is prepared; looks at the flags of the next 32 chunks at once.
  __device__ void wait_ready(int chunk) {
    const int mine = min(chunk + thread_, chunks_.num_chunks - 1);
    const int* flag = chunks_.ready + int64_t{mine} * p_.key_heads + job_.hk;
    uint32_t all;
    for (;;) {
      int value;
      asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
      all = __ballot_sync(0xffffffffu, value == kGdnReady);
      if ((all & 1) != 0) break;
      __nanosleep(100);
    }
    fence_async_global();
    __syncwarp();
    ready_ = chunk + (~all == 0 ? 32 : __ffs(static_cast<int>(~all)) - 1);
  }

  __device__ __forceinline__ void load_out(const Stage& stage, uint4 (&pieces)[4]) const {
    const std::byte* from =
        reinterpret_cast<const std::byte*>(stage.v) + out_offset(thread_ / 8, thread_ % 8);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      pieces[i] = *reinterpret_cast<const uint4*>(from + 16 * i * 32);
    }
  }
  __device__ __forceinline__ void store_out(const uint4 (&pieces)[4], const Rows& rows) const {
    const int token = thread_ / 8;
    __nv_bfloat16* out = output_ + (rows.begin + token) * p_.out_row;
    const int64_t step = 16 * p_.out_row;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (token + 16 * i < rows.count) *reinterpret_cast<uint4*>(out) = pieces[i];
      out += step;
    }
  }
  /// The outputs of the last chunks, one each for the producers by turns.
  __device__ void drain(const Rows (&before)[kStages], int count) {
#pragma unroll
    for (int i = kStages - 1; i >= 0; --i) {
      const int chunk = count - 1 - i;
      if (chunk < 0 || chunk % kProducers == turn_) continue;
      const int stage = chunk % kStages;
      wait(&shared_.empty[stage], static_cast<uint32_t>(chunk / kStages) & 1);
      uint4 pieces[4];
      load_out(shared_.stage[stage], pieces);
      store_out(pieces, before[i]);
    }
  }

  /// Two channels, 16 tokens a thread. Tokens beyond the end have beta = 0.
  __device__ __forceinline__ void convolve(Stage& stage, const At& at,
                                           const uint32_t (&raw)[19]) const {
    float2 x[19];
#pragma unroll
    for (int i = 0; i < 19; ++i) x[i] = widen_bf16(raw[i]);
    const int t0 = at.begin + 16 * warp_;
    if (t0 - 3 < at.history.begin) {  // the window of the slot
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        const int t = t0 - 3 + i, channel = head_channel_ + row_;
        if (t < at.history.begin && t < at.end) {
          x[i] = make_float2(gdn_input(p_, at.history, t, channel),
                             gdn_input(p_, at.history, t, channel + 1));
        }
      }
    }
    float largest[2] = {0, 0};
    const float* beta = shared_.beta[turn_][warp_];
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      const float2 low = *reinterpret_cast<const float2*>(beta + 2 * q);
      const float2 high = *reinterpret_cast<const float2*>(beta + 2 * q + 8);
      const float scale[4] = {low.x, low.y, high.x, high.y};
      float y[2][4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int i = 2 * q + j % 2 + j / 2 * 8;
        y[0][j] = tap(0, x[i].x, x[i + 1].x, x[i + 2].x, x[i + 3].x) * scale[j];
        y[1][j] = tap(1, x[i].y, x[i + 1].y, x[i + 2].y, x[i + 3].y) * scale[j];
        largest[0] = fmaxf(largest[0], fabsf(y[0][j]));
        largest[1] = fmaxf(largest[1], fabsf(y[1][j]));
      }
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        *reinterpret_cast<float4*>(stage.v + v_offset(row_ + c, warp_, q)) =
            make_float4(y[c][0], y[c][1], y[c][2], y[c][3]);
      }
    }
    stage.v_max[row_][warp_] = largest[0];
    stage.v_max[row_ + 1][warp_] = largest[1];
  }

  /// -log2(e) silu(sum): the factor is in the taps, its inverse in beta.
  __device__ __forceinline__ float tap(int c, float x0, float x1, float x2, float x3) const {
    float sum = taps_[c][0] * x0;
    sum = fmaf(taps_[c][1], x1, sum);
    sum = fmaf(taps_[c][2], x2, sum);
    sum = fmaf(taps_[c][3], x3, sum);
    return sum * gdn_reciprocal(1.0f + exp2_approx(sum));
  }

  const GdnView& p_;
  const GdnChunks& chunks_;
  Shared& shared_;
  const Job& job_;
  const __nv_bfloat16* input_;
  __nv_bfloat16* output_;
  int thread_, warp_, turn_, row_, head_channel_;
  int ready_ = 0;  // chunks before this one are prepared
  float b_ = 0;    // of token thread_ % 16 of the warp's
  float taps_[2][4];
  Ring ring_;
};

// ---- Consumer: the products. d[4j..] of thread t: rows r and r + 8 of S, r = 16 warp + lane / 4;
// columns 8j + c, c = 2 (lane % 4): channels of k, or tokens.

class Consumer {
 public:
  __device__ Consumer(const GdnView& p, Shared& shared, const Job& job)
      : p_(p), shared_(shared), job_(job) {
    warp_ = warp_index();
    lane_ = static_cast<int>(threadIdx.x) % 32;
    row_ = 16 * warp_ + lane_ / 4;
    column_ = 2 * (lane_ % 4);
  }

  __device__ void run() {
    for (int s = job_.first; s < job_.last; ++s) {
      const int read = p_.read_slot[s], write = p_.write_slot[s];
      if (s == job_.first || read < 0 || read != p_.write_slot[s - 1]) load(read);
      const int end = p_.cu_q[s + 1];
      for (int begin = p_.cu_q[s]; begin < end; begin += kGdnChunk) {
        chunk();
      }
      if (write >= 0) store(write);
    }
    if (pending_) hand_over();
  }

 private:
  /// Element (row + 8 i, 8 j + column) of the state.
  __device__ __forceinline__ int64_t state(int slot, int i, int j) const {
    return slot * p_.state_slot + job_.hv * p_.state_head +
           int64_t{job_.half * kHalf + row_ + 8 * i} * kGdnDim + 8 * j + column_;
  }
  __device__ void load(int slot) {
    scale_[0] = scale_[1] = 1;
    scaled_ = false;
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float2 x = make_float2(0, 0);
        if (slot >= 0 && p_.half_states) {
          x = widen_bf16(*reinterpret_cast<const uint32_t*>(
              static_cast<const __nv_bfloat16*>(p_.states) + state(slot, i, j)));
        } else if (slot >= 0) {
          x = *reinterpret_cast<const float2*>(static_cast<const float*>(p_.states) +
                                               state(slot, i, j));
        }
        s_[4 * j + 2 * i] = x.x;
        s_[4 * j + 2 * i + 1] = x.y;
      }
    }
    round_state();
    find_largest();
  }
  __device__ void store(int slot) const {
#pragma unroll
    for (int j = 0; j < 16; ++j) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 x =
            make_float2(s_[4 * j + 2 * i] * scale_[i], s_[4 * j + 2 * i + 1] * scale_[i]);
        if (p_.half_states) {
          *reinterpret_cast<uint32_t*>(static_cast<__nv_bfloat16*>(p_.states) + state(slot, i, j)) =
              pack_bf16(x.x, x.y);
        } else {
          *reinterpret_cast<float2*>(static_cast<float*>(p_.states) + state(slot, i, j)) = x;
        }
      }
    }
  }

  /// Largest |x| of this thread's two rows over the quad that holds them.
  __device__ __forceinline__ static void max_of_quad(float (&m)[2]) {
#pragma unroll
    for (int step = 1; step <= 2; step *= 2) {
      m[0] = fmaxf(m[0], __shfl_xor_sync(0xffffffffu, m[0], step));
      m[1] = fmaxf(m[1], __shfl_xor_sync(0xffffffffu, m[1], step));
    }
  }
  __device__ __forceinline__ static bool comfortable(float m) {
    return m == 0 || (m >= kSmallest && m < kLargest);
  }

  __device__ __forceinline__ void round_state() {
#pragma unroll
    for (int i = 0; i < 32; ++i) s16_[i] = pack_f16(s_[2 * i], s_[2 * i + 1]);
  }

  /// Largest |S| of the rows, as s16_ has it.
  __device__ __forceinline__ void find_largest() {
    __half2 largest[2] = {__float2half2_rn(0), __float2half2_rn(0)};
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      largest[i % 2] =
          __hmax2(largest[i % 2], __habs2(*reinterpret_cast<const __half2*>(&s16_[i])));
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      s_max_[i] = fmaxf(__low2float(largest[i]), __high2float(largest[i]));
    }
    max_of_quad(s_max_);
  }
  /// Whether neither S (as s16_) nor the chunk's V asks for a scale in any row of the block. s_ *
  /// scale_ is the state; the scale is 1, or depends on the largest |S| (as f16) and |V| of the
  /// row.
  __device__ __forceinline__ bool fits(const float (&v)[2]) const {
    const bool fine =
        !scaled_ && comfortable(fmaxf(s_max_[0], v[0])) && comfortable(fmaxf(s_max_[1], v[1]));
    return barrier_all(1, 128, fine);
  }

  /// Of a power of two.
  __device__ __forceinline__ static float reciprocal(float x) {
    return __int_as_float((254 << 23) - __float_as_int(x));
  }

  /// From the old scale of each row to the one that it needs. V takes the scale here.
  __device__ __forceinline__ void rescale(const float (&v)[2], Stage& stage) {
    float m[2] = {0, 0};
#pragma unroll
    for (int i = 0; i < 64; ++i) m[i / 2 % 2] = fmaxf(m[i / 2 % 2], fabsf(s_[i]));
    max_of_quad(m);
    float down[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float truth = m[i] * scale_[i];
      const float rounded = __half2float(__float2half_rn(truth));
      int exponent = 0;
      if (!comfortable(fmaxf(rounded, v[i]))) {
        exponent = min(max(ilogbf(fmaxf(truth, v[i])) - 3, -60), 60);
      }
      const float scale = __int_as_float((127 + exponent) << 23);
      m[i] = scale_[i] * reciprocal(scale);  // 2^-120 .. 2^120
      scale_[i] = scale;
      down[i] = reciprocal(scale);
    }
    scaled_ = __any_sync(0xffffffffu, scale_[0] != 1 || scale_[1] != 1);
#pragma unroll
    for (int i = 0; i < 64; ++i) s_[i] *= m[i / 2 % 2];
#pragma unroll
    for (int i = 0; i < 32; ++i) s16_[i] = pack_f16(s_[2 * i], s_[2 * i + 1]);
    if (!scaled_) return;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      float4* x = reinterpret_cast<float4*>(stage.v + v_offset(row_ + i / 4 * 8, i % 4, lane_ % 4));
      const float4 y = *x;
      const float d = down[i / 4];
      *x = make_float4(y.x * d, y.y * d, y.z * d, y.w * d);
    }
  }

  __device__ __forceinline__ void chunk() {
    Stage& stage = shared_.stage[ring_.stage];
    wait(&shared_.full[ring_.stage], ring_.phase);

    // x = S K^T, under which the outputs of the chunk before leave, and in hope that S fits f16.
    float x[32], o[32];
    uint32_t u16[16];
    const uint64_t k = k_major_128(stage.k), q = k_major_128(stage.q);
    start_product(x, k);
    float v_max[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float4 m = *reinterpret_cast<const float4*>(stage.v_max[row_ + 8 * i]);
      v_max[i] = fmaxf(fmaxf(m.x, m.y), fmaxf(m.z, m.w));
    }
    const float last = stage.gates[192];
    if (pending_) hand_over();
    float4 gate[4], v[8];
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = gates(stage, 0, i);
    load_values(stage, v);
    if (!fits(v_max)) [[unlikely]] {
      wgmma_wait<0>();
      hold(x);
      rescale(v_max, stage);
      load_values(stage, v);
      start_product(x, k);
    }

    // o = S Q^T in two halves, each where the tensor cores would wait for the other pipes.
    hold(o);
    wgmma_fence();
    state_product<0, 1>(o, q);
    wgmma_commit();
    wgmma_wait<1>();
    hold(x);

    // x = (beta V - beta exp(G) x) T^T
    subtract(gate, v, x, u16);
    hold(u16);
    hold(x);
    wgmma_fence();
    chunk_product<false>(x, u16, k_major_128(stage.t));
    wgmma_commit();
    state_product<1, 2>(o, q);
    wgmma_commit();
    float4 decay[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) gate[i] = gates(stage, 2, i);
#pragma unroll
    for (int i = 0; i < 4; ++i) decay[i] = gates(stage, 1, i);
#pragma unroll
    for (int i = 0; i < 64; ++i) s_[i] *= last;
    wgmma_wait<1>();
    hold(x);
    hold(u16);

    // S = exp(G_last) S + (exp(G_last - G) U)^T K
    uint32_t b16[16];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* u = x + 8 * i;
      b16[4 * i] = pack_f16(u[0] * gate[i].x, u[1] * gate[i].y);
      b16[4 * i + 1] = pack_f16(u[2] * gate[i].x, u[3] * gate[i].y);
      b16[4 * i + 2] = pack_f16(u[4] * gate[i].z, u[5] * gate[i].w);
      b16[4 * i + 3] = pack_f16(u[6] * gate[i].z, u[7] * gate[i].w);
    }
    hold(b16);
    hold(s_);
    wgmma_fence();
    const uint64_t k_rows = mn_major_128(stage.k, kGdnTile);
    mma_f16_128_a<0>(s_, b16, k_rows);
    mma_f16_128_a<4>(s_, b16, advance(k_rows, 2048));
    mma_f16_128_a<8>(s_, b16, advance(k_rows, 4096));
    mma_f16_128_a<12>(s_, b16, advance(k_rows, 6144));
    wgmma_commit();

    // o = exp(G) o + U P^T
#pragma unroll
    for (int i = 0; i < 16; ++i) u16[i] = pack_f16(x[2 * i], x[2 * i + 1]);
    wgmma_wait<1>();
    hold(o);
    hold(s16_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float* y = o + 8 * i;
      y[0] *= decay[i].x;
      y[1] *= decay[i].y;
      y[2] *= decay[i].x;
      y[3] *= decay[i].y;
      y[4] *= decay[i].z;
      y[5] *= decay[i].w;
      y[6] *= decay[i].z;
      y[7] *= decay[i].w;
    }
    hold(u16);
    hold(o);
    wgmma_fence();
    chunk_product<true>(o, u16, k_major_128(stage.p));
    wgmma_commit();
    pending_ = true;
    pending_stage_ = ring_.stage;
    ring_.next();
    const bool pending_scaled = scaled_;
    const float pending_scale[2] = {scale_[0], scale_[1]};
    wgmma_wait<1>();
    hold(s_);
    hold(b16);
    if (p_.half_states) [[unlikely]] {
#pragma unroll
      for (int i = 0; i < 64; ++i) s_[i] = gdn_round_bf16(s_[i]);  // a scale is a power of two
    }
    round_state();
    find_largest();
    wgmma_wait<0>();
    hold(o);
    hold(u16);
    if (pending_scaled) [[unlikely]] {
#pragma unroll
      for (int i = 0; i < 32; ++i) o[i] *= pending_scale[i / 2 % 2];
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) o16_[i] = pack_bf16(o[2 * i], o[2 * i + 1]);
  }

  /// beta v of this thread's rows and tokens.
  __device__ __forceinline__ void load_values(const Stage& stage, float4 (&v)[8]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      v[i] =
          *reinterpret_cast<const float4*>(stage.v + v_offset(row_ + i % 2 * 8, i / 2, lane_ % 4));
    }
  }

  __device__ __forceinline__ void start_product(float (&x)[32], uint64_t k) {
    hold(x);
    hold(s16_);
    wgmma_fence();
    state_product<0, 2>(x, k);
    wgmma_commit();
  }

  /// d (+)= s16 B^T, B [64 tokens, 128] in two panels of 64 channels: panels [First, Last).
  template <int First, int Last>
  __device__ __forceinline__ void state_product(float (&d)[32], uint64_t b) const {
    if constexpr (First == 0) {
      mma_f16_64_a<0>(d, s16_, b, 0);
      mma_f16_64_a<4>(d, s16_, advance(b, 32), 1);
      mma_f16_64_a<8>(d, s16_, advance(b, 64), 1);
      mma_f16_64_a<12>(d, s16_, advance(b, 96), 1);
    }
    if constexpr (Last == 2) {
      const uint64_t panel = advance(b, kGdnTile);
      mma_f16_64_a<16>(d, s16_, panel, 1);
      mma_f16_64_a<20>(d, s16_, advance(panel, 32), 1);
      mma_f16_64_a<24>(d, s16_, advance(panel, 64), 1);
      mma_f16_64_a<28>(d, s16_, advance(panel, 96), 1);
    }
  }
  /// d (+)= a B^T, B [64, 64].
  template <bool Add>
  __device__ __forceinline__ static void chunk_product(float (&d)[32], const uint32_t (&a)[16],
                                                       uint64_t b) {
    mma_f16_64_a<0>(d, a, b, Add);
    mma_f16_64_a<4>(d, a, advance(b, 32), 1);
    mma_f16_64_a<8>(d, a, advance(b, 64), 1);
    mma_f16_64_a<12>(d, a, advance(b, 96), 1);
  }
  /// Of tokens 16 i + column + {0, 1, 8, 9}.
  __device__ __forceinline__ float4 gates(const Stage& stage, int which, int i) const {
    return *reinterpret_cast<const float4*>(stage.gates + which * kGdnChunk + 16 * i + 2 * column_);
  }

  /// u16 <- beta V - beta exp(G) x, in the state's scale.
  __device__ __forceinline__ void subtract(const float4 (&gate)[4], const float4 (&v)[8],
                                           const float (&x)[32], uint32_t (&u16)[16]) const {
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float4 &g = gate[i / 2], &z = v[i];
      const float* y = x + 8 * (i / 2) + 2 * (i % 2);
      u16[i / 2 * 4 + i % 2] = pack_f16(fmaf(g.x, y[0], z.x), fmaf(g.y, y[1], z.y));
      u16[i / 2 * 4 + i % 2 + 2] = pack_f16(fmaf(g.z, y[4], z.z), fmaf(g.w, y[5], z.w));
    }
  }

  /// Gives the pending chunk's outputs to the producers, and its stage.
  __device__ __forceinline__ void hand_over() {
    const uint32_t buffer = shared_address(shared_.stage[pending_stage_].v);
    const int matrix = lane_ / 8;
    const uint32_t at = buffer + out_offset(8 * (matrix / 2) + lane_ % 8, 2 * warp_ + matrix % 2);
#pragma unroll
    for (int j = 0; j < 8; j += 2) {
      const uint32_t r[4] = {o16_[2 * j], o16_[2 * j + 1], o16_[2 * j + 2], o16_[2 * j + 3]};
      store_matrices<true>(at + 8 * 32 * j, r);
    }
    pending_ = false;
    arrive(&shared_.empty[pending_stage_]);
  }

  const GdnView& p_;
  Shared& shared_;
  const Job& job_;
  int warp_, lane_, row_, column_;
  float s_[64];
  uint32_t s16_[32], o16_[16];
  float scale_[2] = {1, 1};
  float s_max_[2];        // largest |S| of this thread's rows
  bool scaled_ = false;   // a scale of the warp is not 1
  bool pending_ = false;  // o16_ has a chunk's outputs
  int pending_stage_ = 0;
  Ring ring_;
};

__global__ void __launch_bounds__(kThreads, 1)
    gdn_scan_kernel(const __grid_constant__ GdnView p, const __grid_constant__ GdnChunks chunks) {
  extern __shared__ __align__(1024) std::byte memory[];
  Shared& shared = *reinterpret_cast<Shared*>(memory);
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      // Every thread arrives for itself: no slower than a lane a warp, and clear to racecheck.
      barrier_init(&shared.full[i], 128 + 1);
      barrier_init(&shared.empty[i], 128);
    }
    fence_barrier_init();
  }
  const Job job = make_job(p);
  __syncthreads();
  if (warp_index() < 4) {
    raise_registers_to<240>();
    Consumer(p, shared, job).run();
  } else {
    drop_registers_to<128>();
    Producer(p, chunks, shared, job).run();
  }
  // All chunks of the chain are prepared and v is read: nobody needs its old windows any more.
  __syncthreads();
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < (job.leads ? kHalf + 2 * kGdnDim : kHalf)) {
    const int channel = thread < kHalf             ? p.v_channel(job.hv) + job.half * kHalf + thread
                        : thread < kHalf + kGdnDim ? job.hk * kGdnDim + thread - kHalf
                                                   : p.k_channel(job.hk) + thread - kHalf - kGdnDim;
    gdn_store_windows<4, true>(p, job.first, job.last, channel);
  }
}

bool aligned(const TensorView& x, int64_t elements) {
  for (int i = 0; i + 1 < x.rank; ++i) {
    if (x.stride[static_cast<size_t>(i)] % elements != 0) return false;
  }
  return reinterpret_cast<uintptr_t>(x.data) % 16 == 0;
}

static_assert(kGdnDim == 128);

int64_t kq_bytes(const GdnShape& s) {
  return s.key_heads * kGdnKqBytes;
}
int64_t tp_bytes(const GdnShape& s) {
  return s.value_heads * kGdnTpBytes;
}
int64_t gate_bytes(const GdnShape& s) {
  return s.value_heads * kGdnGates * 4;
}
int64_t flag_bytes(const GdnShape& s, int64_t chunks) {
  return (chunks * s.key_heads * 4 + 63) / 64 * 64;
}

}  // namespace

int64_t gdn_scratch(const GdnShape& shape, int64_t rows, int64_t num_sequences) {
  if (!gdn_chunks_support(shape)) return 0;
  const int64_t chunks = rows / kGdnChunk + num_sequences;
  return chunks * (kq_bytes(shape) + tp_bytes(shape) + gate_bytes(shape)) +
         flag_bytes(shape, chunks);
}

bool gdn_prompt(Stream& stream, const GdnArgs& args) {
  const GdnShape& s = args.shape;
  if (!gdn_chunks_support(s) || !aligned(args.qkv, 8) || !aligned(args.out, 8) ||
      !aligned(args.conv, 4) || !aligned(args.state.recurrent, 4)) {
    return false;
  }
  CHECK(args.host_cu_q != nullptr);
  int64_t num_chunks = 0;
  for (int i = 0; i < args.num_prompt_segments; ++i) {
    num_chunks += (args.host_cu_q[i + 1] - args.host_cu_q[i] + kGdnChunk - 1) / kGdnChunk;
  }
  const GdnView p = gdn_view(args);
  const int blocks = args.num_prompt_chains * s.value_heads * 2, all = num_processors();
  Arena& scratch = stream.scratch();
  const ArenaScope scope(scratch);
  GdnChunks chunks{};
  chunks.num_chunks = static_cast<int>(num_chunks);
  if (num_chunks > 0) {
    chunks.kq = static_cast<std::byte*>(scratch.take(num_chunks * kq_bytes(s)));
    chunks.tp = static_cast<std::byte*>(scratch.take(num_chunks * tp_bytes(s)));
    chunks.gates = static_cast<float*>(scratch.take(num_chunks * gate_bytes(s)));
    chunks.ready = static_cast<int*>(scratch.take(flag_bytes(s, num_chunks)));
    const auto bytes = static_cast<size_t>(flag_bytes(s, num_chunks));
    check(cudaMemsetAsync(chunks.ready, 0, bytes, native(stream)), "flags of chunks");
    gdn_prepare_chunks(stream, p, chunks, 2 * blocks <= all ? all - blocks : all);
  }
  // A few sequences' scan gets multiprocessors of its own, which the preparation leaves free. With
  // `overlap` the scan begins once all blocks of the preparation run. It never waits for the
  // end of that kernel but for the flags of its chunks; what is older is finished, because the
  // preparation began after it.
  launch(stream,
         {.grid = static_cast<unsigned>(blocks),
          .block = kThreads,
          .shared_bytes = sizeof(Shared),
          .overlap = num_chunks > 0},
         gdn_scan_kernel, p, chunks);
  return true;
}

}  // namespace weft::cuda
