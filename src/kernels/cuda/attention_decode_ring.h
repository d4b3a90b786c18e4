#pragma once

// How the main kernel of attention_decode gets K and V into shared memory: tiles, the ring of
// stages, and the warp that fills it.

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda::decode {

constexpr int kWarps = 4;       // of consumers
constexpr int kPrefetched = 2;  // chunks

/// Blocks of a processor: a second one computes while the first waits for barriers, where registers
/// (narrow tiles of rows) and stages (96 KiB for each) suffice.
constexpr int blocks_per_processor(int padded_dim, int tile_rows) {
  return padded_dim <= 128 && tile_rows <= 16 ? 2 : 1;
}

/// A tile is the codes of 64 keys in rows of up to 128 bytes, swizzled.
constexpr int kTileKeys = 64;
template <class Format, int D>
struct Tiles {
  static constexpr int kRowBytes = D * Format::kCodeBytes < 128 ? D * Format::kCodeBytes : 128;
  static constexpr int kRowCodes = kRowBytes / Format::kCodeBytes;
  static constexpr int kBytes = kTileKeys * kRowBytes;
  static constexpr int kBeside = D / kRowCodes;  // tiles of the same keys
  static_assert(kRowBytes == 128 || kRowBytes == 64);
  static constexpr MapSwizzle kSwizzle = kRowBytes == 128 ? MapSwizzle::k128 : MapSwizzle::k64;

  /// Bytes before 16-byte unit `unit` of key `key` of a stage.
  static __device__ __forceinline__ uint32_t offset(int key, int unit) {
    constexpr int kUnits = kRowBytes / 16;
    const int turn = kRowBytes == 128 ? key % 8 : key / 2 % 4;
    return static_cast<uint32_t>((key / kTileKeys * kBeside + unit / kUnits) * kBytes +
                                 key % kTileKeys * kRowBytes + ((unit % kUnits ^ turn) << 4));
  }
};

template <class Format, int D, int N>
struct Shared {
  static constexpr int kStageBytes = kKeys * D * Format::kCodeBytes;  // K or V of one chunk
  static constexpr int kStages = 192 * 1024 / blocks_per_processor(D, 8 * N) / kStageBytes;
  static constexpr int kWeightRow = kKeys + 8;  // padded: rows shift by 4 banks
  alignas(1024) unsigned char ring[kStages][kStageBytes];
  alignas(16) float scales[Format::kScaled ? kStages : 1][kKeys];
  alignas(16) __nv_bfloat16 weights[8 * N][kWeightRow];
  alignas(8) float tops[kWarps][8 * N];
  alignas(8) float sums[kWarps][8 * N];
  Barrier full[kStages], empty[kStages];
};

/// As load_matrices<true>(), two matrices of lanes 0..15.
__device__ __forceinline__ void load_turned(uint32_t (&r)[2], uint32_t address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
               : "=r"(r[0]), "=r"(r[1])
               : "r"(address)
               : "memory");
}

/// Walks the ring.
template <int Stages>
struct Cursor {
  int stage = 0;
  uint32_t parity;
  __device__ __forceinline__ void next() {
    if (++stage == Stages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

/// Asks for the share's first chunks ahead of wait_for_predecessor(), which orders no reads of what
/// only goes to L2.
template <class Format, int D>
__device__ void prefetch_chunks(const DecodeParams& p, const CUtensorMap* map, const Run& run) {
  const int lane = static_cast<int>(threadIdx.x) % 32, boxes = kKeys / p.box_rows;
  for (int item = lane; item < kPrefetched * boxes; item += 32) {
    const int key = run.begin * kKeys + item * p.box_rows;
    if (key >= run.keys || key >= run.end * kKeys) return;
    const int block = p.table[run.segment * p.table_row + key / p.block_size];
    for (int plane = 0; plane < 2; ++plane) {
      const int row = (plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size;
#pragma unroll
      for (int c = 0; c < Tiles<Format, D>::kBeside; ++c) {
        tma_prefetch(map, Coords<3>{{c * Tiles<Format, D>::kRowCodes, row, block}});
      }
    }
  }
}

/// The warp that fills the ring: K, V, K, V ... of the share whose first run is `run`. Lane i
/// copies box i of a chunk (box_rows keys each). Boxes beyond the context aren't copied.
template <class Format, int D, int N>
__device__ void produce(const DecodeParams& p, const CUtensorMap* map, const Plan& plan,
                        Shared<Format, D, N>& shared, Run run, int end) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  Cursor<Shared<Format, D, N>::kStages> ring{.parity = 1};
  prefetch_chunks<Format, D>(p, map, run);
  for (bool first = true;; first = false) {
    const int32_t* table = p.table + run.segment * p.table_row;
    const auto block_of = [&](int chunk) {
      const int key = chunk * kKeys + lane * p.box_rows;
      return lane * p.box_rows < kKeys && key < run.keys ? table[key / p.block_size] : -1;
    };
    int block = block_of(run.begin);
    if (first) wait_for_predecessor();
    for (int chunk = run.begin; chunk < run.end; ++chunk) {
      const int next_block = chunk + 1 < run.end ? block_of(chunk + 1) : -1;
      const int key = chunk * kKeys + lane * p.box_rows;
      const int boxes = (min(kKeys, run.keys - chunk * kKeys) + p.box_rows - 1) / p.box_rows;
      constexpr int kKeyBytes = D * Format::kCodeBytes + (Format::kScaled ? 4 : 0);
      const auto bytes = static_cast<uint32_t>(boxes * p.box_rows * kKeyBytes);
      for (int plane = 0; plane < 2; ++plane) {
        Barrier* full = &shared.full[ring.stage];
        wait(&shared.empty[ring.stage], ring.parity);
        if (lane == 0) arrive_expect(full, bytes);
        __syncwarp();
        if (block >= 0) {
          using Tile = Tiles<Format, D>;
          const int in_chunk = lane * p.box_rows;
          unsigned char* to = shared.ring[ring.stage] +
                              in_chunk / kTileKeys * Tile::kBeside * Tile::kBytes +
                              in_chunk % kTileKeys * Tile::kRowBytes;
          const int row = (plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size;
#pragma unroll
          for (int c = 0; c < Tile::kBeside; ++c) {
            tma_load(to + c * Tile::kBytes, map, full, Coords<3>{{c * Tile::kRowCodes, row, block}},
                     L2Hint::kEvictFirst);
          }
          if constexpr (Format::kScaled) {
            bulk_load(&shared.scales[ring.stage][in_chunk],
                      p.cache + block * p.block_bytes +
                          p.layout.scale_offset(plane, run.kv_head, key % p.block_size),
                      static_cast<uint32_t>(p.box_rows * 4), full);
          }
        }
        ring.next();
      }
      block = next_block;
    }
    if (run.next == end) return;
    run = find_run(p, plan, run.segment, run.next, end);
  }
}

}  // namespace weft::cuda::decode
