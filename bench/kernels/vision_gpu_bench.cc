// The vision tower of Qwen3-VL-8B (bench/gpu/qwen3-vl-8b, dummy weights) on a GPU, whole: images of
// 1024 x 1024 and smaller ones, alone and together. Share is of what a product of 8192^3 reaches
// in the same run, with the flops of all products and of attention. usage: vision_gpu_bench
// [directory of the configuration, bench/gpu/qwen3-vl-8b]

#include <cstdio>
#include <numeric>

#include "bench/kernels/gpu.h"
#include "checkpoint/config_json.h"
#include "device/gpu.h"
#include "kernels/cuda/cuda_ops.h"
#include "models/model.h"
#include "nn/vision_plan.h"
#include "nn/vision_tower.h"

namespace weft::bench {
namespace {

constexpr int64_t kMaxPatches = 16384;

/// Multiply-adds count 2. Frames see each other not at all.
double flops_of(const VisionSpec& spec, std::span<const VisionGrid> grids) {
  const double width = static_cast<double>(spec.hidden), inner = static_cast<double>(spec.inner);
  const double merged = width * static_cast<double>(spec.merge_patches());
  double flops = 0;
  for (const VisionGrid& grid : grids) {
    const auto patches = static_cast<double>(grid.patches()), frame = patches / grid.t;
    const double block = 4 * width * width + 2 * width * inner + 2 * width * frame;
    const double mergers = (1 + static_cast<double>(spec.deepstack.size())) *
                           (merged * merged + merged * static_cast<double>(spec.out_hidden));
    flops += 2 * patches *
             (spec.depth * block + width * static_cast<double>(spec.patch_values()) +
              mergers / static_cast<double>(spec.merge_patches()));
  }
  return flops;
}

/// TFLOP/s of a bf16 product of 8192^3.
double product_rate(Gpu& gpu) {
  constexpr int64_t kSide = 8192;
  const Buffer x = random_device_bf16(gpu, kSide * kSide, 1),
               w = random_device_bf16(gpu, kSide * kSide, 2);
  const Buffer out = Buffer::allocate(DeviceKind::kCuda, kSide * kSide * 2).value();
  Weight weight;
  weight.shape = {WeightFormat::kBf16, kSide, kSide, 1};
  weight.data = w.data();
  LinearArgs args;
  args.x = TensorView(x.data(), DType::kBF16, {kSide, kSide});
  args.weight = &weight;
  args.out = TensorView(out.data(), DType::kBF16, {kSide, kSide});
  const double us = gpu.time_us([&](int) { cuda::linear_prompt(gpu.stream(), args); }, 4);
  return 2.0 * kSide * kSide * kSide / us * 1e-6;
}

/// Device memory with these values.
template <class T>
TensorView upload(Gpu& gpu, Arena& arena, const std::vector<T>& values, DType dtype,
                  std::initializer_list<int64_t> dims) {
  if (values.empty()) return {};
  const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
  TensorView out(arena.take(bytes), dtype, dims);
  copy_bytes(gpu.stream(), out.data, values.data(), bytes);
  synchronize(gpu.stream());
  return out;
}

void run(Gpu& gpu, const VisionTower& tower, const std::vector<VisionGrid>& grids, double rate) {
  const OpTable& ops = *cuda_ops();
  VisionPlan plan;
  plan_vision(tower.spec(), grids, plan);
  const int64_t n = plan.num_patches(), width = tower.spec().patch_values();
  const Buffer patches = random_device_bf16(gpu, n * width, 3);
  Arena inputs(Buffer::allocate(DeviceKind::kCuda, n * 64 + 4096).value());
  VisionBatch batch;
  batch.patches = TensorView(patches.data(), DType::kBF16, {n, width});
  batch.positions = upload(gpu, inputs, plan.positions, DType::kI32, {n, 2});
  batch.grid_ids = upload(gpu, inputs, plan.grid_ids, DType::kI32, {n, 4});
  batch.grid_weights = upload(gpu, inputs, plan.grid_weights, DType::kF32, {n, 4});
  batch.frames = upload(gpu, inputs, plan.frames, DType::kI32, {std::ssize(plan.frames)});
  batch.windows = upload(gpu, inputs, plan.windows, DType::kI32, {std::ssize(plan.windows)});
  batch.order = upload(gpu, inputs, plan.order, DType::kI32, {std::ssize(plan.order)});
  batch.host_frames = plan.frames.data();
  batch.host_windows = plan.windows.data();
  Arena work(Buffer::allocate(DeviceKind::kCuda, tower.arena_bytes(ops, n)).value());
  const int64_t tokens = n / tower.spec().merge_patches(), features = tower.spec().feature_width();
  const Buffer out = Buffer::allocate(DeviceKind::kCuda, tokens * features * 2).value();
  const TensorView view(out.data(), DType::kBF16, {tokens, features});
  VisionContext context{gpu.stream(), ops, work};

  Row row;
  row.kernel = "vision_tower";
  row.shape = std::to_string(grids.size()) + " of " +
              std::to_string(grids[0].w * tower.spec().patch_size) + "x" +
              std::to_string(grids[0].h * tower.spec().patch_size);
  row.dtype = "bf16";
  row.us = gpu.time_us([&](int) { tower.forward(context, batch, view); }, 2, 9);
  row.tflops = flops_of(tower.spec(), grids) / row.us * 1e-6;
  row.share = row.tflops / rate;
  print(gpu, row);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft;
  using namespace weft::bench;
  const auto config = load_config(argc > 1 ? argv[1] : "bench/gpu/qwen3-vl-8b");
  if (!config.ok()) {
    std::fprintf(stderr, "%s\n", config.error().message.c_str());
    return 1;
  }
  Gpu gpu;
  const OpTable& ops = *cuda_ops();
  VisionTower tower(*parse_model(config->config).value().vision);
  WeightPlan plan(&ops, nullptr);
  tower.declare(plan, WeightFormat::kBf16, "model.visual.");
  const Buffer weights = plan.load(gpu.stream(), true, {}).value();
  CHECK(tower.prepare(gpu.stream(), ops, kMaxPatches).ok());
  const double rate = product_rate(gpu);
  std::printf("a product of 8192^3: %.0f TFLOP/s\n", rate);
  const VisionGrid large{1, 64, 64}, small{1, 28, 28};
  run(gpu, tower, {large}, rate);
  run(gpu, tower, {large, large, large, large}, rate);
  run(gpu, tower, {small}, rate);
  run(gpu, tower, std::vector<VisionGrid>(16, small), rate);
}
