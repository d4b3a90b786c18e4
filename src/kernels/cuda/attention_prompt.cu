// o = softmax(scale * q K^T, causal) V over the paged cache, for rows of prompts (Dao 2023, arXiv
// 2307.08691; Shah et al. 2024, arXiv 2407.08608).
//
// A work item is 64 * Warpgroups rows of one head (or, packed, of 2^k heads of one kv head) against
// their keys, in tiles of `Keys` cut at absolute multiples from position 0, in ascending order. One
// warp copies K and V with TMA, one Q; each warpgroup of consumers owns 64 rows: S = Q K^T (wgmma,
// both operands in shared memory), softmax in registers, O += P V (P in registers). Warpgroups go
// their own ways between the slots of the ring of K and V: with three of them the softmax of one
// runs beneath the products of the others. Two take turns at the tensor cores. With a HeadPlan the
// copying warp walks the tiles that the head sees, and says with each for which warpgroups it is.
//
// Bytes from L2: 4 D a (key, 64 * Warpgroups rows); the bound is the tensor cores' 4 D FLOPs a
// (row, key) pair, and below it the power of the chip. Measured: docs/kernels/attention_prefill.md.
//
// A row's bits: its keys come in the same tiles in the same order whatever the chunk, its numbers
// meet those of no other row, and a tile beyond its last key changes nothing (P = 0, factor 1; V
// rows beyond the segment's keys are zeros, because 0 * NaN is not 0).

#include <cuda_bf16.h>

#include <algorithm>
#include <numeric>

#include "kernels/cuda/attention_prompt_plan.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/common/wgmma.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

// ---- Producers: one warp for K and V, one for Q

template <class C>
struct KvProducer {
  const PrefillShared<C>& shared;
  const PrefillParams& params;
  const CUtensorMap* map;
  int lane;
  RingAt<C> ring;
  uint32_t tail_phase = 0;

  // Of the current item.
  const int32_t* table = nullptr;
  int kv_end = 0;
  int kv_head = 0;

  __device__ __forceinline__ const int32_t* table_of(const PrefillItem& item) const {
    return params.block_table + item.tile.segment * params.table_row;
  }
  /// The block that holds box `lane` of key tile `j`: one beyond the last (zeros) after the keys.
  __device__ __forceinline__ int block_of(const int32_t* blocks, int end, int j) const {
    const int key = j * C::kKeys + lane * params.box_keys;
    const bool mine = lane * params.box_keys < C::kKeys && key < end;
    return mine ? blocks[key / params.block_size] : params.num_blocks;
  }

  /// All boxes of unit `u` of tile `j` into the ring, counted at `barrier`.
  __device__ __forceinline__ void copy(int plane, int j, int u, int block, Barrier* barrier) {
    if (lane == 0) arrive_expect(barrier, C::kUnitBytes);
    __syncwarp();
    const int boxes = C::kKeys / params.box_keys;
    unsigned char* to = shared.ring + ring.slot * C::kUnitBytes;
    for (int i = 0; i < boxes; ++i) {
      const int id = __shfl_sync(0xffffffffu, block, i);
      const int offset = (j * C::kKeys + i * params.box_keys) % params.block_size;
      const int row = (plane * params.kv_heads + kv_head) * params.block_size + offset;
      if (lane == 0) {
#pragma unroll
        for (int panel = 0; panel < C::kPanels; ++panel) {
          tma_load(to + panel * C::kPanelBytes + i * params.box_keys * 128, map, barrier,
                   Coords{u * C::kUnitDims + panel * 64, row, id});
        }
      }
    }
  }

  /// Tile `j` of K (plane 0) or V (plane 1).
  __device__ __forceinline__ void load(int plane, int j, int block, int note) {
    const int keys = kv_end - j * C::kKeys;  // of the tile
    // The last block of a segment holds rows of an older owner, maybe NaN: of V they must be zeros.
    const bool tail = plane == 1 && keys < C::kKeys && kv_end % params.block_size != 0;
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const int slot = ring.slot;
      wait(shared.empty + slot, ring.phase ^ 1);
      if (C::kPlanned && u == 0 && lane == 0) shared.notes[slot] = note;
      copy(plane, j, u, block, tail ? shared.tail : shared.full + slot);
      if (tail) {
        wait(shared.tail, tail_phase);
        tail_phase ^= 1;
        for (int panel = 0; panel < C::kPanels; ++panel) {
          unsigned char* rows = shared.ring + slot * C::kUnitBytes + panel * C::kPanelBytes;
          for (int at = keys * 128 + lane * 16; at < C::kPanelBytes; at += 32 * 16) {
            *reinterpret_cast<uint4*>(rows + at) = make_uint4(0, 0, 0, 0);
          }
        }
        fence_async_shared();
        __syncwarp();
        if (lane == 0) arrive(shared.full + slot);
      }
      ring.step();
    }
  }

  __device__ __forceinline__ void run(const PrefillPlan& plan) {
    PrefillItem item = get_item<C>(plan, params, 0);
    int block = block_of(table_of(item), item.tile.kv_end, 0);
    for (int round = 0; item.tile.tokens > 0; ++round) {
      table = table_of(item);
      kv_end = item.tile.kv_end;
      kv_head = item.head / params.group;
      KeyTiles<C, C::kPlanned> tiles;
      tiles.begin(params, item, lane);
      int j = tiles.from(0), note = tiles.note(j);
      if (j != 0) block = block_of(table, kv_end, j);
      // The table of the next item is on its way while this one's tiles are copied.
      item = get_item<C>(plan, params, round + 1);
      const int next_item_block = block_of(table_of(item), item.tile.kv_end, 0);
      while (j >= 0) {
        const int next = tiles.from(j + 1);
        const int next_block = block_of(table, kv_end, max(next, 0));
        const int next_note = next >= 0 ? tiles.note(next) : 0;
        load(0, j, block, note);
        load(1, j, block, next_note);
        j = next;
        block = next_block;
        note = next_note;
      }
      block = next_item_block;
    }
  }
};

template <class C>
__device__ __forceinline__ void produce_q(const PrefillShared<C>& shared, const CUtensorMap* maps,
                                          const PrefillParams& params, const PrefillPlan& plan) {
  PrefillItem item = get_item<C>(plan, params, 0);
  for (int round = 0;; ++round) {
    const PrefillItem next =
        get_item<C>(plan, params, round + 1);  // on its way while this one waits
    const CUtensorMap* map = maps + (item.tile.pack_shift != 0);
#pragma unroll
    for (int w = 0; w < C::kWarpgroups; ++w) {
      wait(shared.q_empty + w, (round & 1) ^ 1);
      shared.items[2 * w + (round & 1)] = item;
      if (PrefillSpan<C>(item.tile, w).tiles == 0) {
        arrive(shared.q_full + w);
        continue;
      }
      arrive_expect(shared.q_full + w, C::kQBytes);
#pragma unroll
      for (int panel = 0; panel < C::kHeadDim / 64; ++panel) {
        tma_load(shared.q + w * C::kQBytes + panel * C::kQPanelBytes, map, shared.q_full + w,
                 Coords{panel * 64, item.head, item.tile.row + w * (64 >> item.tile.pack_shift)},
                 L2Hint::kEvictFirst);
      }
    }
    if (item.tile.tokens == 0) return;
    item = next;
  }
}

// ---- Consumers

__device__ __forceinline__ float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
__device__ __forceinline__ float max_of_quad(float x) {
  x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
  return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}
__device__ __forceinline__ float sum_of_quad(float x) {
  x += __shfl_xor_sync(0xffffffffu, x, 1);
  return x + __shfl_xor_sync(0xffffffffu, x, 2);
}

/// Words w[i] of lane c of a quad become w[c] of lane i.
__device__ __forceinline__ void transpose_in_quad(uint32_t (&w)[4], int c) {
#pragma unroll
  for (int i = 0; i < 4; i += 2) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, (c & 1) ? w[i] : w[i + 1], 1);
    w[i] = (c & 1) ? got : w[i];
    w[i + 1] = (c & 1) ? w[i + 1] : got;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t got = __shfl_xor_sync(0xffffffffu, (c & 2) ? w[i] : w[i + 2], 2);
    w[i] = (c & 2) ? got : w[i];
    w[i + 2] = (c & 2) ? w[i + 2] : got;
  }
}

/// The running softmax of a thread's rows r and r + 8.
struct RunningSoftmax {
  float scale_log2;
  float high[2];    // the reference of the exponents: at least max - kSlack
  float sum[2];     // of this thread's columns
  float factor[2];  // that the last tile put on what was before

  // A row's reference rises only when its maximum passes it by 2^kSlack: until then the factor is 1
  // for sure, and most tiles need no pass over O.
  static constexpr float kSlack = 8;

  __device__ __forceinline__ void reset() {
    high[0] = high[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }

  /// S becomes P.
  template <int Count>
  __device__ __forceinline__ void tile(float (&s)[Count]) {
    float top[2] = {high[0], high[1]};
#pragma unroll
    for (int i = 0; i < Count; ++i) top[i / 2 % 2] = fmaxf(top[i / 2 % 2], s[i]);
    float shift[2];
#pragma unroll
    for (int row = 0; row < 2; ++row) {
      top[row] = max_of_quad(top[row]);
      if ((top[row] - high[row]) * scale_log2 <= kSlack) top[row] = high[row];
      factor[row] = exp2_approx((high[row] - top[row]) * scale_log2);
      high[row] = top[row];
      shift[row] = top[row] * scale_log2;
    }
    float part[4] = {0, 0, 0, 0};
#pragma unroll
    for (int i = 0; i < Count; ++i) {
      s[i] = exp2_approx(fmaf(s[i], scale_log2, -shift[(i / 2) % 2]));
      part[i % 4] += s[i];
    }
    sum[0] = fmaf(sum[0], factor[0], part[0] + part[1]);
    sum[1] = fmaf(sum[1], factor[1], part[2] + part[3]);
  }

  template <int Units, int Count>
  __device__ __forceinline__ void rescale(float (&o)[Units][Count]) const {
    // Where no row of the warp changes, the products by 1 are left out: the same bits.
    if (__any_sync(0xffffffffu, factor[0] != 1 || factor[1] != 1)) {
#pragma unroll
      for (int u = 0; u < Units; ++u) {
#pragma unroll
        for (int i = 0; i < Count; ++i) o[u][i] *= factor[(i / 2) % 2];
      }
    }
  }
};

template <class C>
struct PrefillConsumer {
  const PrefillShared<C>& shared;
  RingAt<C> ring;
  int warpgroup;
  uint64_t q;  // descriptor

  float s[C::kKeys / 2];
  uint32_t p[C::kKeys / 16][4];
  float o[C::kUnits][C::kUnitDims / 2];
  RunningSoftmax softmax;

  __device__ __forceinline__ void turn_begin() const {
    if (C::kTurns) barrier_sync(1 + warpgroup, 256);
  }
  __device__ __forceinline__ void turn_end() const {
    if (C::kTurns) barrier_arrive(1 + (warpgroup + 1) % C::kWarpgroups, 256);
  }
  __device__ __forceinline__ void await(RingAt<C> at) const {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      wait(shared.full + at.slot, at.phase);
      at.step();
    }
  }
  /// Each warp says that it has done with the units.
  __device__ __forceinline__ void release(RingAt<C> at) const {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      if (threadIdx.x % 32 == 0) arrive(shared.empty + at.slot);
      at.step();
    }
  }
  __device__ __forceinline__ void release_q() const {
    if (threadIdx.x % 32 == 0) arrive(shared.q_empty + warpgroup);
  }

  __device__ __forceinline__ void issue_scores(RingAt<C> at) {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const uint64_t k = k_major_128(shared.ring + at.slot * C::kUnitBytes);
#pragma unroll
      for (int panel = 0; panel < C::kPanels; ++panel) {
#pragma unroll
        for (int step = 0; step < 4; ++step) {
          Wgmma<C::kKeys>::bf16(
              s, advance(q, (u * C::kPanels + panel) * C::kQPanelBytes + step * 32),
              advance(k, panel * C::kPanelBytes + step * 32), (u | panel | step) != 0);
        }
      }
      at.step();
    }
    wgmma_commit();
  }
  __device__ __forceinline__ void issue_values(RingAt<C> at) {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const uint64_t v = mn_major_128(shared.ring + at.slot * C::kUnitBytes, C::kPanelBytes);
#pragma unroll
      for (int k = 0; k < C::kKeys / 16; ++k) {
        Wgmma<C::kUnitDims>::template bf16_a<true>(o[u], p[k], advance(v, k * 2048), 1);
      }
      at.step();
    }
    wgmma_commit();
  }

  __device__ __forceinline__ int row() const {
    const int thread = static_cast<int>(threadIdx.x) % 128;
    return 16 * (thread / 32) + thread % 32 / 4;
  }
  /// S of tile `j` without what the rows don't see.
  __device__ __forceinline__ void mask(const PrefillTile& tile, int j) {
    const int column = j * C::kKeys + 2 * (static_cast<int>(threadIdx.x) % 4);
    const int first = PrefillSpan<C>(tile, warpgroup).first - column;
    const int limit[2] = {first + (row() >> tile.pack_shift),
                          first + ((row() + 8) >> tile.pack_shift)};
#pragma unroll
    for (int i = 0; i < C::kKeys / 2; ++i) {
      if (i / 4 * 8 + i % 2 > limit[i / 2 % 2]) s[i] = -INFINITY;
    }
  }

  /// Tile `j` of keys; returns the note of the next one.
  __device__ __forceinline__ int tile(const PrefillTile& rows, int j, bool masked, bool last) {
    await(ring);
    turn_begin();
    wgmma_fence();
    issue_scores(ring);
    turn_end();
    wgmma_wait<0>();
    hold(s);
    release(ring);
    ring.step_tile();
    if (last) release_q();
    if (masked) mask(rows, j);
    softmax.tile(s);
    softmax.rescale(o);
#pragma unroll
    for (int k = 0; k < C::kKeys / 16; ++k) {
#pragma unroll
      for (int i = 0; i < 4; ++i) p[k][i] = pack_bf16(s[8 * k + 2 * i], s[8 * k + 2 * i + 1]);
    }
    await(ring);
    turn_begin();
    wgmma_fence();
    issue_values(ring);
    turn_end();
    const int next = note_at(ring);
    wgmma_wait<0>();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) hold(o[u]);
    release(ring);
    ring.step_tile();
    return next;
  }
  /// Lets a tile of keys go by.
  __device__ __forceinline__ int pass() {
    await(ring);
    turn_begin();
    turn_end();
    release(ring);
    ring.step_tile();
    await(ring);
    const int next = note_at(ring);
    turn_begin();
    turn_end();
    release(ring);
    ring.step_tile();
    return next;
  }
  __device__ __forceinline__ int note_at(RingAt<C> at) const {
    return C::kPlanned ? __shfl_sync(0xffffffffu, shared.notes[at.slot], 0) : 0;
  }

  /// This warpgroup's part of an item.
  __device__ __forceinline__ void run(const PrefillItem& item, const PrefillParams& params) {
    softmax.reset();
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
#pragma unroll
      for (int i = 0; i < C::kUnitDims / 2; ++i) o[u][i] = 0;
    }
    const PrefillSpan<C> span(item.tile, warpgroup);
    if (span.tiles == 0) release_q();
    if constexpr (C::kPlanned) {
      await(ring);
      int note = note_at(ring);
      const int needed = kNeededBy << warpgroup;
      // A warpgroup needs a prefix of the tiles of its item.
      while (note & needed) {
        note = tile(item.tile, note >> kTileBits, (note & (kMaskedFor << warpgroup)) != 0,
                    (note & (kLastOfGroup << warpgroup)) != 0);
      }
      while (note != 0) note = pass();
    } else {
      const int whole = (span.first + 1) / C::kKeys;
      int j = 0;
      for (; j < span.tiles; ++j) tile(item.tile, j, j >= whole, j + 1 == span.tiles);
      const int tiles = (item.tile.position + item.tile.tokens - 1) / C::kKeys + 1;
      for (; j < tiles; ++j) pass();
    }
    if (PrefillSpan<C>(item.tile, warpgroup).tiles > 0) store(item, params);
  }

  __device__ __forceinline__ void store(const PrefillItem& item, const PrefillParams& params) {
    const int first = warpgroup * 64 + row();
    const int c = static_cast<int>(threadIdx.x) % 4;
    const int shift = item.tile.pack_shift;
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_quad(softmax.sum[half]);
      const float inverse = 1.0f / sum;
      const int at = first + 8 * half;
      const int token = at >> shift;
      const int head = item.head + (at & ((1 << shift) - 1));
      if (params.lse != nullptr && c == 0 && token < item.tile.tokens) {
        params.lse[(item.tile.row + token) * params.lse_row + head] =
            0.693147181f * fmaf(softmax.high[half], softmax.scale_log2, __log2f(sum));
      }
      __nv_bfloat16* to =
          params.out + (item.tile.row + token) * params.out_row + head * params.out_head + 8 * c;
#pragma unroll
      for (int u = 0; u < C::kUnits; ++u) {
#pragma unroll
        for (int j = 0; j < C::kUnitDims / 8; j += 4) {
          uint32_t w[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float* pair = &o[u][4 * (j + i) + 2 * half];
            w[i] = pack_bf16(pair[0] * inverse, pair[1] * inverse);
          }
          transpose_in_quad(w, c);
          if (token < item.tile.tokens && u * C::kUnitDims + 8 * (j + c) < params.head_dim) {
            *reinterpret_cast<uint4*>(to + u * C::kUnitDims + 8 * j) =
                make_uint4(w[0], w[1], w[2], w[3]);
          }
        }
      }
    }
  }
};

/// q[0], q[1]: (D, H, T) in boxes of (64, 1, 64), and of (64, 2^k, 64 / 2^k); kv: (D, 2 G B,
/// blocks) in boxes of (64, box_keys, 1).
struct PrefillMaps {
  CUtensorMap q[2];
  CUtensorMap kv;
};

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attention_prefill(const __grid_constant__ PrefillMaps maps,
                      const __grid_constant__ PrefillParams params,
                      const __grid_constant__ PrefillPlan plan) {
  extern __shared__ unsigned char raw[];
  const PrefillShared<C> shared(raw);
  const int warp = warp_index();
  if (threadIdx.x == 0) {
    prefetch_map(&maps.q[0]);
    prefetch_map(&maps.kv);
    for (int i = 0; i < C::kStages; ++i) {
      barrier_init(shared.full + i, 1);
      barrier_init(shared.empty + i, 4 * C::kWarpgroups);
    }
    for (int w = 0; w < C::kWarpgroups; ++w) {
      barrier_init(shared.q_full + w, 1);
      barrier_init(shared.q_empty + w, 4);
    }
    barrier_init(shared.tail, 1);
    fence_barrier_init();
  }
  __syncthreads();
  wait_for_predecessor();

  if (warp < 4) {
    drop_registers_to<C::kProducerRegisters>();
    if (warp == 0) {
      KvProducer<C>{shared, params, &maps.kv, static_cast<int>(threadIdx.x)}.run(plan);
    } else if (threadIdx.x == 32) {
      produce_q<C>(shared, maps.q, params, plan);
    }
  } else {
    raise_registers_to<C::kConsumerRegisters>();
    PrefillConsumer<C> self{shared};
    self.warpgroup = warp / 4 - 1;
    self.q = k_major_128(shared.q + self.warpgroup * C::kQBytes);
    self.softmax.scale_log2 = params.scale_log2;
    // The first turn is warpgroup 0's.
    if (self.warpgroup == C::kWarpgroups - 1) self.turn_end();
    for (int round = 0;; ++round) {
      wait(shared.q_full + self.warpgroup, round & 1);
      const PrefillItem& item = shared.items[2 * self.warpgroup + (round & 1)];
      if (item.tile.tokens == 0) break;
      self.run(item, params);
    }
    if (self.warpgroup == 0) self.turn_begin();
  }
}

// ---- Host

int num_multiprocessors() {
  static const int count = [] {
    int device = 0, value = 0;
    check(cudaGetDevice(&device), "device");
    check(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device), "device");
    return value;
  }();
  return count;
}

/// Tiles are collected, and launched when the plan is full and at the end.
template <class C>
class PrefillLauncher {
 public:
  PrefillLauncher(Stream& stream, const AttnArgs& args) : stream_(stream), args_(args) {
    const KvShape& kv = args.kv.shape;
    const AttnShape& shape = args.shape;
    const int group = shape.q_heads / shape.kv_heads;
    // Heads of one tile are a power of two of one kv head.
    // With a plan every head has tiles of its own.
    while (!C::kPlanned && pack_shift_ < 4 && group % (2 << pack_shift_) == 0) ++pack_shift_;
    params_.out = static_cast<__nv_bfloat16*>(args.out.data);
    params_.out_row = args.out.stride[0];
    params_.out_head = args.out.stride[1];
    params_.block_table = args.seqs.block_table.template ptr<int32_t>();
    params_.table_row = args.seqs.block_table.stride[0];
    params_.head_dim = shape.head_dim;
    params_.group = group;
    params_.kv_heads = shape.kv_heads;
    params_.block_size = kv.block_size;
    params_.box_keys = std::gcd(kv.block_size, C::kMaxBoxKeys);
    params_.num_blocks = static_cast<int32_t>(args.kv.num_blocks);
    params_.scale_log2 = shape.scale * 1.44269504088896f;

    params_.lse = args.lse.defined() ? args.lse.template ptr<float>() : nullptr;
    params_.lse_row = args.lse.stride[0];
    if constexpr (C::kPlanned) take_plan(*args.heads);

    MapShape m;
    m.rank = 3;
    m.dims[0] = static_cast<uint64_t>(shape.head_dim);  // zeros beyond
    m.dims[1] = static_cast<uint64_t>(shape.q_heads);
    m.dims[2] = static_cast<uint64_t>(args.prompt_rows);
    m.stride_bytes[0] = static_cast<uint64_t>(args.q.stride[1]) * 2;
    m.stride_bytes[1] = static_cast<uint64_t>(args.q.stride[0]) * 2;
    m.box[0] = 64;
    for (int packed = 0; packed < 2; ++packed) {
      m.box[1] = packed ? 1u << pack_shift_ : 1u;
      m.box[2] = 64 / m.box[1];
      maps_.q[packed] = encode_map(args.q.data, m);
    }
    m.dims[1] = static_cast<uint64_t>(2) * kv.heads * kv.block_size;
    m.dims[2] = static_cast<uint64_t>(args.kv.num_blocks);
    m.stride_bytes[0] = m.dims[0] * 2;
    m.stride_bytes[1] = static_cast<uint64_t>(args.kv.block_bytes);
    m.box[1] = static_cast<uint32_t>(params_.box_keys);
    m.box[2] = 1;
    maps_.kv = encode_map(args.kv.data, m);
  }

  /// Rows [row, row + tokens) of q are those of `segment` from `position` on.
  void add(int segment, int row, int tokens, int position) {
    // Packed tiles take fewer passes over the keys, wide ones have the better access to q and out.
    const int packed_tiles = (tokens << pack_shift_) / C::kRows + 1;
    const int wide_tiles = (tokens + C::kRows - 1) / C::kRows;
    const bool fewer = packed_tiles < wide_tiles << pack_shift_ && tokens < C::kRows;
    const int shift = fewer && (tokens <= 64 || position >= 1024) ? pack_shift_ : 0;
    const Rows rows{segment, row, tokens, position};
    if constexpr (C::kPlanned && C::kRows != HeadPlan::kBlock) {
      cut(rows, C::kRows, 0, kFullHeads);
      cut(rows, HeadPlan::kBlock, 0, kOtherHeads);
    } else {
      cut(rows, C::kRows >> shift, shift, C::kPlanned ? kFullHeads | kOtherHeads : 0);
    }
  }

  void flush() {
    if (plan_.num_tiles == 0) return;
    // In two classes by the heads of a tile; longest first, unless all are short beside the whole:
    // then those that share keys follow each other.
    PrefillTile* end = plan_.tiles + plan_.num_tiles;
    int64_t all = 0;
    plan_.longest = 0;
    for (const PrefillTile* tile = plan_.tiles; tile != end; ++tile) {
      plan_.longest = std::max(plan_.longest, tile->position + tile->tokens);
      all += int64_t{tile->position + tile->tokens} * args_.shape.q_heads >> tile->pack_shift;
    }
    if (plan_.longest > all / num_multiprocessors() / 16) {
      std::stable_sort(plan_.tiles, end, [](const PrefillTile& a, const PrefillTile& b) {
        return a.position + a.tokens > b.position + b.tokens;
      });
    }
    const int shift = plan_.tiles[0].pack_shift;
    const PrefillTile* others = std::stable_partition(
        plan_.tiles, end, [&](const PrefillTile& tile) { return tile.pack_shift == shift; });
    const auto items = [&](int s) { return args_.shape.q_heads >> s; };
    plan_.num_first = static_cast<int32_t>(others - plan_.tiles);
    plan_.first_items = items(shift);
    plan_.other_items = others == end ? 1 : items(others->pack_shift);
    plan_.num_items = plan_.num_first * plan_.first_items +
                      (plan_.num_tiles - plan_.num_first) * plan_.other_items;
    const int walkers = std::min(plan_.num_items, num_multiprocessors());
    ArenaScope scope(stream_.scratch());
    if constexpr (C::kPlanned) {
      auto* order = static_cast<int32_t*>(stream_.scratch().take(int64_t{plan_.num_items} * 4 + 4));
      launch(stream_, {.grid = 1, .block = 1024, .overlap = true}, order_items<C>, params_, plan_,
             order);
      params_.order = order;
    }
    launch(stream_,
           {.grid = static_cast<unsigned>(walkers),
            .block = C::kThreads,
            .shared_bytes = C::kSharedBytes,
            .overlap = true},
           attention_prefill<C>, maps_, params_, plan_);
    plan_.num_tiles = 0;
  }

 private:
  struct Rows {
    int segment, row, tokens, position;
  };
  /// Into tiles of up to `step` tokens; those for other than full heads end where a block does.
  void cut(const Rows& rows, int step, int shift, int kinds) {
    int at = 0;
    while (at < rows.tokens) {
      if (plan_.num_tiles == PrefillPlan::kMaxTiles) flush();
      PrefillTile& tile = plan_.tiles[plan_.num_tiles++];
      const int position = rows.position + at;
      int tokens = std::min(step, rows.tokens - at);
      if (kinds & kOtherHeads) {
        tokens = std::min(tokens, HeadPlan::kBlock - position % HeadPlan::kBlock);
      }
      tile.row = rows.row + at;
      tile.position = position;
      tile.kv_end = rows.position + rows.tokens;
      tile.block = position / HeadPlan::kBlock - rows.position / HeadPlan::kBlock;
      tile.segment = rows.segment;
      tile.tokens = static_cast<uint16_t>(tokens);
      tile.pack_shift = static_cast<uint8_t>(shift);
      tile.kinds = static_cast<uint8_t>(kinds);
      at += tokens;
    }
  }

  void take_plan(const HeadPlan& plan) {
    params_.kinds = plan.kinds.template ptr<int32_t>();
    params_.heads = static_cast<int32_t>(plan.kinds.dim(1));
    CHECK(plan.kinds.contiguous() && params_.heads == args_.shape.q_heads);
    CHECK(!plan.rows.defined() && plan.kinds.dim(0) >= args_.num_prompt_segments);
    params_.sink_blocks = plan.sink_blocks;
    params_.window_blocks = plan.window_blocks;
    CHECK(plan.sink_blocks >= 0 && plan.window_blocks >= 1);
    if (!plan.blocks.defined()) return;  // then no head is of kind kBlocks
    CHECK(plan.blocks.contiguous() && plan.counts.contiguous() && plan.blocks.rank == 4);
    params_.blocks = plan.blocks.template ptr<int32_t>();
    params_.counts = plan.counts.template ptr<int32_t>();
    params_.row_blocks = static_cast<int32_t>(plan.blocks.dim(2));
    params_.words = static_cast<int32_t>(plan.blocks.dim(3));
  }

  Stream& stream_;
  const AttnArgs& args_;
  int pack_shift_ = 0;
  PrefillMaps maps_;
  PrefillParams params_;
  PrefillPlan plan_;
};

template <class C>
void launch_prefill(Stream& stream, const AttnArgs& args) {
  PrefillLauncher<C> launcher(stream, args);
  const SeqMap& seqs = args.seqs;
  for (int s = 0; s < args.num_prompt_segments; ++s) {
    const int row = seqs.host_cu_q[s], tokens = seqs.host_cu_q[s + 1] - row;
    if (tokens > 0) launcher.add(s, row, tokens, seqs.host_kv_start[s]);
  }
  launcher.flush();
}

}  // namespace

int64_t attention_prompt_scratch(const AttnShape& shape, int64_t, int64_t) {
  return int64_t{PrefillPlan::kMaxTiles} * shape.q_heads * 4 + 256;  // of a HeadPlan's items
}

void attention_prompt(Stream& stream, const AttnArgs& args) {
  const KvShape& kv = args.kv.shape;
  if (args.prompt_rows == 0 || args.num_prompt_segments == 0) return;
  CHECK(args.seqs.host_cu_q && args.seqs.host_kv_start);
  CHECK(args.q.dtype == DType::kBF16 && args.out.dtype == DType::kBF16);
  CHECK(kv.format == KvFormat::kBf16 && kv.block_size % 16 == 0 && args.shape.scale > 0);
  const int dim = args.shape.head_dim;
  CHECK(dim > 0 && dim <= 256 && dim % 8 == 0, "attention of a prompt: head_dim is 8, 16, .. 256");
  if (args.heads != nullptr) {
    if (dim <= 64) return launch_prefill<PrefillShape<64, 128, 3, false, true>>(stream, args);
    if (dim <= 128) return launch_prefill<PrefillShape<128, 128, 3, false, true>>(stream, args);
    return launch_prefill<PrefillShape<256, 128, 2, true, true>>(stream, args);
  }
  if (dim <= 64) return launch_prefill<PrefillShape<64, 192, 3, false>>(stream, args);
  if (dim <= 128) return launch_prefill<PrefillShape<128, 128, 3, false>>(stream, args);
  launch_prefill<PrefillShape<256, 128, 2, true>>(stream, args);
}

}  // namespace weft::cuda
