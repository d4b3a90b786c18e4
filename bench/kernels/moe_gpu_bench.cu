// moe_prompt on a GPU: the widths of Qwen3-30B-A3B (128 experts, 8 a token), sorting, gathering and
// summing included. Share is of the tensor cores' peak or of reading the experts once, whichever
// bounds.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>

#include "base/philox.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/common/launch.h"
#include "kernels/cuda/cuda_ops.h"

namespace weft::bench {
namespace {

constexpr double kPeak = 989.4;  // TFLOP/s of bf16, H100 SXM at 1830 MHz

struct Shape {
  int64_t tokens, hidden, inner, experts;
  int top_k;
};

Buffer upload(const void* data, int64_t bytes) {
  Buffer buffer = Buffer::allocate(DeviceKind::kCuda, bytes).value();
  cuda::check(cudaMemcpy(buffer.data(), data, static_cast<size_t>(bytes), cudaMemcpyHostToDevice),
              "upload");
  return buffer;
}

void run(Gpu& gpu, const Shape& s) {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::vector<int32_t> order(static_cast<size_t>(s.experts));
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::iota(order.begin(), order.end(), 0);
    for (size_t j = 0; j < static_cast<size_t>(s.top_k); ++j) {
      const auto r = philox4x32(5, static_cast<uint64_t>(t), j)[0];
      std::swap(order[j], order[j + r % (order.size() - j)]);
      ids.push_back(order[j]);
      weights.push_back(1.0f / static_cast<float>(s.top_k));
    }
  }
  const Buffer device_ids = upload(ids.data(), static_cast<int64_t>(ids.size()) * 4);
  const Buffer device_weights = upload(weights.data(), static_cast<int64_t>(ids.size()) * 4);
  const Buffer x = random_device_bf16(gpu, s.tokens * s.hidden, 1);
  const Buffer gate_up_data = random_device_bf16(gpu, s.experts * 2 * s.inner * s.hidden, 2);
  const Buffer down_data = random_device_bf16(gpu, s.experts * s.inner * s.hidden, 3);
  const Buffer out = Buffer::allocate(DeviceKind::kCuda, s.tokens * s.hidden * 4).value();
  Weight gate_up, down;
  gate_up.shape = {WeightFormat::kBf16, 2 * s.inner, s.hidden, s.experts};
  gate_up.data = gate_up_data.data();
  gate_up.expert_bytes = 2 * s.inner * s.hidden * 2;
  down.shape = {WeightFormat::kBf16, s.hidden, s.inner, s.experts};
  down.data = down_data.data();
  down.expert_bytes = s.inner * s.hidden * 2;
  MoeArgs args;
  args.x = TensorView(x.data(), DType::kBF16, {s.tokens, s.hidden});
  args.ids = TensorView(device_ids.data(), DType::kI32, {s.tokens, s.top_k});
  args.weights = TensorView(device_weights.data(), DType::kF32, {s.tokens, s.top_k});
  args.gate_up = &gate_up;
  args.down = &down;
  args.out = TensorView(out.data(), DType::kF32, {s.tokens, s.hidden});
  Row row;
  row.kernel = "moe_prompt";
  row.shape = "T" + std::to_string(s.tokens) + " " + std::to_string(s.hidden) + "x" +
              std::to_string(s.inner) + " " + std::to_string(s.top_k) + " of " +
              std::to_string(s.experts);
  row.dtype = "bf16";
  row.us = gpu.time_us([&](int) { cuda::moe_prompt(gpu.stream(), args); }, 4);
  const double flops =
      6.0 * static_cast<double>(s.tokens * s.top_k) * static_cast<double>(s.hidden * s.inner);
  row.tflops = flops / row.us * 1e-6;
  const double bytes = 6.0 * static_cast<double>(std::min(s.experts, s.tokens * s.top_k)) *
                       static_cast<double>(s.hidden * s.inner);
  row.gbps = bytes / row.us * 1e-3;
  row.share = std::max(row.tflops / kPeak, row.gbps / gpu.read_bandwidth());
  print(gpu, row);
}

}  // namespace
}  // namespace weft::bench

int main() {
  using namespace weft::bench;
  Gpu gpu(int64_t{2} << 30);
  for (const int64_t tokens : {32, 128, 512, 2048, 8192}) run(gpu, {tokens, 2048, 768, 128, 8});
}
