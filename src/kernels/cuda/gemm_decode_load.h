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
  int64_t tiles_k;       ///< int: tiles of a row of tiles; fp8: scales of a row
  int n, rows;           ///< N; rows of x
  int k_steps;           ///< stages of the whole K
  int up_row;            ///< kSiluMul: I, the row of W where `up` begins; else 0
  int row_tiles;         ///< tiles of x rows
  int stages, x_stages;  ///< of the rings of W and of x
  int split;
  int units, turns;  ///< U, C
  int ahead;         ///< stages fetched into L2 behind those of the ring
  int let_in;        ///< stages still to load when the successor may begin; 0: at once
  bool x_blocked;    ///< the map of x is [K / 64][rows][64], else [1][rows][K]
  const ExpertRows* groups;
  const float* bias;
  void* out;
  int64_t out_stride;
  Epilogue epilogue;
  bool out_f32;
};

/// Which part of the product a block has. Its cluster is the ranks of a tile.
struct DecodeWork {
  int tile;  ///< of W's rows
  int rank;  ///< along K
  int expert;
  int first_row;  ///< of x
  int rows;       ///< of x, at most the row tile; <= 0: nothing
};

template <int MT>
__device__ __forceinline__ DecodeWork decode_work(const DecodeParams& p) {
  DecodeWork w;
  const int block = static_cast<int>(blockIdx.x);
  w.rank = block % p.split;
  const int row_tile = block / p.split % p.row_tiles;
  w.tile = block / p.split / p.row_tiles;
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

/// Addresses in shared memory: stages of W, and their barriers; stages of x, which may be fewer.
struct DecodeRing {
  uint32_t memory, full, empty;
  int stage_bytes;
  uint32_t x;
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

/// Calls load(place) for the stages [0, count): for those of the first round at once, between()
/// behind them, then for each whose room is free again.
template <class Load, class Between>
__device__ __forceinline__ void around(const DecodeRing& ring, int stages, int count, Load&& load,
                                       Between&& between) {
  RingPlace at(ring);
  const int first = min(stages, count);
  for (int i = 0; i < first; ++i) {
    load(at);
    at.stage += static_cast<uint32_t>(ring.stage_bytes);
    at.full += 8;
  }
  between();
  at = RingPlace(ring);
  for (int i = first; i < count; ++i) {
    wait_at(at.empty, at.phase);
    load(at);
    at.next(ring, stages);
  }
}

/// The same for x: calls load(room, full barrier of its W). Room is free when the stage `x_stages`
/// before has been read, of whose barrier no later phase can end before this stage's x is there.
template <class Load>
__device__ __forceinline__ void around_x(const DecodeRing& ring, const DecodeParams& p, int bytes,
                                         int count, Load&& load) {
  const uint32_t end = ring.x + static_cast<uint32_t>(p.x_stages * bytes);
  const uint32_t last = ring.full + 8 * static_cast<uint32_t>(p.stages);
  const uint32_t last_empty = ring.empty + 8 * static_cast<uint32_t>(p.stages);
  uint32_t to = ring.x, full = ring.full, empty = ring.empty, phase = 0;
  for (int i = 0; i < count; ++i) {
    if (i >= p.x_stages) {
      wait_at(empty, phase);
      empty += 8;
      if (empty == last_empty) {
        empty = ring.empty;
        phase ^= 1;
      }
    }
    load(to, full);
    to += static_cast<uint32_t>(bytes);
    if (to == end) to = ring.x;
    full += 8;
    if (full == last) full = ring.full;
  }
}

__device__ __forceinline__ void arrive_at(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
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
  const int ahead = min(p.ahead, count - p.stages - 1);  // the last stage may be half a one
  // A successor fetches its W when this product's begins to run out, not beside all of it.
  int left = max(count - p.let_in, 1);
  const auto asked = [&] {
    if (p.let_in > 0 && --left == 0) let_successor_begin();
  };
  if constexpr (Stage::kTiles) {
    const std::byte* first = tiles_of<F>(work, p, 0, k_begin);
    const std::byte* second = tiles_of<F>(work, p, 1, k_begin);
    auto tiles = static_cast<int>(p.tiles_k) - 2 * k_begin;
    const auto load = [&](const RingPlace& at) {
      const uint32_t bytes = tiles > 1 ? Stage::kWeightBytes : Stage::kTileBytes;
      arrive_expect_at(at.full, kX + (pairs ? 2 * bytes : bytes));
      bytes_load(at.stage, first, bytes, at.full);
      if (pairs) bytes_load(at.stage + Stage::kWeightBytes, second, bytes, at.full);
      first += Stage::kWeightBytes;
      second += Stage::kWeightBytes;
      tiles -= 2;
      asked();
    };
    around(ring, p.stages, count, load, [&] {
      if (ahead > 0) fetch_l2(first, static_cast<uint32_t>(ahead * Stage::kWeightBytes));
      if (ahead > 0 && pairs) fetch_l2(second, static_cast<uint32_t>(ahead * Stage::kWeightBytes));
    });
  } else {
    const int row = work.tile * p.units * (pairs ? 32 : 64), up = p.up_row + row;
    const uint32_t bytes = kX + Stage::kWeightBytes * static_cast<uint32_t>(p.units);
    const uint32_t half = Stage::kWeightBytes / 2 * static_cast<uint32_t>(p.units);
    int k = k_begin * Stage::kColumns;
    const auto load = [&](const RingPlace& at) {
      arrive_expect_at(at.full, bytes);
      box_load(at.stage, map, at.full, Coords{k, row, work.expert}, L2Hint::kEvictFirst);
      if (pairs) {
        box_load(at.stage + half, map, at.full, Coords{k, up, work.expert}, L2Hint::kEvictFirst);
      }
      k += Stage::kColumns;
      asked();
    };
    around(ring, p.stages, count, load, [&] {
      for (int i = 0; i < ahead; ++i) {
        const int later = k + i * Stage::kColumns;
        fetch_l2(map, Coords{later, row, work.expert});
        if (pairs) fetch_l2(map, Coords{later, up, work.expert});
      }
    });
  }
}

/// By one thread, once the predecessor has ended.
template <WeightFormat F, int MT>
__device__ __forceinline__ void load_x(const DecodeRing& ring, const DecodeWork& work,
                                       const DecodeParams& p, const CUtensorMap* map, int k_begin,
                                       int count) {
  constexpr int kBlocks = DecodeStage<F>::kColumns / 64, kBytes = DecodeStage<F>::x_bytes(MT);
  int block = k_begin * kBlocks;  // of 64 k
  if (p.x_blocked) {
    around_x(ring, p, kBytes, count, [&](uint32_t to, uint32_t full) {
      box_load(to, map, full, Coords{0, work.first_row, block}, L2Hint::kNormal);
      block += kBlocks;
    });
  } else {
    around_x(ring, p, kBytes, count, [&](uint32_t to, uint32_t full) {
#pragma unroll
      for (int i = 0; i < kBlocks; ++i) {
        box_load(to + i * MT * 128, map, full, Coords{block++ * 64, work.first_row, 0},
                 L2Hint::kNormal);
      }
    });
  }
}

}  // namespace weft::cuda
