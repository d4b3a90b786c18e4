// out = softmax(scale q K^T) V over the paged cache, for decode and verification rows: split-KV.
// Keys are cut into chunks of 128 of one kv head; a chunk's partial (top, sum, o) is computed from
// nothing, and partials are folded in a fixed tree of 8 children a node over absolute chunk
// numbers, so that a row's bits know neither who computed which chunk nor what lies beside it.
// Persistent blocks take equal, contiguous shares of all chunks of all (kv head, segment) pairs,
// found on the device; pairs that a border cuts leave partials, which a second kernel
// (attention_merge.cu) folds.
// One producer warp (TMA into a ring), 4 consumer warps (mma m16n8k16: keys or columns
// are M, up to 32 q rows are N). Bytes: K and V once; bound by memory.
// docs/kernels/attention_decode.md

#include <algorithm>
#include <climits>
#include <type_traits>

#include "kernels/cuda/attention_decode_few.h"
#include "kernels/cuda/attention_decode_kernel.cuh"
#include "kernels/cuda/attention_prepared.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

using namespace decode;  // NOLINT: the other half of this op

template <int D, int N>
using Bf16Consumer = Consumer<KvBf16, D, N>;

constexpr int kMaxSegments = kMaxDecodeSegments;
constexpr int kMaxRows = 32;  // of q heads that a block takes at once
constexpr int64_t kSlackKeys = 1024;
// A box is copied whole: with fewer keys the last one brings less beyond the context.
constexpr int kBf16BoxRows = 32;

int padded_dim(int head_dim) {
  return head_dim <= 64 ? 64 : (head_dim <= 128 ? 128 : 256);
}

/// Levels of a tree over `num_keys` keys, at least 1.
int tree_levels(int64_t num_keys) {
  int levels = 1;
  for (int64_t keys = int64_t{kFan} * kKeys; keys < num_keys; keys *= kFan) ++levels;
  return levels;
}

/// Of `blocks` blocks of the main kernel.
int64_t partial_bytes(int padded, int blocks, int levels, int rows) {
  return int64_t{blocks} * levels * kFan * rows * (padded + 2) *
         static_cast<int64_t>(sizeof(float));
}

/// Rows of q heads that a block takes at once, for segments of `rows` of them.
int rows_at_once(int padded, int64_t rows) {
  if (rows <= 8) return 8;
  return rows <= 16 || padded == 256 ? 16 : kMaxRows;
}

}  // namespace

int64_t attention_decode_scratch(const AttnShape& shape, int64_t num_sequences, int64_t num_keys) {
  if (num_sequences == 0) return 0;
  const int padded = padded_dim(shape.head_dim);
  // A block table may be a little wider than the longest context.
  const int levels = tree_levels(num_keys + kSlackKeys);
  int64_t bytes = 0;
  for (int rows = 8; rows <= rows_at_once(padded, INT_MAX); rows *= 2) {
    const int blocks =
        num_processors() * blocks_per_processor(padded, rows, kv_code_bits(shape.kv_format));
    bytes = std::max(bytes, partial_bytes(padded, blocks, levels, rows));
  }
  return bytes + 64;
}

namespace {

/// With `prepare` where few_prepares().
void decode_segments(Stream& stream, const AttnArgs& args, const QkvPrepareArgs* prepare) {
  const int first = args.num_prompt_segments, segments = args.seqs.num_segments - first;
  if (segments <= 0 || args.out.dim(0) == 0) return;
  const AttnShape& shape = args.shape;
  const int group = shape.q_heads / shape.kv_heads, padded = padded_dim(shape.head_dim);
  const KvShape& kv = args.kv.shape;
  CHECK(kv.format != KvFormat::kF32 && kv.block_size % 16 == 0 && shape.head_dim % 8 == 0 &&
            shape.head_dim <= 256 && shape.scale > 0,
        "attention_decode: shape");
  CHECK(!kv_has_static_scales(kv.format) ||
            (args.kv.k_scale != nullptr && args.kv.v_scale != nullptr),
        "attention_decode: a static format without scales");
  CHECK(segments <= kMaxSegments, "attention_decode: segments");
  const int64_t max_keys = args.seqs.block_table.dim(1) * kv.block_size;
  const int64_t rows = int64_t{args.max_decode_len} * group;
  DecodeParams p{
      .q = static_cast<const __nv_bfloat16*>(args.q.data),
      .out = static_cast<__nv_bfloat16*>(args.out.data),
      .cu_q = args.seqs.cu_q.ptr<int32_t>() + first,
      .kv_start = args.seqs.kv_start.ptr<int32_t>() + first,
      .table = args.seqs.block_table.row<int32_t>(first),
      .partials = nullptr,
      .q_row = args.q.stride[0],
      .q_head = args.q.stride[1],
      .out_row = args.out.stride[0],
      .out_head = args.out.stride[1],
      .table_row = args.seqs.block_table.stride[0],
      .total_rows = args.out.dim(0),
      .num_segments = segments,
      .kv_heads = shape.kv_heads,
      .group = group,
      .head_dim = shape.head_dim,
      .block_size = kv.block_size,
      .box_rows = std::min(kv.format == KvFormat::kBf16 ? kBf16BoxRows : kTileKeys,
                           kv.block_size & -kv.block_size),
      .tile_rows = rows_at_once(padded, rows),
      .max_pairs = 0,
      .partial_rows = 0,
      .levels = tree_levels(max_keys),
      .num_blocks = num_processors() * blocks_per_processor(padded, rows_at_once(padded, rows),
                                                            kv_code_bits(kv.format)),
      .scale = shape.scale * 1.44269504088896341f,
  };
  p.cache = args.kv.data;
  p.block_bytes = args.kv.block_bytes;
  p.layout = kv_layout(kv);
  p.k_scale = args.kv.k_scale;
  p.v_scale = args.kv.v_scale;
  p.channels = kv.format == KvFormat::kInt8;
  p.max_pairs = static_cast<int>((rows + p.tile_rows - 1) / p.tile_rows) * p.kv_heads;
  p.partial_rows = static_cast<int>(std::min<int64_t>(rows + rows % 2, p.tile_rows));
  if (takes_few(args)) return launch_few(stream, args, prepare, p);
  const ArenaScope scope(stream.scratch());
  p.partials = static_cast<float*>(
      stream.scratch().take(partial_bytes(padded, p.num_blocks, p.levels, p.partial_rows)));
  with_kv_format(kv.format, [&](auto format) {
    using Format = decltype(format);
    if constexpr (std::is_same_v<Format, KvBf16>)
      launch_format<Bf16Consumer>(stream, args, p, padded);
    if constexpr (std::is_same_v<Format, KvInt8>) launch_int8(stream, args, p, padded);
    if constexpr (std::is_same_v<Format, KvFp8>) launch_fp8(stream, args, p, padded);
    if constexpr (std::is_same_v<Format, KvInt4>) launch_int4(stream, args, p, padded);
  });
}

}  // namespace

void attention_decode(Stream& stream, const AttnArgs& args) {
  decode_segments(stream, args, nullptr);
}

bool attention_prepared(Stream& stream, const QkvPrepareArgs& prepare, const AttnArgs& args) {
  if (args.out.dim(0) == 0 || !few_prepares(args)) return false;
  decode_segments(stream, args, &prepare);
  return true;
}

}  // namespace weft::cuda
