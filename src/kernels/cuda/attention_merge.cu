// The second kernel of attention_decode: where several blocks computed chunks of one (segment,
// rows, kv head), the nodes of the tree that lie in more than one block's share are folded, a level
// after the other and the nodes of a level beside each other (a warp a node and row). Reads and
// writes scratch memory that is still in the L2 cache; bound by latency.
// docs/kernels/attention_decode.md

#include <algorithm>

#include "kernels/cuda/attention_decode.h"

namespace weft::cuda::decode {
namespace {

constexpr int kMaxWarps = 12;     // with 64 registers they fit beside the main kernel's blocks
constexpr int kBound = 512;       // threads: gives 64 registers
constexpr int kMaxColumns = 128;  // of a warp

/// Folds the nodes of one pair, a warp a node and row.
template <int D>
struct Merger {
  static constexpr int kColumns = D < kMaxColumns ? D : kMaxColumns;
  static constexpr int kEach = kColumns / 32;  // lane l has columns l * kEach ...

  const DecodeParams& p;
  Run run;  // all chunks of the pair
  Shares shares;
  int start, granule;  // units before this pair's; chunks of a unit
  int lane;

  /// Where the share of a block begins, in chunks of this pair.
  __device__ __forceinline__ int border(int block) const {
    return (shares.begin(block) - start) * granule;
  }
  __device__ __forceinline__ int owner(int chunk) const {
    return shares.owner(start + chunk / granule);
  }

  /// Where lane c finds child c of a node of `level` that a border cuts, or -1: it isn't there, or
  /// is within the partial of child 0. `end_of_first`: of the share that holds the node's
  /// beginning.
  __device__ __forceinline__ int64_t find_child(int node_begin, int node_end, int level, int span,
                                                int end_of_first) const {
    const int begin = node_begin + lane * span, end = min(begin + span, node_end);
    if (lane >= kFan || begin >= node_end || (lane > 0 && end <= end_of_first)) return -1;
    const int first = owner(begin);
    // Child 0 is the beginning of this node, or (no child is complete) its own cut whole.
    const bool cut = end > (lane == 0 ? end_of_first : border(first + 1));
    return partial_offset(p, D, first, cut ? level - 2 : level - 1, cut ? 0 : lane);
  }

  /// Folds row `row` of the node of `level` (whose children are `span` chunks) that begins at
  /// `begin`. The root is the output; others go where their beginnings were.
  __device__ __forceinline__ void fold_node(int begin, int level, int span, int row) const {
    const int end = min(begin + span * kFan, run.chunks), first = owner(begin);
    const int end_of_first = border(first + 1);
    if (end <= end_of_first) return;  // of one block
    const int64_t mine = find_child(begin, end, level, span, end_of_first);
    const int64_t scalars = int64_t{p.partial_rows} * D + 2 * row;
    float2 of_child = {0, 0};  // top and sum of child `lane`
    if (mine >= 0) of_child = __ldcg(reinterpret_cast<const float2*>(p.partials + mine + scalars));
    const unsigned there = __ballot_sync(0xffffffffu, mine >= 0);
    float* to = p.partials + partial_offset(p, D, first, level - 1, 0);
    float top = 0, sum = 0;
#pragma unroll 1
    for (int column = lane * kEach; column < D; column += kColumns) {
      const int64_t at_o = int64_t{row} * D + column;
      float o[kFan][kEach];
#pragma unroll
      for (int c = 0; c < kFan; ++c) {
        const int64_t at = __shfl_sync(0xffffffffu, mine, c);
        if (there >> c & 1) load(o[c], p.partials + at + at_o);
      }
      top = __shfl_sync(0xffffffffu, of_child.x, 0);
      sum = __shfl_sync(0xffffffffu, of_child.y, 0);
#pragma unroll
      for (int c = 1; c < kFan; ++c) {
        const float other_top = __shfl_sync(0xffffffffu, of_child.x, c);
        const float other_sum = __shfl_sync(0xffffffffu, of_child.y, c);
        if ((there >> c & 1) == 0) continue;
        const Factors f = fold_factors(top, sum, other_top, other_sum);
#pragma unroll
        for (int i = 0; i < kEach; ++i) o[0][i] = fold_value(o[0][i], o[c][i], f);
      }
      if (begin == 0 && end == run.chunks) {
        write(o[0], inverse(sum), row, column);
        continue;
      }
#pragma unroll
      for (int i = 0; i < kEach; i += 2) {
        __stcg(reinterpret_cast<float2*>(to + at_o + i), float2{o[0][i], o[0][i + 1]});
      }
    }
    if (lane == 0) __stcg(reinterpret_cast<float2*>(to + scalars), float2{top, sum});
  }

  static __device__ __forceinline__ void load(float (&o)[kEach], const float* from) {
    if constexpr (kEach == 2) {
      const float2 pair = __ldcg(reinterpret_cast<const float2*>(from));
      o[0] = pair.x;
      o[1] = pair.y;
    } else {
      const float4 four = __ldcg(reinterpret_cast<const float4*>(from));
      o[0] = four.x;
      o[1] = four.y;
      o[2] = four.z;
      o[3] = four.w;
    }
  }
  __device__ __forceinline__ void write(const float (&o)[kEach], float scale, int row,
                                        int column) const {
    if (column >= p.head_dim) return;
    const QRow at = locate(p, run, row);
    __nv_bfloat16* to = p.out + at.token * p.out_row + at.head * p.out_head + column;
#pragma unroll
    for (int i = 0; i < kEach; i += 2) {
      *reinterpret_cast<uint32_t*>(to + i) = pack_bf16(o[i] * scale, o[i + 1] * scale);
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
    *start = plan.starts[*segment] + block % p.max_pairs * plan.units(*segment);
    return *start < plan.starts[*segment + 1];
  }
  const int begin = shares.begin(block), end = shares.begin(block + 1);
  if (begin == end) return false;
  *segment = find_segment(p, plan, end - 1);
  const int first = plan.starts[*segment], units = plan.units(*segment);
  *start = first + (end - 1 - first) / units * units;
  return *start >= begin;
}

/// Block (x, y) folds rows y, y + gridDim.y, ... of a pair.
template <int D>
__global__ __launch_bounds__(kBound, 2) void merge_kernel(const __grid_constant__ DecodeParams p,
                                                          const bool by_pair) {
  extern __shared__ __align__(1024) unsigned char memory[];
  let_successor_begin();
  const Plan plan(memory, p.num_segments);
  make_plan(p, plan);
  const Shares shares(plan.starts[p.num_segments], p.num_blocks);
  int segment = 0, start = 0, borders = 0, first_block = 0;
  if (find_pair(p, plan, shares, by_pair, &segment, &start)) {
    first_block = shares.owner(start);
    borders = shares.owner(start + plan.units(segment) - 1) - first_block;
  }
  // Every block waits, so that this kernel never ends before the first.
  wait_for_predecessor();
  if (borders == 0) return;

  const int chunks = plan.chunks[segment], warps = static_cast<int>(blockDim.x) / 32;
  const Merger<D> merger{p,
                         find_run(p, plan, segment, start, start + plan.units(segment)),
                         shares,
                         start,
                         *plan.granule,
                         static_cast<int>(threadIdx.x) % 32};
  const int first_row = static_cast<int>(blockIdx.y), step = static_cast<int>(gridDim.y);
  const int rows = (merger.run.rows - first_row + step - 1) / step;
  int span = 1;
  for (int level = 1;; ++level, span *= kFan) {
    const int node_span = span * kFan, nodes = (chunks + node_span - 1) / node_span;
    for (int item = warp_index(); item < min(nodes, borders) * rows; item += warps) {
      const int at = item / rows, row = first_row + item % rows * step;
      if (nodes <= borders) {
        merger.fold_node(at * node_span, level, span, row);
      } else {
        // A node is folded for the first border within it.
        const int border = first_block + 1 + at, position = merger.border(border);
        const int begin = position / node_span * node_span;
        if (position > begin && (at == 0 || merger.border(border - 1) <= begin)) {
          merger.fold_node(begin, level, span, row);
        }
      }
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
  const int parts = std::clamp(p.num_blocks / 2 / blocks, 1, p.partial_rows);
  const int warps = blocks * parts * 2 <= p.num_blocks ? kMaxWarps : 4;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(parts)),
          .block = dim3(static_cast<unsigned>(warps * 32)),
          .shared_bytes = static_cast<size_t>(plan_bytes(p.num_segments)),
          .overlap = true},
         kernel, p, by_pair);
}

}  // namespace weft::cuda::decode
