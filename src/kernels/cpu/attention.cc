// out = softmax(scale q K^T) V over the paged cache, causal, online softmax (Milakov & Gimelshein
// 2018, arXiv 1805.02867; FlashAttention-2, arXiv 2307.08691).
// Tile: 32 rows (tokens x query heads of one kv head) x 128 keys. Bytes: each K and V once per row
// tile. Bound: bandwidth for decode, the matrix unit and exp for prefill.
// docs/kernels/attention_cpu.md
//
// One arithmetic for prefill and decode. Keys are cut at absolute multiples of kKeyTile into
// softmax steps and at absolute multiples of kSegment into partial results, which are merged in
// order. Who computes a partial, and next to which rows, never shows in a row's bits.

#include "kernels/cpu/attention.h"

#include "kernels/cpu/attention_math.h"
#include "kernels/cpu/scratch.h"

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
    float* out = call.out(piece, r);
    for (int64_t i = 0; i < call.d; i += kLanes) {
      store(out + i, load(total.o + r * call.d + i) * inverse);
    }
    if (float* lse = call.lse(piece, r); lse != nullptr) {
      *lse = (total.m[r] + __builtin_log2f(total.l[r])) * kLn2;
    }
  }
}

/// Computes partial results with the arithmetic `Math` in buffers of its own (on the stack).
template <class Math>
class Worker {
 public:
  using A = typename Math::A;
  using Format = typename Math::Format;

  explicit Worker(const Call& call) : call_(call) {
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
    for (int r = 0; r < piece.rows; ++r) {
      const float* q = call_.q(piece, r);
      for (int64_t i = 0; i < d; i += kLanes) store_operand(w_.q + r * d + i, load(q + i));
    }
    if constexpr (Math::kTiles) {  // whole tiles are multiplied
      const int whole = (piece.rows + 15) / 16 * 16;
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
    for (int r = 0; r < piece.rows; ++r) {
      m_[r] = kNegInf;
      store(sums_ + r * kLanes, splat(0));
    }
    for (int64_t key = piece.begin; key < piece.end; key += kKeyTile) {
      if (!sight.sees(key)) continue;
      KeyTile keys;
      const int groups = stage(piece, key, keys);
      const bool streaming = piece.rows <= kStreamingRows;
      if (streaming) prefetch(keys.v, groups);
      qk_product<Math>(w_, piece.rows, call_.d, keys, groups);
      softmax_step(piece, key, groups);
      if (streaming && key + kKeyTile < piece.end && sight.sees(key + kKeyTile)) {
        prefetch_next(piece, key + kKeyTile);
      }
      pv_product<Math>(w_, piece.rows, call_.d, keys, groups);
    }
    for (int r = 0; r < piece.rows; ++r) l_[r] = sum_lanes(load(sums_ + r * kLanes));
    return {w_.o, m_, l_};
  }

 private:
  /// Few rows wait for memory, not for arithmetic: fetch what is multiplied next in the order of
  /// addresses, which tiles of V don't have.
  void prefetch(const std::byte* const* groups, int num) {
    const int64_t bytes = Format::group_bytes(call_.args.kv.shape);
    for (int g = 0; g < num; ++g) {
      for (int64_t i = 0; i < bytes; i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(groups[g] + i), _MM_HINT_T1);
      }
    }
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
    const TensorView& table = call_.args.seqs.block_table;
    const int32_t* blocks =
        static_cast<const int32_t*>(table.data) + piece.sequence * table.stride[0];
    int groups = 0;
    for (int64_t k = key; groups < kTileGroups && k < seen; k += kGroup, ++groups) {
      std::byte* head = Format::head(kv, blocks[k / kv.shape.block_size], piece.head / call_.group);
      keys.k[groups] = Format::k_group(kv, head, k % kv.shape.block_size);
      keys.v[groups] = Format::v_group(kv, head, k % kv.shape.block_size);
    }
    return groups;
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
    const int used = Math::kTiles ? (groups + 1) / 2 * 2 : groups;
    for (int r = 0; r < piece.rows; ++r) {
      const int64_t visible = call_.position(piece, piece.first_row + r) + 1 - key;
      if (visible >= kKeyTile && used == kTileGroups) {
        softmax_row(r, kTileGroups, [](Vec x, int) { return x; });
      } else {
        softmax_row(r, used,
                    [&](Vec x, int g) { return keep_first(x, visible - g * kGroup, kNegInf); });
      }
    }
  }

  template <class Mask>
  WEFT_INLINE void softmax_row(int r, int groups, Mask&& mask) {
    const Vec c = splat(call_.args.shape.scale * kLog2E);
    const float* s = w_.s + r * kKeyTile;
    A* p = w_.p + r * kKeyTile;
    Vec top = splat(kNegInf);
    for (int g = 0; g < groups; ++g) top = max(top, mask(load(s + g * kGroup), g));
    const float tile_m = max_lanes(top) * first_lane(c);
    const float m = tile_m > m_[r] ? tile_m : m_[r];
    const Vec base = splat(m == kNegInf ? 0.0f : -m);
    Vec sum = splat(0);
    for (int g = 0; g < groups; ++g) {
      const Vec x = Math::weight(fma(mask(load(s + g * kGroup), g), c, base));
      store_operand(p + g * kGroup, x);
      sum = sum + x;
    }
    float* sums = sums_ + r * kLanes;
    if (m != m_[r]) {
      const Vec shrink = exp2(splat(m_[r]) + base);
      store(sums, load(sums) * shrink);
      float* o = w_.o + r * call_.d;
      for (int64_t i = 0; i < call_.d; i += kLanes) store(o + i, load(o + i) * shrink);
      m_[r] = m;
    }
    store(sums, load(sums) + sum);
  }

  const Call& call_;
  TileBuffers<A> w_;
  alignas(64) float sums_[kTileRows * kLanes];
  alignas(64) float m_[kTileRows];
  alignas(64) float l_[kTileRows];
  alignas(64) std::byte stage_[2 * kGroup * kMaxHeadDim * (4 / Format::kPack)];
};

/// What a partial result in scratch memory takes, in floats.
int64_t partial_floats(int64_t d) {
  return kTileRows * (d + 2);
}

/// How the work is cut. Row tiles of a sequence with more than one are whole pieces, merged where
/// they are computed; a sequence with one row tile (decode) is cut into its segments, if there is
/// scratch for the partial results.
struct Cut {
  int64_t* first_piece;    // [S + 1] pieces of the sequences before
  int64_t* first_partial;  // [S + 1] partial results of the sequences before
  bool by_segment = true;
  float* partials = nullptr;

  int64_t segments(const Call& call, int64_t s) const {
    const int64_t n = (call.keys(s) + kSegment - 1) / kSegment;
    return by_segment && !call.planned(s) && call.row_tiles(s) == 1 && n > 1 ? n : 1;
  }
};

Partial partial_at(const Cut& cut, int64_t index, int64_t d) {
  float* base = cut.partials + index * partial_floats(d);
  return {base, base + kTileRows * d, base + kTileRows * (d + 1)};
}

int64_t find_sequence(const int64_t* first, int64_t num, int64_t index) {
  int64_t low = 0, high = num;  // first[low] <= index < first[high]
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (first[middle] <= index ? low : high) = middle;
  }
  return low;
}

void plan(const Call& call, Cut& cut) {
  cut.first_piece[0] = cut.first_partial[0] = 0;
  for (int64_t s = 0; s < call.args.seqs.num_segments; ++s) {
    const int64_t n = cut.segments(call, s), heads = call.packs(s);
    cut.first_piece[s + 1] = cut.first_piece[s] + heads * call.row_tiles(s) * n;
    cut.first_partial[s + 1] = cut.first_partial[s] + (n > 1 ? heads * n : 0);
  }
}

/// Rows of one row tile of the pack of heads `pack`; row tiles from the last (the longest) to the
/// first.
Piece tile_piece(const Call& call, int64_t s, int64_t pack, int64_t tile) {
  const int64_t first = tile * kTileRows, left = call.packed_rows(s) - first;
  const int rows = static_cast<int>(left < kTileRows ? left : kTileRows);
  const int64_t group = call.packed_heads(s);
  Piece piece{s, pack * group, group, first, rows, 0, 0};
  piece.end = call.position(piece, first + rows - 1) + 1;
  return piece;
}

bool sees_any(const Sight& sight, const Piece& part) {
  for (int64_t key = part.begin; key < part.end; key += kKeyTile) {
    if (sight.sees(key)) return true;
  }
  return false;
}

/// All segments of a row tile, one after the other.
template <class Math>
void run_whole(Worker<Math>& worker, const Call& call, const Piece& piece) {
  alignas(64) float o[kTileRows * kMaxHeadDim];
  float m[kTileRows], l[kTileRows];
  const Partial total{o, m, l};
  clear(total, piece.rows, call.d);
  const Sight sight = call.sight(piece);
  worker.load_q(piece);
  prefetch_out(call, piece);
  for (int64_t begin = 0; begin < piece.end; begin += kSegment) {
    Piece part = piece;
    part.begin = begin;
    part.end = begin + kSegment < piece.end ? begin + kSegment : piece.end;
    if (!sees_any(sight, part)) continue;
    const Partial result = worker.run(part);
    for (int r = 0; r < piece.rows; ++r) merge_row(total, result, r, call.d);
  }
  write_rows(call, piece, total);
}

template <class Math>
void run_piece(Worker<Math>& worker, const Call& call, const Cut& cut, int64_t index) {
  const int64_t s = find_sequence(cut.first_piece, call.args.seqs.num_segments, index);
  const int64_t local = index - cut.first_piece[s], n = cut.segments(call, s);
  const int64_t tiles = call.row_tiles(s);
  if (n == 1) {
    run_whole(worker, call, tile_piece(call, s, local / tiles, tiles - 1 - local % tiles));
    return;
  }
  Piece piece = tile_piece(call, s, local / n, 0);
  piece.begin = local % n * kSegment;
  piece.end = piece.begin + kSegment < piece.end ? piece.begin + kSegment : piece.end;
  worker.load_q(piece);
  const Partial result = worker.run(piece);
  const Partial kept = partial_at(cut, cut.first_partial[s] + local, call.d);
  memcpy(kept.o, result.o, static_cast<size_t>(piece.rows * call.d) * sizeof(float));
  memcpy(kept.m, result.m, static_cast<size_t>(piece.rows) * sizeof(float));
  memcpy(kept.l, result.l, static_cast<size_t>(piece.rows) * sizeof(float));
}

void merge_sequence(const Call& call, const Cut& cut, int64_t s, int64_t pack) {
  const int64_t n = cut.segments(call, s);
  if (n == 1 || call.row_tiles(s) == 0) return;
  alignas(64) float o[kTileRows * kMaxHeadDim];
  float m[kTileRows], l[kTileRows];
  const Partial total{o, m, l};
  const Piece piece = tile_piece(call, s, pack, 0);
  clear(total, piece.rows, call.d);
  for (int64_t i = 0; i < n; ++i) {
    const Partial part = partial_at(cut, cut.first_partial[s] + pack * n + i, call.d);
    for (int r = 0; r < piece.rows; ++r) merge_row(total, part, r, call.d);
  }
  write_rows(call, piece, total);
}

template <class Math>
void run_all(Stream& stream, const Call& call, const Cut& cut) {
  const int64_t num = call.args.seqs.num_segments, heads = call.args.shape.kv_heads;
  const auto body = [&](int64_t begin, int64_t end) {
    const FlushDenormals scope;
    Worker<Math> worker(call);
    for (int64_t i = begin; i < end; ++i) run_piece(worker, call, cut, i);
  };
  stream.pool().for_each(cut.first_piece[num], 1, body);
  if (cut.first_partial[num] == 0) return;
  stream.pool().for_each(num * heads, 4, [&](int64_t begin, int64_t end) {
    const FlushDenormals scope;
    for (int64_t i = begin; i < end; ++i) merge_sequence(call, cut, i / heads, i % heads);
  });
}

}  // namespace

int64_t attention_scratch_bytes(const AttnShape& shape, int64_t num_sequences, int64_t num_keys) {
  const int64_t partials = shape.kv_heads * (num_keys / kSegment + num_sequences);
  return 2 * 64 + 2 * 8 * (num_sequences + 8) + 4 * partial_floats(shape.head_dim) * partials;
}

void attention(Stream& stream, const AttnArgs& args) {
  const AttnShape& shape = args.shape;
  ISA_CHECK(shape.head_dim % kLanes == 0 && shape.head_dim <= kMaxHeadDim);
  ISA_CHECK(shape.kv_heads > 0 && shape.q_heads % shape.kv_heads == 0);
  ISA_CHECK(args.kv.shape.block_size % kGroup == 0);
  const Call call(args);
  const int64_t num = args.seqs.num_segments;
  for (int64_t s = 0; s < num && call.planned(s); ++s) {
    ISA_CHECK(call.start(s) % HeadPlan::kBlock == 0);
  }
  if (num == 0) return;
  ScratchScope scratch(stream);
  Cut cut{static_cast<int64_t*>(scratch.take((num + 1) * 8)),
          static_cast<int64_t*>(scratch.take((num + 1) * 8))};
  plan(call, cut);
  const int64_t needed = cut.first_partial[num] * partial_floats(call.d) * 4;
  if (needed <= scratch.left()) {
    cut.partials = static_cast<float*>(scratch.take(needed));
  } else {
    cut.by_segment = false;
    plan(call, cut);
  }
  const bool whole_tiles = shape.head_dim % 32 == 0 && args.kv.shape.block_size % 32 == 0;
  if (args.kv.shape.format == KvFormat::kF32) {
    run_all<FmaF32>(stream, call, cut);
#if defined(WEFT_AMX)
  } else if (whole_tiles) {
    run_all<AmxBf16>(stream, call, cut);
#endif
  } else {
#if defined(WEFT_AVX512_BF16)
    run_all<DotBf16>(stream, call, cut);
#else
    run_all<FmaBf16>(stream, call, cut);
#endif
  }
  (void)whole_tiles;
}

}  // namespace weft::WEFT_ISA_NS
