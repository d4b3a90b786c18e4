// Prompt GEMMs on a GPU beside cuBLASLt: squares, and the shapes of Qwen3-8B.
// usage: gemm_gpu_bench [substring of a shape [bf16 | fp8]]

#include <cmath>
#include <cstdio>
#include <cstring>

#include "bench/kernels/cublaslt.h"
#include "bench/kernels/gpu.h"
#include "kernels/cuda/cuda_ops.h"
#include "kernels/cuda/gemm.h"

namespace weft::bench {
namespace {

constexpr double kPeak = 989.4;  // TFLOP/s of bf16, H100 SXM at 1830 MHz

std::vector<float> rows_of(const void* device, int64_t row, int64_t columns) {
  std::vector<uint16_t> raw(static_cast<size_t>(columns));
  cuda::check(cudaMemcpy(raw.data(), static_cast<const uint16_t*>(device) + row * columns,
                         raw.size() * 2, cudaMemcpyDeviceToHost),
              "download");
  std::vector<float> out(raw.size());
  for (size_t i = 0; i < raw.size(); ++i) {
    const uint32_t bits = uint32_t{raw[i]} << 16;
    std::memcpy(&out[i], &bits, 4);
  }
  return out;
}

struct Shape {
  int64_t m, n, k;
  bool silu_mul = false;
};

void run(Gpu& gpu, CublasLt& cublas, const Shape& s) {
  const int64_t bytes = (s.m * s.k + s.n * s.k + s.m * s.n) * 2;
  const int sets = static_cast<int>(std::min<int64_t>(8, 1 + (int64_t{120} << 20) / bytes));
  std::vector<Buffer> x, w, out;
  for (int i = 0; i < sets; ++i) {
    x.push_back(random_device_bf16(gpu, s.m * s.k, 3 * static_cast<uint64_t>(i) + 1));
    w.push_back(random_device_bf16(gpu, s.n * s.k, 3 * static_cast<uint64_t>(i) + 2));
    out.push_back(random_device_bf16(gpu, s.m * s.n, 3 * static_cast<uint64_t>(i) + 3));
  }
  const int64_t columns = s.silu_mul ? s.n / 2 : s.n;
  const auto ours = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    Weight weight;
    weight.shape = {WeightFormat::kBf16, s.n, s.k, 1};
    weight.data = w[i].data();
    LinearArgs args;
    args.x = TensorView(x[i].data(), DType::kBF16, {s.m, s.k});
    args.weight = &weight;
    args.out = TensorView(out[i].data(), DType::kBF16, {s.m, columns});
    args.epilogue = s.silu_mul ? Epilogue::kSiluMul : Epilogue::kStore;
    cuda::linear_prompt(gpu.stream(), args);
  };
  ours(0);
  cuda::check(cudaStreamSynchronize(cuda::native(gpu.stream())), "gemm");
  double error = 0, norm = 0;
  for (const int64_t row : {int64_t{0}, s.m / 2 + 1, s.m - 1}) {
    if (row >= s.m) continue;
    const std::vector<float> xr = rows_of(x[0].data(), row, s.k);
    const std::vector<float> got = rows_of(out[0].data(), row, columns);
    for (int64_t n = row % 5; n < columns; n += 97) {
      const auto dot = [&](int64_t at) {
        const std::vector<float> wr = rows_of(w[0].data(), at, s.k);
        double sum = 0;
        for (size_t k = 0; k < wr.size(); ++k) sum += double{xr[k]} * wr[k];
        return sum;
      };
      double expected = dot(n);
      if (s.silu_mul) expected = expected / (1 + std::exp(-expected)) * dot(n + columns);
      error += (got[static_cast<size_t>(n)] - expected) * (got[static_cast<size_t>(n)] - expected);
      norm += expected * expected;
    }
  }
  if (!(std::sqrt(error / norm) < 3e-3)) {
    std::printf("WRONG: %ld x %ld x %ld: relative error %g\n", s.m, s.n, s.k,
                std::sqrt(error / norm));
    return;
  }
  const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
  const int calls = static_cast<int>(std::max(4.0, std::min(40.0, 4e12 / flops)));
  Row row;
  row.kernel = s.silu_mul ? "gemm_silu_mul" : "gemm";
  row.shape = std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
  row.dtype = "bf16";
  row.us = gpu.time_us(ours, calls);
  if (cublas.found()) {
    row.peer = "cuBLASLt";
    row.peer_us = cublas.time_us(
        gpu,
        {s.m, s.n, s.k, [&](int i) { return x[static_cast<size_t>(i % sets)].data(); },
         [&](int i) { return w[static_cast<size_t>(i % sets)].data(); },
         [&](int i) { return out[static_cast<size_t>(i % sets)].data(); }},
        calls);
    row.us = std::min(row.us, gpu.time_us(ours, calls));  // before and after the peer
  }
  row.tflops = flops / row.us * 1e-6;
  row.share = row.tflops / kPeak;
  print(gpu, row);
}

/// The fp8 product, its quantisation of x included, beside the bf16 product.
void run_fp8(Gpu& gpu, const Shape& s) {
  const int sets = static_cast<int>(
      std::min<int64_t>(8, 1 + (int64_t{120} << 20) / (s.m * s.k * 2 + s.n * s.k + s.m * s.n * 2)));
  const int64_t columns = s.silu_mul ? s.n / 2 : s.n;
  ArenaScope scope(gpu.stream().scratch());
  std::vector<Buffer> x, wide, out;
  std::vector<cuda::QuantizedRows> w;
  for (int i = 0; i < sets; ++i) {
    x.push_back(random_device_bf16(gpu, s.m * s.k, 3 * static_cast<uint64_t>(i) + 1));
    wide.push_back(random_device_bf16(gpu, s.n * s.k, 3 * static_cast<uint64_t>(i) + 2));
    out.push_back(random_device_bf16(gpu, s.m * s.n, 3 * static_cast<uint64_t>(i) + 3));
    w.push_back(cuda::quantize_rows(gpu.stream(), {wide.back().data(), DType::kBF16, {s.n, s.k}}));
  }
  const auto gemm_of = [&](size_t i) {
    cuda::Gemm gemm;
    gemm.a = TensorView(x[i].data(), DType::kBF16, {s.m, s.k});
    gemm.n = s.n;
    gemm.out = TensorView(out[i].data(), DType::kBF16, {s.m, columns});
    gemm.epilogue = s.silu_mul ? Epilogue::kSiluMul : Epilogue::kStore;
    return gemm;
  };
  const auto fp8 = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    ArenaScope inner(gpu.stream().scratch());
    cuda::Gemm gemm = gemm_of(i);
    gemm.b = reinterpret_cast<const std::byte*>(w[i].codes);
    gemm.b_row_bytes = w[i].stride;
    cuda::gemm_fp8(gpu.stream(), gemm, cuda::quantize_rows(gpu.stream(), gemm.a),
                   {w[i].scales, (s.k + 127) / 128, 0});
  };
  const auto bf16 = [&](int call) {
    const auto i = static_cast<size_t>(call % sets);
    cuda::Gemm gemm = gemm_of(i);
    gemm.b = wide[i].data();
    gemm.b_row_bytes = s.k * 2;
    cuda::gemm_bf16(gpu.stream(), gemm);
  };
  const double flops = 2.0 * static_cast<double>(s.m * s.n) * static_cast<double>(s.k);
  const int calls = static_cast<int>(std::max(4.0, std::min(40.0, 4e12 / flops)));
  Row row;
  row.kernel = s.silu_mul ? "gemm_fp8_silu_mul" : "gemm_fp8";
  row.shape = std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
  row.dtype = "fp8";
  row.us = gpu.time_us(fp8, calls);
  row.peer = "weft bf16";
  row.peer_us = gpu.time_us(bf16, calls);
  row.us = std::min(row.us, gpu.time_us(fp8, calls));
  row.tflops = flops / row.us * 1e-6;
  row.share = row.tflops / (2 * kPeak);
  print(gpu, row);
}

}  // namespace
}  // namespace weft::bench

int main(int argc, char** argv) {
  using namespace weft::bench;
  Gpu gpu;
  CublasLt cublas;
  const bool bf16 = argc < 3 || std::strcmp(argv[2], "bf16") == 0;
  const bool fp8 = argc < 3 || std::strcmp(argv[2], "fp8") == 0;
  std::vector<Shape> shapes = {{4096, 4096, 4096}, {8192, 8192, 8192}};
  for (const int64_t m : {512, 2048, 8192}) {
    shapes.push_back({m, 6144, 4096});
    shapes.push_back({m, 4096, 4096});
    shapes.push_back({m, 24576, 4096, true});
    shapes.push_back({m, 4096, 12288});
  }
  for (const int64_t m : {16, 64, 128}) shapes.push_back({m, 4096, 4096});
  for (const Shape& s : shapes) {
    const std::string name =
        std::to_string(s.m) + "x" + std::to_string(s.n) + "x" + std::to_string(s.k);
    if (argc > 1 && name.find(argv[1]) == std::string::npos) continue;
    if (bf16) run(gpu, cublas, s);
    if (fp8) run_fp8(gpu, s);
  }
}
