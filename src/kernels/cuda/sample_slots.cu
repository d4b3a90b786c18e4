// reset_counts: what a sequence's penalties count; feed_tokens: sampled tokens as ids of the next
// step. Bytes: 4 V to clear counts; a few words else. docs/kernels/sampler_cuda.md

#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/common/ptx.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::cuda {
namespace {

__global__ void count_kernel(uint32_t* counts, const int32_t* prompt, int64_t num_prompt,
                             const int32_t* generated, int64_t num_generated) {
  const int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (i < num_prompt) {
    atomicOr(counts + prompt[i], kCountedInPrompt);
  } else if (i < num_prompt + num_generated) {
    atomicAdd(counts + generated[i - num_prompt], 1);
  }
}

__global__ void feed_kernel(const int32_t* feed, const int32_t* last_token, int32_t* ids,
                            int rows) {
  let_successor_begin();
  wait_for_predecessor();
  const int t = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (t >= rows || feed[t] < 0) return;
  ids[t] = last_token[feed[t]];
}

}  // namespace

void reset_counts(Stream& stream, const ResetCountsArgs& args) {
  uint32_t* counts = static_cast<uint32_t*>(args.counts.data) + args.slot * args.counts.stride[0];
  const auto bytes = static_cast<size_t>(args.counts.dim(1)) * sizeof(uint32_t);
  if (!args.keep) check(cudaMemsetAsync(counts, 0, bytes, native(stream)), "counts");
  const int64_t prompt = args.prompt.defined() ? args.prompt.dim(0) : 0;
  const int64_t generated = args.generated.defined() ? args.generated.dim(0) : 0;
  if (prompt + generated == 0) return;
  launch(stream,
         {.grid = dim3(static_cast<unsigned>((prompt + generated + 255) / 256)), .block = 256},
         count_kernel, counts, static_cast<const int32_t*>(args.prompt.data), prompt,
         static_cast<const int32_t*>(args.generated.data), generated);
}

void feed_tokens(Stream& stream, const FeedTokensArgs& args) {
  const int64_t rows = args.ids.dim(0);
  if (rows == 0) return;
  const LaunchShape shape{
      .grid = dim3(static_cast<unsigned>((rows + 255) / 256)), .block = 256, .overlap = true};
  launch(stream, shape, feed_kernel, static_cast<const int32_t*>(args.feed.data),
         static_cast<const int32_t*>(args.last_token.data), args.ids.ptr<int32_t>(),
         static_cast<int>(rows));
}

}  // namespace weft::cuda
