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
  int start, units;  // before this pair's; of this pair
  int granule;       // log2 of the chunks of a unit
  int lane;

  /// One row of a node that several blocks computed.
  struct Node {
    unsigned there = 0;  // children; none: nothing is to be done
    int from = 0;  // floats before the partial of child `lane` (of child 0, if it isn't there)
    int to = 0;    // and where the node goes, unless it is the root
    int row = 0;
    __nv_bfloat16* out = nullptr;  // of the root
  };

  /// Where the share of a block begins, in chunks of this pair (all of them: beyond the pair).
  __device__ __forceinline__ int border(int block) const {
    const int unit = shares.begin(block) - start;
    return unit < units ? unit << granule : run.chunks;
  }
  __device__ __forceinline__ int owner(int chunk) const {
    return shares.owner(start + min(chunk >> granule, units - 1));
  }
  __device__ __forceinline__ int partial(int block, int level, int child) const {
    return ((block * p.levels + level) * kFan + child) * (p.partial_rows * (D + 2));
  }

  /// Row `row` of the node of `level` that begins at `begin`. Its children: the partial of its
  /// beginning (in which some children may be complete) or its first child, itself folded before;
  /// then children of one block and children folded before.
  __device__ __forceinline__ Node find_node(int begin, int level, int row) const {
    const int span = 1 << 3 * (level - 1), end = min(begin + span * kFan, run.chunks);
    const int first = owner(begin), end_of_first = border(first + 1);
    Node node;
    if (end <= end_of_first) return node;
    const int child = min(begin + lane * span, end - 1), child_end = min(child + span, end);
    const bool there =
        lane == 0 || (lane < kFan && begin + lane * span < end && child_end > end_of_first);
    const int child_first = owner(child);
    const bool cut = child_end > border(child_first + 1);
    node.there = __ballot_sync(0xffffffffu, there);
    node.from = partial(child_first, cut ? level - 2 : level - 1, cut ? 0 : lane);
    const int from_first = __shfl_sync(0xffffffffu, node.from, 0);
    if (!there) node.from = from_first;
    node.to = partial(first, level - 1, 0);
    node.row = row;
    if (begin == 0 && end == run.chunks) {
      const QRow at = locate(p, run, row);
      node.out = p.out + at.token * p.out_row + at.head * p.out_head;
    }
    return node;
  }

  __device__ __forceinline__ void fold(const Node& node) const {
    if (node.there == 0) return;
    const int scalars = p.partial_rows * D + 2 * node.row;
    float2 of_child = __ldcg(reinterpret_cast<const float2*>(p.partials + node.from + scalars));
    // A child that isn't there is an empty partial, which changes nothing.
    if ((node.there >> lane & 1) == 0) of_child = {minus_infinity(), 0};
    float top = 0, sum = 0;
#pragma unroll 1
    for (int column = lane * kEach; column < D; column += kColumns) {
      const int at = node.row * D + column;
      float o[kFan][kEach];
#pragma unroll
      for (int c = 0; c < kFan; ++c) {
        load(o[c], p.partials + __shfl_sync(0xffffffffu, node.from, c) + at);
      }
      top = __shfl_sync(0xffffffffu, of_child.x, 0);
      sum = __shfl_sync(0xffffffffu, of_child.y, 0);
#pragma unroll
      for (int c = 1; c < kFan; ++c) {
        const Factors f = fold_factors(top, sum, __shfl_sync(0xffffffffu, of_child.x, c),
                                       __shfl_sync(0xffffffffu, of_child.y, c));
#pragma unroll
        for (int i = 0; i < kEach; ++i) o[0][i] = fold_value(o[0][i], o[c][i], f);
      }
      if (node.out != nullptr) {
        write(o[0], inverse(sum), node.out, column);
      } else {
#pragma unroll
        for (int i = 0; i < kEach; i += 2) {
          __stcg(reinterpret_cast<float2*>(p.partials + node.to + at + i),
                 float2{o[0][i], o[0][i + 1]});
        }
      }
    }
    if (lane == 0 && node.out == nullptr) {
      __stcg(reinterpret_cast<float2*>(p.partials + node.to + scalars), float2{top, sum});
    }
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

  __device__ __forceinline__ void write(const float (&o)[kEach], float scale, __nv_bfloat16* to,
                                        int column) const {
    if (column >= p.head_dim) return;
#pragma unroll
    for (int i = 0; i < kEach; i += 2) {
      float x = o[i] * scale, y = o[i + 1] * scale;
      if (p.channels) {
        x *= column_scale(p, run.kv_head, column + i);
        y *= column_scale(p, run.kv_head, column + i + 1);
      }
      *reinterpret_cast<uint32_t*>(to + column + i) = pack_bf16(x, y);
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
  if (borders == 0) {
    // Every block waits, so that this kernel never ends before the first.
    wait_for_predecessor();
    return;
  }
  const int chunks = plan.chunks(segment), warps = static_cast<int>(blockDim.x) / 32;
  const Merger<D> merger{p,
                         find_run(p, plan, segment, start, start + plan.units(segment)),
                         shares,
                         start,
                         plan.units(segment),
                         *plan.granule,
                         static_cast<int>(threadIdx.x) % 32};
  const int first_row = static_cast<int>(blockIdx.y), step = static_cast<int>(gridDim.y);
  const int rows = (merger.run.rows - first_row + step - 1) / step;
  // The item'th (node, row) of a level. Nodes beside each other, or one a border, if those are
  // fewer: a node then belongs to the first border within it.
  const auto find_item = [&](int level, int item) {
    const int shift = 3 * level, nodes = (chunks + (1 << shift) - 1) >> shift;
    if (item >= min(nodes, borders) * rows) return typename Merger<D>::Node{};
    const int at = rows == 1 ? item : item / rows;
    const int row = first_row + (item - at * rows) * step;
    if (nodes <= borders) return merger.find_node(at << shift, level, row);
    const int border = first_block + 1 + at, position = merger.border(border);
    const int begin = position >> shift << shift;
    if (position == begin || (at > 0 && merger.border(border - 1) > begin)) {
      return typename Merger<D>::Node{};
    }
    return merger.find_node(begin, level, row);
  };
  // Units are whole nodes of the levels below.
  const int first_level = merger.granule / 3 + 1;
  auto node = find_item(first_level, warp_index());
  wait_for_predecessor();
  for (int level = first_level;; ++level) {
    const int items = min((chunks + (1 << 3 * level) - 1) >> 3 * level, borders) * rows;
    for (int item = warp_index(); item < items; item += warps) {
      if (item >= warps || level > first_level) node = find_item(level, item);
      merger.fold(node);
    }
    if (chunks <= 1 << 3 * level) return;
    __syncthreads();
  }
}

}  // namespace

void merge(Stream& stream, const DecodeParams& p, int padded_dim) {
  const auto kernel = padded_dim == 64    ? merge_kernel<64>
                      : padded_dim == 128 ? merge_kernel<128>
                                          : merge_kernel<256>;
  CHECK(int64_t{p.num_blocks} * p.levels * kFan * p.partial_rows * (padded_dim + 2) < INT32_MAX,
        "attention_decode: partials");
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
