// moe_prompt on a GPU: the widths of Qwen3-30B-A3B (128 experts, 8 a token) and Qwen3-Next (512,
// 10), sorting, gathering and summing included. Checked against moe_decode. Share is of the sum of
// bounds: for either product the tensor cores' peak or one read of its experts, whichever takes
// longer, and one read and write of what is copied between.
// usage: moe_gpu_bench [format]

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <numeric>

#include "bench/kernels/packed.h"

namespace weft::bench {
namespace {

constexpr double kPeak =
    989.4e6;  // flops a microsecond of bf16, H100 SXM at 1830 MHz; twice in fp8

struct Shape {
  int64_t tokens, hidden, inner, experts;
  int top_k;
};

void run(Gpu& gpu, const Weight& gate_up, const Weight& down, const Shape& s) {
  std::vector<int32_t> ids;
  std::vector<float> weights;
  std::vector<int32_t> order(static_cast<size_t>(s.experts));
  std::vector<bool> used(order.size());
  for (int64_t t = 0; t < s.tokens; ++t) {
    std::iota(order.begin(), order.end(), 0);
    for (size_t j = 0; j < static_cast<size_t>(s.top_k); ++j) {
      const auto r = philox4x32(5, static_cast<uint64_t>(t), j)[0];
      std::swap(order[j], order[j + r % (order.size() - j)]);
      ids.push_back(order[j]);
      used[static_cast<size_t>(order[j])] = true;
      weights.push_back(1.0f / static_cast<float>(s.top_k));
    }
  }
  const Buffer device_ids = upload(ids);
  const Buffer device_weights = upload(weights);
  const Buffer x = random_device_bf16(gpu, s.tokens * s.hidden, 1);
  const Buffer out = Buffer::allocate(DeviceKind::kCuda, s.tokens * s.hidden * 4).value();
  const Buffer other = Buffer::allocate(DeviceKind::kCuda, s.tokens * s.hidden * 4).value();
  MoeArgs args;
  args.x = TensorView(x.data(), DType::kBF16, {s.tokens, s.hidden});
  args.ids = TensorView(device_ids.data(), DType::kI32, {s.tokens, s.top_k});
  args.weights = TensorView(device_weights.data(), DType::kF32, {s.tokens, s.top_k});
  args.gate_up = &gate_up;
  args.down = &down;
  args.out = TensorView(out.data(), DType::kF32, {s.tokens, s.hidden});
  cuda::moe_prompt(gpu.stream(), args);
  MoeArgs some = args;
  const int64_t checked = std::min<int64_t>(s.tokens, 16);
  some.x = args.x.rows(0, checked);
  some.ids = args.ids.rows(0, checked);
  some.weights = args.weights.rows(0, checked);
  some.out = TensorView(other.data(), DType::kF32, {checked, s.hidden});
  cuda::moe_decode(gpu.stream(), some);
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "moe");
  const WeightFormat format = gate_up.shape.format;
  const bool fp8 = format == WeightFormat::kFp8Block;
  Row row;
  row.kernel = "moe_prompt";
  row.shape = "T" + std::to_string(s.tokens) + " " + std::to_string(s.hidden) + "x" +
              std::to_string(s.inner) + " " + std::to_string(s.top_k) + " of " +
              std::to_string(s.experts);
  row.dtype = weight_format_name(format);
  const double error = relative_difference(out.data(), other.data(), checked * s.hidden);
  if (!(error < (fp8 ? 8e-2 : 1e-2))) {
    std::printf("WRONG: moe %s %s: relative error %g\n", row.dtype.c_str(), row.shape.c_str(),
                error);
    return;
  }
  row.us = gpu.time_us([&](int) { cuda::moe_prompt(gpu.stream(), args); }, 4);
  const auto pairs = static_cast<double>(s.tokens * s.top_k);
  const double flops = 2.0 * pairs * static_cast<double>(s.hidden * s.inner);
  const double experts = static_cast<double>(std::count(used.begin(), used.end(), true));
  const double gate_up_bytes = experts * static_cast<double>(gate_up.expert_bytes);
  const double down_bytes = experts * static_cast<double>(down.expert_bytes);
  const double bandwidth = gpu.read_bandwidth() * 1e3;  // bytes a microsecond
  const double peak = kPeak * (fp8 ? 2 : 1);
  const double copies = pairs * static_cast<double>(4 * s.hidden + 2 * s.inner) * 2;
  const double bound = std::max(2 * flops / peak, gate_up_bytes / bandwidth) +
                       std::max(flops / peak, down_bytes / bandwidth) + copies / bandwidth;
  row.tflops = 3 * flops / row.us * 1e-6;
  row.gbps = (gate_up_bytes + down_bytes) / row.us * 1e-3;
  row.share = bound / row.us;
  print(gpu, row);
}

void run_model(Gpu& gpu, WeightFormat format, Shape s) {
  Weight gate_up, down;
  gate_up.shape = {format, 2 * s.inner, s.hidden, s.experts};
  down.shape = {format, s.hidden, s.inner, s.experts};
  const Buffer gate_up_memory = pack_random(gpu, gate_up), down_memory = pack_random(gpu, down);
  for (const int64_t tokens : {32, 256, 2048, 8192}) {
    s.tokens = tokens;
    run(gpu, gate_up, down, s);
  }
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft;
  using namespace weft::bench;
  Gpu gpu(int64_t{4} << 30);
  for (const WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kFp8Block, WeightFormat::kInt8, WeightFormat::kInt4}) {
    if (argc > 1 && weight_format_name(format) != argv[1]) continue;
    run_model(gpu, format, {0, 2048, 768, 128, 8});
    run_model(gpu, format, {0, 2048, 512, 512, 10});
  }
}
