#pragma once

// The work of attention over prompts (attention_prompt_kernel.cuh): the plan of a launch, the
// items, the tiles of keys that each needs, and the order of the items. Included by its kernels
// alone.

#include <cuda_bf16.h>

#include <type_traits>

#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/gemm.h"
#include "kernels/cuda/head_kinds.h"
#include "kernels/cuda/kv_gather.h"

namespace weft::cuda {
namespace {

/// One tile of rows of the plan: tokens `row` .. `row + tokens` of q, the first at `position`.
struct PrefillTile {
  int32_t row = 0;
  int32_t position = 0;
  int32_t kv_end = 0;  ///< keys of the segment
  int32_t segment = 0;
  int32_t block = 0;  ///< first row's block of 128, counted from the segment's first (HeadPlan)
  uint16_t tokens = 0;
  uint16_t pack_shift = 0;  ///< 2^pack_shift heads a tile
};

/// The work of a launch: a parameter of the kernel. Items are (tile, heads): section by section of
/// `section_heads` heads, whose K and V stay in L2 together, and there tile by tile; the first
/// `num_first` tiles have `first_items` items of a section each, the others `other_items`.
struct PrefillPlan {
  static constexpr int kMaxTiles = 1000;
  int32_t num_tiles = 0;
  int32_t num_first = 0;
  int32_t first_items = 0, other_items = 0;
  int32_t section_items = 0, section_heads = 0;
  int32_t num_items = 0;
  int32_t longest = 0;  ///< keys of the tile that sees the most
  PrefillTile tiles[kMaxTiles];
};

struct PrefillParams {
  __nv_bfloat16* out = nullptr;
  int64_t out_row = 0, out_head = 0;  ///< strides in elements
  QuantizedRows codes;                ///< in place of `out`, where they are not null
  const int32_t* block_table = nullptr;
  int64_t table_row = 0;
  int32_t head_dim = 0;
  int32_t group = 1;  ///< H / G
  int32_t kv_heads = 1;
  int32_t block_size = 64;
  int32_t box_keys = 64;  ///< rows of a box of the K and V map; divides block_size and Keys
  int32_t num_blocks = 0;
  float scale_log2 = 0;  ///< scale * log2(e)
  float* lse = nullptr;
  int64_t lse_row = 0;

  int32_t* counter = nullptr;  ///< items taken beyond the first of each block; null: a fixed walk

  // Of a HeadPlan.
  bool beside = false;             ///< this launch and the one ahead of it don't know of each other
  bool has_wide = false;           ///< PlanPart::kWide is a launch of its own
  const int32_t* order = nullptr;  ///< how many items; the items, longest first; null: no plan
  HeadKinds kinds;
  const int32_t* blocks = nullptr;  ///< contiguous
  const int32_t* counts = nullptr;
  const int32_t *cu_q = nullptr, *kv_start = nullptr;  ///< of segments, with has_wide
  int32_t segments = 0;
  int32_t heads = 0, row_blocks = 0, words = 0;  ///< H, QB, words of HeadPlan
  int32_t sink_blocks = 0, window_blocks = 0;

  __device__ __forceinline__ int kind(int segment, int head) const {
    return kinds.at(segment, head);
  }
  /// Index of row block `block` of a head in counts.
  __device__ __forceinline__ int64_t row_block(int segment, int head, int block) const {
    return (int64_t{segment} * heads + head) * row_blocks + block;
  }
  /// Called by a warp: whether a listed head sees so much that few of the wide tiles' parts would
  /// be idle. Three row blocks together see more than one of them does.
  __device__ __forceinline__ bool is_wide_list(int segment, int head, int lane) const {
    const int rows = cu_q[segment + 1] - cu_q[segment];
    const int n = (rows + HeadPlan::kBlock - 1) / HeadPlan::kBlock;
    const int before = kv_start[segment] / HeadPlan::kBlock;
    const int32_t* of_head = counts + row_block(segment, head, 0);
    int64_t seen = 0;
    for (int block = lane; block < n; block += 32) seen += of_head[block];
    for (int step = 16; step > 0; step /= 2) seen += __shfl_xor_sync(0xffffffffu, seen, step);
    return 16 * seen >= kWideSixteenths * (int64_t{n} * before + int64_t{n} * (n + 1) / 2);
  }
  static constexpr int kWideSixteenths = 13;
  static constexpr int kMaxWidePairs = 4096;  ///< segments x heads of a plan with it
};

/// What K and V are: the cache's bf16; f16 that kv_gather.h made of a quantised cache; the same,
/// made by a warp of each block while the others go on.
enum class KvOperands { kBf16, kF16, kF16Beside };

/// What is known of K and V in f16.
struct NoGather {
  const int32_t* ready = nullptr;
};
template <KvOperands Operands>
using PrefillSourceOf = std::conditional_t<Operands == KvOperands::kBf16, NoGather, GatherParams>;
template <class C>
using PrefillSource = PrefillSourceOf<C::kOperands>;

/// What a launch is for: full heads, which all are without a HeadPlan; or the others. The rows of a
/// narrow tile lie in one block of 128, so that all warpgroups see the same blocks, and others are
/// not copied; the warpgroups of a wide one, for lists of most blocks, pass over what is not
/// theirs.
enum class PlanPart { kFull, kNarrow, kWide };

/// Overlap: the scores of a tile of keys are computed beside the values of the one before.
template <int HeadDim, int Keys, int Warpgroups, PlanPart Part, bool Overlap, KvOperands Operands>
struct PrefillShape {
  static constexpr int kHeadDim = HeadDim;
  static constexpr int kKeys = Keys;
  static constexpr int kWarpgroups = Warpgroups;
  static constexpr PlanPart kPart = Part;
  static constexpr bool kNarrow = Part == PlanPart::kNarrow;
  static constexpr bool kOverlap = Overlap;
  static constexpr KvOperands kOperands = Operands;
  static constexpr bool kF16 = Operands != KvOperands::kBf16;
  static constexpr bool kGathers = Operands == KvOperands::kF16Beside;
  static constexpr int kRows = 64 * Warpgroups;
  /// A tile of keys for so many of the warpgroups, as a share of that for all: measured.
  static constexpr float tile_time(int warpgroups) {
    if (warpgroups == Warpgroups) return 1;
    if (Warpgroups == 2) return 0.66f;
    return warpgroups == 2 ? (HeadDim > 64 ? 0.82f : 0.87f) : (HeadDim > 64 ? 0.53f : 0.63f);
  }
  static constexpr int kThreads = 128 * (Warpgroups + 1);
  static constexpr int kConsumerRegisters = Warpgroups == 2   ? (HeadDim > 128 ? 240 : 232)
                                            : Warpgroups == 3 ? 160
                                                              : 112;
  static constexpr int kProducerRegisters = Warpgroups == 2   ? (HeadDim > 128 ? 24 : 40)
                                            : Warpgroups == 3 ? 32
                                                              : 24;
  // A block that asks for more than it started with waits forever.
  static_assert(kProducerRegisters + Warpgroups * kConsumerRegisters <=
                (Warpgroups + 1) * (65536 / kThreads / 8 * 8));
  // The ring holds units of `Keys` rows x kUnitDims dims of K or V, as panels of 64 dims.
  static constexpr int kUnitDims = HeadDim < 128 ? HeadDim : 128;
  static constexpr int kUnits = HeadDim / kUnitDims;
  static constexpr int kPanels = kUnitDims / 64;
  static constexpr int kPanelBytes = Keys * 128;
  static constexpr int kUnitBytes = kPanels * kPanelBytes;
  static constexpr int kQPanelBytes = 64 * 128;
  static constexpr int kQBytes = HeadDim / 64 * kQPanelBytes;  // of a warpgroup
  static constexpr int kMaxBoxKeys = Keys % 64 == 0 ? 64 : Keys % 32 == 0 ? 32 : 16;
  static constexpr int kAside = kGathers ? kGatherBytes : 0;
  // The copying warp is so many items before the slowest warpgroup, at most.
  static constexpr int kClaims = 16;
  /// What PrefillShared holds beside q and the ring.
  static constexpr int book_bytes(int stages) {
    const int words = (2 * stages + 2 * Warpgroups + kClaims + 1) * 2 + kClaims * 7 + 2 * stages;
    return (words * 4 + (kF16 ? stages * 2 * Keys : 0) + 127) / 128 * 128;
  }
  static constexpr int shared_bytes(int stages) {  // 1024: alignment
    return 1024 + Warpgroups * kQBytes + stages * kUnitBytes + book_bytes(stages) + kAside;
  }
  static constexpr int stages_that_fit() {
    int stages = 12;
    while (shared_bytes(stages) > 227 * 1024) --stages;
    return stages;
  }
  static constexpr int kStages = stages_that_fit();
  static constexpr int kBookBytes = book_bytes(kStages);
  /// Warps of a block without items that gather too, in the memory of its ring.
  static constexpr int kRingGathers = kStages * kUnitBytes / kGatherBytes;
  static constexpr int kHelpers = kRingGathers < 4 * Warpgroups ? kRingGathers : 4 * Warpgroups;
  static constexpr int kSharedBytes = shared_bytes(kStages);
  static_assert(kStages >= 2 * kUnits && Warpgroups <= 4);
  static_assert(kNarrow ? kRows <= HeadPlan::kBlock && !kGathers : !Overlap);
  static_assert(Part != PlanPart::kWide || (kKeys == HeadPlan::kBlock && !kGathers));
  static_assert(kStages / (2 * kUnits) + 2 < kClaims);
};

/// What both sides walk: the slots of the ring.
template <class C>
struct RingAt {
  int slot = 0;
  uint32_t phase = 0;
  __device__ __forceinline__ void step() {
    if (++slot == C::kStages) {
      slot = 0;
      phase ^= 1;
    }
  }
  __device__ __forceinline__ void step_tile() {
#pragma unroll
    for (int u = 0; u < C::kUnits; ++u) step();
  }
};

/// An item of the plan: rows of one head, or of 2^pack_shift heads.
struct PrefillItem {
  PrefillTile tile;
  int head = 0;  // the first
};

/// What the K and V of a tile of keys are for: the tile's index << kTileBits, and these bits. A V
/// comes with the note of the next tile, 0 after the last, so that nobody waits for it.
enum : int {
  kNeededBy = 1,      ///< << warpgroup
  kLastOfGroup = 16,  ///< << warpgroup: the last that it needs
  kMaskedFor = 256,   ///< << warpgroup: its rows don't all see all of the tile
  kTileBits = 12,
};

template <class C>
struct PrefillShared {
  unsigned char* q;     // [Warpgroups][HeadDim / 64][64][128 bytes]
  unsigned char* ring;  // [kStages][kPanels][Keys][128 bytes]
  Barrier* full;        // [kStages]
  Barrier* empty;       // [kStages]
  Barrier* q_full;      // [Warpgroups]
  Barrier* q_empty;     // [Warpgroups]
  Barrier* claimed;     // [kClaims]
  Barrier* tail;
  unsigned char* aside;  // kAside
  int* notes;            // [kStages]
  // Of f16: whether a row of a tile's K or V has a power (kv_gather.h), and then all of them.
  int* odd;            // [kStages]
  int8_t* powers;      // [kStages][K, V][Keys]
  PrefillItem* items;  // [kClaims] of the rounds; of 0 tokens at the end

  __device__ __forceinline__ explicit PrefillShared(unsigned char* raw) {
    q = raw + ((1024 - (shared_address(raw) & 1023)) & 1023);
    ring = q + C::kWarpgroups * C::kQBytes;
    full = reinterpret_cast<Barrier*>(ring + C::kStages * C::kUnitBytes);
    aside = reinterpret_cast<unsigned char*>(full) + C::kBookBytes;
    empty = full + C::kStages;
    q_full = empty + C::kStages;
    q_empty = q_full + C::kWarpgroups;
    claimed = q_empty + C::kWarpgroups;
    tail = claimed + C::kClaims;
    items = reinterpret_cast<PrefillItem*>(tail + 1);
    notes = reinterpret_cast<int*>(items + C::kClaims);
    odd = notes + C::kStages;
    powers = reinterpret_cast<int8_t*>(odd + C::kStages);
  }
  static_assert(sizeof(PrefillItem) == 7 * 4);
  __device__ __forceinline__ PrefillItem& item(int round) const {
    return items[round % C::kClaims];
  }
};

__device__ __forceinline__ PrefillItem item_at(const PrefillPlan& plan, int index) {
  const int section = index / plan.section_items;
  index -= section * plan.section_items;
  const int in_first = plan.num_first * plan.first_items;
  int tile, part;
  if (index < in_first) {
    tile = index / plan.first_items;
    part = index - tile * plan.first_items;
  } else {
    tile = (index - in_first) / plan.other_items;
    part = index - in_first - tile * plan.other_items;
    tile += plan.num_first;
  }
  PrefillItem item;
  item.tile = plan.tiles[tile];
  item.head = section * plan.section_heads + (part << item.tile.pack_shift);
  return item;
}

/// The items of this block: the first by its index, the others taken as they come or, in a launch
/// with few items for each block, in a zigzag (the longest are first, and who has a longer one in
/// one round has a shorter one in the next). No bit depends on who computes what.
template <class C>
class ItemWalk {
 public:
  __device__ __forceinline__ ItemWalk(const PrefillPlan& plan, const PrefillParams& params)
      : plan_(plan), params_(params) {
    count_ = params.order != nullptr ? params.order[0] : plan.num_items;
    next_ = static_cast<int>(blockIdx.x);
  }
  /// The next one, of 0 tokens at the end, written for the block too. Called by the copying warp.
  __device__ __forceinline__ PrefillItem take(const PrefillShared<C>& shared, int round, int lane) {
    int index = __shfl_sync(0xffffffffu, next_, 0);
    PrefillItem item;
    if (index < count_) {
      if (params_.order != nullptr) index = params_.order[1 + index];
      item = item_at(plan_, index);
    }
    if (lane == 0) {
      shared.item(round) = item;
      arrive(shared.claimed + round % C::kClaims);
      const int walkers = static_cast<int>(gridDim.x), me = static_cast<int>(blockIdx.x);
      if (params_.counter == nullptr) {  // of the round after
        next_ = (round + 1) * walkers + ((round & 1) ? me : walkers - 1 - me);
      } else {
        next_ = walkers + atomicAdd(params_.counter, 1);
      }
    }
    return item;
  }

 private:
  const PrefillPlan& plan_;
  const PrefillParams& params_;
  int count_, next_;
};

/// The keys of one warpgroup's rows of an item.
template <class C>
struct PrefillSpan {
  int first;  ///< position of row 0
  int tiles;  ///< that any row sees a part of; 0 without rows

  __device__ __forceinline__ PrefillSpan(const PrefillTile& tile, int warpgroup) {
    first = tile.position + (warpgroup * 64 >> tile.pack_shift);
    const int end = min(first + (64 >> tile.pack_shift), tile.position + tile.tokens);
    tiles = first < end ? (end - 1) / C::kKeys + 1 : 0;
  }
};

// ---- Which tiles of keys an item needs

/// All of them up to the last row's own; the warpgroups know which are theirs.
template <class C, PlanPart Part>
class KeyTiles {
 public:
  __device__ __forceinline__ void begin(const PrefillParams&, const PrefillItem& item, int) {
    tiles_ = (item.tile.position + item.tile.tokens - 1) / C::kKeys + 1;
  }
  /// The first tile from `j` on; -1 if there is none.
  __device__ __forceinline__ int from(int j) const { return j < tiles_ ? j : -1; }
  __device__ __forceinline__ int note(int) const { return 0; }

 private:
  int tiles_;
};

/// What a HeadPlan lets a streaming or listed head see. Called by a whole warp.
template <class C>
class KeyTiles<C, PlanPart::kNarrow> {
 public:
  static_assert(C::kKeys == HeadPlan::kBlock);

  __device__ __forceinline__ void begin(const PrefillParams& params, const PrefillItem& item,
                                        int lane) {
    params_ = &params;
    lane_ = lane;
    position_ = item.tile.position;
    end_ = position_ + item.tile.tokens;
    kind_ = params.kind(item.tile.segment, item.head);
    first_word_ = -32;
    const int64_t row = params.row_block(item.tile.segment, item.head, item.tile.block);
    blocks_ = params.blocks + row * params.words;
  }
  __device__ __forceinline__ int from(int j) {
    const int last = (end_ - 1) / C::kKeys;
    if (j >= last) return j == last ? j : -1;
    if (kind_ == static_cast<int>(HeadKind::kStreaming)) {
      return j < params_->sink_blocks ? j : max(j, last - params_->window_blocks + 1);
    }
    // The own block, the last, is always seen: nothing here waits for a bit that a caller forgot.
    for (; j < last; j = first_word_ * 32 + 1024) {
      if (first_word_ != j / 1024 * 32) {
        first_word_ = j / 1024 * 32;
        const bool mine = first_word_ + lane_ < params_->words;
        seen_ = mine ? static_cast<uint32_t>(blocks_[first_word_ + lane_]) : 0;
      }
      const int word = first_word_ + lane_;
      const uint32_t bits = word == j / 32 ? seen_ & 0xffffffffu << (j % 32) : seen_;
      const uint32_t lanes = __ballot_sync(0xffffffffu, word >= j / 32 && bits != 0);
      if (lanes != 0) {
        const int lane = __ffs(static_cast<int>(lanes)) - 1;
        const int found = __ffs(static_cast<int>(__shfl_sync(0xffffffffu, bits, lane))) - 1;
        return min(last, (first_word_ + lane) * 32 + found);
      }
    }
    return last;
  }
  __device__ __forceinline__ int note(int j) const {
    int note = j << kTileBits;
#pragma unroll
    for (int w = 0; w < C::kWarpgroups; ++w) {
      const int first = position_ + 64 * w, own = first / C::kKeys;
      if (first >= end_ || j > own) continue;
      note |= kNeededBy << w;
      if (j == own) note |= (kLastOfGroup | kMaskedFor) << w;
    }
    return note;
  }

 private:
  const PrefillParams* params_;
  const int32_t* blocks_;
  int lane_, position_, end_, kind_, first_word_;
  uint32_t seen_;
};

/// order[0]: how many items (tile, head) this launch is for; then they, section by section and
/// there longest first (by the tiles of keys of all warpgroups, in classes; inside a class in any
/// order, on which no bit depends), those of streaming heads behind all others: they are short, and
/// fill the last round. The counter becomes 0. One block.
template <class C>
__global__ void __launch_bounds__(1024)
    order_items(const __grid_constant__ PrefillParams params,
                const __grid_constant__ PrefillPlan plan, int32_t* order) {
  constexpr int kClasses = 1024;
  __shared__ int places[kClasses], sums[32];
  // Of (segment, head), with has_wide.
  __shared__ uint32_t wide_lists[PrefillParams::kMaxWidePairs / 32];
  const int thread = static_cast<int>(threadIdx.x);
  places[thread] = 0;
  __syncthreads();
  if (params.beside) {
    __threadfence();  // as in attention_prefill()
  } else {
    wait_for_predecessor();
  }
  let_successor_begin();
  const int warp = thread / 32, lane = thread % 32;
  if (C::kPart != PlanPart::kFull && params.has_wide) {
    if (thread < PrefillParams::kMaxWidePairs / 32) wide_lists[thread] = 0;
    __syncthreads();
    for (int pair = warp; pair < params.segments * params.heads; pair += 32) {
      const int segment = pair / params.heads, head = pair % params.heads;
      if (params.kind(segment, head) != static_cast<int>(HeadKind::kBlocks)) continue;
      const bool wide = params.is_wide_list(segment, head, lane);
      if (wide && lane == 0) atomicOr(&wide_lists[pair / 32], 1u << pair % 32);
    }
    __syncthreads();
  }
  const int longest = ((plan.longest - 1) / C::kKeys + 1) * C::kWarpgroups;
  const int sections = plan.num_items / plan.section_items;
  const int classes = kClasses / (2 * sections);  // of a section
  const auto class_of = [&](int index) {
    const PrefillItem item = item_at(plan, index);
    const PrefillTile& tile = item.tile;
    const int kind = params.kind(tile.segment, item.head);
    const bool full = kind == static_cast<int>(HeadKind::kFull);
    if (full != (C::kPart == PlanPart::kFull)) return -1;
    const bool streaming = kind == static_cast<int>(HeadKind::kStreaming);
    if (!full && params.has_wide) {
      const int pair = tile.segment * params.heads + item.head;
      const bool wide = (wide_lists[pair / 32] >> pair % 32 & 1) != 0;
      if (wide == C::kNarrow) return -1;
    }
    int cost = (tile.position + tile.tokens - 1) / C::kKeys + 1;
    int section = index / plan.section_items;
    if (streaming) {
      section += sections;
      cost = min(cost, params.sink_blocks + params.window_blocks);
    } else if (C::kNarrow) {
      cost = params.counts[params.row_block(tile.segment, item.head, tile.block)];
    }
    cost *= (tile.tokens + 63) / 64;
    return (section + 1) * classes - 1 - min(classes - 1, cost * (classes - 1) / longest);
  };
  for (int i = thread; i < plan.num_items; i += 1024) {
    const int place = class_of(i);
    if (place >= 0) atomicAdd(&places[place], 1);
  }
  __syncthreads();
  const auto scan_of_warp = [&](int x) {
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const int below = __shfl_up_sync(0xffffffffu, x, step);
      if (lane >= step) x += below;
    }
    return x;
  };
  const int mine = places[thread], upto = scan_of_warp(mine);
  if (lane == 31) sums[warp] = upto;
  __syncthreads();
  if (warp == 0) sums[lane] = scan_of_warp(sums[lane]);
  __syncthreads();
  const int before = upto - mine + (warp > 0 ? sums[warp - 1] : 0);
  places[thread] = 1 + before;
  if (thread == 1023) {
    order[0] = before + mine;
    *params.counter = 0;
  }
  __syncthreads();
  for (int i = thread; i < plan.num_items; i += 1024) {
    const int place = class_of(i);
    if (place >= 0) order[atomicAdd(&places[place], 1)] = i;
  }
  if (params.beside) wait_for_predecessor();
}

/// For a launch without order_items().
__global__ void reset_counter(int32_t* counter) {
  wait_for_predecessor();
  *counter = 0;
}

}  // namespace
}  // namespace weft::cuda
