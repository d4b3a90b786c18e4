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
  int32_t* ready = nullptr;  ///< [share] 1 once its rows are written, 2 if any of them has a power

  // Of the way beside the attention.
  int32_t* next = nullptr;                        ///< the share to be taken next
  int tokens = 0, row_bytes = 0, stage_rows = 0;  ///< of a block; codes; rows copied at once
  int row_eights = 0;                             ///< eights of dims of a row, the rest's too
  uint32_t inverse_row = 0;                       ///< 2^32 / row_eights, rounded up
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
};

/// Whether attention_prompt_beside() takes these; `from` is the cache's layout.
bool can_gather_beside(const AttnArgs& args, const KvBlockLayout& from);
/// attention_prompt_into over the new blocks of f16, which `args` name: they are there, or, if
/// can_gather_beside(), made along the way (the new table is written, `next` and `ready` are 0).
void attention_prompt_f16(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                          const GatherParams& gather);

/// Rows on their way from the cache: so many copies of up to 4 KiB of codes and their scales.
struct GatherStage {
  static constexpr int kCodeBytes = 4096, kScales = 132;
  unsigned char codes[kCodeBytes];
  float scales[kScales];  ///< [groups][rows]; of static formats, of GatherParams::channels
  std::byte* to;
  int rows, seen;  ///< no rows: nothing any more
  int done;        ///< the share that is ready with these rows; -1: none
  int first;       ///< row in GatherParams::powers
  Barrier full;
};
constexpr int kGatherStages = 3;
/// The registers of the warp that gathers are few: where its copies are lies here, for lane 0.
struct GatherShared {
  GatherStage stages[kGatherStages];
  const std::byte *codes, *scales;  ///< of the next rows of `share`
  std::byte* to;
  int share, rows, seen;  ///< rows: left of it
  int next_share;         ///< the one after
  int odd;                ///< whether a row of the share that is being widened has a power
};
constexpr int kGatherBytes = (static_cast<int>(sizeof(GatherShared)) + 127) / 128 * 128;
static_assert(sizeof(GatherStage) % 16 == 0);

/// Waits until a share's rows are written; copies behind a fence_async_global() see them.
__device__ __forceinline__ void wait_for_share(const int32_t* ready) {
  int32_t done;
  do {
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(done) : "l"(ready) : "memory");
  } while (done == 0);
}

/// Waits for two of them; whether a row of either has a power, which the caller sees then.
__device__ __forceinline__ bool wait_for_shares(const int32_t* one, const int32_t* other) {
  int32_t state, others;
  do {
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(others) : "l"(other) : "memory");
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(state) : "l"(one) : "memory");
  } while (state == 0 || others == 0);
  const bool odd = (state | others) > 1;
  if (odd) __threadfence();
  return odd;
}

/// A warp that takes shares until there are no more. Whoever has time takes the next one, so that
/// nobody waits for a block that has not begun.
class GatherWarp {
 public:
  __device__ __forceinline__ GatherWarp(const GatherParams& params, unsigned char* memory, int lane)
      : p(params), shared(*reinterpret_cast<GatherShared*>(memory)), lane_(lane) {}

  __device__ __forceinline__ void run() {
    if (lane_ == 0) {
#pragma unroll
      for (auto& stage : shared.stages) barrier_init(&stage.full, 1);
      fence_barrier_init();
      shared.odd = 0;
      shared.next_share = atomicAdd(p.next, 1);
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
  int following_ = 0, next_block_ = 0;  // on their way: a number, and where next_share's codes are

  /// The block of next_share, and the share after it.
  __device__ __forceinline__ void look_up() {
    if (shared.next_share < p.num_shares) {
      const int block = shared.next_share / p.shares_of_block, segment = p.segment_of(block);
      next_block_ = p.table[segment * p.table_row + block - p.starts[segment]];
    }
    following_ = atomicAdd(p.next, 1);
  }
  /// To the share after the current one.
  __device__ __forceinline__ void advance() {
    const int share = shared.next_share;
    const int block = share / p.shares_of_block, in_block = share - block * p.shares_of_block;
    shared.share = share;
    if (share < p.num_shares) {
      const int segment = p.segment_of(block);
      shared.seen = p.keys[segment] - (block - p.starts[segment]) * p.tokens;
      shared.rows = p.tokens;
      const std::byte* from = p.cache + next_block_ * p.block_bytes;
      shared.codes = from + in_block * p.tokens * p.row_bytes;
      shared.scales = from + p.scales_at + in_block * p.scale_groups * p.tokens * 4;
      if (p.channels != nullptr) {
        shared.scales =
            reinterpret_cast<const std::byte*>(p.channels + in_block * (p.head_dim + 4));
      }
      shared.to = p.to + block * p.into_bytes + in_block * p.tokens * p.head_dim * 2;
    }
    shared.next_share = following_;
    look_up();
  }

  /// Asks for the next rows. By lane 0.
  __device__ __forceinline__ void issue(GatherStage& stage) {
    if (shared.share >= p.num_shares) {
      stage.rows = 0;
      arrive(&stage.full);
      return;
    }
    const int rows = min(shared.rows, p.stage_rows);
    stage.to = shared.to;
    stage.rows = rows;
    stage.seen = shared.seen;
    stage.first = (shared.share + 1) * p.tokens - shared.rows;
    const bool channels = p.channels != nullptr;
    const int groups = channels ? 1 : p.scale_groups,
              group_bytes = (channels ? p.head_dim + 4 : rows) * 4;
    const int bytes = rows * p.row_bytes;
    arrive_expect(&stage.full, static_cast<uint32_t>(bytes + groups * group_bytes));
    bulk_load(stage.codes, shared.codes, static_cast<uint32_t>(bytes), &stage.full);
#pragma unroll 1
    for (int group = 0; group < groups; ++group) {
      bulk_load(stage.scales + group * rows, shared.scales + group * p.tokens * 4,
                static_cast<uint32_t>(group_bytes), &stage.full);
    }
    shared.codes += bytes;
    if (!channels) shared.scales += rows * 4;
    shared.to += rows * p.head_dim * 2;
    shared.seen -= rows;
    shared.rows -= rows;
    stage.done = -1;
    if (shared.rows == 0) {
      stage.done = shared.share;
      advance();
    }
  }

  /// The powers of a stage's rows, which leave its scales.
  __device__ __forceinline__ void take_powers(GatherStage& stage) {
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
      if (power != 0) shared.odd = 1;
    }
    __syncwarp();
  }
  __device__ __forceinline__ void widen(GatherStage& stage) {
    take_powers(stage);
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
    if (stage.done >= 0) {
      fence_async_global();
      __syncwarp();
      if (lane_ == 0) {
        asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(p.ready + stage.done),
                     "r"(1 + shared.odd)
                     : "memory");
        shared.odd = 0;
      }
    }
  }
  template <class Format, bool Channels>
  __device__ __forceinline__ void widen_as(const GatherStage& stage) const {
    constexpr int kWords = kKvEightWords<Format>;
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
