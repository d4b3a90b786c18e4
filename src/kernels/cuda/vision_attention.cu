// segment_attention: softmax(q k^T scale) v among the rows of each segment, no mask, no cache: the
// attention of vision towers. Four warps a block, 32 queries each (16 where D > 80), for which each
// fragment of K and V is read once; tiles of 64 keys in two stages (cp.async), mma.sync m16n8k16,
// online softmax in fp32, weights rounded to bf16. Tiles are cut from the segment's beginning, so a
// row's bits depend on its segment alone. Bound: 4 D flops a (query, key) on the tensor cores.
// Long segments have a kernel of their own (vision_attention_long.cu). docs/images.md

#include <cuda_bf16.h>

#include <climits>
#include <cmath>

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/vision_attention.h"

namespace weft::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kKeys = 64;  // of a tile
constexpr int kStages = 2;
constexpr int kLong = 256;  // rows from which on a segment is vision_attention_long.cu's

/// Times 16 queries of a warp, as registers allow.
constexpr int query_tiles(int steps) {
  return steps <= 5 ? 2 : 1;
}
constexpr int block_queries(int steps) {
  return 16 * query_tiles(steps) * kWarps;
}

/// `Steps` * 16 dimensions; those behind head_dim are zeros.
template <int Steps>
struct Tile {
  static constexpr int kPitch = Steps * 16 + 8;  // an odd number of 16 bytes: no bank conflicts
  __nv_bfloat16 rows[kKeys][kPitch];
};

/// Rows [first, first + count) of one head, zeros behind `end` and behind head_dim.
template <int Steps>
__device__ void load_tile(Tile<Steps>& tile, const __nv_bfloat16* head, int64_t stride, int first,
                          int end, int head_dim) {
  constexpr int kPieces = Steps * 2;  // of 16 bytes a row
  for (int i = static_cast<int>(threadIdx.x); i < kKeys * kPieces; i += kWarps * 32) {
    const int row = i / kPieces, column = i % kPieces * 8;
    const bool there = first + row < end && column < head_dim;
    const __nv_bfloat16* from = head + (there ? (first + row) * stride + column : 0);
    copy_async_16(&tile.rows[row][column], from, there ? 16 : 0);
  }
}

/// Keys behind the segment's `left` weigh nothing.
__device__ __forceinline__ void mask(float (&scores)[kKeys / 8][4], int left, int lane) {
#pragma unroll
  for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      if (8 * n + 2 * (lane % 4) + i % 2 >= left) scores[n][i] = -INFINITY;
    }
  }
}

/// Scores become weights relative to the largest score so far, to which `out` and `total` shrink.
template <int Steps>
__device__ __forceinline__ void soften(float (&scores)[kKeys / 8][4], float (&largest)[2],
                                       float (&total)[2], float (&out)[2 * Steps][4],
                                       float factor) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    float most = largest[half];
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
      most = fmaxf(most, fmaxf(scores[n][2 * half], scores[n][2 * half + 1]));
    }
    most = max_of_quad(most);
    const float shrink = exp2_approx((largest[half] - most) * factor), shift = -most * factor;
    largest[half] = most;
    total[half] *= shrink;
#pragma unroll
    for (int n = 0; n < 2 * Steps; ++n) {
      out[n][2 * half] *= shrink;
      out[n][2 * half + 1] *= shrink;
    }
#pragma unroll
    for (int n = 0; n < kKeys / 8; ++n) {
#pragma unroll
      for (int i = 2 * half; i < 2 * half + 2; ++i) {
        scores[n][i] = exp2_approx(fmaf(scores[n][i], factor, shift));
        total[half] += scores[n][i];
      }
    }
  }
}

template <int Steps>
__global__ __launch_bounds__(kWarps * 32) void attention_kernel(SegmentAttnParams p) {
  constexpr int kM = query_tiles(Steps), kQueries = block_queries(Steps);
  static_assert(kQueries <= kStages * kKeys, "queries pass through the keys' tiles");
  extern __shared__ __align__(16) unsigned char memory[];
  auto* keys = reinterpret_cast<Tile<Steps>*>(memory);
  Tile<Steps>* values = keys + kStages;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  const SegmentAttnParams::Rows rows = p.rows_of(static_cast<int>(blockIdx.x), kQueries);
  const int begin = rows.begin, end = rows.end, first = rows.first;
  const int64_t head = blockIdx.y;
  const __nv_bfloat16* k = p.k + head * p.k_head;
  const __nv_bfloat16* v = p.v + head * p.v_head;

  for (int i = 0; i < kQueries / kKeys; ++i) {
    load_tile(keys[i], p.q + head * p.q_head, p.q_row, first + i * kKeys, end, p.head_dim);
  }
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
  uint32_t q[kM][Steps][4];
#pragma unroll
  for (int m = 0; m < kM; ++m) {
    const int row = 16 * (warp * kM + m) + lane % 16;
#pragma unroll
    for (int step = 0; step < Steps; ++step) {
      load_matrices(
          q[m][step],
          shared_address(&keys[row / kKeys].rows[row % kKeys][16 * step + lane / 16 * 8]));
    }
  }
  __syncthreads();

  float out[kM][2 * Steps][4] = {};
  float largest[kM][2], total[kM][2] = {};
#pragma unroll
  for (auto& of : largest) of[0] = of[1] = -INFINITY;
  const bool idle = first + 16 * kM * warp >= end;  // the warp has no queries
  const int tiles = (end - begin + kKeys - 1) / kKeys;
  const auto fetch = [&](int tile) {
    load_tile(keys[tile % kStages], k, p.k_row, begin + tile * kKeys, end, p.head_dim);
    load_tile(values[tile % kStages], v, p.v_row, begin + tile * kKeys, end, p.head_dim);
    copy_async_commit();
  };
  fetch(0);
  for (int tile = 0; tile < tiles; ++tile) {
    if (tile + 1 < tiles) {
      fetch(tile + 1);
      copy_async_wait<1>();
    } else {
      copy_async_wait<0>();
    }
    __syncthreads();
    if (!idle) {
      const Tile<Steps>& key_tile = keys[tile % kStages];
      const Tile<Steps>& value_tile = values[tile % kStages];
      float scores[kM][kKeys / 8][4] = {};
#pragma unroll
      for (int pair = 0; pair < kKeys / 16; ++pair) {
#pragma unroll
        for (int step = 0; step < Steps; ++step) {
          uint32_t b[4];
          const int row = 16 * pair + lane / 16 * 8 + lane % 8;
          load_matrices(b, shared_address(&key_tile.rows[row][16 * step + lane / 8 % 2 * 8]));
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            mma_bf16(scores[m][2 * pair], q[m][step], b[0], b[1]);
            mma_bf16(scores[m][2 * pair + 1], q[m][step], b[2], b[3]);
          }
        }
      }
      const int left = end - begin - tile * kKeys;  // keys from this tile on
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (left < kKeys) mask(scores[m], left, lane);
        soften<Steps>(scores[m], largest[m], total[m], out[m], p.factor);
      }
#pragma unroll
      for (int pair = 0; pair < kKeys / 16; ++pair) {
        uint32_t weights[kM][4];
#pragma unroll
        for (int m = 0; m < kM; ++m) {
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            const float(&of)[4] = scores[m][2 * pair + i / 2];
            weights[m][i] = pack_bf16(of[i % 2 * 2], of[i % 2 * 2 + 1]);
          }
        }
#pragma unroll
        for (int step = 0; step < Steps; ++step) {
          uint32_t b[4];
          load_matrices<true>(
              b,
              shared_address(&value_tile.rows[16 * pair + lane % 16][16 * step + lane / 16 * 8]));
#pragma unroll
          for (int m = 0; m < kM; ++m) {
            mma_bf16(out[m][2 * step], weights[m], b[0], b[1]);
            mma_bf16(out[m][2 * step + 1], weights[m], b[2], b[3]);
          }
        }
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int m = 0; m < kM; ++m) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const float sum = sum_of_quad(total[m][half]);
      const int row = first + 16 * (warp * kM + m) + lane / 4 + 8 * half;
      if (row >= end) continue;
      __nv_bfloat16* to = p.out + row * p.out_row + head * p.out_head;
#pragma unroll
      for (int n = 0; n < 2 * Steps; ++n) {
        const int column = 8 * n + 2 * (lane % 4);
        if (column >= p.head_dim) continue;
        *reinterpret_cast<uint32_t*>(to + column) =
            pack_bf16(out[m][n][2 * half] / sum, out[m][n][2 * half + 1] / sum);
      }
    }
  }
}

template <int Steps>
void run_steps(Stream& stream, const SegmentAttnParams& p, int blocks) {
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(p.heads)),
      .block = dim3(kWarps * 32),
      .shared_bytes = 2 * kStages * sizeof(Tile<Steps>)};
  launch(stream, shape, attention_kernel<Steps>, p);
}
void run(Stream& stream, const SegmentAttnParams& p, int blocks) {
  if (p.head_dim <= 32) return run_steps<2>(stream, p, blocks);
  if (p.head_dim <= 64) return run_steps<4>(stream, p, blocks);
  if (p.head_dim <= 80) return run_steps<5>(stream, p, blocks);
  run_steps<8>(stream, p, blocks);
}

}  // namespace

void segment_attention(Stream& stream, const SegmentAttnArgs& args) {
  const int64_t dim = args.q.dim(2);
  CHECK(dim % 8 == 0 && dim <= 128, "segment_attention: a head is a multiple of 8, at most 128");
  SegmentAttnParams p{.q = static_cast<const __nv_bfloat16*>(args.q.data),
                      .k = static_cast<const __nv_bfloat16*>(args.k.data),
                      .v = static_cast<const __nv_bfloat16*>(args.v.data),
                      .out = static_cast<__nv_bfloat16*>(args.out.data),
                      .bounds = args.bounds.ptr<int32_t>(),
                      .q_row = args.q.stride[0],
                      .q_head = args.q.stride[1],
                      .k_row = args.k.stride[0],
                      .k_head = args.k.stride[1],
                      .v_row = args.v.stride[0],
                      .v_head = args.v.stride[1],
                      .out_row = args.out.stride[0],
                      .out_head = args.out.stride[1],
                      .num_segments = args.num_segments,
                      .head_dim = static_cast<int>(dim),
                      .heads = static_cast<int>(args.q.dim(1)),
                      .factor = args.scale * 1.44269504f,
                      .from = 1,
                      .to = INT_MAX};
  const bool has_long = dim > 64 && dim <= 80;
  if (has_long) p.to = kLong;
  const auto blocks_of = [&](int queries) {
    int blocks = 0;
    for (int s = 0; s < args.num_segments; ++s) {
      const int length = args.host_bounds[s + 1] - args.host_bounds[s];
      if (length >= p.from && length < p.to) blocks += (length + queries - 1) / queries;
    }
    return blocks;
  };
  if (const int blocks = blocks_of(block_queries(static_cast<int>(dim + 15) / 16)); blocks > 0) {
    run(stream, p, blocks);
  }
  if (!has_long) return;
  p.from = kLong;
  p.to = INT_MAX;
  if (const int blocks = blocks_of(kLongQueries); blocks > 0) {
    segment_attention_long(stream, p, args.q.dim(0), blocks);
  }
}

}  // namespace weft::cuda
