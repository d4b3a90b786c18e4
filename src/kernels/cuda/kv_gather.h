#pragma once

// How the blocks of a quantised cache become f16 for attention of prompts: what is read and
// written, and the way beside the attention itself, in which a warp of each of its blocks makes
// them while the others work with those that are done. Included by .cu files.
// docs/kernels/kv_gather.md

#include "device/stream.h"
#include "kernels/args.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/kv_format.h"
#include "kernels/cuda/kv_widen.h"

namespace weft::cuda {

constexpr int kMaxGatherSegments = 64;  // of a launch

/// A part of a share.
struct GatherPart {
  int block, segment;   ///< of `to`
  int share, in_block;  ///< of all; of its block
  int first, rows;      ///< of the share
  int row;              ///< in_block * tokens + first
  int seen;             ///< rows from here on that are of the segment
  int64_t to;           ///< bytes in `to`
};

struct GatherParams {
  const std::byte* cache = nullptr;
  std::byte* to = nullptr;  ///< blocks of f16
  const int32_t* table = nullptr;
  int32_t* new_table = nullptr;
  int64_t block_bytes = 0, table_row = 0, new_row = 0;
  KvBlockLayout from, into;
  const float* k_scale = nullptr;  ///< [G][D] of static formats; null: a scale a row
  const float* v_scale = nullptr;
  /// [plane][head][D + 4]: those divided by the power of the head's rows, and (bits of) its log2.
  float* channels = nullptr;
  int head_dim = 0, num_segments = 0;
  KvFormat format = KvFormat::kBf16;
  int starts[kMaxGatherSegments + 1] = {};  ///< the segment's first block in `to`
  int keys[kMaxGatherSegments] = {};

  // A share is the rows of one plane and head of a block; shares: [block][plane][head].
  int8_t* powers = nullptr;  ///< [share][token] kv_row_power()
  int32_t* ready = nullptr;  ///< [share] the parts that are written, and those with powers << 16
  int parts = 1;             ///< of a share

  // Of the way beside the attention.
  int32_t* next = nullptr;  ///< the part to be taken next
  int num_parts = 0;
  int tokens = 0, row_bytes = 0, stage_rows = 0;  ///< of a block; codes; rows of a part
  int row_eights = 0;                             ///< eights of dims of a row, the rest's too
  uint32_t inverse_row = 0;                       ///< 2^32 / row_eights, rounded up
  int turn_rows = 0;  ///< rows of 32 eights, where these are whole rows; else 0
  int shares_of_block = 0, num_shares = 0, scale_groups = 0;
  int64_t scales_at = 0, into_bytes = 0;  ///< in a block; of a block of f16

  __host__ __device__ int blocks() const { return starts[num_segments]; }
  /// The segment of a block of `to`.
  __device__ __forceinline__ int segment_of(int block) const {
    int segment = 0, above = num_segments;
    while (above - segment > 1) {
      const int middle = (segment + above) / 2;
      (starts[middle] <= block ? segment : above) = middle;
    }
    return segment;
  }
  __device__ __forceinline__ int block_of(int part) const {
    return static_cast<int>(static_cast<uint32_t>(part) /
                            static_cast<uint32_t>(parts * shares_of_block));
  }
  __device__ __forceinline__ GatherPart part_at(int part) const {
    GatherPart at;
    at.block = block_of(part);
    at.segment = segment_of(at.block);
    const int in_block = part - at.block * parts * shares_of_block;
    at.in_block = static_cast<int>(static_cast<uint32_t>(in_block) / static_cast<uint32_t>(parts));
    at.first = (in_block - at.in_block * parts) * stage_rows;
    at.share = at.block * shares_of_block + at.in_block;
    at.rows = min(tokens - at.first, stage_rows);
    at.row = at.in_block * tokens + at.first;
    at.seen = keys[at.segment] - (at.block - starts[at.segment]) * tokens - at.first;
    at.to = at.block * into_bytes + at.row * head_dim * 2;
    return at;
  }
  __device__ __forceinline__ const float* channels_of(const GatherPart& at) const {
    return channels + at.in_block * (head_dim + 4);
  }
  /// In a block of the cache.
  __device__ __forceinline__ int64_t scales_of(const GatherPart& at) const {
    return scales_at + (at.in_block * scale_groups * tokens + at.first) * 4;
  }
};

/// Whether attention_prompt_beside() takes these; `from` is the cache's layout.
bool can_gather_beside(const AttnArgs& args, const KvBlockLayout& from);
/// attention_prompt_into over the new blocks of f16, which `args` name: they are there, or, if
/// can_gather_beside(), made along the way (the new table is written, `next` and `ready` are 0).
void attention_prompt_f16(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                          const GatherParams& gather);

/// Rows on their way from the cache: a part of a share, up to 4 KiB of codes and their scales.
struct GatherStage {
  static constexpr int kCodeBytes = 4096, kScales = 132;
  unsigned char codes[kCodeBytes];
  float scales[kScales];  ///< [groups][rows]; of static formats, of GatherParams::channels
  std::byte* to;
  int rows, seen;  ///< no rows: nothing any more
  int share;
  int first;  ///< row in GatherParams::powers
  Barrier full;
};
constexpr int kGatherStages = 3;
/// The registers of the warp that gathers are few: where its copies are lies here, for lane 0.
struct GatherShared {
  GatherStage stages[kGatherStages];
  int part, next_part;  ///< to be asked for, and the one after
  int block;            ///< of the cache: that of `part`
};
constexpr int kGatherBytes = (static_cast<int>(sizeof(GatherShared)) + 127) / 128 * 128;
static_assert(sizeof(GatherStage) % 16 == 0);

/// GatherParams::ready of a share counts its parts, and in the bits from 16 on those with powers.
/// Waits until the rows of all are written; copies behind a fence_async_global() see them.
__device__ __forceinline__ void wait_for_share(const int32_t* ready, int parts) {
  int32_t done;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(ready) : "memory");
  } while ((done & 0xFFFF) != parts);
}

/// Waits for two of them; whether a row of either has a power, which the caller sees then.
__device__ __forceinline__ bool wait_for_shares(const int32_t* one, const int32_t* other,
                                                int parts) {
  int32_t state, others;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(others) : "l"(other) : "memory");
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(state) : "l"(one) : "memory");
  } while ((state & 0xFFFF) != parts || (others & 0xFFFF) != parts);
  const bool odd = (state | others) >> 16 != 0;
  if (odd) __threadfence();
  return odd;
}

/// A warp that takes parts of shares until there are no more. Whoever has time takes the next one,
/// so that nobody waits for a block that has not begun.
class GatherWarp {
 public:
  __device__ __forceinline__ GatherWarp(const GatherParams& params, unsigned char* memory, int lane)
      : p(params), shared(*reinterpret_cast<GatherShared*>(memory)), lane_(lane) {}

  __device__ __forceinline__ void run() {
    if (lane_ == 0) {
#pragma unroll
      for (auto& stage : shared.stages) barrier_init(&stage.full, 1);
      fence_barrier_init();
      shared.next_part = atomicAdd(p.next, 1);
      look_up();
      advance();
    }
    // A stage is asked for kGatherStages - 1 turns before its rows are widened.
    int at = 0, ahead = 1 - kGatherStages;
    uint32_t parity = 0;
#pragma unroll 1
    for (;;) {
      __syncwarp();
      if (lane_ == 0) issue(shared.stages[at]);
      if (++at == kGatherStages) at = 0;
      if (ahead < 0) {
        ++ahead;
        continue;
      }
      GatherStage& stage = shared.stages[at];
      wait(&stage.full, parity);
      if (at == kGatherStages - 1) parity ^= 1;
      if (stage.rows == 0) return;
      widen(stage);
    }
  }

 private:
  const GatherParams& p;
  GatherShared& shared;
  const int lane_;
  int following_ = 0, next_block_ = 0;  // on their way: a number, and where next_part's codes are

  /// The block of next_part, and the part after it.
  __device__ __forceinline__ void look_up() {
    if (shared.next_part < p.num_parts) {
      const int block = p.block_of(shared.next_part), segment = p.segment_of(block);
      next_block_ = p.table[segment * p.table_row + block - p.starts[segment]];
    }
    following_ = atomicAdd(p.next, 1);
  }
  /// To the part after the current one.
  __device__ __forceinline__ void advance() {
    shared.part = shared.next_part;
    shared.block = next_block_;
    shared.next_part = following_;
    look_up();
  }

  /// Asks for the next rows. By lane 0.
  __device__ __forceinline__ void issue(GatherStage& stage) {
    const int part = shared.part;
    if (part >= p.num_parts) {
      stage.rows = 0;
      arrive(&stage.full);
      return;
    }
    const GatherPart at = p.part_at(part);
    const int rows = at.rows;
    stage.to = p.to + at.to;
    stage.rows = rows;
    stage.seen = at.seen;
    stage.first = at.share * p.tokens + at.first;
    stage.share = at.share;
    const std::byte* from = p.cache + shared.block * p.block_bytes;
    const bool channels = p.channels != nullptr;
    const int groups = channels ? 1 : p.scale_groups,
              group_bytes = (channels ? p.head_dim + 4 : rows) * 4;
    const int bytes = rows * p.row_bytes;
    arrive_expect(&stage.full, static_cast<uint32_t>(bytes + groups * group_bytes));
    bulk_load(stage.codes, from + at.row * p.row_bytes, static_cast<uint32_t>(bytes), &stage.full);
    const std::byte* scales =
        channels ? reinterpret_cast<const std::byte*>(p.channels_of(at)) : from + p.scales_of(at);
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
      bulk_load(stage.scales + group * rows, scales + group * p.tokens * 4,
                static_cast<uint32_t>(group_bytes), &stage.full);
    }
    advance();
  }

  /// The powers of a stage's rows, which leave its scales; whether there are any.
  __device__ __forceinline__ bool take_powers(GatherStage& stage) {
    bool odd = false;
    const int rows = stage.rows, code_log2 = kv_code_log2(p.format);
#pragma unroll 1
    for (int row = lane_; row < rows; row += 32) {
      int power;
      if (p.channels != nullptr) {
        power = __float_as_int(stage.scales[p.head_dim]);
      } else {
        float scale = stage.scales[row];
        if (p.scale_groups > 1) scale = fmaxf(scale, stage.scales[rows + row]);
        power = row < stage.seen ? kv_row_power(scale, code_log2) : 0;
        if (power != 0) {
          stage.scales[row] *= power_of_two(-power);
          if (p.scale_groups > 1) stage.scales[rows + row] *= power_of_two(-power);
          fence_async_shared();
        }
      }
      p.powers[stage.first + row] = static_cast<int8_t>(power);
      odd |= power != 0;
    }
    return __any_sync(~0u, odd);
  }
  __device__ __forceinline__ void widen(GatherStage& stage) {
    const bool odd = take_powers(stage);
    __syncwarp();
    const bool channels = p.channels != nullptr;
    switch (p.format) {
      case KvFormat::kInt8:
      case KvFormat::kInt8Dynamic:
        channels ? widen_as<KvInt8, true>(stage) : widen_as<KvInt8, false>(stage);
        break;
      case KvFormat::kFp8:
      case KvFormat::kFp8Block:
        channels ? widen_as<KvFp8, true>(stage) : widen_as<KvFp8, false>(stage);
        break;
      default: widen_as<KvInt4, false>(stage); break;
    }
    fence_async_global();
    __syncwarp();
    if (lane_ == 0) {
      asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p.ready + stage.share),
                   "r"(odd ? 0x10001 : 1)
                   : "memory");
    }
  }
  template <class Format, bool Channels>
  __device__ __forceinline__ void widen_as(const GatherStage& stage) const {
    constexpr int kWords = kKvEightWords<Format>;
    if (p.turn_rows != 0) return widen_whole<Format, Channels>(stage);
    std::byte* to = stage.to;
    const int rows = stage.rows, seen = stage.seen, eights = rows * p.row_eights;
    constexpr int kTurns = 2;  // beside each other
#pragma unroll 1
    for (int first = lane_; first < eights; first += 32 * kTurns) {
      uint4 out[kTurns];
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {  // beyond the rows: of the stage, and unused
        const int i = first + 32 * turn, row = row_of(i), dim = (i - row * p.row_eights) * 8;
        uint32_t words[kWords];
        if constexpr (kWords == 1) {
          words[0] = reinterpret_cast<const uint32_t*>(stage.codes)[i];
        } else {
          const uint2 both = reinterpret_cast<const uint2*>(stage.codes)[i];
          words[0] = both.x;
          words[1] = both.y;
        }
        if constexpr (Channels) {
          out[turn] = widen_eight<Format, true>(words, 0, stage.scales + dim);
        } else {
          const int group = Format::kZeros ? dim / kKvInt4Group * rows : 0;
          out[turn] = widen_eight<Format, true>(words, stage.scales[group + row], nullptr);
        }
        if (row >= seen) out[turn] = {};  // an older owner's
      }
#pragma unroll
      for (int turn = 0; turn < kTurns; ++turn) {
        const int i = first + 32 * turn, row = row_of(i), dim = (i - row * p.row_eights) * 8;
        if (i < eights && dim < p.head_dim) {
          *reinterpret_cast<uint4*>(to + (row * p.head_dim + dim) * 2) = out[turn];
        }
      }
    }
  }
  /// The same where a turn of the warp is whole rows, so that a lane's dims are the same in all.
  template <class Format, bool Channels>
  __device__ __forceinline__ void widen_whole(const GatherStage& stage) const {
    constexpr int kWords = kKvEightWords<Format>;
    const int first = row_of(lane_), dim = (lane_ - first * p.row_eights) * 8;
    const unsigned char* codes = stage.codes + lane_ * kWords * 4;
    const float* scale =
        stage.scales +
        (Channels ? dim : (Format::kZeros ? dim / kKvInt4Group * stage.rows : 0) + first);
    std::byte* to = stage.to + (first * p.head_dim + dim) * 2;
    const bool mine = dim < p.head_dim;
    float channels[Channels ? 8 : 1];
    if constexpr (Channels) {
#pragma unroll
      for (int i = 0; i < 8; ++i) channels[i] = mine ? scale[i] : 0;
    }
    const int turns = stage.rows / p.turn_rows, step = p.turn_rows;
    int unseen = stage.seen - first;  // <= 0: the row is an older owner's
#pragma unroll 2
    for (int turn = 0; turn < turns; ++turn) {
      uint32_t words[kWords];
      if constexpr (kWords == 1) {
        words[0] = *reinterpret_cast<const uint32_t*>(codes);
      } else {
        const uint2 both = *reinterpret_cast<const uint2*>(codes);
        words[0] = both.x;
        words[1] = both.y;
      }
      uint4 out = Channels ? widen_small<Format>(words, 0, channels)
                           : widen_small<Format>(words, *scale, nullptr);
      if (unseen <= 0) out = {};
      if (mine) *reinterpret_cast<uint4*>(to) = out;
      unseen -= step;
      codes += 32 * kWords * 4;
      to += step * p.head_dim * 2;
      if (!Channels) scale += step;
    }
  }
  __device__ __forceinline__ int row_of(int eight) const {
    return static_cast<int>(__umulhi(static_cast<uint32_t>(eight), p.inverse_row));
  }
};

/// By a warp of its own. `shared`: kGatherBytes.
__device__ __forceinline__ void gather_beside(const GatherParams& params, unsigned char* shared,
                                              int lane) {
  GatherWarp(params, shared, lane).run();
}

}  // namespace weft::cuda
