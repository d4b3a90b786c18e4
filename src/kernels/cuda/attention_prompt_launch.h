#pragma once

// The host's part of attention over prompts: which rows become a tile, the order of the items, the
// launches. Included by attention_prompt_kernel.cuh alone.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "kernels/cuda/attention_prompt_plan.h"
#include "kernels/cuda/attention_prompt_tiles.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/tensor_map.h"

namespace weft::cuda {
namespace {

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
                      const __grid_constant__ PrefillPlan plan,
                      const __grid_constant__ PrefillSource<C> source);

/// K and V that a section reads again and again: well below the 50 MiB of L2.
constexpr int64_t kSectionBytes = int64_t{24} << 20;
/// From so many items a block on they are taken as they come.
constexpr int kManyRounds = 6;

/// Tiles are collected, and launched when the plan is full and at the end.
template <class C>
class PrefillLauncher {
 public:
  PrefillLauncher(Stream& stream, const AttnArgs& args, const QuantizedRows& codes,
                  const PrefillSource<C>& source = {})
      : stream_(stream), args_(args), source_(source) {
    const KvShape& kv = args.kv.shape;
    const AttnShape& shape = args.shape;
    const int group = shape.q_heads / shape.kv_heads;
    // Heads of one tile are a power of two of one kv head; with a plan every head has its own.
    while (args.heads == nullptr && pack_shift_ < 4 && group % (2 << pack_shift_) == 0) {
      ++pack_shift_;
    }
    params_.out = static_cast<__nv_bfloat16*>(args.out.data);
    params_.out_row = args.out.stride[0];
    params_.out_head = args.out.stride[1];
    params_.codes = codes;
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
    if (args.heads != nullptr) take_plan(*args.heads);

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
    cut({segment, row, tokens, position}, rows_ >> shift, shift);
  }

  void flush() {
    const ArenaScope scope(stream_.scratch());
    order(/*beside=*/false);
    run(/*beside=*/false);
  }

  /// Whether a launch of PlanPart::kWide, whose tiles begin where segments do, follows or is this.
  bool set_wide() {
    const int64_t segments = args_.num_prompt_segments;
    if (params_.counts == nullptr || !args_.heads->long_lists) return false;
    if (segments * args_.shape.q_heads > PrefillParams::kMaxWidePairs) return false;
    for (int64_t s = 0; s < segments; ++s) {
      if (args_.seqs.host_kv_start[s] % HeadPlan::kBlock != 0) return false;
    }
    params_.cu_q = args_.seqs.cu_q.template ptr<int32_t>();
    params_.kv_start = args_.seqs.kv_start.template ptr<int32_t>();
    params_.segments = static_cast<int32_t>(segments);
    params_.has_wide = true;
    return true;
  }

  /// The order of the tiles and, with a plan of heads, that of the items. `beside`: the launch
  /// ahead orders other items of the plan.
  void order(bool beside) {
    if (plan_.num_tiles == 0) return;
    arrange();
    params_.beside = beside;
    params_.counter = nullptr;
    if (args_.heads != nullptr) {
      auto* order = static_cast<int32_t*>(stream_.scratch().take(int64_t{plan_.num_items} * 4 + 8));
      params_.counter = order++;
      launch(stream_, {.grid = 1, .block = 1024, .overlap = true}, order_items<C>, params_, plan_,
             order);
      params_.order = order;
    } else if (plan_.num_items >= kManyRounds * walkers()) {
      params_.counter = static_cast<int32_t*>(stream_.scratch().take(4));
      launch(stream_, {.grid = 1, .block = 1, .overlap = true}, reset_counter, params_.counter);
    }
  }

  /// Launches what order() has ordered, while the scratch memory of that is held. `beside`: the
  /// launch ahead is that of other items of the plan.
  void run(bool beside) {
    if (plan_.num_tiles == 0) return;
    params_.beside = beside;
    // Blocks without an item have their warp that gathers.
    launch(stream_,
           {.grid = static_cast<unsigned>(C::kGathers ? num_processors() : walkers()),
            .block = C::kThreads,
            .shared_bytes = C::kSharedBytes,
            .overlap = true},
           attention_prefill<C>, maps_, params_, plan_, source_);
    plan_.num_tiles = 0;
  }

  void add_segments() {
    if (args_.heads == nullptr) rows_ = best_rows();
    add_all();
  }

 private:
  struct Rows {
    int segment, row, tokens, position;
  };
  void add_all() {
    const SeqMap& seqs = args_.seqs;
    for (int s = 0; s < args_.num_prompt_segments; ++s) {
      const int row = seqs.host_cu_q[s], tokens = seqs.host_cu_q[s + 1] - row;
      if (tokens > 0) add(s, row, tokens, seqs.host_kv_start[s]);
    }
  }
  /// Rows a tile with which a short launch ends soonest: tiles of fewer rows take their processors
  /// longer in all, but there are more of them to deal out. No bit depends on it.
  int best_rows() {
    if (prompt_tile_rows() > 0) return std::min(prompt_tile_rows(), C::kRows);
    // Short ones of prompts from their beginning are not what was measured: 512 tokens lose.
    for (int s = 0; s < args_.num_prompt_segments; ++s) {
      const bool rows = args_.seqs.host_cu_q[s] < args_.seqs.host_cu_q[s + 1];
      if (rows && args_.seqs.host_kv_start[s] < 1024) return C::kRows;
    }
    const int64_t most = (args_.prompt_rows << pack_shift_) / 64 + args_.num_prompt_segments;
    if (most > PrefillPlan::kMaxTiles) return C::kRows;
    int best = C::kRows;
    float soonest = INFINITY;
    for (int warpgroups = C::kWarpgroups; warpgroups > 0; --warpgroups) {
      rows_ = 64 * warpgroups;
      add_all();
      if (plan_.num_tiles > 0) arrange();
      const bool many = plan_.num_items >= kManyRounds * num_processors();
      const float time = plan_.num_tiles > 0 && !many ? makespan() : INFINITY;
      plan_.num_tiles = 0;
      if (many) break;
      if (time < 0.97f * soonest) {
        soonest = time;
        best = rows_;
      }
    }
    return best;
  }
  /// Of the arranged items in their zigzag, in tiles of keys by all warpgroups.
  float makespan() const {
    const int walkers = num_processors();
    std::vector<float> busy(static_cast<size_t>(walkers));
    int at = 0, step = 1, item = 0;
    for (int section = 0; item < plan_.num_items; ++section) {
      for (int t = 0; t < plan_.num_tiles; ++t) {
        const PrefillTile& tile = plan_.tiles[t];
        const int keys = (tile.position + tile.tokens - 1) / C::kKeys + 1;
        const int warpgroups = ((tile.tokens << tile.pack_shift) + 63) / 64;
        const float time = static_cast<float>(keys + 2) * C::tile_time(warpgroups);
        const int items = t < plan_.num_first ? plan_.first_items : plan_.other_items;
        for (int i = 0; i < items; ++i, ++item) {
          busy[static_cast<size_t>(at)] += time;
          at += step;
          if (at == walkers || at < 0) {
            step = -step;
            at += step;
          }
        }
      }
    }
    return *std::max_element(busy.begin(), busy.end());
  }
  /// Sorts the tiles.
  void arrange() {
    // In two classes by the heads of a tile; longest first, unless all are short beside the whole:
    // then those that share keys follow each other.
    PrefillTile* end = plan_.tiles + plan_.num_tiles;
    int64_t all = 0;
    plan_.longest = 0;
    for (const PrefillTile* tile = plan_.tiles; tile != end; ++tile) {
      plan_.longest = std::max(plan_.longest, tile->position + tile->tokens);
      all += int64_t{tile->position + tile->tokens} * args_.shape.q_heads >> tile->pack_shift;
    }
    const bool in_order = plan_.longest <= all / num_processors() / 16;
    if (!in_order) {
      std::stable_sort(plan_.tiles, end, [](const PrefillTile& a, const PrefillTile& b) {
        return a.position + a.tokens > b.position + b.tokens;
      });
    }
    const int shift = plan_.tiles[0].pack_shift;
    const PrefillTile* others = std::stable_partition(
        plan_.tiles, end, [&](const PrefillTile& tile) { return tile.pack_shift == shift; });
    const int sections = in_order ? 1 : num_sections();
    plan_.section_heads = args_.shape.q_heads / sections;
    const auto items = [&](int s) { return plan_.section_heads >> s; };
    plan_.num_first = static_cast<int32_t>(others - plan_.tiles);
    plan_.first_items = items(shift);
    plan_.other_items = others == end ? 1 : items(others->pack_shift);
    plan_.section_items = plan_.num_first * plan_.first_items +
                          (plan_.num_tiles - plan_.num_first) * plan_.other_items;
    plan_.num_items = plan_.section_items * sections;
  }
  int walkers() const { return std::min(plan_.num_items, num_processors()); }

  /// Into tiles of up to `step` tokens; with lists they end where a block does.
  void cut(const Rows& rows, int step, int shift) {
    int at = 0;
    while (at < rows.tokens) {
      if (plan_.num_tiles == PrefillPlan::kMaxTiles) flush();
      PrefillTile& tile = plan_.tiles[plan_.num_tiles++];
      const int position = rows.position + at;
      int tokens = std::min(step, rows.tokens - at);
      if (C::kNarrow) {
        tokens = std::min(tokens, HeadPlan::kBlock - position % HeadPlan::kBlock);
      }
      tile.row = rows.row + at;
      tile.position = position;
      tile.kv_end = rows.position + rows.tokens;
      tile.block = position / HeadPlan::kBlock - rows.position / HeadPlan::kBlock;
      tile.segment = rows.segment;
      tile.tokens = static_cast<uint16_t>(tokens);
      tile.pack_shift = static_cast<uint16_t>(shift);
      at += tokens;
    }
  }

  /// So many that the K and V of a section's heads stay in L2.
  int num_sections() const {
    int64_t bytes = 0;
    int segment = -1;
    for (int i = 0; i < plan_.num_tiles; ++i) {
      const PrefillTile& tile = plan_.tiles[i];
      if (tile.segment != segment) bytes += int64_t{tile.kv_end} * args_.shape.head_dim * 4;
      segment = tile.segment;
    }
    int sections = 1;
    while (sections < args_.shape.kv_heads &&
           (args_.shape.kv_heads % sections != 0 ||
            bytes * (args_.shape.kv_heads / sections) > kSectionBytes)) {
      ++sections;
    }
    return sections;
  }

  void take_plan(const HeadPlan& plan) {
    params_.kinds = HeadKinds(plan.kinds, plan.rows);
    params_.heads = static_cast<int32_t>(plan.kinds.dim(1));
    CHECK(plan.kinds.stride[1] == 1 && params_.heads == args_.shape.q_heads);
    CHECK(plan.rows.defined() || plan.kinds.dim(0) >= args_.num_prompt_segments);
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
  const PrefillSource<C> source_;
  int pack_shift_ = 0;
  int rows_ = C::kRows;  ///< of a tile
  PrefillMaps maps_;
  PrefillParams params_;
  PrefillPlan plan_;
};

}  // namespace
}  // namespace weft::cuda
