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

/// The stages of a block's memory, each K or V of one chunk. `Readers` warps read a stage;
/// `Together` chunks come together: first K of all, then V of all.
template <class TheFormat, int D, int Blocks, int Stages, int Readers, int Together>
struct Ring {
  using Format = TheFormat;
  static constexpr int kDim = D;
  static constexpr int kBlocks = Blocks;  // of a processor
  static constexpr int kStages = Stages, kReaders = Readers, kTogether = Together;
  static constexpr int kParts = kGroups<Format, D> > 1 ? kGroups<Format, D> : 1;
  alignas(1024) unsigned char ring[kStages][kKeys * D * Format::kBits / 8];
  alignas(16) float scales[Format::kScaled ? kStages : 1][kParts * kKeys];
  Barrier full[kStages], empty[kStages];

  /// Where a key's scale of part `part` lies: all of a box's follow each other, as in a block that
  /// a box takes whole. A box is a power of two.
  static __device__ __forceinline__ int scale_place(int part, int key, int box_rows) {
    const int in_box = key & (box_rows - 1);
    return (key - in_box) * kParts + part * box_rows + in_box;
  }
};
/// Bytes of a stage.
template <class Format, int D>
constexpr int kStageBytes = kKeys*(D* Format::kBits / 8 + 4 * kGroups<Format, D>);

/// Of each warp's rows, where q is f16: what scores are multiplied by (log2(e), the unit of the
/// keys' operands), and the scores of a key of zeros before that.
template <class Format, int N>
struct RowValues {};
template <int N>
struct RowValues<KvInt8, N> {
  alignas(8) float scale_of_row[kWarps][8 * N];
  alignas(8) float zero_of_row[kWarps][8 * N];
};

template <class Format, int D, int N, int Blocks = blocks_per_processor(D, 8 * N, Format::kBits)>
struct Shared : Ring<Format, D, Blocks, 192 * 1024 / Blocks / kStageBytes<Format, D>, kWarps, 1>,
                RowValues<Format, N> {
  static constexpr int kWeightRow = kKeys + 8;      // padded: rows shift by 4 banks
  alignas(16) uint16_t weights[8 * N][kWeightRow];  // bf16, or f16 times the scales of the values
  alignas(8) float tops[kWarps][8 * N];
  alignas(8) float sums[kWarps][8 * N];
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
  /// `count` stages further, at most all.
  __device__ __forceinline__ Cursor after(int count) const {
    const int at = stage + count;
    return at < Stages ? Cursor{at, parity} : Cursor{at - Stages, parity ^ 1};
  }
};

/// Asks for the share's first chunks ahead of wait_for_predecessor(), which orders no reads of what
/// only goes to L2.
template <class Format, int D>
__device__ void prefetch_chunks(const DecodeParams& p, const CUtensorMap* map, const Run& run) {
  const int lane = static_cast<int>(threadIdx.x) % 32, boxes = kKeys / p.box_rows;
  for (int item = lane; item < kPrefetched * boxes; item += 32) {
    const int chunk = item / boxes;
    const int key = (run.begin + chunk * run.step) * kKeys + (item - chunk * boxes) * p.box_rows;
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

/// What the ring brings.
struct RingShare {
  Run run;  ///< the first one of the share
  int end;  ///< of the share, in units
  /// No kernel since the last copy or graph launch has written it: it comes before the kernel ahead
  /// has ended.
  bool ahead = false;
};

/// The warp that fills the ring with a share. Lane i copies box i of a chunk (box_rows keys each).
/// Boxes beyond the context aren't copied. Chunks that come together don't lie on both sides of a
/// multiple of kTogether.
template <class Memory>
__device__ void produce(const DecodeParams& p, const CUtensorMap* map, const Plan& plan,
                        Memory& shared, const RingShare& share) {
  using Format = typename Memory::Format;
  using Tile = Tiles<Format, Memory::kDim>;
  constexpr int kTogether = Memory::kTogether;
  Run run = share.run;
  const int end = share.end;
  const int lane = static_cast<int>(threadIdx.x) % 32, in_chunk = lane * p.box_rows;
  const int key_bytes = Tile::kKeyBytes + p.layout.scales * 4;
  // The scales of a box are one copy where a box is a block.
  const bool together = p.layout.scales == Memory::kParts && p.box_rows == p.block_size;
  const int copies = together ? 1 : p.layout.scales;
  const auto scale_bytes = static_cast<uint32_t>(p.box_rows * p.layout.scales * 4 / max(copies, 1));
  Cursor<Memory::kStages> ring{.parity = 1};
  if (!share.ahead) prefetch_chunks<Format, Memory::kDim>(p, map, run);
  for (bool first = true;; first = false) {
    const int32_t* table = p.table + run.segment * p.table_row;
    /// Of the lane's box of a chunk; block -1: none.
    struct Box {
      int block, row;
    };
    const auto find_boxes = [&](int chunk, Box(&boxes)[kTogether]) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int key = (chunk + i) * kKeys + in_chunk, index = key / p.block_size;
        boxes[i].row = key - index * p.block_size;
        boxes[i].block =
            chunk + i < run.end && in_chunk < kKeys && key < run.keys ? table[index] : -1;
      }
    };
    Box boxes[kTogether], next_boxes[kTogether];
    find_boxes(run.begin, boxes);
    if (first && !share.ahead) wait_for_predecessor();
    for (int chunk = run.begin, count = 0; chunk < run.end; chunk += count * run.step) {
      count = min(kTogether - chunk % kTogether, run.end - chunk);
      find_boxes(chunk + count * run.step, next_boxes);
      for (int plane = 0; plane < 2; ++plane) {
        const int first_row = (plane * p.kv_heads + run.kv_head) * p.block_size;
        const int64_t scales_at = p.layout.scale_offset(plane, run.kv_head, 0, 0);
#pragma unroll
        for (int i = 0; i < kTogether; ++i) {
          if (i >= count) break;
          // Boxes are copied whole.
          const int keys = min(kKeys, run.keys - (chunk + i) * kKeys);
          const int rows = (keys + p.box_rows - 1) & ~(p.box_rows - 1);
          Barrier* full = &shared.full[ring.stage];
          wait(&shared.empty[ring.stage], ring.parity);
          if (scales_are_stored<Format>(p)) {
            fill_scales(p, shared.scales[ring.stage], plane, run.kv_head);
            if (lane != 0) arrive(full);
          }
          if (lane == 0) arrive_expect(full, static_cast<uint32_t>(rows * key_bytes));
          __syncwarp();
          if (boxes[i].block >= 0) {
            unsigned char* to = shared.ring[ring.stage] + Tile::row_offset(in_chunk);
            const int row = (first_row + boxes[i].row) / Tile::kKeysARow;
#pragma unroll
            for (int c = 0; c < Tile::kBeside; ++c) {
              tma_load(to + c * Tile::kBytes, map, full,
                       Coords<3>{{c * Tile::kElements, row, boxes[i].block}}, L2Hint::kEvictFirst);
            }
            if constexpr (Format::kScaled) {
              float* scales_to = &shared.scales[ring.stage][in_chunk * Memory::kParts];
              const std::byte* from =
                  p.cache + boxes[i].block * p.block_bytes + scales_at + boxes[i].row * 4;
              for (int g = 0; g < copies; ++g) {
                bulk_load(scales_to + g * p.box_rows, from + g * p.block_size * 4, scale_bytes,
                          full);
              }
            }
          }
          ring.next();
        }
      }
#pragma unroll
      for (int i = 0; i < kTogether; ++i) boxes[i] = next_boxes[i];
    }
    if (run.next == end) return;
    run = find_run(p, plan, run.segment, run.next, end);
  }
}

}  // namespace weft::cuda::decode
