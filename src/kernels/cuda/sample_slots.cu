// reset_counts: what a sequence's penalties count; feed_tokens: sampled tokens as ids of the next
// step; accept_drafts: how many drafts were right. Bytes: 4 V to clear counts; a few words else.
// docs/kernels/sampler_cuda.md

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

constexpr int kAcceptThreads = 128;

struct AcceptParams {
  const int32_t *cu_q, *ids, *tokens;
  const SampleSpec* specs;
  int32_t *next_ids, *counts, *last_rows;
  int segments, rows;
};

/// A warp has one segment, a lane one of its rows; the last warp has the padding.
__global__ __launch_bounds__(kAcceptThreads) void accept_kernel(
    const __grid_constant__ AcceptParams p) {
  let_successor_begin();
  wait_for_predecessor();
  const int segment = static_cast<int>((blockIdx.x * kAcceptThreads + threadIdx.x) / 32);
  const int lane = static_cast<int>(threadIdx.x % 32);
  if (segment > p.segments) return;
  const int first = p.cu_q[segment];
  if (segment == p.segments) {
    for (int row = first + lane; row < p.rows; row += 32) p.next_ids[row] = 0;
    return;
  }
  const int count = p.cu_q[segment + 1] - first, row = first + lane;
  bool right = false;
  if (lane < count) {
    int token = p.tokens[row];
    if (lane + 1 < count) {
      const int draft = p.ids[row + 1];
      const DraftCheck check = p.specs[row].draft_check;
      if (check == DraftCheck::kTake) token = draft;
      right = check != DraftCheck::kReject && token == draft;
    }
    p.next_ids[row] = token;
  }
  const int num_right = __ffs(~__ballot_sync(0xffffffffu, right)) - 1;
  if (lane > 0) return;
  p.counts[segment] = count > 0 ? num_right + 1 : 0;
  p.last_rows[segment] = count > 0 ? first + num_right : 0;
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

void accept_drafts(Stream& stream, const AcceptDraftsArgs& args) {
  const int64_t segments = args.counts.dim(0);
  const AcceptParams params{.cu_q = static_cast<const int32_t*>(args.cu_q.data),
                            .ids = static_cast<const int32_t*>(args.ids.data),
                            .tokens = args.tokens,
                            .specs = args.specs,
                            .next_ids = args.next_ids.ptr<int32_t>(),
                            .counts = args.counts.ptr<int32_t>(),
                            .last_rows = args.last_rows.ptr<int32_t>(),
                            .segments = static_cast<int>(segments),
                            .rows = static_cast<int>(args.ids.dim(0))};
  CHECK(args.cu_q.dim(0) == segments + 1 && args.last_rows.dim(0) == segments &&
            args.next_ids.dim(0) == args.ids.dim(0),
        "accept_drafts: shapes");
  const int64_t blocks = (segments + 1 + kAcceptThreads / 32 - 1) / (kAcceptThreads / 32);
  launch(stream,
         {.grid = dim3(static_cast<unsigned>(blocks)), .block = kAcceptThreads, .overlap = true},
         accept_kernel, params);
}

}  // namespace weft::cuda
