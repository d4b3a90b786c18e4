// sample, where all rows are plainly greedy: token = the first greatest logit. A cluster of eight
// blocks of 512 threads has one row; nothing is kept, so four blocks share an SM and 64 rows are
// one wave. Bytes: 4 V a row; bound by memory. docs/kernels/sampler_cuda.md

#include "kernels/cuda/best_of_parts.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/sample_device.h"

namespace weft::cuda {
namespace {

/// The first of the ranking among this thread's ids of [begin, begin + count).
__device__ Best best_of_thread(const float* row, int begin, int count, bool aligned) {
  constexpr int kTurns = 3;  // loads in flight
  constexpr int kStep = kThreads * 4;
  Best best;
  for (int base = static_cast<int>(threadIdx.x) * 4; base < count; base += kStep * kTurns) {
    float4 v[kTurns];
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int at = base + i * kStep;
      v[i] = load_logits(row, at, count, aligned);
    }
#pragma unroll
    for (int i = 0; i < kTurns; ++i) {
      const int id = begin + base + i * kStep;
      best.take(v[i].x, id);
      best.take(v[i].y, id + 1);
      best.take(v[i].z, id + 2);
      best.take(v[i].w, id + 3);
    }
  }
  return best;
}

__global__ __launch_bounds__(kThreads,
                             4) void greedy_kernel(const __grid_constant__ SampleParams params) {
  __shared__ uint64_t of_warps[kWarps];
  __shared__ uint64_t of_blocks[kBlocks];  // in the first block
  let_successor_begin();
  cluster_arrive();
  wait_for_predecessor();
  const int64_t row = blockIdx.x / kBlocks;
  const int rank = static_cast<int>(cluster_rank()), begin = rank * params.block_ids;
  const int thread = static_cast<int>(threadIdx.x);
  const int slot = params.specs[row].slot;
  uint64_t best = 0;
  if (slot >= 0) {
    best = warp_max(best_of_thread(params.logits + row * params.logits_stride + begin, begin,
                                   min(params.block_ids, params.vocabulary - begin),
                                   params.aligned != 0)
                        .key());
  }
  if (thread % 32 == 0) of_warps[thread / 32] = best;
  __syncthreads();
  cluster_wait();  // all eight have begun
  if (thread < 32) {
    best = warp_max(of_warps[thread % kWarps]);
    if (thread == 0) store_remote(in_block(of_blocks + rank, 0), best);
  }
  cluster_sync();
  if (rank != 0 || thread >= 32 || slot < 0) return;
  best = warp_max(of_blocks[thread % kBlocks]);
  if (thread == 0) put_best(params, row, slot, best);
}

/// A warp has one row, whose best is known of each part of the vocabulary.
__global__ __launch_bounds__(32) void parts_kernel(const __grid_constant__ SampleParams params,
                                                   const BestOfParts known) {
  let_successor_begin();
  wait_for_predecessor();
  const int64_t row = blockIdx.x;
  const int slot = params.specs[row].slot;
  if (slot < 0) return;
  uint64_t best = 0;
#pragma unroll 8
  for (int part = static_cast<int>(threadIdx.x); part < known.parts; part += 32) {
    best = max(best, known.keys[part * known.stride + row]);
  }
  best = warp_max(best);
  if (threadIdx.x == 0) put_best(params, row, slot, best);
}

}  // namespace

void sample_greedy(Stream& stream, const SampleParams& params, int64_t rows) {
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(rows * kBlocks)),
          .block = dim3(kThreads),
          .cluster = kBlocks,
          .overlap = true},
         greedy_kernel, params);
}

void sample_parts(Stream& stream, const SampleArgs& args, const BestOfParts& best) {
  const SampleParams params{.specs = args.specs,
                            .last_token = args.last_token.ptr<int32_t>(),
                            .tokens = args.tokens,
                            .results = args.results};
  launch(
      stream,
      {.grid = dim3(static_cast<unsigned>(args.logits.dim(0))), .block = dim3(32), .overlap = true},
      parts_kernel, params, best);
}

}  // namespace weft::cuda
