#pragma once

// o = softmax(scale * q K^T, causal) V over the paged cache, for rows of prompts (Dao 2023, arXiv
// 2307.08691; Shah et al. 2024, arXiv 2407.08608).
//
// A work item is 64 * Warpgroups rows of one head (or, packed, of 2^k heads of one kv head) against
// their keys, in tiles of `Keys` cut at absolute multiples from position 0, in ascending order. A
// warp each copies K, V and Q with TMA; each warpgroup of consumers owns 64 rows: S = Q K^T (wgmma,
// both operands in shared memory), softmax in registers, O += P V (P in registers). Warpgroups go
// their own ways between the slots of the ring of K and V, so that the softmax of one runs beneath
// the products of the others. With a HeadPlan a launch for the full heads is followed by one for
// the others, whose copying warps walk the tiles that the head sees and say with each for which
// warpgroups it is; two warpgroups of a block of rows each overlap their own products and softmax.
// Its blocks take the processors that the first launch leaves, without waiting for its end.
//
// Bytes from L2: 4 D a (key, 64 * Warpgroups rows); the bound is the tensor cores' 4 D FLOPs a
// (row, key) pair, and below it the power of the chip. Measured: docs/kernels/attention_prefill.md.
//
// A row's bits: its keys come in the same tiles in the same order whatever the chunk, its numbers
// meet those of no other row, and a tile beyond its last key changes nothing (P = 0, factor 1; V
// rows beyond the segment's keys are zeros, because 0 * NaN is not 0).
//
// Operands are bf16, or f16 whose rows come with powers of two (kv_gather.h): then q becomes f16 in
// shared memory. Included by the .cu files of the two.

#include <cuda_bf16.h>

#include <optional>
#include <type_traits>

#include "kernels/cuda/attention_prompt_consumer.h"
#include "kernels/cuda/attention_prompt_launch.h"
#include "kernels/cuda/attention_prompt_plan.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

// ---- Producers: a warp each for K, V and Q. A copy takes its warp some 100 cycles to ask for.

template <class C, int Plane>
struct KvProducer {
  const PrefillShared<C>& shared;
  const PrefillParams& params;
  const CUtensorMap* map;
  const PrefillSource<C>& source;
  int lane;
  RingAt<C> ring;
  uint32_t tail_phase = 0;

  /// Where box `lane` of a tile of keys lies; the block beyond the last (zeros) after the keys.
  struct Box {
    int block, offset;
  };
  // Of the current item.
  const int32_t* table = nullptr;
  int kv_end = 0;
  int first_row = 0;  ///< of its kv head in a block

  __device__ __forceinline__ const int32_t* table_of(const PrefillItem& item) const {
    return params.block_table + item.tile.segment * params.table_row;
  }
  __device__ __forceinline__ Box box_of(const int32_t* blocks, int end, int j) const {
    const int in_tile = lane * params.box_keys, key = j * C::kKeys + in_tile;
    const int block = key / params.block_size;
    const bool mine = in_tile < C::kKeys && key < end;
    return {mine ? blocks[block] : params.num_blocks, key - block * params.block_size};
  }

  /// All boxes of unit `u` of a tile into the ring, counted at `barrier`.
  __device__ __forceinline__ void copy(int u, const Box& box, Barrier* barrier) {
    if (lane == 0) arrive_expect(barrier, C::kUnitBytes);
    unsigned char* to = shared.ring + ring.slot * C::kUnitBytes;
    for (int i = 0; i * params.box_keys < C::kKeys; ++i) {
      const int id = __shfl_sync(0xffffffffu, box.block, i);
      const int row = first_row + __shfl_sync(0xffffffffu, box.offset, i);
      if (lane == 0) {
#pragma unroll
        for (int panel = 0; panel < C::kPanels; ++panel) {
          tma_load(to + panel * C::kPanelBytes, map, barrier,
                   Coords{u * C::kUnitDims + panel * 64, row, id});
        }
      }
      to += params.box_keys * 128;
    }
  }

  /// Of the keys and values of tile `j`; beyond the last key its own.
  __device__ __forceinline__ void copy_powers(int j, int slot) {
    int8_t* to = shared.powers + slot * 2 * C::kKeys;
#pragma unroll 1
    for (int i = lane; i < 2 * C::kKeys; i += 32) {
      const int plane = i / C::kKeys, key = min(j * C::kKeys + i % C::kKeys, kv_end - 1);
      const int first = first_row + plane * params.kv_heads * params.block_size;
      const int block = table[key / params.block_size];
      to[i] = __ldcg(source.powers + block * 2 * params.kv_heads * params.block_size + first +
                     key % params.block_size);
    }
    __syncwarp();
  }
  /// Tile `j`.
  __device__ __forceinline__ void load(int j, const Box& box, int note) {
    const int keys = kv_end - j * C::kKeys;  // of the tile
    // The last block of a segment holds rows of an older owner, maybe NaN: of V they must be zeros.
    const bool tail = Plane == 1 && keys < C::kKeys && kv_end % params.block_size != 0;
    bool odd = false;  // of Plane 0: whether a row of K or V has a power
    if constexpr (C::kF16 && (Plane == 0 || C::kGathers)) {
      if (box.block != params.num_blocks) {
        const int32_t* share =
            source.ready + box.block * 2 * params.kv_heads + first_row / params.block_size;
        if (Plane == 0) {
          odd = wait_for_shares(share, share + params.kv_heads, source.parts);
        } else {
          wait_for_share(share, source.parts);
        }
      }
      odd = __any_sync(0xffffffffu, odd);
      if (C::kGathers) fence_async_global();
    }
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) {
      const int slot = ring.slot;
      wait(shared.empty + slot, ring.phase ^ 1);
      if (C::kNarrow && u == 0 && lane == 0) shared.notes[slot] = note;
      if constexpr (C::kF16 && Plane == 0) {
        if (u == 0 && lane == 0) shared.odd[slot] = odd;
        if (u == 0 && odd) copy_powers(j, slot);
      }
      copy(u, box, tail ? shared.tail : shared.full + slot);
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
    ring.step_tile();  // the other plane's
  }

  /// `next(round)`: the item of a round.
  template <class Next>
  __device__ __forceinline__ void run(const Next& next_item) {
    if (Plane == 1) ring.step_tile();
    PrefillItem item = next_item(0);
    Box box = box_of(table_of(item), item.tile.kv_end, 0);
    for (int round = 0; item.tile.tokens > 0; ++round) {
      table = table_of(item);
      kv_end = item.tile.kv_end;
      first_row = (Plane * params.kv_heads + item.head / params.group) * params.block_size;
      KeyTiles<C, C::kPart> tiles;
      tiles.begin(params, item, lane);
      int j = tiles.from(0), note = tiles.note(j);
      if (j != 0) box = box_of(table, kv_end, j);
      // The table of the next item is on its way while this one's tiles are copied.
      item = next_item(round + 1);
      const Box next_item_box = box_of(table_of(item), item.tile.kv_end, 0);
      while (j >= 0) {
        const int next = tiles.from(j + 1);
        const Box next_box = box_of(table, kv_end, max(next, 0));
        const int next_note = next >= 0 ? tiles.note(next) : 0;
        load(j, box, Plane == 0 ? note : next_note);
        j = next;
        box = next_box;
        note = next_note;
      }
      box = next_item_box;
    }
  }
};

/// Item `round`, once the warp that copies K has taken it.
template <class C>
__device__ __forceinline__ PrefillItem taken(const PrefillShared<C>& shared, int round) {
  wait(shared.claimed + round % C::kClaims, round / C::kClaims & 1);
  return shared.item(round);
}

template <class C>
__device__ __forceinline__ void produce_q(const PrefillShared<C>& shared, const CUtensorMap* maps) {
  for (int round = 0;; ++round) {
    const PrefillItem item = taken(shared, round);
    const CUtensorMap* map = maps + (item.tile.pack_shift != 0);
#pragma unroll
    for (int w = 0; w < C::kWarpgroups; ++w) {
      wait(shared.q_empty + w, (round & 1) ^ 1);
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
  }
}

template <class C>
__global__ void __launch_bounds__(C::kThreads, 1)
    attention_prefill(const __grid_constant__ PrefillMaps maps,
                      const __grid_constant__ PrefillParams params,
                      const __grid_constant__ PrefillPlan plan,
                      const __grid_constant__ PrefillSource<C> source) {
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
    for (int i = 0; i < C::kClaims; ++i) barrier_init(shared.claimed + i, 1);
    barrier_init(shared.tail, 1);
    fence_barrier_init();
  }
  __syncthreads();
  if (C::kPart != PlanPart::kFull && params.beside) {
    // The launch ahead waited for all that was before it, but what this processor's L1 cache holds
    // may be older than that.
    __threadfence();
  } else {
    wait_for_predecessor();
    if (params.order != nullptr) let_successor_begin();
  }

  if (warp < 4) {
    drop_registers_to<C::kProducerRegisters>();
    const int lane = static_cast<int>(threadIdx.x) % 32;
    if (warp == 0) {
      ItemWalk<C> walk(plan, params);
      KvProducer<C, 0>{shared, params, &maps.kv, source, lane}.run(
          [&](int round) { return walk.take(shared, round, lane); });
    } else if (warp == 1) {
      KvProducer<C, 1>{shared, params, &maps.kv, source, lane}.run(
          [&](int round) { return taken(shared, round); });
    } else if (threadIdx.x == 64) {
      produce_q<C>(shared, maps.q);
      // Who waits for this launch waits for the one ahead too.
      if (C::kPart != PlanPart::kFull && params.beside) wait_for_predecessor();
    } else if (C::kGathers && warp == 3) {
      if constexpr (C::kGathers) gather_beside(source, shared.aside, lane);
    }
  } else {
    raise_registers_to<C::kConsumerRegisters>();
    PrefillConsumer<C> self{shared, params};
    self.warpgroup = warp / 4 - 1;
    self.q = k_major_128(shared.q + self.warpgroup * C::kQBytes);
    self.softmax.scale_log2[0] = self.softmax.scale_log2[1] = params.scale_log2;
    self.begin_turns();
    for (int round = 0;; ++round) {
      wait(shared.q_full + self.warpgroup, round & 1);
      const PrefillItem& item = shared.item(round);
      if (item.tile.tokens == 0) {
        // A block without items: its warps make what the others wait for, in the unused ring.
        if constexpr (C::kGathers) {
          const int helper = warp - 4;
          if (round == 0 && helper < C::kHelpers) {
            gather_beside(source, shared.ring + helper * kGatherBytes,
                          static_cast<int>(threadIdx.x) % 32);
          }
        }
        break;
      }
      self.run(item);
    }
    self.end_turns();
  }
}

// ---- Host

/// What both kinds of operands ask of their callers.
inline void check_prompt(const AttnArgs& args, const QuantizedRows& codes) {
  CHECK(args.seqs.host_cu_q && args.seqs.host_kv_start);
  CHECK(args.q.dtype == DType::kBF16 && args.out.dtype == DType::kBF16);
  CHECK(args.kv.shape.block_size % 16 == 0 && args.shape.scale > 0);
  const int dim = args.shape.head_dim;
  CHECK(codes.codes == nullptr || attention_prompt_quantizes(args.shape));
  CHECK(dim > 0 && dim <= 256 && dim % 8 == 0, "attention of a prompt: head_dim is 8, 16, .. 256");
}

template <class C>
void launch_dense(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                  const PrefillSource<C>& source = {}) {
  PrefillLauncher<C> launcher(stream, args, codes, source);
  launcher.add_segments();
  launcher.flush();
}

/// The full heads of a HeadPlan, and the others on the processors that these leave: narrow tiles,
/// and then wide ones, where there is a shape for them (else void).
template <class Full, class Narrow, class Wide = void>
void launch_planned(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                    const PrefillSource<Full>& source = {}) {
  constexpr bool kHasWide = !std::is_void_v<Wide>;
  PrefillLauncher<Full> full(stream, args, codes, source);
  PrefillLauncher<Narrow> narrow(stream, args, codes, source);
  // Full's stands in where there is none.
  using Third = PrefillLauncher<std::conditional_t<kHasWide, Wide, Full>>;
  std::optional<Third> wide;
  full.add_segments();
  if constexpr (kHasWide) {
    if (narrow.set_wide()) {
      wide.emplace(stream, args, codes, source);
      wide->set_wide();
      wide->add_segments();
    }
  }
  narrow.add_segments();
  const ArenaScope scope(stream.scratch());
  full.order(/*beside=*/false);
  narrow.order(/*beside=*/true);
  if (wide) wide->order(/*beside=*/true);
  full.run(/*beside=*/false);
  narrow.run(/*beside=*/true);
  if (wide) wide->run(/*beside=*/false);
}

/// By the size of heads, with a plan or without.
template <KvOperands Operands>
void launch_prompt(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                   const PrefillSourceOf<Operands>& source) {
  if (args.shape.head_dim <= 64) {
    using Full = PrefillShape<64, 192, 3, PlanPart::kFull, false, Operands>;
    if (args.heads == nullptr) return launch_dense<Full>(stream, args, codes, source);
    using Narrow = PrefillShape<64, 128, 2, PlanPart::kNarrow, true, Operands>;
    launch_planned<Full, Narrow>(stream, args, codes, source);
  } else if (args.shape.head_dim <= 128) {
    using Full = PrefillShape<128, 128, 3, PlanPart::kFull, false, Operands>;
    if (args.heads == nullptr) return launch_dense<Full>(stream, args, codes, source);
    using Narrow = PrefillShape<128, 128, 2, PlanPart::kNarrow, true, Operands>;
    using Wide = PrefillShape<128, 128, 3, PlanPart::kWide, false, Operands>;
    launch_planned<Full, Narrow, Wide>(stream, args, codes, source);
  } else {
    using Full = PrefillShape<256, 128, 2, PlanPart::kFull, false, Operands>;
    if (args.heads == nullptr) return launch_dense<Full>(stream, args, codes, source);
    using Narrow = PrefillShape<256, 128, 2, PlanPart::kNarrow, false, Operands>;
    launch_planned<Full, Narrow>(stream, args, codes, source);
  }
}

}  // namespace
}  // namespace weft::cuda
