#pragma once

// The two producers of the decode GEMM: a thread each for W and for x, that keep the ring of stages
// full. A stage takes some 150 ns of a processor's share of the memory bandwidth, and one thread
// executes an instruction in some 3 ns: all that is the same for every stage is computed before.
// docs/kernels/gemm_decode.md.

#include "kernels/cuda/gemm_decode.h"
#include "kernels/cuda/gemm_decode_math.h"

namespace weft::cuda {

struct DecodeParams {
  const std::byte* codes;  ///< kInt8, kInt4: tiles; kFp8Block: scales (f32)
  int64_t expert_bytes;
  int64_t tiles_k;  ///< int: tiles of a row of tiles; fp8: scales of a row
  int n, rows;      ///< N; rows of x
  int k_steps;      ///< stages of the whole K
  int up_row;       ///< kSiluMul: I, the row of W where `up` begins; else 0
  int row_tiles;    ///< tiles of x rows
  int stages;
  int split;
  int units, turns;  ///< U, C
  int share;         ///< tiles of W in a cluster, that share x
  int ahead;         ///< stages fetched into L2 behind those of the ring
  int x_boxes;       ///< loads of x a stage
  bool x_blocked;    ///< the map of x is [K / 64][rows][64], else [1][rows][K]
  const ExpertRows* groups;
  const float* bias;
  void* out;
  int64_t out_stride;
  Epilogue epilogue;
  bool out_f32;
};

/// Which part of the product a block has. In its cluster it is block rank + split * member.
struct DecodeWork {
  int tile;    ///< of W's rows
  int rank;    ///< along K
  int member;  ///< of the tiles that share x
  int expert;
  int first_row;  ///< of x
  int rows;       ///< of x, at most the row tile; <= 0: nothing
};

template <int MT>
__device__ __forceinline__ DecodeWork decode_work(const DecodeParams& p) {
  DecodeWork w;
  int block = static_cast<int>(blockIdx.x);
  w.rank = block % p.split;
  block /= p.split;
  w.member = block % p.share;
  block /= p.share;
  const int row_tile = block % p.row_tiles;
  w.tile = block / p.row_tiles * p.share + w.member;
  w.expert = 0;
  w.first_row = 0;
  int rows = p.rows;
  if (p.groups != nullptr) {
    const ExpertRows group = p.groups[blockIdx.y];
    w.expert = group.expert;
    w.first_row = group.first_row;
    rows = group.rows;
  }
  w.first_row += row_tile * MT;
  w.rows = min(rows - row_tile * MT, MT);
  return w;
}

/// Addresses in shared memory: stages, and their barriers.
struct DecodeRing {
  uint32_t memory, full, empty;
  int stage_bytes;
};

/// A stage after the other around the ring.
struct RingPlace {
  uint32_t stage, full, empty;
  int slot = 0;
  uint32_t phase = 0;

  __device__ __forceinline__ explicit RingPlace(const DecodeRing& r)
      : stage(r.memory), full(r.full), empty(r.empty) {}
  __device__ __forceinline__ void next(const DecodeRing& r, int stages) {
    stage += static_cast<uint32_t>(r.stage_bytes);
    full += 8;
    empty += 8;
    if (++slot == stages) {
      slot = 0;
      phase ^= 1;
      stage = r.memory;
      full = r.full;
      empty = r.empty;
    }
  }
};

__device__ __forceinline__ void wait_at(uint32_t barrier, uint32_t parity) {
  uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\nmbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.b32 %0, 1, 0, p;\n}"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}
__device__ __forceinline__ void arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// As arrive_remote(): for "I have read it".
__device__ __forceinline__ void arrive_at_block(uint32_t barrier, uint32_t rank) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(map_to_block(barrier, rank))
               : "memory");
}
__device__ __forceinline__ void arrive_expect_at(uint32_t barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void box_load(uint32_t to, const CUtensorMap* map, uint32_t barrier,
                                         const Coords<3>& c, L2Hint hint) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(barrier),
      "l"(static_cast<uint64_t>(hint))
      : "memory");
}
__device__ __forceinline__ void box_load_multicast(uint32_t to, const CUtensorMap* map,
                                                   uint32_t barrier, const Coords<3>& c,
                                                   uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(to),
      "l"(map), "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2]), "r"(barrier), "h"(blocks)
      : "memory");
}
__device__ __forceinline__ void bytes_load(uint32_t to, const std::byte* from, uint32_t bytes,
                                           uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint"
      " [%0], [%1], %2, [%3], %4;" ::"r"(to),
      "l"(from), "r"(bytes), "r"(barrier), "l"(static_cast<uint64_t>(L2Hint::kEvictFirst))
      : "memory");
}
__device__ __forceinline__ void fetch_l2(const std::byte* from, uint32_t bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void fetch_l2(const CUtensorMap* map, const Coords<3>& c) {
  asm volatile("cp.async.bulk.prefetch.tensor.3d.L2.global.tile [%0, {%1, %2, %3}];" ::"l"(map),
               "r"(c.at[0]), "r"(c.at[1]), "r"(c.at[2])
               : "memory");
}

/// int8, int4: where the tiles of unit `unit` begin. kSiluMul: unit 0 is gate, 1 is up.
template <WeightFormat F>
__device__ __forceinline__ const std::byte* tiles_of(const DecodeWork& work, const DecodeParams& p,
                                                     int unit, int k_begin) {
  int64_t tile = p.up_row > 0 ? int64_t{work.tile} + unit * (p.up_row / kQuantTile)
                              : int64_t{work.tile} * p.units + unit;
  tile = min(tile, int64_t{(p.n + kQuantTile - 1) / kQuantTile - 1});
  return p.codes + work.expert * p.expert_bytes +
         (tile * p.tiles_k + 2 * k_begin) * DecodeStage<F>::kTileBytes;
}

/// By one thread, before the predecessor has ended.
template <WeightFormat F, int MT>
__device__ __forceinline__ void load_weights(const DecodeRing& ring, const DecodeWork& work,
                                             const DecodeParams& p, const CUtensorMap* map,
                                             int k_begin, int count) {
  using Stage = DecodeStage<F>;
  constexpr uint32_t kX = MT * Stage::kColumns * 2;
  const bool pairs = p.up_row > 0 || (Stage::kTiles && p.units == 2);
  RingPlace at(ring);
  const auto wait_for_room = [&](int i) {
    if (i < p.stages) return;
    if (i == p.stages) at.phase = 0;
    wait_at(at.empty, at.phase);
  };
  if constexpr (Stage::kTiles) {
    const std::byte* first = tiles_of<F>(work, p, 0, k_begin);
    const std::byte* second = tiles_of<F>(work, p, 1, k_begin);
    auto left = static_cast<int>(p.tiles_k) - 2 * k_begin;
    for (int i = 0; i < count; ++i, left -= 2) {
      const uint32_t bytes = left > 1 ? Stage::kWeightBytes : Stage::kTileBytes;
      wait_for_room(i);
      arrive_expect_at(at.full, kX + (pairs ? 2 * bytes : bytes));
      bytes_load(at.stage + kX, first, bytes, at.full);
      if (pairs) bytes_load(at.stage + kX + Stage::kWeightBytes, second, bytes, at.full);
      first += Stage::kWeightBytes;
      second += Stage::kWeightBytes;
      at.next(ring, p.stages);
      if (i + 1 == min(p.stages, count)) {
        const int ahead = min(p.ahead, count - i - 2);  // the last may be half a stage
        if (ahead > 0) fetch_l2(first, static_cast<uint32_t>(ahead * Stage::kWeightBytes));
        if (ahead > 0 && pairs)
          fetch_l2(second, static_cast<uint32_t>(ahead * Stage::kWeightBytes));
      }
    }
  } else {
    const int row = work.tile * p.units * (pairs ? 32 : 64), up = p.up_row + row;
    const uint32_t bytes = kX + Stage::kWeightBytes * static_cast<uint32_t>(p.units);
    const uint32_t half = Stage::kWeightBytes / 2 * static_cast<uint32_t>(p.units);
    int k = k_begin * Stage::kColumns;
    for (int i = 0; i < count; ++i, k += Stage::kColumns) {
      wait_for_room(i);
      arrive_expect_at(at.full, bytes);
      box_load(at.stage + kX, map, at.full, Coords{k, row, work.expert}, L2Hint::kEvictFirst);
      if (pairs) {
        box_load(at.stage + kX + half, map, at.full, Coords{k, up, work.expert},
                 L2Hint::kEvictFirst);
      }
      at.next(ring, p.stages);
      if (i + 1 == min(p.stages, count)) {
        const int end = k + Stage::kColumns * min(p.ahead + 1, count - i);
        for (int later = k + Stage::kColumns; later < end; later += Stage::kColumns) {
          fetch_l2(map, Coords{later, row, work.expert});
          if (pairs) fetch_l2(map, Coords{later, up, work.expert});
        }
      }
    }
  }
}

/// By one thread, once the predecessor has ended: this block's part of x, into all members.
template <WeightFormat F, int MT>
__device__ __forceinline__ void load_x(const DecodeRing& ring, const DecodeWork& work,
                                       const DecodeParams& p, const CUtensorMap* map, int k_begin,
                                       int count) {
  constexpr int kColumns = DecodeStage<F>::kColumns;
  const int rows = MT / p.share, first = work.member * rows;
  uint32_t blocks = 0;
  for (int m = 0; m < p.share; ++m) blocks |= 1u << (work.rank + p.split * m);
  const int row = work.first_row + first;
  int k = k_begin * kColumns;
  RingPlace at(ring);
  for (int i = 0; i < count; ++i, k += kColumns) {
    if (i == p.stages) at.phase = 0;
    if (i >= p.stages) wait_at(at.empty, at.phase);
    uint32_t to = at.stage + static_cast<uint32_t>(first) * 128;
    for (int box = 0; box < p.x_boxes; ++box, to += MT * 128) {
      const Coords c{p.x_blocked ? 0 : k + box * 64, row, p.x_blocked ? k / 64 + box : 0};
      if (p.share > 1) {
        box_load_multicast(to, map, at.full, c, static_cast<uint16_t>(blocks));
      } else {
        box_load(to, map, at.full, c, L2Hint::kNormal);
      }
    }
    at.next(ring, p.stages);
  }
}

}  // namespace weft::cuda
