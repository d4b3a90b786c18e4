// Elastic-Attention's router and XAttention's selection (32/8 heads of 128, every head of kind
// kBlocks), the latter beside our dense attention of the same prompt: ratio = dense / selection.
//   attention_select_gpu_bench [--quick]

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr int kHeads = 32, kKvHeads = 8, kDim = 128, kPage = 64;

void select(Gpu& gpu, int tokens, int stride, double dense_us) {
  const int64_t width = int64_t{kHeads} * kDim;
  const KvShape kv{KvFormat::kBf16, kKvHeads, kDim, kPage};
  const int64_t pages = tokens / kPage, block_bytes = cuda::kv_block_bytes(kv);
  const Buffer q = random_device_bf16(gpu, tokens * width, 1);
  const Buffer cache = random_device_bf16(gpu, pages * block_bytes / 2, 2);
  std::vector<int32_t> table(static_cast<size_t>(pages));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  const int64_t rows = tokens / HeadPlan::kBlock, words = rows / 32;
  const Buffer table_on_gpu = upload(table);
  const Buffer kinds =
      upload(std::vector<int32_t>(kHeads, static_cast<int32_t>(HeadKind::kBlocks)));
  const Buffer thresholds = upload(std::vector<float>(kHeads, 0.9f));
  const Buffer blocks = upload(std::vector<int32_t>(static_cast<size_t>(kHeads * rows * words)));
  const Buffer counts = upload(std::vector<int32_t>(static_cast<size_t>(kHeads * rows)));
  HeadPlan plan;
  plan.kinds = TensorView(kinds.data(), DType::kI32, {1, kHeads});
  plan.blocks = TensorView(blocks.data(), DType::kI32, {1, kHeads, rows, words});
  plan.counts = TensorView(counts.data(), DType::kI32, {1, kHeads, rows});
  const std::vector<int32_t> cu_q = {0, tokens}, starts = {0};
  AttnArgs args;
  args.shape = {kHeads, kKvHeads, kDim, 1.0f / std::sqrt(static_cast<float>(kDim))};
  args.q = TensorView(q.data(), DType::kBF16, {tokens, kHeads, kDim});
  args.kv = {kv, cache.data(), block_bytes, pages};
  args.seqs.block_table = TensorView(table_on_gpu.data(), DType::kI32, {1, pages});
  args.seqs.num_segments = args.num_prompt_segments = 1;
  args.seqs.host_cu_q = cu_q.data();
  args.seqs.host_kv_start = starts.data();
  args.prompt_rows = tokens;
  if (dense_us == 0) {
    const Buffer out = random_device_bf16(gpu, tokens * width, 4);
    args.out = TensorView(out.data(), DType::kBF16, {tokens, kHeads, kDim});
    dense_us = gpu.time_us([&](int) { cuda::attention_prompt(gpu.stream(), args); }, 1, 3);
  }
  args.heads = &plan;
  const SelectArgs selection{&args, stride, 1,
                             TensorView(thresholds.data(), DType::kF32, {kHeads})};
  const int calls = tokens > 65536 ? 2 : 5;
  Row row;
  row.kernel = "attention_select";
  row.shape = "D128 H32/8 T" + std::to_string(tokens) + " stride " + std::to_string(stride);
  row.dtype = "bf16";
  row.us = gpu.time_us([&](int) { cuda::select_blocks(gpu.stream(), selection); }, calls, 5);
  row.tflops = 2.0 * kHeads * kDim / stride * (0.5 * tokens * tokens) / row.us * 1e-6;
  row.peer = "dense";
  row.peer_us = dense_us;
  print(gpu, row);
}

void route(Gpu& gpu, int segments) {
  constexpr int kRows = 300;
  const int sizes[5][2] = {
      {4 * kDim, kDim}, {kDim, 4 * kDim}, {4 * kDim, kDim}, {kDim, 4 * kDim}, {2, kDim}};
  constexpr int kLayers = 36;  // each with weights of its own, as in a model
  std::vector<Buffer> owned;
  std::vector<RouterArgs> layers(kLayers);
  const Buffer k = random_device_bf16(gpu, int64_t{segments} * kRows * kKvHeads * kDim, 5);
  const Buffer norm = upload(std::vector<float>(kDim, 1.0f));
  std::vector<int32_t> cu_q;
  for (int s = 0; s <= segments; ++s) cu_q.push_back(s * kRows);
  const Buffer cu_q_on_gpu = upload(cu_q);
  const Buffer logits = upload(std::vector<float>(static_cast<size_t>(segments * kKvHeads * 2)));
  const Buffer kinds = upload(std::vector<int32_t>(static_cast<size_t>(segments * kHeads)));
  for (RouterArgs& args : layers) {
    args.k = TensorView(k.data(), DType::kBF16, {segments * kRows, kKvHeads, kDim});
    args.k_norm = TensorView(norm.data(), DType::kF32, {kDim});
    args.cu_q = TensorView(cu_q_on_gpu.data(), DType::kI32, {segments + 1});
    args.num_segments = segments;
    args.logits = TensorView(logits.data(), DType::kF32, {segments, kKvHeads, 2});
    args.kinds = TensorView(kinds.data(), DType::kI32, {segments, kHeads});
    for (int i = 0; i < 5; ++i) {
      const int64_t n = sizes[i][0], columns = sizes[i][1];
      owned.push_back(random_device_bf16(gpu, n * columns, owned.size() + 7));
      const TensorView weight(owned.back().data(), DType::kBF16, {n, columns});
      owned.push_back(upload(std::vector<float>(static_cast<size_t>(n), 0.1f)));
      const TensorView bias(owned.back().data(), DType::kF32, {n});
      (i < 2 ? args.weights.feature[i] : args.weights.router[i - 2]) = weight;
      (i < 2 ? args.weights.feature_bias[i] : args.weights.router_bias[i - 2]) = bias;
    }
  }
  Row row;
  row.kernel = "attention_router";
  row.shape = "D128 H32/8 x" + std::to_string(segments);
  row.dtype = "bf16";
  row.us = gpu.time_us(
      [&](int i) { cuda::route_heads(gpu.stream(), layers[static_cast<size_t>(i % kLayers)]); },
      kLayers);
  print(gpu, row);
}

int run(bool quick) {
  Gpu gpu;
  route(gpu, 1);
  route(gpu, 8);
  for (const int tokens : {16384, 65536, 131072}) {
    if (quick && tokens == 65536) continue;
    select(gpu, tokens, 16, 0);
    if (!quick) select(gpu, tokens, 8, 0);
  }
  return 0;
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  return weft::bench::run(argc > 1 && std::strcmp(argv[1], "--quick") == 0);
}
