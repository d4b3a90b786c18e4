// qkv_prepare: q, k <- rope(norm(q, k)); the cache gets k and v. One warp a (token, head), of many
// rows a (token, eight heads) with positions and weights read once: q heads in place, k heads into
// the cache with the v head beside them. Everything in fp32 between one read
// and one rounding to bf16 or to the codes of the cache (kv_format.h). Bytes: q twice, k and v
// twice; bound by memory for prompts and by latency for a few rows: all that does not come from the
// predecessor is loaded before the wait for it. docs/kernels/small_ops_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/qkv_prepare.h"

namespace weft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMaxHeadDim = 256;

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
  return x;
}
__device__ __forceinline__ bool finite(float x) {
  return fabsf(x) <= std::numeric_limits<float>::max();
}

/// Codes of a byte, of pairs 2 lane + 64 turn, at kv_place(): dims 0, 2, 1, 3 of a word.
template <class Format, int Turns>
__device__ __forceinline__ void store_bytes(const float (&x)[Turns][2],
                                            const float2 (&inverse)[Turns], int head_dim,
                                            std::byte* to) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    const int at = lane * 2 + turn * 64;
    uint32_t word = 0;
    if (at < head_dim) {
      const uint32_t low = Format::code(__fmul_rn(x[turn][0], inverse[turn].x));
      const uint32_t high = Format::code(__fmul_rn(x[turn][1], inverse[turn].y));
      word = (low | high << 16) << lane % 2 * 8;
    }
    word |= __shfl_xor_sync(0xffffffffu, word, 1);
    if (lane % 2 == 0 && at < head_dim) *reinterpret_cast<uint32_t*>(to + at) = word;
  }
}

/// One warp's row of (plane, head, token) into a block of the cache.
template <class Format, int Turns>
__device__ __forceinline__ void store_row(const PrepareParams& p, const float (&x)[Turns][2],
                                          std::byte* block, int plane, int64_t head,
                                          int64_t token) {
  std::byte* to = block + p.layout.code_offset(plane, head, token);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const auto store_scale = [&](int group, float scale) {
    if (lane != 0) return;
    *reinterpret_cast<float*>(block + p.layout.scale_offset(plane, head, group, token)) = scale;
  };
  if constexpr (!Format::kScaled) {
    store_bf16(x, p.head_dim, to);
  } else if constexpr (Format::kZeros) {
    static_assert(kKvInt4Group == 64);  // a turn
#pragma unroll
    for (int turn = 0; turn < Turns; ++turn) {
      if (turn * 64 >= p.head_dim) break;
      const int at = lane * 2 + turn * 64;
      const bool mine = at < p.head_dim;
      const float a = mine ? x[turn][0] : 0.0f, b = mine ? x[turn][1] : 0.0f;
      const float high = warp_max(fmaxf(a, b)), low = -warp_max(fmaxf(-a, -b));
      const KvInt4Scale scale =
          kv_int4_scale(high, low, __all_sync(0xffffffffu, finite(a) && finite(b)));
      // Dims 0, 2, 4, 6, 1, 3, 5, 7 of a word.
      const uint32_t first = kv_int4_code(__fmul_rn(a, scale.inverse), scale.zero);
      const uint32_t second = kv_int4_code(__fmul_rn(b, scale.inverse), scale.zero);
      uint32_t word = (first | second << 16) << lane % 4 * 4;
      word |= __shfl_xor_sync(0xffffffffu, word, 1);
      word |= __shfl_xor_sync(0xffffffffu, word, 2);
      if (lane % 4 == 0 && mine) *reinterpret_cast<uint32_t*>(to + at / 2) = word;
      store_scale(turn, scale.scale);
    }
  } else {
    float2 inverse[Turns];
    if (p.k_scale != nullptr) {
      const float* scale = (plane == 0 ? p.k_scale : p.v_scale) + head * p.head_dim;
#pragma unroll
      for (int turn = 0; turn < Turns; ++turn) {
        const int at = lane * 2 + turn * 64;
        if (at >= p.head_dim) continue;
        inverse[turn] = make_float2(__frcp_rn(scale[at]), __frcp_rn(scale[at + 1]));
      }
    } else {
      float amax = 0;
      bool all_finite = true;
#pragma unroll
      for (int turn = 0; turn < Turns; ++turn) {
        if (lane * 2 + turn * 64 >= p.head_dim) continue;
#pragma unroll
        for (const float value : x[turn]) {
          all_finite = all_finite && finite(value);
          amax = fmaxf(amax, fabsf(value));
        }
      }
      amax = warp_max(amax);
      if (!__all_sync(0xffffffffu, all_finite)) amax = std::numeric_limits<float>::infinity();
      const KvRowScale scale = kv_row_scale(amax, p.largest_code);
#pragma unroll
      for (float2& of : inverse) of = make_float2(scale.inverse, scale.inverse);
      store_scale(0, scale.scale);
    }
    store_bytes<Format>(x, inverse, p.head_dim, to);
  }
}

/// A k head and its v head into the cache.
template <class Format, int Turns>
__device__ __forceinline__ void store_keys(const PrepareParams& p, const float (&rotated)[Turns][2],
                                           const uint32_t (&v_pairs)[Turns], int64_t slot,
                                           int64_t g) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  std::byte* block = p.cache + slot / p.block_size * p.block_bytes;
  const int64_t offset = slot % p.block_size;
  store_row<Format>(p, rotated, block, 0, g, offset);
  float values[Turns][2];
#pragma unroll
  for (int turn = 0; turn < Turns; ++turn) {
    if (lane * 2 + turn * 64 >= p.head_dim) continue;
    values[turn][0] = low_bf16(v_pairs[turn]);
    values[turn][1] = high_bf16(v_pairs[turn]);
  }
  store_row<Format>(p, values, block, 1, g, offset);
}

/// One head a warp. `Turns` pairs a lane: head_dim <= 64 Turns.
template <class Format, int Turns>
__global__ __launch_bounds__(kWarps * 32) void prepare_kernel(PrepareParams p) {
  __shared__ float heads[kWarps][64 * Turns];
  let_successor_begin();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int64_t item = int64_t{blockIdx.x} * kWarps + warp;
  if (item >= p.num_items) return;
  const int64_t token = item / (p.q_heads + p.kv_heads);
  const int head = static_cast<int>(item % (p.q_heads + p.kv_heads));
  const bool is_q = head < p.q_heads;
  const int g = head - p.q_heads;
  // Positions, slots, tables and weights were there before the step's first kernel.
  const int64_t slot = is_q ? 0 : p.kv_slot[token];
  if (slot < 0) return;
  const float* norm = is_q ? p.q_norm : p.k_norm;
  const LanePlan<Turns> plan = plan_lane<Turns>(p, token, norm);
  wait_for_predecessor();

  __nv_bfloat16* q = p.q + token * p.q_row + head * p.q_head;
  uint32_t pairs[Turns], v_pairs[Turns];
  load_head(is_q ? q : p.k + token * p.k_row + g * p.k_head, p.head_dim, pairs);
  if (!is_q) load_head(p.v + token * p.v_row + g * p.v_head, p.head_dim, v_pairs);
  float rotated[Turns][2];
  turn_head<Turns, false>(p, plan, norm != nullptr, pairs, heads[warp], rotated);
  if (is_q) {
    store_bf16(rotated, p.head_dim, reinterpret_cast<std::byte*>(q));
  } else {
    store_keys<Format>(p, rotated, v_pairs, slot, g);
  }
}

/// `Heads` heads of a token a warp, all asked for before the first is used: for many rows. The same
/// bits.
template <class Format, int Turns, int Heads, bool Own>
__global__ __launch_bounds__(kWarps * 32) void prepare_rows_kernel(PrepareParams p) {
  __shared__ float heads[kWarps][Own ? 1 : 64 * Turns];
  let_successor_begin();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int q_groups = (p.q_heads + Heads - 1) / Heads;
  const int groups = q_groups + (p.kv_heads + Heads - 1) / Heads;
  // The last rows first: what the kernel before wrote last is in L2 still.
  const int64_t item = p.num_items - 1 - (int64_t{blockIdx.x} * kWarps + warp);
  if (item < 0) return;
  const int64_t token = item / groups;
  const int group = static_cast<int>(item - token * groups);
  const bool is_q = group < q_groups;
  const int first = (is_q ? group : group - q_groups) * Heads;
  const int count = min(Heads, (is_q ? p.q_heads : p.kv_heads) - first);
  const int64_t slot = is_q ? 0 : p.kv_slot[token];
  if (slot < 0) return;
  const float* norm = is_q ? p.q_norm : p.k_norm;
  const LanePlan<Turns> plan = plan_lane<Turns>(p, token, norm);
  wait_for_predecessor();

  const int dim = Own ? 128 : p.head_dim;
  const int64_t in_head = is_q ? p.q_head : p.k_head;
  __nv_bfloat16* q = p.q + token * p.q_row + first * p.q_head;
  const __nv_bfloat16* in = is_q ? q : p.k + token * p.k_row + first * p.k_head;
  uint32_t pairs[Heads][Turns];
#pragma unroll
  for (int i = 0; i < Heads; ++i) {
    if (i < count) load_head(in, dim, pairs[i]);
    in += in_head;
  }
  float rotated[Turns][2];
  if (is_q) {
#pragma unroll
    for (int i = 0; i < Heads; ++i) {
      if (i >= count) break;
      turn_head<Turns, Own>(p, plan, norm != nullptr, pairs[i], heads[warp], rotated);
      store_bf16(rotated, dim, reinterpret_cast<std::byte*>(q));
      q += p.q_head;
    }
    return;
  }
  uint32_t v_pairs[Heads][Turns];
#pragma unroll
  for (int i = 0; i < Heads; ++i) {
    if (i < count)
      load_head(p.v + token * p.v_row + (first + i) * p.v_head, p.head_dim, v_pairs[i]);
  }
#pragma unroll
  for (int i = 0; i < Heads; ++i) {
    if (i >= count) break;
    turn_head<Turns, Own>(p, plan, norm != nullptr, pairs[i], heads[warp], rotated);
    store_keys<Format>(p, rotated, v_pairs[i], slot, first + i);
  }
}

template <class Format>
void launch_prepare(Stream& stream, PrepareParams p, int64_t rows) {
  constexpr int kHeads = 8;
  constexpr int64_t kManyRows = 512;
  const int64_t row_items =
      rows < kManyRows ? p.q_heads + p.kv_heads
                       : (p.q_heads + kHeads - 1) / kHeads + (p.kv_heads + kHeads - 1) / kHeads;
  p.num_items = rows * row_items;
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>((p.num_items + kWarps - 1) / kWarps)),
                          .block = dim3(kWarps * 32),
                          .overlap = true};
  if (rows < kManyRows) {
    if (p.head_dim <= 64) return launch(stream, shape, prepare_kernel<Format, 1>, p);
    if (p.head_dim <= 128) return launch(stream, shape, prepare_kernel<Format, 2>, p);
    return launch(stream, shape, prepare_kernel<Format, 4>, p);
  }
  if (p.head_dim == 128 && p.rotary_dim == 128 && !p.interleaved) {
    return launch(stream, shape, prepare_rows_kernel<Format, 2, kHeads, true>, p);
  }
  if (p.head_dim <= 64) {
    return launch(stream, shape, prepare_rows_kernel<Format, 1, kHeads, false>, p);
  }
  if (p.head_dim <= 128) {
    return launch(stream, shape, prepare_rows_kernel<Format, 2, kHeads, false>, p);
  }
  launch(stream, shape, prepare_rows_kernel<Format, 4, kHeads, false>, p);
}

}  // namespace

PrepareParams prepare_params(const QkvPrepareArgs& args) {
  CHECK(args.q.dim(2) <= kMaxHeadDim && args.q.dim(2) % 2 == 0,
        "qkv_prepare: a head is an even number of values, up to 256");
  const KvShape& kv = args.kv.shape;
  const bool is_static = kv_has_static_scales(kv.format);
  CHECK(kv.head_dim * kv_code_bits(kv.format) % 32 == 0, "qkv_prepare: rows are whole words");
  CHECK(!is_static || (args.kv.k_scale != nullptr && args.kv.v_scale != nullptr),
        "qkv_prepare: a static format without scales");
  return {
      .q = static_cast<__nv_bfloat16*>(args.q.data),
      .k = static_cast<const __nv_bfloat16*>(args.k.data),
      .v = static_cast<const __nv_bfloat16*>(args.v.data),
      .q_norm = static_cast<const float*>(args.q_norm.data),
      .k_norm = static_cast<const float*>(args.k_norm.data),
      .cos_sin = args.rope.cos_sin.ptr<float>(),
      .axis = args.rope.axis.ptr<uint8_t>(),
      .index = args.positions.index.ptr<int32_t>(),
      .delta = static_cast<const int32_t*>(args.positions.delta.data),
      .triples = static_cast<const int32_t*>(args.positions.triples.data),
      .kv_slot = args.kv_slot.ptr<int64_t>(),
      .cache = args.kv.data,
      .layout = kv_layout(kv),
      .k_scale = is_static ? args.kv.k_scale : nullptr,
      .v_scale = is_static ? args.kv.v_scale : nullptr,
      .largest_code = kv_largest_code(kv.format),
      .q_row = args.q.stride[0],
      .q_head = args.q.stride[1],
      .k_row = args.k.stride[0],
      .k_head = args.k.stride[1],
      .v_row = args.v.stride[0],
      .v_head = args.v.stride[1],
      .block_bytes = args.kv.block_bytes,
      .num_items = 0,
      .q_heads = static_cast<int>(args.q.dim(1)),
      .kv_heads = static_cast<int>(args.k.dim(1)),
      .head_dim = static_cast<int>(args.q.dim(2)),
      .rotary_dim = args.rope.rotary_dim,
      .block_size = args.kv.shape.block_size,
      .interleaved = args.rope.style == RopeStyle::kInterleaved,
      .eps = args.eps,
  };
}

void qkv_prepare(Stream& stream, const QkvPrepareArgs& args) {
  const int64_t rows = args.q.dim(0);
  if (rows == 0) return;
  const PrepareParams p = prepare_params(args);
  with_kv_format(args.kv.shape.format,
                 [&](auto format) { launch_prepare<decltype(format)>(stream, p, rows); });
}

}  // namespace weft::cuda
