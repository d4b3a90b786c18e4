#pragma once

// What attention does with one piece of work: rows of a tile over keys of a segment. How a call is
// cut into pieces: attention.cc.

#include "kernels/cpu/attention_math.h"

namespace weft::WEFT_ISA_NS {
namespace {

constexpr int64_t kSegment = 512;   // keys of a partial result
constexpr int kStreamingRows = 16;  // up to here a piece is bound by memory
constexpr float kLog2E = 1.44269504f, kLn2 = 0.693147181f;

/// One piece of work: rows [first_row, first_row + rows) of the packed rows (token * group + head)
/// of a sequence and `group` query heads from `head` on, over keys [begin, end).
struct Piece {
  int64_t sequence, head, group, first_row;
  int rows;
  int64_t begin, end;
};

static_assert(HeadPlan::kBlock == kKeyTile && HeadPlan::kBlock % kTileRows == 0);

/// What the rows of a tile see of a plan of heads: all of them lie in one block of rows.
struct Sight {
  HeadKind kind = HeadKind::kFull;
  int64_t block = 0, sink_blocks = 0, window_blocks = 0;
  const int32_t* words = nullptr;  // of kBlocks

  /// Of the tile of keys at `key`.
  bool sees(int64_t key) const {
    const int64_t c = key / kKeyTile;
    switch (kind) {
      case HeadKind::kFull: return true;
      case HeadKind::kStreaming: return c < sink_blocks || c > block - window_blocks;
      case HeadKind::kBlocks: return c == block || (words[c / 32] >> (c % 32) & 1) != 0;
    }
    return true;
  }
};

/// The call, unpacked: what every piece needs.
struct Call {
  const AttnArgs& args;
  int64_t group, d;  // R = H / G query heads a kv head; D

  explicit Call(const AttnArgs& a)
      : args(a), group(a.shape.q_heads / a.shape.kv_heads), d(a.shape.head_dim) {}
  int64_t first_token(int64_t s) const { return at(args.seqs.cu_q, s); }
  int64_t tokens(int64_t s) const { return first_token(s + 1) - first_token(s); }
  int64_t start(int64_t s) const { return at(args.seqs.kv_start, s); }
  int64_t keys(int64_t s) const { return start(s) + tokens(s); }
  /// The heads of a sequence see different keys: a tile holds rows of one of them.
  bool planned(int64_t s) const { return args.heads != nullptr && s < args.num_prompt_segments; }
  int64_t packed_heads(int64_t s) const { return planned(s) ? 1 : group; }
  int64_t packs(int64_t s) const { return args.shape.q_heads / packed_heads(s); }
  int64_t packed_rows(int64_t s) const { return tokens(s) * packed_heads(s); }
  int64_t row_tiles(int64_t s) const { return (packed_rows(s) + kTileRows - 1) / kTileRows; }
  int64_t position(const Piece& p, int64_t row) const { return start(p.sequence) + row / p.group; }
  int64_t kv_head(const Piece& p) const { return p.head / group; }
  /// Static scales of a kv head's channels; null for other formats.
  const float* k_scale(int64_t g) const {
    return kv_has_static_scales(args.kv.shape.format) ? args.kv.k_scale + g * d : nullptr;
  }
  const float* v_scale(int64_t g) const {
    return kv_has_static_scales(args.kv.shape.format) ? args.kv.v_scale + g * d : nullptr;
  }
  const float* q(const Piece& p, int r) const { return row_of(args.q, p, r); }
  float* out(const Piece& p, int r) const { return row_of(args.out, p, r); }
  /// Where the log-sum-exp of a row goes; null: nowhere.
  float* lse(const Piece& p, int r) const {
    if (args.lse.data == nullptr || p.sequence >= args.num_prompt_segments) return nullptr;
    const int64_t row = p.first_row + r;
    return static_cast<float*>(args.lse.data) +
           (first_token(p.sequence) + row / p.group) * args.lse.stride[0] + p.head + row % p.group;
  }
  Sight sight(const Piece& p) const {
    if (!planned(p.sequence)) return {};
    const HeadPlan& plan = *args.heads;
    const int64_t row = plan.rows.data == nullptr ? p.sequence : at(plan.rows, p.sequence);
    const auto* kinds = static_cast<const int32_t*>(plan.kinds.data) + row * plan.kinds.stride[0];
    Sight out{static_cast<HeadKind>(kinds[p.head]), position(p, p.first_row) / kKeyTile,
              plan.sink_blocks, plan.window_blocks};
    if (out.kind == HeadKind::kBlocks) {
      const TensorView& words = plan.blocks;
      out.words = static_cast<const int32_t*>(words.data) + p.sequence * words.stride[0] +
                  p.head * words.stride[1] +
                  (out.block - start(p.sequence) / kKeyTile) * words.stride[2];
    }
    return out;
  }

 private:
  static int64_t at(const TensorView& v, int64_t i) {
    return static_cast<const int32_t*>(v.data)[i * v.stride[0]];
  }
  float* row_of(const TensorView& v, const Piece& p, int r) const {
    const int64_t row = p.first_row + r;
    return static_cast<float*>(v.data) + (first_token(p.sequence) + row / p.group) * v.stride[0] +
           (p.head + row % p.group) * v.stride[1];
  }
};

/// Results so far of up to kTileRows rows: o is not yet divided by l.
struct Partial {
  float* o;  // [rows][D]
  float* m;  // [rows] largest score, in units of log2
  float* l;  // [rows] sum of 2^(score - m)
};

/// Adds `part` to `total`: the log-sum-exp merge of one row.
void merge_row(const Partial& total, const Partial& part, int row, int64_t d) {
  const float m = total.m[row] > part.m[row] ? total.m[row] : part.m[row];
  const float base = m == kNegInf ? 0.0f : m;
  const Vec a = exp2(splat(total.m[row] - base)), b = exp2(splat(part.m[row] - base));
  float* o = total.o + row * d;
  const float* x = part.o + row * d;
  for (int64_t i = 0; i < d; i += kLanes) store(o + i, fma(load(o + i), a, load(x + i) * b));
  total.l[row] = first_lane(fma(splat(total.l[row]), a, splat(part.l[row]) * b));
  total.m[row] = m;
}

void clear(const Partial& total, int rows, int64_t d) {
  for (int64_t i = 0; i < rows * d; ++i) total.o[i] = 0;
  for (int r = 0; r < rows; ++r) {
    total.m[r] = kNegInf;
    total.l[r] = 0;
  }
}

/// Starts to fetch the output rows: they lie far apart, and a store that misses waits.
void prefetch_out(const Call& call, const Piece& piece) {
  for (int r = 0; r < piece.rows; ++r) {
    const float* out = call.out(piece, r);
    for (int64_t i = 0; i < call.d; i += kLanes) {
      _mm_prefetch(reinterpret_cast<const char*>(out + i), _MM_HINT_T1);
    }
  }
}

void write_rows(const Call& call, const Piece& piece, const Partial& total) {
  for (int r = 0; r < piece.rows; ++r) {
    const Vec inverse = splat(total.l[r] == 0 ? 0.0f : 1.0f / total.l[r]);
    const float* scale = call.v_scale(call.kv_head(piece));
    float* out = call.out(piece, r);
    for (int64_t i = 0; i < call.d; i += kLanes) {
      const Vec x = load(total.o + r * call.d + i) * inverse;
      store(out + i, scale == nullptr ? x : x * load(scale + i));
    }
    if (float* lse = call.lse(piece, r); lse != nullptr) {
      *lse = (total.m[r] + __builtin_log2f(total.l[r])) * kLn2;
    }
  }
}

constexpr int kStackedRows = 8;
constexpr int kMaxScales = kMaxHeadDim / kKvInt4Group;  // of a row

/// What a worker of quantised caches has besides: a tile's codes as bf16, and the scales of its
/// keys (0 where there is no key). Codes lose nothing on the way to bf16; the scales of rows
/// multiply scores and weights, a group of dims that shares scales after the other. Where operands
/// are bf16, q and the weights are two of them each, the rounded value and the rest, with a sum
/// each: all that is rounded to 8 bits is the cache. Of up to kStackedRows rows both parts fit into
/// one tile of 16.
template <bool kCodes>
struct CodeBuffers {
  alignas(64) bf16 wide[kKeyTile * kMaxHeadDim];  // K, then V: one after the other fits into L1
  alignas(64) float scales[2][kMaxScales][kKeyTile];
  alignas(64) float sums[kTileRows * kKeyTile];  // of scores over the groups of dims
  alignas(64) float low[kTileRows * kKeyTile];   // scores of q_low
  alignas(64) bf16 q_low[kTileRows * kMaxHeadDim];
  alignas(64) float o_low[kTileRows * kMaxHeadDim];
};
template <>
struct CodeBuffers<false> {};

/// Computes partial results with the arithmetic `Math` in buffers of its own (on the stack); with
/// kCodes of a quantised cache.
template <class Math, bool kCodes>
class Worker {
 public:
  using A = typename Math::A;
  using Format = typename Math::Format;
  static constexpr bool kTwoParts = kCodes && !std::is_same_v<A, float>;

  explicit Worker(const Call& call)
      : call_(call),
        layout_(call.args.kv.shape),
        all_{0, call.d, call.d},
        part_(call.args.kv.shape.format == KvFormat::kInt4 ? kKvInt4Group : call.d) {
#if defined(WEFT_AMX)
    if constexpr (Math::kTiles) {
      const AmxConfig config;
      _tile_loadconfig(&config);
    }
#endif
  }
  ~Worker() {
#if defined(WEFT_AMX)
    if constexpr (Math::kTiles) _tile_release();
#endif
  }

  /// Rounds the rows of q into place for the pieces that follow.
  void load_q(const Piece& piece) {
    const int64_t d = call_.d;
    stacked_ = kTwoParts && Math::kTiles && piece.rows <= kStackedRows;
    if (stacked_) {
      memset(w_.q, 0, static_cast<size_t>(2 * kStackedRows * d) * sizeof(A));
      for (int i = 0; i < 2 * kStackedRows * kKeyTile; ++i) w_.p[i] = 0;
    }
    const float* scale = kCodes ? call_.k_scale(call_.kv_head(piece)) : nullptr;
    for (int r = 0; r < piece.rows; ++r) {
      const float* q = call_.q(piece, r);
      for (int64_t i = 0; i < d; i += kLanes) {
        const Vec x = load(q + i);
        const Vec scaled = scale == nullptr ? x : x * load(scale + i);
        store_operand(w_.q + r * d + i, scaled);
        if constexpr (kTwoParts) {
          bf16* low = stacked_ ? w_.q + (r + kStackedRows) * d : wide_.q_low + r * d;
          store_operand(low + i, scaled - operand_value(w_.q + r * d + i));
        }
      }
    }
    if (Math::kTiles && !stacked_) {  // whole tiles are multiplied
      const int whole = (piece.rows + 15) / 16 * 16;
      if constexpr (kTwoParts) {
        memset(wide_.q_low + piece.rows * d, 0,
               static_cast<size_t>((whole - piece.rows) * d) * sizeof(bf16));
      }
      memset(w_.q + piece.rows * d, 0, static_cast<size_t>((whole - piece.rows) * d) * sizeof(A));
      memset(w_.p + piece.rows * kKeyTile, 0,
             static_cast<size_t>((whole - piece.rows) * kKeyTile) * sizeof(A));
    }
  }

  /// Keys [piece.begin, piece.end), which lie in one segment, from nothing. The result stays in the
  /// worker until the next call.
  Partial run(const Piece& piece) {
    const Sight sight = call_.sight(piece);
    const int rows = Math::kTiles ? (piece.rows + 15) / 16 * 16 : piece.rows;
    for (int64_t i = 0; i < rows * call_.d; ++i) w_.o[i] = 0;
    if constexpr (kTwoParts) {
      for (int64_t i = 0; i < rows * call_.d && !stacked_; ++i) wide_.o_low[i] = 0;
    }
    for (int r = 0; r < piece.rows; ++r) {
      m_[r] = kNegInf;
      store(sums_ + r * kLanes, splat(0));
    }
    for (int64_t key = piece.begin; key < piece.end; key += kKeyTile) {
      if (!sight.sees(key)) continue;
      KeyTile keys;
      const int groups = kCodes ? find(piece, key, keys) : stage(piece, key, keys);
      const bool streaming = piece.rows <= kStreamingRows;
      if (streaming) prefetch(keys.v, groups);
      if constexpr (kCodes) widen(piece, key, 0, groups, keys.k);
      scores(piece.rows, keys, groups);
      if constexpr (kCodes) load_scales(piece, key, 1, groups);
      softmax_step(piece, key, groups);
      if (streaming && key + kKeyTile < piece.end && sight.sees(key + kKeyTile)) {
        prefetch_next(piece, key + kKeyTile);
      }
      if constexpr (kCodes) widen(piece, key, 1, groups, keys.v);
      values(piece, key, keys, groups);
    }
    for (int r = 0; r < piece.rows; ++r) l_[r] = sum_lanes(load(sums_ + r * kLanes));
    if constexpr (kTwoParts) {
      for (int r = 0; r < piece.rows; ++r) {
        float* o = w_.o + r * call_.d;
        const float* low = o_low(r);
        for (int64_t i = 0; i < call_.d; i += kLanes) store(o + i, load(o + i) + load(low + i));
      }
    }
    return {w_.o, m_, l_};
  }

 private:
  /// Few rows wait for memory, not for arithmetic: fetch what is multiplied next in the order of
  /// addresses, which tiles of V don't have.
  void prefetch(const std::byte* const* groups, int num) {
    const int64_t bytes = group_bytes();
    for (int g = 0; g < num; ++g) {
      for (int64_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(groups[g] + i), _MM_HINT_T1);
      }
    }
  }
  int64_t group_bytes() const {
    return kCodes ? layout_.group_bytes : Format::group_bytes(call_.args.kv.shape);
  }
  void prefetch_next(const Piece& piece, int64_t key) {
    KeyTile keys;
    prefetch(keys.k, find(piece, key, keys));
  }

  /// Finds the groups of the tile at `key` and returns how many hold keys that a row sees.
  int find(const Piece& piece, int64_t key, KeyTile& keys) const {
    const PagedKv& kv = call_.args.kv;
    const int64_t end = call_.keys(piece.sequence);
    const int64_t seen = piece.end < end ? piece.end : end;
    int groups = 0;
    for (int64_t k = key; groups < kTileGroups && k < seen; k += kGroup, ++groups) {
      std::byte* head = head_of(piece, k);
      const int64_t token = k % kv.shape.block_size;
      if constexpr (kCodes) {
        keys.k[groups] = layout_.group(head, 0, token);
        keys.v[groups] = layout_.group(head, 1, token);
      } else {
        keys.k[groups] = Format::k_group(kv, head, token);
        keys.v[groups] = Format::v_group(kv, head, token);
      }
    }
    return groups;
  }

  /// The part of the piece's kv head in the block of key `k`.
  std::byte* head_of(const Piece& piece, int64_t k) const {
    const PagedKv& kv = call_.args.kv;
    const TensorView& table = call_.args.seqs.block_table;
    const int32_t* blocks =
        static_cast<const int32_t*>(table.data) + piece.sequence * table.stride[0];
    const int64_t block = blocks[k / kv.shape.block_size];
    if constexpr (kCodes) {
      return kv.data + block * kv.block_bytes + call_.kv_head(piece) * layout_.head_bytes;
    } else {
      return Format::head(kv, block, call_.kv_head(piece));
    }
  }

  /// The scales of a plane (0: K, 1: V) of the tile's keys; 0 where there is no key.
  void load_scales(const Piece& piece, int64_t key, int plane, int groups) {
    if constexpr (kCodes) {
      const int64_t left = call_.keys(piece.sequence) - key;
      for (int g = 0; g < padded(groups); ++g) {
        const int64_t first = key + int64_t{g} * kGroup;
        for (int i = 0; i < layout_.scales_per_row; ++i) {
          float* to = wide_.scales[plane][i] + g * kGroup;
          if (g >= groups) {
            store(to, splat(0));
            continue;
          }
          const float* from =
              layout_.scales(head_of(piece, first), plane, i) + first % layout_.block_size;
          const int64_t tokens = left - int64_t{g} * kGroup;
          store(to, keep_first(load(from), tokens, 0));
        }
      }
    }
  }

  /// Widens the groups of one plane. V beyond the sequence becomes 0.
  void widen(const Piece& piece, int64_t key, int plane, int groups, const std::byte** codes) {
    if constexpr (kCodes) {
      const int64_t d = call_.d, left = call_.keys(piece.sequence) - key;
      const CodeKind kind = code_kind(call_.args.kv.shape.format);
      if (plane == 0) load_scales(piece, key, 0, groups);
      bf16* out = wide_.wide;
      for (int g = 0; g < padded(groups); ++g, out += kGroup * d) {
        const std::byte* from = codes[g];
        codes[g] = reinterpret_cast<const std::byte*>(out);
        if (g >= groups) {
          memset(out, 0, static_cast<size_t>(kGroup * d) * sizeof(bf16));
          continue;
        }
        widen_group(kind, {from, wide_.scales[plane][0] + g * kGroup, kKeyTile, d, plane == 1},
                    out);
        const int64_t tokens = left - int64_t{g} * kGroup;
        if (plane == 1 && tokens < kGroup) {
          auto* group = reinterpret_cast<std::byte*>(out);
          KvBf16::copy_v(group, tokens, d, group);
        }
      }
    }
  }

  /// Groups that are multiplied: tiles take pairs.
  static int padded(int groups) {
    return Math::kTiles ? (groups + 1) / 2 * 2 : groups;
  }
  /// Whether a row has scales of its own.
  bool row_scales() const {
    return kCodes && layout_.scales_per_row > 0;
  }
  Dims dims_of(int part) const {
    const int64_t begin = part * part_, end = begin + part_;
    return {begin, end < call_.d ? end : call_.d, call_.d};
  }

  /// The sums of a row's second parts.
  float* o_low(int r) {
    if constexpr (kTwoParts) {
      if (!stacked_) return wide_.o_low + r * call_.d;
    }
    return w_.o + (r + kStackedRows) * call_.d;
  }

  /// s = q k over `dims`, without scales.
  void products(int rows, Dims dims, const KeyTile& keys, int groups) {
    qk_product<Math>(w_.q, w_.s, stacked_ ? 2 * kStackedRows : rows, dims, keys, groups);
    if constexpr (kTwoParts) {
      const float* low = stacked_ ? w_.s + kStackedRows * kKeyTile : wide_.low;
      if (!stacked_) qk_product<Math>(wide_.q_low, wide_.low, rows, dims, keys, groups);
      for (int r = 0; r < rows; ++r) {
        for (int n = r * kKeyTile; n < r * kKeyTile + padded(groups) * kGroup; n += kLanes) {
          store(w_.s + n, load(w_.s + n) + load(low + n));
        }
      }
    }
  }

  /// s = q k, with the scales of K.
  void scores(int rows, const KeyTile& keys, int groups) {
    if (!row_scales()) return products(rows, all_, keys, groups);
    if constexpr (kCodes) {
      for (int i = 0; i < layout_.scales_per_row; ++i) {
        products(rows, dims_of(i), keys, groups);
        const bool last = i + 1 == layout_.scales_per_row;
        for (int r = 0; r < rows; ++r) {
          for (int n = 0; n < padded(groups) * kGroup; n += kLanes) {
            float* s = w_.s + r * kKeyTile + n;
            float* sum = wide_.sums + r * kKeyTile + n;
            const Vec scale = load(wide_.scales[0][i] + n);
            const Vec x = i == 0 ? load(s) * scale : fma(load(s), scale, load(sum));
            store(last ? s : sum, x);
          }
        }
      }
    }
  }

  /// o += p v, with the scales of V; softmax_step() left the weights in s. A masked key's operand
  /// is 0 whatever its scale.
  void values(const Piece& piece, int64_t key, const KeyTile& keys, int groups) {
    if constexpr (!kCodes) {
      pv_product<Math>(w_.p, w_.o, piece.rows, all_, keys, groups);
    } else {
      const int num_scales = layout_.scales_per_row > 0 ? layout_.scales_per_row : 1;
      const int rows = stacked_ ? 2 * kStackedRows : piece.rows;
      for (int i = 0; i < num_scales; ++i) {
        const Dims dims = num_scales > 1 ? dims_of(i) : all_;
        take_weights(piece, key, i, false, padded(groups));
        if (stacked_) take_weights(piece, key, i, true, padded(groups));
        pv_product<Math>(w_.p, w_.o, rows, dims, keys, groups);
        if constexpr (kTwoParts) {
          if (stacked_) continue;
          take_weights(piece, key, i, true, padded(groups));
          pv_product<Math>(w_.p, wide_.o_low, rows, dims, keys, groups);
        }
      }
    }
  }

  /// The operands of P V for the dims of scale `index`: the weights with it, or what their rounded
  /// values, which stand there, leave of them.
  void take_weights(const Piece& piece, int64_t key, int index, bool rest, int groups) {
    if constexpr (kCodes) {
      for (int r = 0; r < piece.rows; ++r) {
        const int64_t visible = call_.position(piece, piece.first_row + r) + 1 - key;
        for (int g = 0; g < groups; ++g) {
          const A* rounded = w_.p + r * kKeyTile + g * kGroup;
          A* to = w_.p + (rest && stacked_ ? r + kStackedRows : r) * kKeyTile + g * kGroup;
          Vec p = load(w_.s + r * kKeyTile + g * kGroup);
          if (row_scales()) {
            p = p * load(wide_.scales[1][index] + g * kGroup);
            p = keep_first(p, visible - g * kGroup, 0);
          }
          store_operand(to, rest ? p - operand_value(rounded) : p);
        }
      }
    }
  }

  /// find(), and keeps what lies beyond the sequence in its last block away from the sums: it is
  /// anything, NaN too, so such a V group is copied with zeros.
  int stage(const Piece& piece, int64_t key, KeyTile& keys) {
    const PagedKv& kv = call_.args.kv;
    const int64_t end = call_.keys(piece.sequence);
    const int groups = find(piece, key, keys);
    // Tiles take pairs of groups that follow each other.
    const int first = Math::kTiles ? (groups - 1) / 2 * 2 : groups - 1;
    const int last = Math::kTiles ? first + 2 : groups;
    const int64_t left = end - key;
    if (left >= static_cast<int64_t>(last) * kGroup) return groups;
    const int64_t bytes = Format::group_bytes(kv.shape);
    for (int g = first; g < last; ++g) {
      std::byte* to = stage_ + (g - first) * bytes;
      const int64_t tokens = left - static_cast<int64_t>(g) * kGroup;
      if (g >= groups) {
        memset(to, 0, static_cast<size_t>(bytes));
      } else {
        Format::copy_v(keys.v[g], tokens < kGroup ? tokens : kGroup, call_.d, to);
      }
      keys.v[g] = to;
    }
    return groups;
  }

  /// s -> p = 2^(c s - m) with the new m; o and the sums are rescaled where m has grown.
  void softmax_step(const Piece& piece, int64_t key, int groups) {
    // Tiles multiply pairs of groups: the odd one out is 0.
    const int used = padded(groups);
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t visible = call_.position(piece, piece.first_row + r) + 1 - key;
      if (visible >= kKeyTile && used == kTileGroups) {
        softmax_row(r, kTileGroups, [](Vec x, int, float) { return x; });
      } else {
        softmax_row(r, used, [&](Vec x, int g, float fill) {
          return keep_first(x, visible - g * kGroup, fill);
        });
      }
    }
  }

  template <class Mask>
  WEFT_INLINE void softmax_row(int r, int groups, Mask&& mask) {
    const Vec c = splat(call_.args.shape.scale * kLog2E);
    const float* s = w_.s + r * kKeyTile;
    Vec top = splat(kNegInf);
    for (int g = 0; g < groups; ++g) top = max(top, mask(load(s + g * kGroup), g, kNegInf));
    const float tile_m = max_lanes(top) * first_lane(c);
    const float m = tile_m > m_[r] ? tile_m : m_[r];
    const Vec base = splat(m == kNegInf ? 0.0f : -m);
    Vec sum = splat(0);
    for (int g = 0; g < groups; ++g) {
      const Vec x = Math::weight(fma(mask(load(s + g * kGroup), g, kNegInf), c, base));
      if constexpr (kCodes) {
        store(w_.s + r * kKeyTile + g * kGroup, x);
      } else {
        store_operand(w_.p + r * kKeyTile + g * kGroup, x);
      }
      sum = sum + x;
    }
    float* sums = sums_ + r * kLanes;
    if (m != m_[r]) {
      const Vec shrink = exp2(splat(m_[r]) + base);
      store(sums, load(sums) * shrink);
      float* o = w_.o + r * call_.d;
      for (int64_t i = 0; i < call_.d; i += kLanes) store(o + i, load(o + i) * shrink);
      if constexpr (kTwoParts) {
        float* low = o_low(r);
        for (int64_t i = 0; i < call_.d; i += kLanes) store(low + i, load(low + i) * shrink);
      }
      m_[r] = m;
    }
    store(sums, load(sums) + sum);
  }

  const Call& call_;
  const KvCodeLayout layout_;
  const Dims all_;
  const int64_t part_;    // dims that share scales
  bool stacked_ = false;  // row r + kStackedRows of the buffers is the second part of row r
  CodeBuffers<kCodes> wide_;
  TileBuffers<A> w_;
  alignas(64) float sums_[kTileRows * kLanes];
  alignas(64) float m_[kTileRows];
  alignas(64) float l_[kTileRows];
  alignas(64) std::byte stage_[2 * kGroup * kMaxHeadDim * (4 / Format::kPack)];
};

}  // namespace
}  // namespace weft::WEFT_ISA_NS
