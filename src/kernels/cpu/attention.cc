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

#include "kernels/cpu/attention_int8.h"
#include "kernels/cpu/attention_worker.h"
#include "kernels/cpu/scratch.h"

namespace weft::WEFT_ISA_NS {
namespace {

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
template <class W>
void run_whole(W& worker, const Call& call, const Piece& piece) {
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

template <class W>
void run_piece(W& worker, const Call& call, const Cut& cut, int64_t index) {
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

template <class W>
void run_all(Stream& stream, const Call& call, const Cut& cut) {
  const int64_t num = call.args.seqs.num_segments, heads = call.args.shape.kv_heads;
  const auto body = [&](int64_t begin, int64_t end) {
    const FlushDenormals scope;
    W worker(call);
    for (int64_t i = begin; i < end; ++i) run_piece(worker, call, cut, i);
  };
  stream.pool().for_each(cut.first_piece[num], 1, body);
  if (cut.first_partial[num] == 0) return;
  stream.pool().for_each(num * heads, 4, [&](int64_t begin, int64_t end) {
    const FlushDenormals scope;
    for (int64_t i = begin; i < end; ++i) merge_sequence(call, cut, i / heads, i % heads);
  });
}

/// The best arithmetic for pairs of bf16.
template <bool kCodes>
void run_pairs(Stream& stream, const Call& call, const Cut& cut) {
#if defined(WEFT_AMX)
  const bool pairs_of_groups = kCodes || call.args.kv.shape.block_size % 32 == 0;
  if (call.d % 32 == 0 && pairs_of_groups)
    return run_all<Worker<AmxBf16, kCodes>>(stream, call, cut);
#endif
#if defined(WEFT_AVX512_BF16)
  run_all<Worker<DotBf16, kCodes>>(stream, call, cut);
#else
  run_all<Worker<FmaBf16, kCodes>>(stream, call, cut);
#endif
}

/// Codes as they are.
void run_whole_numbers([[maybe_unused]] Stream& stream, [[maybe_unused]] const Call& call,
                       [[maybe_unused]] const Cut& cut) {
#if defined(WEFT_AVX512_BF16)
  run_all<IntWorker>(stream, call, cut);
#else
  ISA_CHECK(false);
#endif
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
  ISA_CHECK(!kv_has_static_scales(args.kv.shape.format) ||
            (args.kv.k_scale != nullptr && args.kv.v_scale != nullptr));
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
  if (args.kv.shape.format == KvFormat::kF32) {
    run_all<Worker<FmaF32, false>>(stream, call, cut);
  } else if (args.kv.shape.format == KvFormat::kBf16) {
    run_pairs<false>(stream, call, cut);
  } else if (kv_whole_numbers(args.kv.shape)) {
    run_whole_numbers(stream, call, cut);
  } else {
    run_pairs<true>(stream, call, cut);
  }
}

}  // namespace weft::WEFT_ISA_NS
