// Attention of prompts over a quantised cache: the blocks that the segments see are made f16 in
// scratch memory, x = f16(code * scale / 2^power of the row), and the attention reads those. A unit
// of 16 bytes of codes a thread and turn; bytes: codes and scales once, f16 written and read once;
// bound by memory. What a row sees is a function of its segment's blocks alone.
// docs/kernels/kv_gather.md

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

/// Block (x, y): block x of `to`, plane and head y: a share.
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
  std::byte* to = p.to + block * p.into.bytes();
  const int in_block = static_cast<int>(blockIdx.y), share = block * p.shares_of_block + in_block;
  const float* channels =
      p.channels != nullptr ? p.channels + in_block * (p.head_dim + 4) : nullptr;
  int odd = 0;
  const int row_units = static_cast<int>(p.from.row_bytes) / 16, units = tokens * row_units;
  for (int first = thread; first < units; first += kThreads * kUnroll) {
    uint4 codes[kUnroll];
    float scale[kUnroll];
    int power[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = first + i * kThreads, token = unit / row_units;
      codes[i] = {};
      scale[i] = 0;
      power[i] = 0;
      if (token >= seen || unit >= units) continue;
      codes[i] = __ldcs(reinterpret_cast<const uint4*>(from + p.from.code_offset(plane, head, 0) +
                                                       int64_t{unit} * 16));
      if (channels != nullptr) {
        power[i] = __float_as_int(channels[p.head_dim]);
        continue;
      }
      const int group = Format::kZeros ? (unit - token * row_units) * kUnitDims / kKvInt4Group : 0;
      float largest = 0;
      for (int g = 0; g < p.from.scales; ++g) {
        const float of_group =
            *reinterpret_cast<const float*>(from + p.from.scale_offset(plane, head, g, token));
        largest = fmaxf(largest, of_group);
        if (g == group) scale[i] = of_group;
      }
      power[i] = kv_row_power(largest, kv_code_log2(p.format));
      scale[i] *= power_of_two(-power[i]);
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const int unit = first + i * kThreads, token = unit / row_units;
      if (unit >= units) continue;
      const int dim = (unit - token * row_units) * kUnitDims;
      if (dim == 0) p.powers[share * tokens + token] = static_cast<int8_t>(power[i]);
      odd |= power[i];
      auto* out = reinterpret_cast<uint4*>(to + p.into.code_offset(plane, head, token) + dim * 2);
      const float* mine = channels != nullptr ? channels + dim : nullptr;
#pragma unroll
      for (int at = 0; at < kUnitDims / 8; ++at) {
        if (dim + 8 * at >= p.head_dim) break;
        out[at] = token < seen ? widen_unit<Format, true>(codes[i], at, scale[i], mine) : uint4{};
      }
    }
  }
  const int any = __syncthreads_or(odd);
  if (thread == 0) p.ready[share] = any != 0 ? 0x10001 : 1;
}

/// The new table, nothing ready yet, and the scales of channels with the powers of their heads.
__global__ void begin_gather(const __grid_constant__ GatherParams p) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  wait_for_predecessor();
  if (first == 0) *p.next = 0;
  const int lane = first % 32, heads = static_cast<int>(p.from.heads);
  for (int head = first / 32; p.channels != nullptr && head < 2 * heads; head += step / 32) {
    const float* from = head < heads ? p.k_scale + int64_t{head} * p.head_dim
                                     : p.v_scale + int64_t{head - heads} * p.head_dim;
    float* to = p.channels + head * (p.head_dim + 4);
    float largest = 0;
    for (int dim = lane; dim < p.head_dim; dim += 32) largest = fmaxf(largest, fabsf(from[dim]));
    for (int lanes = 1; lanes < 32; lanes *= 2) {
      largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, lanes));
    }
    const int power = kv_row_power(largest, kv_code_log2(p.format));
    for (int dim = lane; dim < p.head_dim; dim += 32) to[dim] = from[dim] * power_of_two(-power);
    if (lane == 0) to[p.head_dim] = __int_as_float(power);
  }
  for (int block = first; block < p.blocks(); block += step) {
    const int segment = p.segment_of(block);
    p.new_table[segment * p.new_row + block - p.starts[segment]] = block;
  }
  for (int share = first; share < p.num_shares; share += step) p.ready[share] = 0;
}

int64_t whole_bytes(int64_t bytes) {
  return (bytes + 255) / 256 * 256;
}
/// GatherParams::ready and next, powers, channels.
int64_t ready_bytes(int64_t shares) {
  return whole_bytes(shares * 4 + 4);
}
int64_t powers_bytes(int64_t shares, int64_t block_size) {
  return whole_bytes(shares * block_size);
}
int64_t channels_bytes(int64_t heads, int64_t head_dim) {
  return whole_bytes(2 * heads * (head_dim + 4) * 4);
}
int64_t table_bytes(int64_t blocks) {
  return whole_bytes(kMaxGatherSegments * blocks * 4);
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
  p.tokens = kv.block_size;
  p.shares_of_block = 2 * kv.heads;
  p.num_shares = blocks * p.shares_of_block;
  const int64_t most = capacity * p.shares_of_block;
  p.ready = static_cast<int32_t*>(stream.scratch().take(ready_bytes(most)));
  p.next = p.ready + most;
  p.powers = static_cast<int8_t*>(stream.scratch().take(powers_bytes(most, kv.block_size)));
  if (kv_has_static_scales(kv.format)) {
    p.channels = static_cast<float*>(stream.scratch().take(channels_bytes(kv.heads, kv.head_dim)));
  }
  const bool beside = can_gather_beside(args, p.from);
  if (beside) {
    p.row_bytes = static_cast<int>(p.from.row_bytes);
    p.stage_rows = GatherStage::kCodeBytes / p.row_bytes / 4 * 4;  // scales of 16 bytes
    p.parts = (kv.block_size + p.stage_rows - 1) / p.stage_rows;
    p.num_parts = p.num_shares * p.parts;
    p.scale_groups = p.from.scales;
    p.row_eights = p.row_bytes / kv_code_bits(kv.format);
    p.inverse_row = UINT32_MAX / static_cast<uint32_t>(p.row_eights) + 1;
    if (32 % p.row_eights == 0) p.turn_rows = 32 / p.row_eights;
    p.scales_at = p.from.scale_offset(0, 0, 0, 0);
    p.into_bytes = p.into.bytes();
  }
  launch(stream, {.grid = 16, .block = 512, .overlap = true}, begin_gather, p);
  if (!beside) {
    const LaunchShape shape{
        .grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.shares_of_block)),
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
  attention_prompt_f16(stream, plain_args, codes, p);
}

}  // namespace

int64_t kv_gather_scratch(const AttnShape& shape, int64_t num_keys) {
  if (shape.kv_format == KvFormat::kBf16) return 0;
  const int64_t keys = num_keys + kSlackKeys;
  return keys * shape.kv_heads * shape.head_dim * 4 + table_bytes(keys / 16 + 1) +
         ready_bytes((keys / 16 + 1) * 2 * shape.kv_heads) +
         powers_bytes(keys * 2 * shape.kv_heads, 1) +
         channels_bytes(shape.kv_heads, shape.head_dim) + 1024;
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
