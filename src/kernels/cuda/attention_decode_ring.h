#pragma once

// How the main kernel of attention_decode gets K and V into shared memory: tiles, the ring of
// stages, and the warp that fills it.

#include "kernels/cuda/attention_decode.h"
#include "kernels/cuda/common/tensor_map.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda::decode {

constexpr int kWarps = 4;       // of consumers
constexpr int kPrefetched = 2;  // chunks

/// A tile is 128 bytes of the codes of each of 64 keys, or all of them in rows of several keys,
/// swizzled.
constexpr int kTileKeys = 64;
template <class Format, int D>
struct Tiles {
  static constexpr int kKeyBytes = D * Format::kBits / 8;
  static constexpr int kKeysARow = kKeyBytes < 128 ? 128 / kKeyBytes : 1;
  static constexpr int kElements = Format::kBits == 16 ? 64 : 128;  // of a row of 128 bytes
  static constexpr int kBytes = kTileKeys / kKeysARow * 128;
  static constexpr int kBeside = kKeyBytes <= 128 ? 1 : kKeyBytes / 128;  // tiles of the same keys

  /// Bytes before key `key` of a stage: for copies, whole rows.
  static __device__ __forceinline__ int row_offset(int key) {
    return key / kTileKeys * kBeside * kBytes + key % kTileKeys / kKeysARow * 128;
  }
  /// Bytes before 16-byte unit `unit` of key `key` of a stage.
  static __device__ __forceinline__ uint32_t offset(int key, int unit) {
    const int row = key / kKeysARow, at = key % kKeysARow * (8 / kKeysARow) + unit % 8;
    const int tile = kKeysARow == 1 ? key / kTileKeys * kBeside + unit / 8 : key / kTileKeys;
    return static_cast<uint32_t>(tile * kBytes + row % (kTileKeys / kKeysARow) * 128 +
                                 ((at ^ row % 8) << 4));
  }
};

/// Scales of a row as the kernel sees it; a shape may have fewer (DecodeParams::layout).
template <class Format, int D>
constexpr int kGroups = !Format::kScaled ? 0
                        : Format::kZeros ? D / kKvInt4Group
                                         : 1;

template <class Format, int D, int N>
struct Shared {
  static constexpr int kStageBytes = kKeys * D * Format::kBits / 8;  // K or V of one chunk
  static constexpr int kStages = 192 * 1024 / blocks_per_processor(D, 8 * N, Format::kBits) /
                                 (kStageBytes + kKeys * 4 * kGroups<Format, D>);
  static constexpr int kWeightRow = kKeys + 8;  // padded: rows shift by 4 banks
  static constexpr int kParts = kGroups<Format, D> > 1 ? kGroups<Format, D> : 1;
  alignas(1024) unsigned char ring[kStages][kStageBytes];
  alignas(16) float scales[Format::kScaled ? kStages : 1][kParts][kKeys];
  alignas(16) __nv_bfloat16 weights[kParts][8 * N][kWeightRow];   // times the scales of the values
  alignas(8) uint16_t zeros[Format::kZeros ? kParts : 1][kKeys];  // of the values, see KvInt4
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
__device__ __forceinline__ void load_turned(uint32_t (&r)[4], uint32_t address) {
  load_matrices<true>(r, address);
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
      const int row = ((plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size) /
                      Tiles<Format, D>::kKeysARow;
#pragma unroll
      for (int c = 0; c < Tiles<Format, D>::kBeside; ++c) {
        tma_prefetch(map, Coords<3>{{c * Tiles<Format, D>::kElements, row, block}});
      }
    }
  }
}

/// Of static formats: whether all lanes of the warp that fills the ring store and arrive.
template <class Format>
__device__ __forceinline__ bool scales_are_stored(const DecodeParams& p) {
  return Format::kScaled && !Format::kZeros && p.layout.scales == 0;
}
/// Then all keys of a stage have the scale of the head, or 1 where channels have their own. By the
/// whole warp, each lane before it arrives at the stage's barrier.
__device__ __forceinline__ void fill_scales(const DecodeParams& p, float* scales, int plane,
                                            int kv_head) {
  const float* of = plane == 0 ? p.k_scale : p.v_scale;
  const float scale = p.channels ? 1.0f : of[int64_t{kv_head} * p.head_dim];
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int i = 0; i < kKeys; i += 32) scales[lane + i] = scale;
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
      const int key_bytes = Tiles<Format, D>::kKeyBytes + p.layout.scales * 4;
      const auto bytes = static_cast<uint32_t>(boxes * p.box_rows * key_bytes);
      for (int plane = 0; plane < 2; ++plane) {
        Barrier* full = &shared.full[ring.stage];
        wait(&shared.empty[ring.stage], ring.parity);
        if (scales_are_stored<Format>(p)) {
          fill_scales(p, shared.scales[ring.stage][0], plane, run.kv_head);
          if (lane != 0) arrive(full);
        }
        if (lane == 0) arrive_expect(full, bytes);
        __syncwarp();
        if (block >= 0) {
          using Tile = Tiles<Format, D>;
          const int in_chunk = lane * p.box_rows;
          unsigned char* to = shared.ring[ring.stage] + Tile::row_offset(in_chunk);
          const int row = ((plane * p.kv_heads + run.kv_head) * p.block_size + key % p.block_size) /
                          Tile::kKeysARow;
#pragma unroll
          for (int c = 0; c < Tile::kBeside; ++c) {
            tma_load(to + c * Tile::kBytes, map, full, Coords<3>{{c * Tile::kElements, row, block}},
                     L2Hint::kEvictFirst);
          }
          if constexpr (Format::kScaled) {
            for (int g = 0; g < p.layout.scales; ++g) {
              bulk_load(&shared.scales[ring.stage][g][in_chunk],
                        p.cache + block * p.block_bytes +
                            p.layout.scale_offset(plane, run.kv_head, g, key % p.block_size),
                        static_cast<uint32_t>(p.box_rows * 4), full);
            }
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
