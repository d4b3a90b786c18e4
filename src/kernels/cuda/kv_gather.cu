// Attention of prompts over a quantised cache: the blocks that the segments see are made bf16 in
// scratch memory, x = bf16(code * scale), and attention_prompt reads those. A unit of 16 bytes of
// codes a thread and turn; bytes: codes and scales once, bf16 written and read once; bound by
// memory. What a row sees is a function of its segment's blocks alone. docs/kernels/kv_gather.md

#include <algorithm>
#include <limits>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/kv_gather.h"

namespace weft::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kUnroll = 4;
constexpr int64_t kSlackKeys =
    1024;  // a block table may be a little wider than the longest context

/// Block (x, y): block x of `to`, plane and head y.
template <class Format>
__global__ __launch_bounds__(kThreads) void gather_kernel(const __grid_constant__ GatherParams p) {
  constexpr int kUnitDims = kKvUnitDims<Format>;
  const int block = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int segment = p.segment_of(block);
  const int index = block - p.starts[segment];
  const int plane = static_cast<int>(blockIdx.y) / static_cast<int>(p.from.heads);
  const int head = static_cast<int>(blockIdx.y) - plane * static_cast<int>(p.from.heads);
  const int tokens = static_cast<int>(p.from.block_size);
  const int seen = p.keys[segment] - index * tokens;  // the others are an older owner's
  wait_for_predecessor();

  const std::byte* from = p.cache + p.table[segment * p.table_row + index] * p.block_bytes;
  if (blockIdx.y == 0 && thread == 0) p.new_table[segment * p.new_row + index] = block;
  std::byte* to = p.to + block * p.into.bytes();
  const float* channels = plane == 0 ? p.k_scale : p.v_scale;
  const int row_units = static_cast<int>(p.from.row_bytes) / 16, units = tokens * row_units;
  for (int first = thread; first < units; first += kThreads * kUnroll) {
    uint4 codes[kUnroll];
    float scale[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = first + i * kThreads, token = unit / row_units;
      codes[i] = {};
      scale[i] = 0;
      if (token >= seen || unit >= units) continue;
      codes[i] = __ldcs(reinterpret_cast<const uint4*>(from + p.from.code_offset(plane, head, 0) +
                                                       int64_t{unit} * 16));
      if (channels == nullptr) {
        const int group =
            Format::kZeros ? (unit - token * row_units) * kUnitDims / kKvInt4Group : 0;
        scale[i] =
            *reinterpret_cast<const float*>(from + p.from.scale_offset(plane, head, group, token));
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = first + i * kThreads, token = unit / row_units;
      if (unit >= units) continue;
      const int dim = (unit - token * row_units) * kUnitDims;
      auto* out = reinterpret_cast<uint4*>(to + p.into.code_offset(plane, head, token) + dim * 2);
      const float* mine =
          channels != nullptr ? channels + int64_t{head} * p.head_dim + dim : nullptr;
#pragma unroll
      for (int at = 0; at < kUnitDims / 8; ++at) {
        if (dim + 8 * at >= p.head_dim) break;
        out[at] = token < seen ? widen_unit<Format>(codes[i], at, scale[i], mine) : uint4{};
      }
    }
  }
}

/// The new table, and nothing ready yet.
__global__ void begin_gather(const __grid_constant__ GatherParams p) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  wait_for_predecessor();
  if (first == 0) *p.next = 0;
  for (int block = first; block < p.blocks(); block += step) {
    const int segment = p.segment_of(block);
    p.new_table[segment * p.new_row + block - p.starts[segment]] = block;
  }
  for (int share = first; share < p.num_shares; share += step) p.ready[share] = 0;
}

int64_t ready_bytes(int64_t shares) {
  return (shares * 4 + 4 + 255) / 256 * 256;
}
int64_t table_bytes(int64_t blocks) {
  return (kMaxGatherSegments * blocks * 4 + 255) / 256 * 256;
}

int num_keys(const SeqMap& seqs, int segment) {
  const int rows = seqs.host_cu_q[segment + 1] - seqs.host_cu_q[segment];
  return rows > 0 ? seqs.host_kv_start[segment] + rows : 0;
}

/// Attention of the prompt segments [begin, end), whose blocks fit into the scratch memory.
void attend(Stream& stream, const AttnArgs& args, const QuantizedRows& codes, int begin, int end,
            int64_t capacity) {
  const KvShape& kv = args.kv.shape;
  KvShape plain = kv;
  plain.format = KvFormat::kBf16;
  GatherParams p{};
  p.cache = args.kv.data;
  p.block_bytes = args.kv.block_bytes;
  p.from = kv_layout(kv);
  p.into = kv_layout(plain);
  p.table = args.seqs.block_table.row<int32_t>(begin);
  p.table_row = args.seqs.block_table.stride[0];
  if (kv_has_static_scales(kv.format)) {
    p.k_scale = args.kv.k_scale;
    p.v_scale = args.kv.v_scale;
  }
  p.head_dim = kv.head_dim;
  p.format = kv.format;
  p.num_segments = end - begin;
  for (int s = begin; s < end; ++s) {
    const int keys = num_keys(args.seqs, s), blocks = (keys + kv.block_size - 1) / kv.block_size;
    p.keys[s - begin] = keys;
    p.starts[s - begin + 1] = p.starts[s - begin] + blocks;
    p.new_row = std::max<int64_t>(p.new_row, blocks);
  }
  const int blocks = p.starts[p.num_segments];
  if (blocks == 0) return;
  const ArenaScope scope(stream.scratch());
  p.to = static_cast<std::byte*>(stream.scratch().take(capacity * p.into.bytes()));
  p.new_table = static_cast<int32_t*>(stream.scratch().take(table_bytes(capacity)));
  const bool beside = can_gather_beside(args, p.from);
  if (beside) {
    p.tokens = kv.block_size;
    p.row_bytes = static_cast<int>(p.from.row_bytes);
    p.stage_rows = GatherStage::kCodeBytes / p.row_bytes / 4 * 4;  // scales of 16 bytes
    p.scale_groups = p.from.scales;
    p.row_eights = p.row_bytes / kv_code_bits(kv.format);
    p.inverse_row = UINT32_MAX / static_cast<uint32_t>(p.row_eights) + 1;
    p.shares_of_block = 2 * kv.heads;
    p.num_shares = blocks * p.shares_of_block;
    p.scales_at = p.from.scale_offset(0, 0, 0, 0);
    p.into_bytes = p.into.bytes();
    const int64_t most = capacity * p.shares_of_block;
    p.ready = static_cast<int32_t*>(stream.scratch().take(ready_bytes(most)));
    p.next = p.ready + most;
    launch(stream, {.grid = 16, .block = 512, .overlap = true}, begin_gather, p);
  } else {
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(2 * kv.heads)),
        .block = dim3(kThreads),
        .overlap = true};
    with_kv_format(kv.format, [&](auto format) {
      using Format = decltype(format);
      if constexpr (Format::kScaled) launch(stream, shape, gather_kernel<Format>, p);
    });
  }

  AttnArgs plain_args = args;
  plain_args.kv = {
      .shape = plain, .data = p.to, .block_bytes = p.into.bytes(), .num_blocks = blocks};
  plain_args.num_prompt_segments = p.num_segments;
  plain_args.seqs.num_segments = p.num_segments;
  plain_args.seqs.cu_q = args.seqs.cu_q.rows(begin, end + 1);
  plain_args.seqs.kv_start = args.seqs.kv_start.rows(begin, end);
  plain_args.seqs.block_table = {p.new_table, DType::kI32, {p.num_segments, p.new_row}};
  plain_args.seqs.host_cu_q += begin;
  plain_args.seqs.host_kv_start += begin;
  HeadPlan heads;
  if (args.heads != nullptr) {
    heads = *args.heads;
    TensorView* by_segment[] = {heads.rows.defined() ? &heads.rows : &heads.kinds, &heads.blocks,
                                &heads.counts};
    for (TensorView* view : by_segment) {
      if (view->defined()) *view = view->rows(begin, end);
    }
    plain_args.heads = &heads;
  }
  if (beside) {
    attention_prompt_beside(stream, plain_args, codes, p);
  } else {
    attention_prompt_into(stream, plain_args, codes);
  }
}

}  // namespace

int64_t kv_gather_scratch(const AttnShape& shape, int64_t num_keys) {
  if (shape.kv_format == KvFormat::kBf16) return 0;
  const int64_t keys = num_keys + kSlackKeys;
  return keys * shape.kv_heads * shape.head_dim * 4 + table_bytes(keys / 16 + 1) +
         ready_bytes((keys / 16 + 1) * 2 * shape.kv_heads) + 512;
}

void attention_prompt_gathered(Stream& stream, const AttnArgs& args) {
  attention_prompt_gathered_into(stream, args, {});
}

void attention_prompt_gathered_into(Stream& stream, const AttnArgs& args,
                                    const QuantizedRows& codes) {
  if (args.prompt_rows == 0 || args.num_prompt_segments == 0) return;
  CHECK(args.seqs.host_cu_q != nullptr && args.seqs.host_kv_start != nullptr);
  const KvShape& kv = args.kv.shape;
  CHECK(kv.block_size % 16 == 0 && kv.head_dim % 8 == 0,
        "attention of a prompt: head_dim is 8, 16, ..");
  CHECK(!kv_has_static_scales(kv.format) ||
            (args.kv.k_scale != nullptr && args.kv.v_scale != nullptr),
        "attention of a prompt: a static format without scales");
  const int64_t capacity = args.seqs.block_table.dim(1);  // a segment has no more blocks
  int begin = 0;
  int64_t blocks = 0;
  for (int s = 0; s < args.num_prompt_segments; ++s) {
    const int64_t mine = (num_keys(args.seqs, s) + kv.block_size - 1) / kv.block_size;
    if (s - begin == kMaxGatherSegments || blocks + mine > capacity) {
      attend(stream, args, codes, begin, s, capacity);
      begin = s;
      blocks = 0;
    }
    blocks += mine;
  }
  attend(stream, args, codes, begin, args.num_prompt_segments, capacity);
}

}  // namespace weft::cuda
