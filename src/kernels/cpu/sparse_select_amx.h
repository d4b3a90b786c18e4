#pragma once

// The scores of sparse_select.cc on the matrix unit, for keys in bf16. The keys of one kv head are
// laid out once as the right side of a product whose inner dimension is (token of the group, dim),
// 16 groups to a tile; q, turned round, is the left side, 16 groups of rows at a time. A q is three
// bf16 (24 bits), so nothing of it is lost: sums are f32, as everywhere.

#include "kernels/cpu/sparse_select_work.h"

#if defined(WEFT_AMX)

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int kParts = 3;        // bf16 that make a q
constexpr int kTile = 16 * 32;   // bf16 of a tile: 16 rows of 64 bytes
constexpr int kUnit = 32;        // groups of keys multiplied at once: two tiles
constexpr int kTeamGroups = 16;  // groups of rows of a tile

/// What the matrix unit works on, in scratch memory.
struct AmxWork {
  bf16*
      keys;  // [16 groups of keys][Z tokens][D / 32][16 pairs of dims][16 groups][2], all threads'
  bf16* q;   // [tile of rows][part][Z tokens][D / 32][16 groups][32 dims]

  static int64_t key_bytes(int64_t d, int64_t stride, int64_t keys) {
    const int64_t unit = kUnit * stride;
    return (keys + unit - 1) / unit * unit * d * 2;
  }
  /// Rows of an item: two blocks make a tile with groups of 16.
  static int64_t item_rows(int64_t stride) {
    return kTeamGroups * stride > kBlock ? kTeamGroups * stride : kBlock;
  }
  static int64_t q_bytes(int64_t d, int64_t stride) { return item_rows(stride) * d * kParts * 2; }
};

/// Lays out 16 groups of keys of a kv head; keys from `end` on are 0.
void pack_keys(const Call& call, int64_t s, int64_t kv_head, int64_t tile, bf16* keys) {
  const PagedKv& kv = call.attn.kv;
  const int64_t z = call.stride, steps = call.d / 32, end = call.end(s);
  const TensorView& table = call.attn.seqs.block_table;
  const int32_t* blocks = static_cast<const int32_t*>(table.data) + s * table.stride[0];
  auto* out = reinterpret_cast<uint32_t*>(keys + tile * z * steps * kTile);
  for (int64_t j = 0; j < 16; ++j) {
    const int64_t first = (tile * 16 + j) * z;
    const int64_t tokens = end - first < z ? (end > first ? end - first : 0) : z;
    const uint32_t* in = nullptr;
    if (tokens > 0) {
      const int64_t token = first % kv.shape.block_size;
      std::byte* head = KvBf16::head(kv, blocks[first / kv.shape.block_size], kv_head);
      in = reinterpret_cast<const uint32_t*>(KvBf16::k_group(kv, head, token)) + token % kGroup;
    }
    for (int64_t t = 0; t < z; ++t) {
      uint32_t* to = out + t * steps * (kTile / 2) + j;
      for (int64_t p = 0; p < call.d / 2; ++p) to[p * 16] = t < tokens ? in[p * kGroup + t] : 0;
    }
  }
}

/// The rows of an item, `groups` of them: see AmxWork::q. Rows beyond the segment are 0.
void split_q(const Call& call, const Item& item, int64_t groups, bf16* q) {
  const TensorView& view = call.attn.q;
  const int64_t first = call.at(call.attn.seqs.cu_q, item.s) + item.row * kBlock;
  const int64_t left = call.rows(item.s) - item.row * kBlock;
  const int64_t z = call.stride, steps = call.d / 32;
  for (int64_t i = 0; i < groups; ++i) {
    bf16* tile = q + i / 16 * kParts * z * steps * kTile + i % 16 * 32;
    for (int64_t t = 0; t < z; ++t) {
      const int64_t row = i * z + z - 1 - t;
      const float* in = static_cast<const float*>(view.data) + (first + row) * view.stride[0] +
                        item.head * view.stride[1];
      for (int64_t e = 0; e < call.d; e += kLanes) {
        Vec rest = row < left ? load(in + e) : splat(0);
        bf16* to = tile + (t * steps + e / 32) * kTile + e % 32;
        for (int part = 0; part < kParts; ++part, to += z * steps * kTile) {
          store_bf16(to, rest);
          rest = rest - operand_value(to);
        }
      }
    }
  }
}

/// s[16 groups of rows][32 groups of keys] of a tile of rows.
void multiply_unit(const bf16* q, const bf16* keys, int64_t steps, float* s) {
  _tile_zero(0);
  _tile_zero(1);
  const bf16* other = keys + steps * kTile;
  for (int64_t k = 0; k < steps; ++k) {
    _tile_loadd(6, keys + k * kTile, 64);
    _tile_loadd(7, other + k * kTile, 64);
    _tile_loadd(3, q + k * kTile, 64);
    _tile_loadd(4, q + (steps + k) * kTile, 64);
    _tile_loadd(5, q + (2 * steps + k) * kTile, 64);
    _tile_dpbf16ps(0, 3, 6);
    _tile_dpbf16ps(1, 3, 7);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(0, 5, 6);
    _tile_dpbf16ps(1, 5, 7);
  }
  _tile_stored(0, s, kUnit * 4);
  _tile_stored(1, s + 16, kUnit * 4);
}

/// Chooses the blocks of the item's rows: item_rows() of them from block item.row on.
void select_item_amx(const Call& call, const Item& item, const Work& work, const AmxWork& amx) {
  const int64_t z = call.stride, per_block = kBlock / z, steps = z * call.d / 32;
  const int64_t left = call.rows(item.s) - item.row * kBlock;
  const int64_t rows = left < AmxWork::item_rows(z) ? left : AmxWork::item_rows(z);
  const int64_t groups = (rows + z - 1) / z, tiles = (groups + kTeamGroups - 1) / kTeamGroups;
  const int64_t first = call.start(item.s) / kBlock + item.row;  // block
  const int64_t last = first + (groups - 1) / per_block;
  const Vec scale = splat(call.score_scale());
  split_q(call, item, tiles * kTeamGroups, amx.q);
  alignas(64) float s[kTeamGroups * kUnit];
  for (int64_t begin = 0; begin < (last + 1) * per_block; begin += kUnit) {
    for (int64_t tile = 0; tile < tiles; ++tile) {
      multiply_unit(amx.q + tile * kParts * steps * kTile, amx.keys + begin / 16 * steps * kTile,
                    steps, s);
      for (int64_t i = tile * 16; i < groups && i < tile * 16 + 16; ++i) {
        float* scores = s + i % 16 * kUnit;
        store(scores, load(scores) * scale);
        store(scores + kLanes, load(scores + kLanes) * scale);
        const int64_t b = first + i / per_block;
        for (int64_t j = 0; j < kUnit; j += per_block) {
          const int64_t c = (begin + j) / per_block;
          if (c > b) break;
          const int64_t seen = c < b ? per_block : i % per_block + 1;
          reduce_scores(scores + j, seen, work.top[i * call.blocks + c],
                        work.sum[i * call.blocks + c]);
        }
      }
    }
  }
  for (int64_t b = first; b <= last; ++b) {
    for (int64_t c = 0; c <= b; ++c) work.scores[c] = 0;
    for (int64_t i = (b - first) * per_block; i < groups && i < (b - first + 1) * per_block; ++i) {
      add_row(b, work.top + i * call.blocks, work.sum + i * call.blocks, work.scores);
    }
    choose(call, {item.s, item.head, item.row + b - first}, work);
  }
}

/// All heads, one kv head after the other: they share its keys.
void select_all_amx(Stream& stream, const Call& call, std::byte* memory) {
  const AttnShape& shape = call.attn.shape;
  const int64_t z = call.stride, group = shape.q_heads / shape.kv_heads;
  const int64_t num_blocks = AmxWork::item_rows(z) / kBlock;
  const int64_t work_bytes = Work::bytes(call.d, z, call.blocks);
  AmxWork amx{reinterpret_cast<bf16*>(memory), nullptr};
  memory += AmxWork::key_bytes(call.d, z, call.blocks * kBlock);
  const int64_t thread_bytes = work_bytes + AmxWork::q_bytes(call.d, z);
  ThreadPool& pool = stream.pool();
  for (int64_t s = 0; s < call.attn.num_prompt_segments; ++s) {
    const int64_t tiles = AmxWork::key_bytes(call.d, z, call.end(s)) / (16 * z * call.d * 2);
    const int64_t items = (num_blocks_of(call.rows(s)) + num_blocks - 1) / num_blocks;
    for (int64_t kv_head = 0; kv_head < shape.kv_heads; ++kv_head) {
      bool any = false;
      for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
        any = any || call.estimated(s, h);
      }
      if (any) {
        pool.for_each(tiles, 4, [&](int64_t begin, int64_t end) {
          for (int64_t tile = begin; tile < end; ++tile) {
            pack_keys(call, s, kv_head, tile, amx.keys);
          }
        });
      }
      std::atomic<int64_t> next{0};
      pool.parallel([&](int worker) {
        const FlushDenormals scope;
        const AmxConfig config;
        _tile_loadconfig(&config);
        std::byte* mine = memory + worker * thread_bytes;
        const Work work(mine, call.d, z, call.blocks);
        const AmxWork own{amx.keys, reinterpret_cast<bf16*>(mine + work_bytes)};
        for (;;) {
          const int64_t index = next.fetch_add(1, std::memory_order_relaxed);
          if (index >= items * group) break;
          const int64_t head = kv_head * group + index % group;
          const int64_t row = (items - 1 - index / group) * num_blocks;  // the longest first
          if (call.kind(s, head) != HeadKind::kBlocks) continue;
          if (call.estimated(s, head)) {
            select_item_amx(call, {s, head, row}, work, own);
            continue;
          }
          for (int64_t r = row; r < row + num_blocks && r < num_blocks_of(call.rows(s)); ++r) {
            for (int64_t c = 0; c < call.blocks; ++c) work.scores[c] = 0;
            choose(call, {s, head, r}, work);
          }
        }
        _tile_release();
      });
    }
  }
}

}  // namespace
}  // namespace weft::WEFT_ISA_NS

#endif  // WEFT_AMX
