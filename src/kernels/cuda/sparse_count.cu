// What a plan of heads makes of prompts, for counters: sums of integers, in any order.
// docs/kernels/elastic.md

#include "kernels/count_args.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/head_kinds.h"

namespace weft::cuda {
namespace {

struct CountParams {
  HeadKinds kinds;
  const int32_t* counts = nullptr;  ///< [S, H, row blocks]
  const int32_t *cu_q = nullptr, *kv_start = nullptr;
  int32_t row_blocks = 0, sink_blocks = 0, window_blocks = 0;
  PlanCounters* sums = nullptr;
};

__device__ void add_to(int64_t& sum, int64_t x) {
  atomicAdd(reinterpret_cast<unsigned long long*>(&sum), static_cast<unsigned long long>(x));
}

/// A warp a (head, segment).
__global__ void __launch_bounds__(32) count_kernel(const __grid_constant__ CountParams p) {
  const int head = static_cast<int>(blockIdx.x), segment = static_cast<int>(blockIdx.y);
  const int rows = p.cu_q[segment + 1] - p.cu_q[segment];
  if (rows <= 0) return;
  const int first = p.kv_start[segment] / HeadPlan::kBlock;
  const auto kind = static_cast<HeadKind>(p.kinds.at(segment, head));
  const int64_t list = (int64_t{segment} * gridDim.x + head) * p.row_blocks;
  long long computed = 0, causal = 0;
  const int lane = static_cast<int>(threadIdx.x), n = (rows - 1) / HeadPlan::kBlock + 1;
  for (int row = lane; row < n; row += 32) {
    const int all = first + row + 1;
    int seen = all;
    if (kind == HeadKind::kStreaming) seen = min(all, p.sink_blocks + p.window_blocks);
    if (kind == HeadKind::kBlocks) seen = p.counts[list + row];
    computed += seen;
    causal += all;
  }
  for (int step = 16; step > 0; step /= 2) {
    computed += __shfl_xor_sync(0xffffffffu, computed, step);
    causal += __shfl_xor_sync(0xffffffffu, causal, step);
  }
  if (lane > 0) return;
  add_to(kind == HeadKind::kFull        ? p.sums->full_heads
         : kind == HeadKind::kStreaming ? p.sums->streaming_heads
                                        : p.sums->block_heads,
         1);
  add_to(p.sums->computed_blocks, computed);
  add_to(p.sums->causal_blocks, causal);
}

}  // namespace

void count_plan(Stream& stream, const CountArgs& args) {
  const AttnArgs& attention = *args.attention;
  const HeadPlan& plan = *args.plan;
  CountParams p;
  p.kinds = HeadKinds(plan.kinds, plan.rows);
  if (plan.counts.defined()) {
    p.counts = plan.counts.ptr<int32_t>();
    p.row_blocks = static_cast<int32_t>(plan.counts.dim(2));
  }
  p.cu_q = attention.seqs.cu_q.ptr<int32_t>();
  p.kv_start = attention.seqs.kv_start.ptr<int32_t>();
  p.sink_blocks = plan.sink_blocks;
  p.window_blocks = plan.window_blocks;
  p.sums = args.sums;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(attention.shape.q_heads),
                       static_cast<unsigned>(attention.num_prompt_segments)),
          .block = 32},
         count_kernel, p);
}

}  // namespace weft::cuda
