// What a chunk of the gated delta rule needs besides the state: q, k after convolution, SiLU and
// l2norm; (I + A)^-1 with A_ij = beta_i exp(G_i - G_j) k_i.k_j (i > j); and
// P_ij = exp(G_i - G_j) K^-1/2 q_i.k_j (i >= j). docs/kernels/gated_delta.md
//
// Tile: 64 tokens of one key head and its value heads, all chunks independent. Moved a token:
// 4 K bytes in and out a key head, 256 bytes out a value head. Bound: instruction slots.
//
// Two warpgroups, each with both products k k^T, q k^T (wgmma, f16) for every second value head.
// The inverse goes by blocks of 16 (a warp has the rows of one): those on the diagonal by
// substitution in fp32, then T_I = -T_II A_I,<I T_<I, row of blocks by row of blocks, in f16
// products with fp32 sums: all factors are at most 1. Blocks are persistent and go through the
// chunks in order, so that the scan (gdn_prompt.cu) can follow.

#include <algorithm>

#include "kernels/cuda/gdn_mma.h"
#include "kernels/cuda/gdn_prompt.h"

namespace weft::cuda {
namespace {

constexpr int kTeams = 2;                       // of a block, with items of their own
constexpr int kThreads = 256;                   // of a team
constexpr float kScale = 0.08838834764831845f;  // K^-1/2
constexpr float kLog2E = 1.4426950408889634f, kLn2 = 0.6931471805599453f;

/// Log2 of decays, in blocks of 16 tokens so that differences keep their digits: over a chunk they
/// may reach -1000s.
struct alignas(16) HeadGates {
  float local[kGdnChunk];  // from the start of its block to a token, inclusive
  float beta[kGdnChunk];
  float out[kGdnGates];
};

/// Where a chunk's rows are.
struct ChunkRows {
  int begin, count;  // rows of the step
  int end;           // of the segment
  GdnHistory history;
};

struct __align__(1024) Shared {
  std::byte kq[kGdnKqBytes];
  std::byte tp[2][kGdnTpBytes];  // by warpgroup: T (before, A below the diagonal blocks), then P
  float diagonal[2][4][16][16];  // blocks of A
  ChunkRows next;
  HeadGates gates[1];  // [group]
};

/// Behind a team's gates, if there is room: what the next chunk is made of, on its way while this
/// one is prepared. Rows from three before the chunk on; of q, then of k.
struct alignas(16) Ahead {
  uint2 rows[kGdnChunk + 3][kGdnDim / 2];
  float taps[2 * kGdnDim][4];
};

/// Goes through the chunks in order.
class Cursor {
 public:
  explicit __device__ Cursor(const GdnView& p) : p_(p) { num_ = gdn_num_chunks(p, 0); }
  __device__ ChunkRows find(int chunk) {
    while (chunk >= base_ + num_) {
      base_ += num_;
      num_ = gdn_num_chunks(p_, ++segment_);
    }
    while (p_.chains[chain_ + 1] <= segment_) ++chain_;
    const int begin = p_.cu_q[segment_] + (chunk - base_) * kGdnChunk;
    const int end = p_.cu_q[segment_ + 1];
    return {begin, min(kGdnChunk, end - begin), end, gdn_history(p_, segment_, p_.chains[chain_])};
  }

 private:
  const GdnView& p_;
  int segment_ = 0, base_ = 0, num_, chain_ = 0;
};

__device__ __forceinline__ void unpack(const uint2& from, float (&to)[4]) {
  to[0] = __uint_as_float(from.x << 16);
  to[1] = __uint_as_float(from.x & 0xffff0000u);
  to[2] = __uint_as_float(from.y << 16);
  to[3] = __uint_as_float(from.y & 0xffff0000u);
}

template <bool IsAhead>
class Preparer {
 public:
  __device__ Preparer(const GdnView& p, const GdnChunks& chunks, Shared& shared)
      : p_(p),
        chunks_(chunks),
        shared_(shared),
        ahead_(*reinterpret_cast<Ahead*>(shared.gates + p.group())) {
    warp_ = warp_index() % (kThreads / 32);
    lane_ = static_cast<int>(threadIdx.x) % 32;
    warpgroup_ = warp_ / 4;
  }

  __device__ void run() {
    Cursor cursor(p_);
    const int items = chunks_.num_chunks * p_.key_heads;
    int item = static_cast<int>(blockIdx.x) * kTeams + team();
    if (item >= items) return;
    // What is above the diagonal blocks of T and P stays 0.
    for (int i = thread(); i < 2 * kGdnTpBytes / 16; i += kThreads) {
      reinterpret_cast<uint4*>(shared_.tp)[i] = make_uint4(0, 0, 0, 0);
    }
    ChunkRows rows = cursor.find(item / p_.key_heads);
    load_ahead(rows, item % p_.key_heads);
    while (item < items) {
      const int chunk = item / p_.key_heads, hk = item % p_.key_heads;
      const int next = item + static_cast<int>(gridDim.x) * kTeams;
      if (thread() == kLeader) bulk_wait_read<1>();  // q, k and gates of the item before have left
      if constexpr (IsAhead) copy_async_wait<0>();
      sync_team();
      const bool has_head = warp_ < p_.group();
      GateInputs inputs;
      if (has_head) inputs = load_gates(rows, hk * p_.group() + warp_);
      convolve(rows, hk);
      // While some make gates, others look for the next rows and tell of the item before.
      if (has_head) make_gates(rows, inputs, shared_.gates[warp_]);
      publish();
      if (warp_ == 6 && next < items) {
        const ChunkRows found = cursor.find(next / p_.key_heads);
        if (lane_ == 0) shared_.next = found;
      }
      fence_async_shared();
      sync_team();
      if (next < items) {
        rows = shared_.next;
        load_ahead(rows, next % p_.key_heads);
      }
      if (thread() == kLeader) {
        const int64_t at = int64_t{chunk} * p_.key_heads + hk;
        bulk_store(chunks_.kq + at * kGdnKqBytes, shared_.kq, kGdnKqBytes);
        for (int r = 0; r < p_.group(); ++r) {
          bulk_store(chunks_.gates + (at * p_.group() + r) * kGdnGates, shared_.gates[r].out,
                     kGdnGates * 4);
        }
        bulk_commit();
      }
      heads(chunk, hk);
      pending_ = chunks_.ready + int64_t{chunk} * p_.key_heads + hk;
      item = next;
    }
    publish();
  }

 private:
  static constexpr int kLeader = 96;  // of a warpgroup: has no gates to make, in most shapes
  __device__ bool is_leader() const { return threadIdx.x % 128 == kLeader; }
  __device__ static int team() { return static_cast<int>(threadIdx.x) / kThreads; }
  __device__ static int thread() { return static_cast<int>(threadIdx.x) % kThreads; }
  __device__ void sync_team() const { barrier_sync(1 + team(), kThreads); }
  __device__ void sync_warpgroup() const {
    barrier_sync(3 + static_cast<int>(threadIdx.x) / 128, 128);
  }

  /// This warpgroup's part of the item before is in memory: tells so.
  __device__ void publish() {
    if (is_leader() && pending_ != nullptr) {
      bulk_wait<0>();
      fence_async_global();
      asm volatile("red.release.gpu.global.add.s32 [%0], 1;" ::"l"(pending_) : "memory");
    }
  }

  /// Asks for the input rows of a chunk, and taps; rows that the segment does not have are zeros.
  __device__ __forceinline__ void load_ahead(const ChunkRows& rows, int hk) const {
    if constexpr (IsAhead) {
      const int part = lane_;  // of a row, 16 bytes each
      const int channel = (part < 16 ? hk * kGdnDim : p_.k_channel(hk) - kGdnDim) + part * 8;
      const int first = rows.begin - 3 + warp_;
      const __nv_bfloat16* from = p_.qkv + channel + first * p_.qkv_row;
      const int64_t step = 8 * p_.qkv_row;
#pragma unroll
      for (int i = 0; i < 9; ++i) {
        const int t = first + 8 * i;
        const bool there = t >= rows.history.begin && t < rows.end;
        if (i < 8 || warp_ < 3) {
          copy_async_16(&ahead_.rows[warp_ + 8 * i][2 * part], there ? from : p_.qkv,
                        there ? 16 : 0);
        }
        from += step;
      }
      const int own =
          thread() < kGdnDim ? hk * kGdnDim + thread() : p_.k_channel(hk) - kGdnDim + thread();
      copy_async_16(ahead_.taps[thread()], p_.conv + own * p_.conv_row, 16);
      copy_async_commit();
    } else {  // lines of 128 bytes, two of q and two of k a row
      const int row = thread() / 4, part = thread() % 4;
      if (row >= rows.count) return;
      const int channel = (part < 2 ? hk * kGdnDim : p_.k_channel(hk)) + part % 2 * 64;
      asm volatile("prefetch.global.L2 [%0];" ::"l"(
          p_.qkv + int64_t{rows.begin + row} * p_.qkv_row + channel));
    }
  }

  struct GateInputs {
    float a[2], b[2], a_log, dt_bias;
  };
  /// Of a value head; two rows a lane.
  __device__ __forceinline__ GateInputs load_gates(const ChunkRows& rows, int hv) const {
    GateInputs in;
    in.a_log = p_.a_log[hv];
    in.dt_bias = p_.dt_bias[hv];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int64_t t = rows.begin + min(2 * lane_ + i, rows.count - 1);
      in.a[i] = p_.a[t * p_.a_row + hv];
      in.b[i] = p_.b[t * p_.b_row + hv];
    }
    return in;
  }

  /// A block of 16 tokens in 8 lanes.
  __device__ void make_gates(const ChunkRows& rows, const GateInputs& in, HeadGates& gates) const {
    float g[2], beta[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const bool there = 2 * lane_ + i < rows.count;
      g[i] = there ? gdn_log_decay(in.a[i], in.a_log, in.dt_bias) * kLog2E : 0.0f;
      beta[i] = there ? gdn_beta(in.b[i]) : 0.0f;
    }
    float sum = g[0] + g[1];
#pragma unroll
    for (int step = 1; step < 8; step *= 2) {
      const float other = __shfl_up_sync(0xffffffffu, sum, step, 8);
      if (lane_ % 8 >= step) sum += other;
    }
    const float earlier = __shfl_up_sync(0xffffffffu, sum, 1, 8);
    g[0] += lane_ % 8 > 0 ? earlier : 0.0f;
    g[1] = sum;
    const int block = lane_ / 8;
    float before = 0, after = 0, all = 0, own = 0;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float total = __shfl_sync(0xffffffffu, sum, 8 * i + 7);
      if (i < block) before += total;
      if (i == block) own = total;
      if (i > block) after += total;
      all += total;
    }
    const float last = exp2_approx(all);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int row = 2 * lane_ + i;
      gates.local[row] = g[i];
      gates.beta[row] = beta[i];
      const float decay = exp2_approx(before + g[i]);
      const int at = gdn_gate_offset(row);
      gates.out[at] = -beta[i] * decay;
      gates.out[64 + at] = decay;
      gates.out[128 + at] = exp2_approx((own - g[i]) + after);
      gates.out[192 + row] = last;
    }
  }

  /// q and k of the chunk as f16 tiles; a warp takes 16 rows of q or k, a lane 4 channels. Rows
  /// beyond the chunk's are 0. The taps have a factor -log2(e), for SiLU.
  __device__ __forceinline__ void convolve(const ChunkRows& rows, int hk) const {
    const bool is_k = warp_ >= 4;
    const int channel = (is_k ? p_.k_channel(hk) : hk * kGdnDim) + 4 * lane_;
    const int first = rows.begin + 16 * (warp_ % 4) - 3, stride = static_cast<int>(p_.qkv_row);
    const uint2* near = ahead_.rows[16 * (warp_ % 4)] + (is_k ? 32 : 0) + lane_;
    uint2 raw[IsAhead ? 3 : 19];
#pragma unroll
    for (int i = 0; i < (IsAhead ? 3 : 19); ++i) {
      if constexpr (IsAhead) {
        raw[i] = near[i * (kGdnDim / 2)];
      } else {
        const int t = min(max(first + i, rows.history.begin), rows.end - 1);
        raw[i] = *reinterpret_cast<const uint2*>(p_.qkv + channel + int64_t{t} * stride);
      }
    }
    float taps[4][4], x[4][4];
#pragma unroll
    for (int c = 0; c < 4; ++c) {
      const float4 w = *reinterpret_cast<const float4*>(
          IsAhead ? ahead_.taps[(is_k ? kGdnDim : 0) + 4 * lane_ + c]
                  : p_.conv + (channel + c) * p_.conv_row);
      taps[c][0] = w.x * -kLog2E;
      taps[c][1] = w.y * -kLog2E;
      taps[c][2] = w.z * -kLog2E;
      taps[c][3] = w.w * -kLog2E;
    }
#pragma unroll
    for (int i = 0; i < 3; ++i) unpack(raw[i], x[i]);
    if (first < rows.history.begin) {
#pragma unroll
      for (int i = 0; i < 3; ++i) {
        if (first + i >= rows.history.begin) continue;
#pragma unroll
        for (int c = 0; c < 4; ++c) x[i][c] = gdn_input(p_, rows.history, first + i, channel + c);
      }
    }
    std::byte* tile = shared_.kq + (is_k ? 0 : 2 * kGdnTile) + lane_ / 16 * kGdnTile;
#pragma unroll(IsAhead ? 1 : 4)
    for (int i = 0; i < 16; i += 4) {
      uint2 own[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if constexpr (IsAhead) {
          own[j] = near[(i + j + 3) * (kGdnDim / 2)];
        } else {
          own[j] = raw[i + j + 3];
        }
      }
      float y[4][4], sum[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        unpack(own[j], x[(j + 3) % 4]);
        sum[j] = 0;
#pragma unroll
        for (int c = 0; c < 4; ++c) {
          float z = taps[c][0] * x[j % 4][c];
          z = fmaf(taps[c][1], x[(j + 1) % 4][c], z);
          z = fmaf(taps[c][2], x[(j + 2) % 4][c], z);
          z = fmaf(taps[c][3], x[(j + 3) % 4][c], z);
          y[j][c] = z * gdn_reciprocal(1.0f + exp2_approx(z));
          sum[j] = fmaf(y[j][c], y[j][c], sum[j]);
        }
      }
      const float factor =
          rsqrtf(fmaf(sum_of_rows(sum), kLn2 * kLn2, kGdnL2Eps)) * (is_k ? -kLn2 : -kLn2 * kScale);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float f = __shfl_sync(0xffffffffu, factor, 8 * j);
        const int row = 16 * (warp_ % 4) + i + j;
        uint2 packed = {pack_f16(y[j][0] * f, y[j][1] * f), pack_f16(y[j][2] * f, y[j][3] * f)};
        if (row >= rows.count) packed = make_uint2(0, 0);
        *reinterpret_cast<uint2*>(tile + swizzled_128(row, lane_ % 16 * 8)) = packed;
      }
    }
  }

  /// The sum over the warp of sum[lane / 8].
  __device__ __forceinline__ float sum_of_rows(const float (&sum)[4]) const {
    const bool high = (lane_ & 16) != 0, odd = (lane_ & 8) != 0;
    float low = high ? sum[2] : sum[0], up = high ? sum[3] : sum[1];
    low += __shfl_xor_sync(0xffffffffu, high ? sum[0] : sum[2], 16);
    up += __shfl_xor_sync(0xffffffffu, high ? sum[1] : sum[3], 16);
    float own = odd ? up : low;
    own += __shfl_xor_sync(0xffffffffu, odd ? low : up, 8);
#pragma unroll
    for (int step = 4; step > 0; step /= 2) own += __shfl_xor_sync(0xffffffffu, own, step);
    return own;
  }

  /// The value heads of this warpgroup.
  __device__ void heads(int chunk, int hk) {
    for (int r = warpgroup_; r < p_.group(); r += 2) {
      if (r >= 2) {  // the head before is still being copied out
        if (is_leader()) bulk_wait_read<0>();
        sync_warpgroup();
      }
      head(shared_.gates[r], int64_t{chunk} * p_.value_heads + hk * p_.group() + r);
    }
  }

  /// kk <- k k^T, qk <- q k^T. Done again for every value head: registers are dearer.
  __device__ __forceinline__ void products(float (&kk)[32], float (&qk)[32]) const {
    const uint64_t k = k_major_128(shared_.kq), q = k_major_128(shared_.kq + 2 * kGdnTile);
    wgmma_fence();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t step = (i / 4) * static_cast<uint32_t>(kGdnTile) + i % 4 * 32;
      mma_f16_64(kk, advance(k, step), advance(k, step), i > 0);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t step = (i / 4) * static_cast<uint32_t>(kGdnTile) + i % 4 * 32;
      mma_f16_64(qk, advance(q, step), advance(k, step), i > 0);
    }
    wgmma_commit();
    wgmma_wait<0>();
    hold(kk);
    hold(qk);
  }

  __device__ __forceinline__ void head(const HeadGates& gates, int64_t index) {
    std::byte* tiles = shared_.tp[warpgroup_];
    {
      float kk[32], qk[32];
      products(kk, qk);
      decay_products(kk, qk, gates, tiles);
    }
    __syncwarp();
    invert_diagonal(tiles);
    __syncwarp();
    // factors[J] = -T_II A_IJ
    const int own = warp_ % 4;
    uint32_t factors[3][4];
    {
      uint32_t t[4];
      load_matrices(t, block(tiles, own, own));
#pragma unroll
      for (int j = 0; j < 3; ++j) {
        if (j >= own) break;
        float d[2][4] = {};
        uint32_t a[4];
        load_matrices<true>(a, block(tiles, own, j));
        product(d, t, a);
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          factors[j][i] = pack_f16(-d[i / 2][i % 2 * 2], -d[i / 2][i % 2 * 2 + 1]);
        }
      }
    }
    sync_warpgroup();
    if (own == 1) solve_row(tiles, factors);
    sync_warpgroup();
    if (own == 2) solve_row(tiles, factors);
    sync_warpgroup();
    if (own == 3) solve_row(tiles, factors);
    fence_async_shared();
    sync_warpgroup();
    if (is_leader()) {
      bulk_store(chunks_.tp + index * kGdnTpBytes, tiles, kGdnTpBytes);
      bulk_commit();
    }
  }

  /// This lane's address of block (i, j), 16 x 16, of a tile: in order the quarters (0, 0), (1, 0),
  /// (0, 1), (1, 1), which are the parts of A, and of B loaded transposed, of mma.sync.
  __device__ __forceinline__ uint32_t block(const std::byte* tile, int i, int j) const {
    const int quarter = lane_ / 8, row = 16 * i + quarter % 2 * 8 + lane_ % 8;
    return shared_address(tile) + swizzled_128(row, (2 * j + quarter / 2) * 16);
  }
  /// d (16 x 16) += A B.
  __device__ __forceinline__ static void product(float (&d)[2][4], const uint32_t (&a)[4],
                                                 const uint32_t (&b)[4]) {
    mma_f16(d[0], a, b[0], b[1]);
    mma_f16(d[1], a, b[2], b[3]);
  }

  /// This warp's rows of A below the diagonal blocks and of P into the tiles, the diagonal block of
  /// A into `diagonal`.
  __device__ __forceinline__ void decay_products(const float (&kk)[32], const float (&qk)[32],
                                                 const HeadGates& gates, std::byte* tiles) const {
    const int own = warp_ % 4, r = 16 * own + lane_ / 4;
    const float beta[2] = {gates.beta[r], gates.beta[r + 8]};
    float from[2] = {gates.local[r], gates.local[r + 8]};
    float(*diagonal)[16] = shared_.diagonal[warpgroup_][own];
#pragma unroll
    for (int j = 3; j >= 0; --j) {
      if (j > own) continue;
      if (j < own) {
        const float total = gates.local[16 * j + 15];
        from[0] += total;
        from[1] += total;
      }
      uint32_t a16[4], p16[4];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int c = 8 * h + 2 * (lane_ % 4);  // column of the block
        const float2 to = *reinterpret_cast<const float2*>(gates.local + 16 * j + c);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int at = 8 * j + 4 * h + 2 * i, row = lane_ / 4 + 8 * i;
          float e0 = exp2_approx(from[i] - to.x), e1 = exp2_approx(from[i] - to.y);
          if (j == own) {  // above the diagonal the difference is positive: masked after exp2
            e0 = row >= c ? e0 : 0.0f;
            e1 = row >= c + 1 ? e1 : 0.0f;
          }
          const float a0 = beta[i] * e0 * kk[at], a1 = beta[i] * e1 * kk[at + 1];
          if (j == own) *reinterpret_cast<float2*>(&diagonal[row][c]) = make_float2(a0, a1);
          a16[2 * h + i] = pack_f16(a0, a1);
          p16[2 * h + i] = pack_f16(e0 * qk[at], e1 * qk[at + 1]);
        }
      }
      if (j < own) store_matrices(block(tiles, own, j), a16);
      store_matrices(block(tiles + kGdnTile, own, j), p16);
    }
  }

  /// The inverse T of I + A for this warp's diagonal block: a lane has a row of it, from T (I + A)
  /// = I, column by column from the right.
  __device__ __forceinline__ void invert_diagonal(std::byte* tiles) const {
    const int own = warp_ % 4, row = lane_ % 16;
    const float(*a)[16] = shared_.diagonal[warpgroup_][own];
    float t[16];
#pragma unroll
    for (int c = 0; c < 16; ++c) t[c] = c == row ? 1.0f : 0.0f;
#pragma unroll
    for (int j = 15; j > 0; --j) {
#pragma unroll
      for (int c = 0; c < j; c += 4) {
        const float4 x = *reinterpret_cast<const float4*>(&a[j][c]);
        t[c] = fmaf(-x.x, t[j], t[c]);
        if (c + 1 < j) t[c + 1] = fmaf(-x.y, t[j], t[c + 1]);
        if (c + 2 < j) t[c + 2] = fmaf(-x.z, t[j], t[c + 2]);
        if (c + 3 < j) t[c + 3] = fmaf(-x.w, t[j], t[c + 3]);
      }
    }
    if (lane_ >= 16) return;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<uint4*>(tiles + swizzled_128(16 * own + row, 32 * own + 16 * h)) =
          make_uint4(pack_f16(t[8 * h], t[8 * h + 1]), pack_f16(t[8 * h + 2], t[8 * h + 3]),
                     pack_f16(t[8 * h + 4], t[8 * h + 5]), pack_f16(t[8 * h + 6], t[8 * h + 7]));
    }
  }

  /// This warp's row of blocks of T: T_IJ = sum over M of factors[M] T_MJ, all above being there.
  __device__ void solve_row(std::byte* tiles, const uint32_t (&factors)[3][4]) const {
    const int own = warp_ % 4;
#pragma unroll
    for (int j = 0; j < 3; ++j) {
      if (j >= own) break;
      float d[2][4] = {};
#pragma unroll
      for (int m = j; m < 3; ++m) {
        if (m >= own) break;
        uint32_t t[4];
        load_matrices<true>(t, block(tiles, m, j));
        product(d, factors[m], t);
      }
      const uint32_t t16[4] = {pack_f16(d[0][0], d[0][1]), pack_f16(d[0][2], d[0][3]),
                               pack_f16(d[1][0], d[1][1]), pack_f16(d[1][2], d[1][3])};
      store_matrices(block(tiles, own, j), t16);
    }
  }

  const GdnView& p_;
  const GdnChunks& chunks_;
  Shared& shared_;
  Ahead& ahead_;
  int warp_, lane_, warpgroup_;
  int* pending_ = nullptr;
};

/// Bytes of a team.
__host__ __device__ int64_t team_bytes(const GdnView& p, bool ahead) {
  const int64_t gates = p.value_heads / p.key_heads;
  return (static_cast<int64_t>(offsetof(Shared, gates) + gates * sizeof(HeadGates) +
                               (ahead ? sizeof(Ahead) : 0)) +
          1023) /
         1024 * 1024;
}

template <bool IsAhead>
__global__ void __launch_bounds__(kTeams* kThreads, 1)
    gdn_chunks_kernel(const __grid_constant__ GdnView p, const __grid_constant__ GdnChunks chunks) {
  extern __shared__ __align__(1024) std::byte memory[];
  let_successor_begin();  // the scan follows by the flags, chunk by chunk
  std::byte* own = memory + warp_index() / (kThreads / 32) * team_bytes(p, IsAhead);
  Preparer<IsAhead>(p, chunks, *reinterpret_cast<Shared*>(own)).run();
}

template <bool IsAhead>
void prepare(Stream& stream, const GdnView& p, const GdnChunks& chunks, int multiprocessors) {
  const int blocks = (chunks.num_chunks * p.key_heads + kTeams - 1) / kTeams;
  launch(stream,
         {.grid = static_cast<unsigned>(std::min(blocks, multiprocessors)),
          .block = kTeams * kThreads,
          .shared_bytes = static_cast<size_t>(kTeams * team_bytes(p, IsAhead))},
         gdn_chunks_kernel<IsAhead>, p, chunks);
}

}  // namespace

void gdn_prepare_chunks(Stream& stream, const GdnView& p, const GdnChunks& chunks,
                        int multiprocessors) {
  if (kTeams * team_bytes(p, true) <= 227 * 1024) {
    prepare<true>(stream, p, chunks, multiprocessors);
  } else {
    prepare<false>(stream, p, chunks, multiprocessors);
  }
}

}  // namespace weft::cuda
