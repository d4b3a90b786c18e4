#pragma once

// What the two kernels of attention_decode share: who computes which chunk, where partials lie, and
// how two become one. Included by attention_decode.cu and attention_merge.cu.

#include <cuda_bf16.h>

#include <cstdint>

#include "kernels/args.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/math.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/kv_format.h"

namespace weft::cuda::decode {

constexpr int kKeys = 128;     // of a chunk
constexpr int kFan = 8;        // children of a node
constexpr int kMaxLevels = 8;  // 8^8 chunks

struct DecodeParams {
  const __nv_bfloat16* q;
  __nv_bfloat16* out;
  const int32_t *cu_q, *kv_start, *table;  // of the first decode segment on
  float* partials;                         // [blocks][levels][8][rows (D + 2)]
  int64_t q_row, q_head, out_row, out_head, table_row;
  int64_t total_rows;
  int num_segments, kv_heads, group, head_dim, block_size, box_rows;
  int tile_rows;     // rows of q heads that a block takes at once: 8, 16 or 32
  int max_pairs;     // of a segment, at most
  int partial_rows;  // rows of a partial; even, so that all are aligned to 16 bytes
  int levels;        // 8^levels chunks are enough for the longest context
  int num_blocks;    // of the main kernel
  float scale;       // times log2(e)
  const std::byte* cache;
  int64_t block_bytes;
  KvBlockLayout layout;
  const float *k_scale, *v_scale;  // [G][D], of static formats
  bool channels;                   // they differ within a head
};

/// Blocks of a processor: one computes while another waits for barriers, where registers (narrow
/// tiles of rows) and stages (192 KiB for all) suffice.
constexpr int blocks_per_processor(int padded_dim, int tile_rows, int code_bits) {
  if (padded_dim > 128) return 1;
  if (code_bits == 4) return tile_rows == 8 && padded_dim <= 64 ? 3 : 2;
  return tile_rows > 16 ? 1 : 2;
}
/// What the values of column `column` are multiplied by at last.
__device__ __forceinline__ float column_scale(const DecodeParams& p, int kv_head, int column) {
  return p.channels ? p.v_scale[int64_t{kv_head} * p.head_dim + column] : 1.0f;
}

__device__ __forceinline__ float minus_infinity() {
  return __int_as_float(static_cast<int>(0xFF800000));
}

// ---- Who computes what

/// Chunks of all pairs in the order (segment, group of rows, kv head, chunk), `granule` together
/// as a unit. What a pair has beyond whole units is a unit of its own, or part of the last one if
/// it is at most an eighth of one: 1,056 keys are one unit of 9 chunks.
struct Plan {
  int* halves;   // [segments] of a pair of the segment, 64 keys each
  int* starts;   // [segments + 1] first unit of the segment's pairs
  int* granule;  // [1] log2

  __device__ Plan(unsigned char* memory, int num_segments)
      : halves(reinterpret_cast<int*>(memory)),
        starts(halves + num_segments),
        granule(starts + num_segments + 1) {}
  static __device__ __forceinline__ int units_of(int halves, int granule) {
    const int unit = 2 << granule;
    return halves == 0 ? 0 : max(1, (halves + unit - 1 - unit / 8) >> (granule + 1));
  }
  /// Of a pair of the segment.
  __device__ __forceinline__ int units(int segment) const {
    return units_of(halves[segment], *granule);
  }
  __device__ __forceinline__ int chunks(int segment) const { return (halves[segment] + 1) / 2; }
};
constexpr int64_t plan_bytes(int64_t num_segments) {
  return (2 * num_segments + 2) * static_cast<int64_t>(sizeof(int));
}

/// By all threads of the block; ends with a barrier.
__device__ inline void make_plan(const DecodeParams& p, const Plan& plan) {
  for (int s = static_cast<int>(threadIdx.x); s < p.num_segments;
       s += static_cast<int>(blockDim.x)) {
    const int rows = p.cu_q[s + 1] - p.cu_q[s];
    const int keys = rows > 0 ? p.kv_start[s] + rows : 0;
    plan.starts[s] = (rows * p.group + p.tile_rows - 1) / p.tile_rows * p.kv_heads;  // pairs
    plan.halves[s] = (keys + kKeys / 2 - 1) / (kKeys / 2);
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int lane = static_cast<int>(threadIdx.x), each = (p.num_segments + 31) / 32;
    const int begin = min(lane * each, p.num_segments), end = min(begin + each, p.num_segments);
    // Units as long as they lengthen no share by more than 4%: cuts at nodes leave less to fold.
    // A share has as many units as the fullest and as many halves as units have on average.
    static_assert(kFan == 8);
    constexpr int kSizes = 5, kGranules[kSizes] = {0, 1, 2, 3, 6};
    int units[kSizes] = {}, halves[kSizes] = {};
    for (int s = begin; s < end; ++s) {
#pragma unroll
      for (int i = 0; i < kSizes; ++i) {
        const int of_pair = Plan::units_of(plan.halves[s], kGranules[i]);
        units[i] += of_pair * plan.starts[s];
        halves[i] += max(of_pair * (2 << kGranules[i]), plan.halves[s]) * plan.starts[s];
      }
    }
    int64_t longest[kSizes], shortest = INT64_MAX;
#pragma unroll
    for (int i = 0; i < kSizes; ++i) {
      const auto total = __reduce_add_sync(0xffffffffu, static_cast<unsigned>(units[i]));
      const auto all = __reduce_add_sync(0xffffffffu, static_cast<unsigned>(halves[i]));
      const auto blocks = static_cast<unsigned>(p.num_blocks);
      longest[i] = int64_t{(total + blocks - 1) / blocks} * all / max(total, 1u);
      shortest = min(shortest, longest[i]);
    }
    int granule = 0, mine = units[0];
#pragma unroll
    for (int i = 1; i < kSizes; ++i) {
      if (25 * longest[i] <= 26 * shortest) {
        granule = kGranules[i];
        mine = units[i];
      }
    }
    int before = mine;
    for (int step = 1; step < 32; step *= 2) {
      const int other = __shfl_up_sync(0xffffffffu, before, step);
      if (lane >= step) before += other;
    }
    if (lane == 31) plan.starts[p.num_segments] = before;
    if (lane == 0) *plan.granule = granule;
    before -= mine;
    for (int s = begin; s < end; ++s) {
      const int count = plan.starts[s] * Plan::units_of(plan.halves[s], granule);
      plan.starts[s] = before;
      before += count;
    }
  }
  __syncthreads();
}

/// Equal shares of all units; the first blocks have one more.
struct Shares {
  int each, more;
  float inverse_each, inverse_next;  // of each, each + 1
  __device__ Shares(int total, int num_blocks)
      : each(total / num_blocks),
        more(total - each * num_blocks),
        inverse_each(1 / static_cast<float>(each)),
        inverse_next(1 / static_cast<float>(each + 1)) {}
  __device__ __forceinline__ int begin(int block) const { return each * block + min(block, more); }
  /// The block whose share holds a unit.
  __device__ __forceinline__ int owner(int unit) const {
    const int longer = more * (each + 1);
    const bool in_longer = unit < longer;
    const int x = in_longer ? unit : unit - longer, divisor = in_longer ? each + 1 : each;
    // x / divisor is a number of blocks: its float is off by less than one.
    int quotient =
        static_cast<int>(static_cast<float>(x) * (in_longer ? inverse_next : inverse_each));
    const int rest = x - quotient * divisor;
    quotient += rest >= divisor ? 1 : (rest < 0 ? -1 : 0);
    return quotient + (in_longer ? 0 : more);
  }
};

/// Chunks begin, begin + step ... below end of one pair.
struct Run {
  int segment, kv_head, first_row;  // first_row: of the group of rows, counted in q heads
  int begin, end, chunks;
  int rows, keys;  // of the pair: q rows from first_row on (at most tile_rows); keys of the segment
  int next;        // the unit where the next run begins
  int step = 1;    // 1 but for attention_decode_few.cu
};

/// The run of the share [at, end) that begins at unit `at`; `segment` is one at or before its own.
__device__ __forceinline__ Run find_run(const DecodeParams& p, const Plan& plan, int segment,
                                        int at, int end) {
  Run run;
  while (at >= plan.starts[segment + 1]) ++segment;
  run.segment = segment;
  run.chunks = plan.chunks(segment);
  const int granule = *plan.granule, units = plan.units(segment);
  const int local = at - plan.starts[segment], pair = local / units;
  const int first = local - pair * units, last = min(units, first + end - at);
  run.begin = first << granule;
  run.end = last == units ? run.chunks : last << granule;
  run.next = at + last - first;
  run.kv_head = pair % p.kv_heads;
  run.first_row = pair / p.kv_heads * p.tile_rows;
  const int tokens = p.cu_q[segment + 1] - p.cu_q[segment];
  run.rows = min(tokens * p.group - run.first_row, p.tile_rows);
  run.keys = p.kv_start[segment] + tokens;
  return run;
}

/// The segment of a unit, by bisection.
__device__ __forceinline__ int find_segment(const DecodeParams& p, const Plan& plan, int at) {
  int low = 0, high = p.num_segments - 1;
  while (low < high) {
    const int middle = (low + high + 1) / 2;
    if (plan.starts[middle] <= at) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

/// The q row (token, head) of row `row` of the pair.
struct QRow {
  int64_t token;
  int head;
};
__device__ __forceinline__ QRow locate(const DecodeParams& p, const Run& run, int row) {
  const int at = run.first_row + row;
  return {p.cu_q[run.segment] + at / p.group, run.kv_head * p.group + at % p.group};
}

/// Floats before a partial. A run leaves, in its block's memory, at [level][child]: nodes of
/// `level` whose parents began before the run, by their number among their siblings (never 0); at
/// [level - 1][0]: the beginning of a node of `level` that goes on beyond the run. A block's share
/// holds at most two runs that leave something, the end of one pair and the beginning of another:
/// they don't meet.
__device__ __forceinline__ int64_t partial_offset(const DecodeParams& p, int padded_dim, int block,
                                                  int level, int child) {
  return ((int64_t{block} * p.levels + level) * kFan + child) * p.partial_rows * (padded_dim + 2);
}

// ---- Partials

/// How two partials of a row become one: the same instructions wherever they meet. An empty second
/// partial (a chunk that the row doesn't see) changes no bit of the first.
struct Factors {
  float a, b;
  bool keep;
};
__device__ __forceinline__ Factors fold_factors(float& top, float& sum, float other_top,
                                                float other_sum) {
  const float larger = fmaxf(top, other_top);
  Factors f;
  f.keep = other_top == minus_infinity();
  f.a = exp2_approx(top - larger);
  f.b = exp2_approx(other_top - larger);
  sum = f.keep ? sum : fmaf(sum, f.a, __fmul_rn(other_sum, f.b));
  top = f.keep ? top : larger;
  return f;
}
__device__ __forceinline__ float fold_value(float a, float b, const Factors& f) {
  return f.keep ? a : fmaf(a, f.a, __fmul_rn(b, f.b));
}
__device__ __forceinline__ float inverse(float sum) {
  return sum > 0 ? __frcp_rn(sum) : 0.0f;
}

/// Launch the main kernel and the second for a quantised cache.
void launch_int8(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim);
void launch_fp8(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim);
void launch_int4(Stream& stream, const AttnArgs& args, const DecodeParams& p, int padded_dim);
/// Launches the second kernel: the nodes of pairs that more than one block computed.
void merge(Stream& stream, const DecodeParams& params, int padded_dim);

}  // namespace weft::cuda::decode
