// The second kernel of attention_decode: where several blocks computed chunks of one (segment,
// rows, kv head), the nodes of the tree that lie in more than one block's share are folded, a level
// after the other and the nodes of a level beside each other (a warp a node and row). Reads and
// writes scratch memory that is still in the L2 cache; bound by latency.
// docs/kernels/attention_decode.md

#include <algorithm>

#include "kernels/cuda/attention_decode.h"

namespace weft::cuda::decode {
namespace {

constexpr int kMergeWarps = 8;

/// One row of a partial: lane l has columns l * D / 32 ....
template <int D>
struct RowState {
  static constexpr int kEach = D / 32;
  float o[kEach];
  float top, sum;
  __device__ __forceinline__ void fold(const RowState& other) {
    const Factors f = fold_factors(top, sum, other.top, other.sum);
#pragma unroll
    for (int i = 0; i < kEach; ++i) o[i] = fold_value(o[i], other.o[i], f);
  }
  __device__ __forceinline__ void load(const float* from, const float* scalars) {
    if constexpr (kEach == 2) {
      const float2 pair = __ldcg(reinterpret_cast<const float2*>(from));
      o[0] = pair.x;
      o[1] = pair.y;
    } else {
#pragma unroll
      for (int i = 0; i < kEach; i += 4) {
        const float4 four = __ldcg(reinterpret_cast<const float4*>(from + i));
        o[i] = four.x;
        o[i + 1] = four.y;
        o[i + 2] = four.z;
        o[i + 3] = four.w;
      }
    }
    const float2 pair = __ldcg(reinterpret_cast<const float2*>(scalars));
    top = pair.x;
    sum = pair.y;
  }
};

/// One warp of a block that folds the nodes of one pair.
template <int D>
struct Merger {
  const DecodeParams& p;
  Run run;  // all chunks of the pair
  Shares shares;
  int start;  // chunks before this pair's
  int lane;

  /// Where the share of a block begins, in chunks of this pair.
  __device__ __forceinline__ int border(int block) const { return shares.begin(block) - start; }
  __device__ __forceinline__ int owner(int chunk) const { return shares.owner(start + chunk); }

  /// Where lane c finds child c of a node of `level` that a border cuts, or -1: it isn't there, or
  /// is within the partial of child 0.
  __device__ __forceinline__ int64_t find_child(int node_begin, int node_end, int level,
                                                int span) const {
    const int begin = node_begin + lane * span;
    if (lane >= kFan || begin >= node_end) return -1;
    const int first = owner(begin);
    if (lane == 0) {
      // The beginning of this node, or (no child is complete) the whole of its cut first child.
      const bool opened = border(first + 1) - node_begin >= span;
      return partial_offset(p, D, first, opened ? level - 1 : level - 2, 0);
    }
    const int end = min(begin + span, node_end);
    if (end <= border(owner(node_begin) + 1)) return -1;
    return end > border(first + 1) ? partial_offset(p, D, first, level - 2, 0)
                                   : partial_offset(p, D, first, level - 1, lane);
  }

  /// Folds the node of `level` (whose children are `span` chunks) that begins at `begin`, of row
  /// `row`. The root is the output; others go where their beginnings were.
  __device__ __forceinline__ void fold_node(int begin, int level, int span, int row) const {
    const int end = min(begin + span * kFan, run.chunks);
    const int64_t mine = find_child(begin, end, level, span);
    RowState<D> child[kFan];
    bool there[kFan];
#pragma unroll
    for (int c = 0; c < kFan; ++c) {
      const int64_t at = __shfl_sync(0xffffffffu, mine, c);
      there[c] = at >= 0;
      if (!there[c]) continue;
      const float* from = p.partials + at;
      child[c].load(from + row * D + lane * RowState<D>::kEach,
                    from + p.partial_rows * D + 2 * row);
    }
#pragma unroll
    for (int c = 1; c < kFan; ++c) {
      if (there[c]) child[0].fold(child[c]);
    }
    if (begin == 0 && end == run.chunks) {
      write(child[0], row);
    } else {
      float* to = p.partials + partial_offset(p, D, owner(begin), level - 1, 0);
#pragma unroll
      for (int i = 0; i < RowState<D>::kEach; i += 2) {
        __stcg(reinterpret_cast<float2*>(to + row * D + lane * RowState<D>::kEach + i),
               float2{child[0].o[i], child[0].o[i + 1]});
      }
      if (lane == 0) {
        __stcg(reinterpret_cast<float2*>(to + p.partial_rows * D + 2 * row),
               float2{child[0].top, child[0].sum});
      }
    }
  }

  __device__ __forceinline__ void write(const RowState<D>& x, int row) const {
    const QRow at = locate(p, run, row);
    __nv_bfloat16* to = p.out + at.token * p.out_row + at.head * p.out_head;
    const float scale = inverse(x.sum);
#pragma unroll
    for (int i = 0; i < RowState<D>::kEach; i += 2) {
      const int column = lane * RowState<D>::kEach + i;
      if (column < p.head_dim) {
        *reinterpret_cast<uint32_t*>(to + column) = pack_bf16(x.o[i] * scale, x.o[i + 1] * scale);
      }
    }
  }
};

/// The pairs that blocks (x, ...) fold: with `by_pair` pair x % max_pairs of segment x / max_pairs,
/// otherwise the one that begins in the share of main block x and goes on beyond it. False: none.
__device__ __forceinline__ bool find_pair(const DecodeParams& p, const Plan& plan,
                                          const Shares& shares, bool by_pair, int* segment,
                                          int* start) {
  const int block = static_cast<int>(blockIdx.x);
  if (by_pair) {
    *segment = block / p.max_pairs;
    *start = plan.starts[*segment] + block % p.max_pairs * plan.chunks[*segment];
    return *start < plan.starts[*segment + 1];
  }
  const int begin = shares.begin(block), end = shares.begin(block + 1);
  if (begin == end) return false;
  *segment = find_segment(p, plan, end - 1);
  const int first = plan.starts[*segment], chunks = plan.chunks[*segment];
  *start = first + (end - 1 - first) / chunks * chunks;
  return *start >= begin;
}

/// Block (x, y) folds rows y, y + gridDim.y, ... of a pair.
template <int D>
__global__ __launch_bounds__(kMergeWarps *
                             32) void merge_kernel(const __grid_constant__ DecodeParams p,
                                                   const bool by_pair) {
  extern __shared__ __align__(1024) unsigned char memory[];
  let_successor_begin();
  const Plan plan(memory, p.num_segments);
  make_plan(p, plan);
  const Shares shares(plan.starts[p.num_segments], p.num_blocks);
  int segment = 0, start = 0, borders = 0, first_block = 0;
  if (find_pair(p, plan, shares, by_pair, &segment, &start)) {
    first_block = shares.owner(start);
    borders = shares.owner(start + plan.chunks[segment] - 1) - first_block;
  }
  // Every block waits, so that this kernel never ends before the first.
  wait_for_predecessor();
  if (borders == 0) return;

  const int chunks = plan.chunks[segment];
  const Merger<D> merger{p, find_run(p, plan, segment, start, start + chunks), shares, start,
                         static_cast<int>(threadIdx.x) % 32};
  const int first_row = static_cast<int>(blockIdx.y), step = static_cast<int>(gridDim.y);
  const int rows = (merger.run.rows - first_row + step - 1) / step;
  int span = 1;
  for (int level = 1;; ++level, span *= kFan) {
    const int node_span = span * kFan;
    for (int item = warp_index(); item < borders * rows; item += kMergeWarps) {
      const int at = first_block + 1 + item / rows, row = first_row + item % rows * step;
      const int position = merger.border(at), node_begin = position / node_span * node_span;
      // A node is folded for the first border within it.
      const bool first = at == first_block + 1 || merger.border(at - 1) <= node_begin;
      if (first && position > node_begin) merger.fold_node(node_begin, level, span, row);
    }
    if (node_span >= chunks) return;
    __syncthreads();
  }
}

}  // namespace

void merge(Stream& stream, const DecodeParams& p, int padded_dim) {
  const auto kernel = padded_dim == 64    ? merge_kernel<64>
                      : padded_dim == 128 ? merge_kernel<128>
                                          : merge_kernel<256>;
  // As many blocks as there are pairs, or (at most one cut pair begins in a share) shares.
  const int pairs = p.num_segments * p.max_pairs;
  const bool by_pair = pairs <= p.num_blocks;
  const int blocks = std::min(pairs, p.num_blocks);
  const int parts = std::clamp(p.num_blocks / blocks, 1, p.partial_rows);
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
          .block = dim3(kMergeWarps * 32),
          .shared_bytes = static_cast<size_t>(plan_bytes(p.num_segments)),
          .overlap = true},
         kernel, p, by_pair);
}

}  // namespace weft::cuda::decode
